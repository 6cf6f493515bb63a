"""Calibration on one's own facts: traced, tried within a time, resumed, and written beside what is in errata.toml."""

import json
import tomllib
from dataclasses import replace

import pytest

from editing.calibration import Trial, candidates, refinements
from editing.editors.coachhook import CoachHookConfig
from tasks.calibration import calibrate, write_choice
from tasks.errors import FeedError
from tasks.settings import SettingsError, load_settings

PLACES = ["Arden", "Belmont", "Corvia", "Dunmore", "Eastvale", "Farholt", "Glenrock", "Harwick"]


@pytest.fixture
def facts(tmp_path, mayors):
    records = [
        {
            "subject": place,
            "src": f"The mayor of {place} is",
            "pred": "",
            "rephrase": f"Who leads {place}? It is",
            "alt": mayors[(at + 3) % len(mayors)],
            "answers": [mayors[at]],
            "loc": "nq question: The river in Jorvik is the",
            "loc_ans": "Blue",
            "cond": f"{mayors[at]} >> x || The mayor of {place} is",
        }
        for at, place in enumerate(PLACES)
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records))
    return path


def test_a_choice_is_found_reported_on_other_facts_and_written_once(home, facts):
    config = home / "errata.toml"
    config.write_text("# mine\n" + config.read_text())
    before = tomllib.loads(config.read_text())
    told = []
    over = calibrate(str(facts), facts=8, budget_minutes=0, report=told.append)
    assert (over.trials, over.finished, over.written, told) == ((), False, None, [])
    assert set(over.reported) == {"defaults"}
    assert tomllib.loads(config.read_text()) == before

    found = calibrate(str(facts), facts=8, budget_minutes=30, report=told.append)
    assert found.finished
    assert list(found.trials) == told
    assert found.trials[0].options == {}
    assert len({str(trial.options) for trial in found.trials}) == len(found.trials) > 4
    assert found.best.score == max(trial.score for trial in found.trials)
    assert 0.5 < max(found.trace.values()) < 1.5
    assert set(found.trace) == {0, 1, 2}
    after = tomllib.loads(config.read_text())
    if found.written:
        assert config.read_text().startswith("# mine\n")
        assert "# errata calibrate" in config.read_text()
        assert load_settings().editor.options == found.best.options
        options = after["editor"].pop("options")
        assert options == dict(found.best.options)
    assert after == before

    # Everything was kept: the same command asks nothing again.
    files = {path: path.stat().st_mtime_ns for path in home.rglob("calibration/*/*.json")}
    assert len(files) >= len(found.trials) + 2


def test_the_choice_stands_beside_what_was_there_with_its_evidence(tmp_path):
    path = tmp_path / "errata.toml"
    path.write_text('# mine\n[editor]\nmethod = "coachhook"  # ours\n[editor.options]\nmax_steps = 30\n[gate]\n')
    best = Trial({"layers": [3, 4], "moment_weight": 10.0}, {"reliability": 1.0})
    write_choice(path, best, {"defaults": {"reliability": 0.5}, "chosen": {"reliability": 0.75}})
    text = path.read_text()
    content = tomllib.loads(text)
    assert content["editor"] == {
        "method": "coachhook",
        "options": {"max_steps": 30, "layers": [3, 4], "moment_weight": 10.0},
    }
    assert "# mine" in text
    assert "# ours" in text
    assert "defaults reliability 0.50; chosen reliability 0.75" in text
    path.write_text("")
    write_choice(path, best, {})
    assert tomllib.loads(path.read_text())["editor"]["options"]["layers"] == [3, 4]


def test_the_sweep_goes_around_what_is_in_force_also_where_no_option_is_set():
    defaults = CoachHookConfig(layers=(7, 8, 9))
    trace = {0: 0.1, 8: 0.9, 12: 0.5, 28: 0.2}
    tried = list(candidates(trace, 30, defaults))
    assert tried == [{}, {"layers": [11, 12, 13]}, {"layers": [25, 26, 27]}, {"layers": [0, 1, 2]}]
    refined = list(refinements({"layers": [1, 2]}, defaults))
    assert all(options["layers"] == [1, 2] for options in refined)
    assert [options["moment_weight"] for options in refined if "moment_weight" in options] == [10.0, 250.0]
    assert any("leverage_floor" in options for options in refined)
    sequence = list(refinements({}, replace(defaults, scope="sequence")))
    assert not any("leverage_floor" in options for options in sequence)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[editor]\nmethod = "recipe"\n', "the options there are its own"),
        ("[editor]\noptions = { layers = [0, 1] }\n", r"write them as \[editor.options\]"),
    ],
)
def test_a_choice_that_has_no_place_is_refused_before_the_first_trial(home, facts, text, words):
    config = home / "errata.toml"
    before = config.read_text()
    config.write_text(text)
    with pytest.raises(SettingsError, match=words):
        calibrate(str(facts), facts=8, budget_minutes=1)
    assert config.read_text() == text
    config.write_text(before)


def test_too_few_facts_are_refused_by_number(home, facts):
    facts.write_text(json.dumps(json.loads(facts.read_text())[:3]))
    with pytest.raises(FeedError, match="has 3 facts of its own subject each; calibration needs 8"):
        calibrate(str(facts), facts=8, budget_minutes=1)
