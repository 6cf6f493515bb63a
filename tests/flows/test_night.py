import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from editing.errors import PolicyError
from editing.facts import Operation
from flows.night import NightConfig, night
from tasks.ask import ask
from tasks.errors import LeaseHeldError
from tasks.feed.schema import write_feed
from tasks.forgetting import observations
from tasks.night.summary import NOTHING, finished_nights
from tasks.registry import CHALLENGER, CHAMPION
from tasks.workspace import Workspace, open_workspace

JANUARY, FEBRUARY, MARCH = (datetime(2018, month, 28, tzinfo=UTC) for month in (1, 2, 3))
# Every place between two effects of a night of two batches, in the order in which a run that goes on meets it.
CHECKPOINTS = (
    *("received", "planned"),
    *("edited", "kept", "committed") * 2,
    *("evaluated", "evaluated:2", "judged"),
    *("logged", "registered", "version recorded", "recorded"),
    *("closed", "half moved", "moved"),
)


@pytest.fixture
def feed():
    def write(space: Workspace, name: str, *changes) -> None:
        write_feed(changes, space.settings.landing / f"{name}.parquet")

    return write


@pytest.fixture
def first_feed(feed, change):
    def write(space: Workspace) -> None:
        feed(
            space,
            "january",
            change("Arden", "Hal Birch", "2018-01-05"),
            change("Arden", "Finn Oake", "2018-01-04"),
            change("Belmont", "Cleo Vance", "2018-01-06"),
            change("Corvia", "Eve Lark", "2018-01-07"),
            change("Dunmore", "Dov Stern", "2018-01-08", target_old=None),
            change("Eastvale", "Gia Reed", "2018-06-01"),
        )

    return write


def test_nights(home, change, feed, first_feed):
    space = open_workspace()
    first_feed(space)
    row = night(NightConfig(as_of=JANUARY))
    assert (row.facts, row.applied, row.known, row.superseded, row.refused) == (5, 3, 1, 1, 0)
    assert (row.verdict, row.version, row.champion) == ("promote", 1, 1)
    assert row.reliability >= 0.5
    assert ask(space, ["The mayor of Dunmore is"], "base") == ["Dov Stern"]
    assert set(row.timing) == {"editing", "edits", "retention", "zsre"}
    assert sum(part["share"] for part in row.timing.values()) == pytest.approx(1, abs=1e-3)
    assert row.timing["zsre"]["computed"] < row.timing["zsre"]["asked"]  # what no edit reaches is the base's
    assert row.reach["edit prompts"] == 1
    assert set(row.gauges) == {"alpha, layer 0", "alpha, layer 1"}
    run = space.registry._client.get_run(space.registry.get(1).run_id)
    logged = {f"{name}/{figure}" for name in ("timing/zsre", "timing/editing") for figure in ("seconds", "share")}
    logged |= {"timing/zsre/items_per_second", "scope/edit prompts/hits", "scope/zsre/tokens", "gauges/alpha layer 1"}
    assert logged <= set(run.data.metrics)
    steps = space.registry._client.get_metric_history(run.info.run_id, "canary/perplexity_ratio")
    assert [metric.step for metric in steps] == [0, 1]

    # The same night again finds nothing to do.
    again = night(NightConfig(as_of=JANUARY))
    assert (again.verdict, again.facts, again.champion) == (NOTHING, 0, 1)
    assert len(space.registry.versions()) == 1

    # A newer holder, a late report of an older one, and a retraction.
    feed(
        space,
        "february",
        change("Arden", "Gia Reed", "2018-02-05"),
        change("Belmont", "Ada Moss", "2018-01-02"),
        change("Corvia", "", "2018-02-07", operation=Operation.RETRACT, target_old=None),
    )
    (space.settings.landing / "torn.parquet").write_bytes(b"PAR1 no more")
    row = night(NightConfig(as_of=FEBRUARY))
    assert (row.applied, row.retracted, row.superseded, row.version) == (1, 1, 1, 2)
    held = {fact.subject: fact.target for fact in space.ledger.facts_in_state(space.ledger.version(2).state_digest)}
    assert held == {"Arden": "Gia Reed", "Belmont": "Cleo Vance"}
    assert [record.outcome.value for record in space.ledger.files()].count("quarantined") == 1
    assert space.registry.get(CHAMPION).number == row.champion == 2
    assert space.registry.aliased(CHALLENGER) is None
    assert [(move.from_version, move.to_version) for move in space.ledger.alias_moves(CHAMPION)] == [(None, 1), (1, 2)]
    asked = observations(space).asked
    assert sorted(item.days for item in asked) == [0, 0, 0, 0, 31]  # Belmont's fact was asked again in February
    assert "plots/forgetting-curve.png" in {
        file.path for file in space.registry._client.list_artifacts(space.registry.get(2).run_id, "plots")
    }
    tags = space.registry.get(2).tags
    assert tags["errata.parent"] == space.ledger.version(1).state_digest
    assert tags["errata.base_fingerprint"] == space.base.fingerprint

    # The champion comes from the registry alone, when the kept states are gone.
    answer = ask(space, ["The mayor of Arden is"])
    shutil.rmtree(space.settings.states)
    shutil.rmtree(space.settings.cache)
    assert ask(space, ["The mayor of Arden is"]) == answer

    # An alias that somebody moved in MLflow stays there, and the ledger says so; what it undid is to be done again.
    space.registry._client.set_registered_model_alias(space.registry.name, CHAMPION, "1")
    row = night(NightConfig(as_of=FEBRUARY, dry_run=True))
    assert (row.verdict, row.applied, row.champion) == ("dry run: promote", 1, 1)
    assert space.ledger.alias_moves(CHAMPION)[-1].who == "MLflow"
    assert len(space.registry.versions()) == 2


