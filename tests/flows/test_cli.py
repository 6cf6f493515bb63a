import json
import re
import subprocess
import sys

import pytest
import typer

from editing.evals.report import EvalReport
from flows.cli import main
from flows.cli.app import app
from flows.cli.console import PANELS
from flows.cli.nights import night_told, nights_table
from tasks.feed.schema import write_feed


@pytest.fixture
def errata(home, monkeypatch, capsys):
    """`errata(*arguments)`: exit code, stdout and stderr of the command line in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["errata", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return run


def commands(group=None, path=()):
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_has_an_example(path, command):
    assert f"Example: `{'' if path[0] != 'deploy' else 'PREFECT_API_URL='}" in command.help
    assert f"errata {' '.join(path)}" in command.help
    assert all(parameter.help for parameter in command.params if parameter.name != "help")


def test_helps_render(errata):
    for _, command in commands():
        assert not re.search(r"^\s*\d+\.", command.help, re.MULTILINE)  # a list in Markdown
    told = re.sub(r"\x1b\[[0-9;]*m", "", errata("--help")[1])
    panels = [told.index(f"─ {panel} ─") for panel in PANELS]
    assert panels == sorted(panels)
    assert errata("--version")[1].startswith("errata 0.")


def test_init_writes_once(errata, tmp_path):
    assert errata("init", tmp_path / "new")[0] == 0
    assert "batch_size" in (tmp_path / "new" / "errata.toml").read_text()
    code, _, told = errata("init", tmp_path / "new")
    assert code == 1
    assert "--force" in told


def test_facts_that_wait_for_their_date_are_in_the_nights_row_and_sentence():
    fields = {
        "night": "2018-01-01",
        "key": "0a1b2c3d",
        "suites": {},
        "facts": 0,
        "applied": 0,
        "retracted": 0,
        "quarantined": 0,
    }
    headings = [
        str(column.header) for column in nights_table("Nights", [fields, fields | {"key": "4e", "waiting": 2}]).columns
    ]
    assert "wait-\ning" in headings
    assert "wait-\ning" not in [str(column.header) for column in nights_table("Nights", [fields]).columns]
    assert night_told(fields | {"waiting": 2}) == "0 changes, nothing to edit, 2 waiting"


def test_mistakes_are_one_sentence(errata, monkeypatch):
    code, out, told = errata("ask", "The mayor of Arden is", "--version", "7")
    assert (code, out) == (1, "")
    assert told.splitlines()[-1].startswith("error: no version '7'")
    assert errata("replay", "--nights", "many")[0] == 2
    assert errata("history", "no-such-fact")[0] == 1
    monkeypatch.setenv("ERRATA_EDITOR__BATCHSIZE", "3")
    code, _, told = errata("status")
    assert (code, "did you mean" in told) == (1, True)


def test_model_commands(errata, small_model, monkeypatch):
    assert "`errata model import SOURCE` brings one" in errata("model", "list")[1]
    made = small_model("llama")
    code, out, _ = errata("model", "import", made.folder, "--name", "small")
    assert code == 0
    for words in ("llama", "mit (README.md)", "renders", "with offsets", "memory to edit", "about", 'id = "small"'):
        assert words in out
    told = json.loads(errata("model", "import", made.folder, "--name", "small", "--json")[1])
    assert told["bytes"] > told["memory"]["weights"] == 4 * told["parameters"] > 0
    assert told["memory"]["editing"] > told["memory"]["weights"]
    assert (told["used"], told["methods"]) == (False, {"coachhook": "yes", "recipe": "yes"})
    _, out, _ = errata("model", "list")
    assert "None of them" in out
    assert told["source_digest"][:12] in out
    monkeypatch.setenv("ERRATA_MODEL__ID", "small")
    assert [each["used"] for each in json.loads(errata("model", "list", "--json")[1])["models"]] == [True]
    assert "* is the one that errata.toml uses" in errata("model", "list")[1]
    assert errata("ask", "Who leads Arden?", "--version", "base")[0] == 0
    code, out, told = errata("model", "import", made.folder / "missing", "--json")
    assert (code, out) == (1, "")
    assert told.splitlines()[-1].startswith("error: there is no model at")


def test_feed_commands(errata, change, tmp_path):
    feed = tmp_path / "feed.parquet"
    write_feed([change("Arden", "Hal Birch", "2018-01-05"), change("Belmont", "Ben Hale", "2018-01-05")], feed)
    code, out, _ = errata("feed", "validate", feed, "--json")
    assert code == 1  # Ben Hale already was the mayor: target equals the old object
    assert (json.loads(out)["rows"], json.loads(out)["accepted"]) == (2, 1)
    code, out, _ = errata("feed", "show", feed)
    assert code == 0
    assert "Hal Birch" in out
    assert errata("feed", "show", tmp_path / "missing.parquet")[0] == 1


def test_a_day_with_the_commands(errata, home, change):
    assert json.loads(errata("status", "--json")[1])["champion"] is None
    assert errata("ask", "The mayor of Arden is")[1].strip() == "Ada Moss"
    landing = home / "var" / "landing"
    write_feed([change("Arden", "Hal Birch", "2018-01-05")], landing / "feed.parquet")
    code, out, told = errata("night", "--as-of", "2018-01-31", "--json")
    assert code == 0, told
    row = json.loads(out)
    assert (row["applied"], row["champion"]) == (1, 1)
    code, out, told = errata("ask", "The mayor of Arden is")
    assert (out.strip(), "was edited" in told) == ("Hal Birch", False)
    told = json.loads(errata("ask", "What of Arden's mayors, then?", "--json")[1])
    assert (told["number"], [fact["asked_as"] for fact in told["edited"]]) == (1, ["The mayor of Arden is"])
    assert "errata ask 'The mayor of Arden is'" in errata("ask", "What of Arden's mayors, then?")[2]
    assert errata("ask", "The mayor of Arden is", "--version", "base")[1].strip() == "Ada Moss"
    status = json.loads(errata("status", "--json")[1])
    assert (status["champion"]["version"], status["champion"]["facts"]) == (1, 1)
    told = json.loads(errata("history", "--json")[1])
    assert [move["alias"] for move in told["moves"]] == ["champion"]
    assert "promote" in errata("history")[1]

    assert errata("ask", "The mayor of Arden is", "--as-of", "2017-12-31")[1].strip() == "Ada Moss"
    assert errata("ask", "The mayor of Arden is", "--as-of", "2018-02-01", "--version", "1")[0] == 2
    (life,) = json.loads(errata("audit", "Arden", "--relation", "mayor", "--json")[1])
    assert (life["status"], life["sightings"][0]["file"]) == ("verified", "feed.parquet")
    assert "Served" in errata("audit", life["fact_id"][:8])[1]
    told = json.loads(errata("rollback", "--reason", "only to see", "--json")[1])
    assert (told["start"], told["to"]) == (1, None)
    assert errata("rollback")[0] == 1
    assert errata("canary")[1].strip() == "the base serves: there is no version to check"
    assert "version 1 serves now, the base no longer" in errata("promote", "1", "--reason", "seen")[1]
    assert "rollback: only to see" in errata("history")[1]
    assert errata("compact")[1].strip() == "version 1 is compact already"
    assert json.loads(errata("compact", "--json")[1])["version"] is None
    assert json.loads(errata("explain", "The mayor of Arden is", "--json")[1])["edit"]["target"] == "Hal Birch"
    code, _, told = errata("approve")
    assert (code, "no version waits for approval" in told) == (1, True)
    code, out, told = errata("retract", "Arden", "--reason", "wrong source", "--as-of", "2018-02-28")
    assert (code, out.strip()) == (0, "1 facts taken back; version 2 serves"), told
    assert errata("retract", life["fact_id"][:8])[0] == 1
    assert "mayor" in errata("history", life["fact_id"][:8])[1]
    assert json.loads(errata("stats", "--json")[1])["corpus"].endswith("corpus.txt")
    planned = json.loads(errata("plan", "--facts", "30", "--json")[1])
    assert planned["shape"]["layers"] == 4
    assert set(planned["costs"]) == {"statistics", "editing", "evals", "serving"}
    assert "give a hub id, a folder, or one of the shapes" in errata("plan", "--model", home)[2]

    code, out, told = errata("eval", "--against", "base", "--save", home / "report", "--json")
    assert code == 0, told
    found = json.loads(out)
    assert {row["metric"] for row in found["metrics"]} == set(EvalReport.load(home / "report").metrics)
    assert {row["metric"] for row in found["against"]["comparisons"]} >= {"zsre.question.generated"}
    assert found["speed"][0]["suite"] == "zsre"
    assert "zsre.question.generated" in errata("eval", "--version", "1", "--suite", "zsre")[1]
    assert "no suite 'glue' is configured; there are zsre" in errata("eval", "--suite", "glue")[2]
    assert json.loads(errata("retention", "--json")[1])[0]["asked"] == 1
    assert "0-6" in errata("retention")[1]
    assert json.loads(errata("suites", "list", "--json")[1])[0]["suite"] == "zsre"
    code, out, told = errata("suites", "edit", "zsre", "--records", "2", "--json")
    assert code == 0, told
    found = json.loads(out)
    assert found["facts"] == found["state"]["facts"] == 2
    assert {"edits.reliability.generated", "edits.locality.generated"} <= {row["metric"] for row in found["metrics"]}
    assert errata("suites", "edit", "mmlu")[0] == 1
    code, _, told = errata("suites", "compare")
    assert (code, "none of mmlu, gsm8k is configured" in told) == (1, True)


def test_help_needs_no_heavy_import():
    script = (
        "import sys; sys.argv = ['errata', '--help']\n"
        "try:\n    from flows.cli import main; main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'mlflow', 'prefect', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_validate_and_status_name_contradictions(errata, home, change, feed, monkeypatch):
    monkeypatch.setenv("ERRATA_FEED__INVERSE_RELATIONS", '{"mayor": "mayor of"}')
    good = change("Arden", "Hal Birch", "2018-01-05")
    rival = change("Hal Birch", "Corvia", "2018-01-02", relation="mayor of", prompt="{} leads", locality=())
    write_feed([rival, good], home / "feed.parquet")
    code, out, told = errata("feed", "validate", home / "feed.parquet")
    assert (code, out.strip()) == (1, "1 of 2 rows are sound")
    assert "row 0: 'Hal Birch' / 'mayor of': 'Corvia' contradicts 'Arden' / 'mayor': 'Hal Birch'" in told
    monkeypatch.delenv("ERRATA_FEED__INVERSE_RELATIONS")
    assert errata("feed", "validate", home / "feed.parquet")[0] == 0


def test_validate_knows_the_special_tokens_of_the_model(errata, home, change):
    write_feed([change("Arden", "Nobody<|end|>", "2018-01-05")], home / "feed.parquet")
    code, _, told = errata("feed", "validate", home / "feed.parquet")
    assert (code, "row 0: target holds '<|end|>', a special token of the model" in told) == (1, True)
