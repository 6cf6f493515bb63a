"""Commands that need neither a model nor a server."""

import csv
import json
import logging
import subprocess
import sys
import time
from importlib import metadata

import pytest

from editing.errors import ModelError
from editing.models.loading import _require_device
from flows.cli import main
from flows.cli.nights import night_rows
from tasks import checks, pages, waiting
from tasks.checks import METRICS, OF_NIGHTS, SettingsError, check_room, check_settings
from tasks.feed.template import EXAMPLES
from tasks.night.evaluate import EDITED
from tasks.settings import HASTY, PATIENT, QUIET, load_settings
from tasks.suites import ALMANAC_SOURCES, configured_suites
from tasks.waiting import UnreachableError, require_prefect, waiting_for


@pytest.fixture
def errata(tmp_path, monkeypatch, capsys):
    """`errata(*arguments)` in an empty folder: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("ERRATA_CONFIG", "PREFECT_API_URL", "PREFECT_HOME", *QUIET, *HASTY, *PATIENT):
        monkeypatch.setenv(name, "")  # recorded, so that what the command sets is undone
        monkeypatch.delenv(name)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["errata", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return run


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("EDITOR__METHOD", "coachook", "editor.method cannot be 'coachook'; did you mean coachhook?"),
        ("EDITOR__OPTIONS", '{"layer": [1]}', "cannot be 'layer'; did you mean layers?"),
        ("EDITOR__OPTIONS", '{"scope": "whole"}', "scope 'whole' is unknown; use one of leverage"),
        ("EVALUATION__SUITES", '{"zsree": {"path": "."}}', "did you mean zsre?"),
        (
            "GATE__POLICY",
            '{"floors": {"edits.reliabilty.generated": 0.6}}',
            "cannot be 'edits.reliabilty.generated'; did you mean edits.reliability.generated?",
        ),
        ("GATE__POLICY", '{"floor": {}}', "a field of [gate.policy] cannot be 'floor'; did you mean floors?"),
        ("GATE__POLICY", '{"base_margins": {"mmlu.accuracy.option_likelihood": 5}}', "give a share between 0 and 1"),
        ("STATISTICS__CORPUS", "nowhere.txt", "nowhere.txt': there is nothing; correct the path"),
        ("MODEL__ID", "./nowhere", "nowhere': there is nothing; correct the path"),
        ("MODEL__DTYPE", "float31", "did you mean float32?"),
        ("CANARY__SUITE", "glue", "there are zsre, counterfact, mmlu, gsm8k"),
    ],
)
def test_settings_are_checked_by_every_command(errata, monkeypatch, setting, value, said):
    monkeypatch.setenv(f"ERRATA_{setting}", value)
    for command in ("status", "stats"):
        code, out, told = errata(command)
        assert (code, out) == (1, "")
        assert said in told


def test_the_checks_know_every_metric():
    measured = {suite.name: set(suite.metric_sizes()) for suite in configured_suites(load_settings())}
    assert measured == {name: {f"{name}.{metric}" for metric in METRICS[name]} for name in ALMANAC_SOURCES}
    assert {f"{name}.{metric}" for name in OF_NIGHTS for metric in METRICS[name]} >= set(EDITED)


@pytest.mark.parametrize("method", ["coachhook", "recipe", "both"])
def test_init_proposes_what_runs(errata, tmp_path, method):
    model = tmp_path / "mine"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 30}')
    assert errata("init", ".", "--model", "mine", "--method", method)[0] == 0
    text = (tmp_path / "errata.toml").read_text()
    settings = load_settings()
    check_settings(settings)
    assert (settings.model.id, settings.editor.method) == (str(model), method)
    for words in ("# path = ", "#   target_old: the object", "The methods: coachhook, "):
        assert words in text
    assert ("# layers = [7, 8, 9]" in text) == (method != "recipe")
    every_default = "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines())
    (tmp_path / "errata.toml").write_text(every_default)
    assert errata("init", ".", "--method", method)[0] == 1
    assert errata("init", "other", "--model", "./nothing")[2].startswith("error: there is no model at nothing")


def test_a_conversion_loses_nothing_silently(errata, tmp_path):
    assert errata("feed", "template", "facts.csv")[0] == 0
    assert errata("feed", "template", "facts.csv")[0] == 1
    code, out, _ = errata("feed", "convert", "facts.csv", "feed.parquet", "-q")
    assert (code, out.splitlines()[0]) == (0, "2 fact changes from 2 records in feed.parquet")
    assert "Harbour Works Ltd." in errata("feed", "show", "feed.parquet")[1]
    with (tmp_path / "facts.csv").open("a", newline="") as file:
        csv.DictWriter(file, list(EXAMPLES[0])).writerow({"subject": "Norland"})
    before = (tmp_path / "feed.parquet").read_bytes()
    code, _, told = errata("feed", "convert", "facts.csv", "feed.parquet")
    assert (code, "--force" in told) == (1, True)
    assert (tmp_path / "feed.parquet").read_bytes() == before
    code, _, told = errata("feed", "convert", "facts.csv", "feed.parquet", "--force")
    assert code == 3
    assert "skipped: record 2: " in told
    assert [
        skip["record"]
        for skip in json.loads(errata("feed", "convert", "facts.csv", "b.parquet", "--json")[1])["skipped"]
    ] == [2]
    assert "ends in .parquet" in errata("feed", "convert", "facts.csv", "feed.csv")[2]
    (tmp_path / "lies.csv").write_bytes(before)
    assert "is a Parquet file, whatever its name says" in errata("feed", "convert", "lies.csv", "c.parquet")[2]
    assert "there is no file nowhere.json" in errata("feed", "convert", "nowhere.json", "c.parquet")[2]


def test_version_quiet_verbose_and_the_log(errata, tmp_path):
    assert errata("--version")[1].strip() == f"errata {metadata.version('errata')}"
    code, _, told = errata("feed", "show", "nowhere.parquet", "-v")
    assert code == 1
    assert "Traceback" in told
    log = (tmp_path / "var" / "logs" / "errata.log").read_text()
    assert "errata feed show nowhere.parquet" in log
    assert "ended with code 1" in log
    assert len(errata("feed", "show", "nowhere.parquet", "-q")[2].splitlines()) == 1


def test_bytes_that_are_no_text_are_refused_at_once(errata):
    for command in ("ask", "explain"):
        assert errata(command, "The \udcff is")[2].startswith("error: there are bytes that are no UTF-8 text")


def test_a_disk_without_room_is_refused_before_work(errata, monkeypatch):
    monkeypatch.setattr(checks, "LEAST_FREE", 10**18)
    with pytest.raises(SettingsError, match=r"the disk is full: .* has [0-9]+ MB left"):
        check_room(load_settings())


def test_what_takes_long_is_told(monkeypatch):
    told = []
    heard = logging.Handler()
    heard.emit = lambda record: told.append(record.getMessage())
    monkeypatch.setattr(waiting, "SECONDS_UNTOLD", 0.05)
    monkeypatch.setattr(waiting.waiting, "handlers", [heard])
    monkeypatch.setattr(waiting.waiting, "level", logging.INFO)
    with waiting_for("a server at http://ada:secret@host"):
        time.sleep(0.3)
    with waiting_for("another"):
        pass
    time.sleep(0.2)
    assert told == ["waiting for a server at http://ada:***@host"]


def test_a_server_that_is_away_is_told_at_once(errata, monkeypatch):
    with pytest.raises(UnreachableError, match=r"does not answer .*prefect server start"):
        require_prefect("http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_API_URL", "http://ada:secret@127.0.0.1:9/api")
    code, _, told = errata("approve")
    assert (code, "secret" in told) == (1, False)


def test_servers_end_with_all_that_they_started():
    script = "import subprocess, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdout is not None
    server.stdout.readline()
    pages._end([server])
    assert server.poll() is not None
    assert _in_group(server.pid) == []


def _in_group(group):
    """What runs in a process group, without what ended and was not yet collected."""
    rows = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    return [row for row in map(str.split, rows.splitlines()) if row[0] == str(group) and not row[1].startswith("Z")]


def test_a_device_that_is_not_there_is_a_sentence():
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(ModelError, match=f"cannot go to device '{device}'"):
            _require_device(device)


def test_nights_of_one_date_are_told_apart():
    suites = {"suites": {}}
    rows = night_rows([{"night": "d", "key": "abcdefgh", **suites}, {"night": "d", "key": "bcdefghi", **suites}])
    assert [row["night"] for row in rows] == ["d abcdef", "d bcdefg"]
    assert [row["night"] for row in night_rows([{"night": "d", "key": "abcdefgh", **suites}])] == ["d"]