def test_a_night_may_only_take_back(home, change, feed):
    space = open_workspace()
    feed(space, "january", change("Belmont", "Cleo Vance", "2018-01-06"))
    assert night(NightConfig(as_of=JANUARY)).champion == 1
    feed(space, "february", change("Belmont", "", "2018-02-01", operation=Operation.RETRACT, target_old="Cleo Vance"))
    row = night(NightConfig(as_of=FEBRUARY))
    assert (row.applied, row.retracted, row.champion) == (0, 1, 2)
    question = ["The mayor of Belmont is"]
    assert ask(space, question) == ask(space, question, "base")


def test_a_failed_gate_leaves_the_champion_where_it_was(home, first_feed, monkeypatch):
    monkeypatch.setenv("ERRATA_GATE__POLICY", '{"floors": {"zsre.unrelated.generated": 0.5}}')
    space = open_workspace()
    first_feed(space)
    row = night(NightConfig(as_of=JANUARY))
    assert (row.verdict, row.version, row.champion) == ("reject", 1, None)
    assert space.champion is None
    assert space.registry.aliased(CHAMPION) is None
    assert space.registry.get(CHALLENGER).tags["errata.verdict"] == "reject"
    waiting = {fact.subject for fact in space.ledger.pending(JANUARY)}
    assert waiting == {"Arden", "Belmont", "Corvia"}


def test_a_batch_beyond_the_canaries_limit_is_refused(home, first_feed, monkeypatch):
    monkeypatch.setenv("ERRATA_CANARIES__WEIGHT_CHANGE", "0.000001")
    space = open_workspace()
    first_feed(space)
    row = night(NightConfig(as_of=JANUARY))
    assert (row.verdict, row.refused, row.applied, row.champion) == (NOTHING, 3, 0, None)
    assert "weight_change" in space.ledger.commits(row.key)[0].detail["refused"]


def test_what_the_suites_cannot_decide_is_said_before_the_night(home, first_feed, monkeypatch):
    monkeypatch.setenv("ERRATA_GATE__POLICY", '{"base_margins": {"zsre.question.generated": 0.001}}')
    space = open_workspace()
    first_feed(space)
    with pytest.raises(PolicyError, match="items"):
        night(NightConfig(as_of=JANUARY))
    assert not space.ledger.files()


def test_one_night_at_a_time(home):
    with open_workspace().ledger.lease("night", "somebody else"), pytest.raises(LeaseHeldError, match="somebody else"):
        night(NightConfig(as_of=JANUARY))


def history_of(space: Workspace) -> dict:
    """Everything that a night leaves, without times."""
    facts = sorted(space.ledger.facts([f.fact_id for f in space.ledger.pending(MARCH.replace(year=2030))]), key=str)
    versions = space.ledger.versions()
    ids = {fact.fact_id for record in versions for fact in space.ledger.facts_in_state(record.state_digest)}
    events = {i: [(e.kind, e.state_digest, e.detail) for e in space.ledger.history(i)] for i in sorted(ids)}
    return {
        "pending": facts,
        "versions": [(v.version, v.state_digest, v.parent_digest, v.verdict) for v in versions],
        "registered": [(v.number, v.digest, v.tags["errata.verdict"]) for v in space.registry.versions()],
        "aliases": {
            alias: space.registry.aliased(alias) and space.registry.get(alias).number
            for alias in (CHAMPION, CHALLENGER)
        },
        "moves": [(m.alias, m.from_version, m.to_version, m.why) for m in space.ledger.alias_moves()],
        "events": events,
        "nights": [
            {name: value for name, value in row.to_dict().items() if name not in ("seconds", "timing")}
            for row in finished_nights(space.ledger)
            if row.version is not None
        ],
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_step_it_ends_like_an_unbroken_night(home, server, first_feed, tmp_path, monkeypatch):
    script = (
        "from datetime import datetime, UTC; from flows.night import *;"
        "night(NightConfig(as_of=datetime(2018, 1, 28, tzinfo=UTC)))"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(place, fault=""):
        environment = {
            **os.environ,
            "PREFECT_API_URL": server,
            "ERRATA_HOME": str(place),
            **({"ERRATA_FAULT": fault} if fault else {}),
        }
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    homes = {name: tmp_path / name for name in ("unbroken", "killed")}
    for place in homes.values():
        monkeypatch.setenv("ERRATA_HOME", str(place))
        first_feed(open_workspace())
    unbroken = run(homes["unbroken"])
    assert unbroken.returncode == 0, unbroken.stderr
    for fault in CHECKPOINTS:
        killed = run(homes["killed"], fault)
        assert killed.returncode == -signal.SIGKILL, f"{fault}: {killed.stderr}"
    resumed = run(homes["killed"])
    assert resumed.returncode == 0, resumed.stderr
    found = {}
    for name, place in homes.items():
        monkeypatch.setenv("ERRATA_HOME", str(place))
        found[name] = history_of(open_workspace())
    assert found["killed"] == found["unbroken"]
    assert found["killed"]["aliases"] == {CHAMPION: 1, CHALLENGER: None}
