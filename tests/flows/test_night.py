import shutil
from datetime import UTC, datetime

import pytest

from editing.errors import PolicyError, StateError
from editing.facts import Operation
from flows.night import NightConfig, night
from tasks.ask import ask
from tasks.champion.moves import moving
from tasks.errors import LeaseHeldError, LedgerError
from tasks.forgetting import observations
from tasks.night.summary import NOTHING
from tasks.registry import CHALLENGER, CHAMPION
from tasks.settings import ModelSettings
from tasks.workspace import Workspace, open_workspace

JANUARY, FEBRUARY = (datetime(2018, month, 28, tzinfo=UTC) for month in (1, 2))
# Every place between two effects of a night of two batches, in the order in which a run that goes on meets it.
CHECKPOINTS = (
    *("received", "planned"),
    *("edited", "kept", "committed") * 2,
    *("evaluated", "evaluated:2", "judged", "reported"),
    *("logged", "registered", "version recorded", "recorded"),
    *("closed", "move recorded", "half moved", "moved"),
)


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
    assert (row.facts, row.applied, row.known, row.superseded, row.refused, row.waiting) == (5, 3, 1, 1, 0, 1)
    assert (row.verdict, row.version, row.champion) == ("promote", 1, 1)
    assert row.reliability >= 0.5
    assert ask(space, ["The mayor of Dunmore is"], "base") == ["Dov Stern"]
    assert set(row.timing) == {"editing", "edits", "retention", "zsre"}
    assert sum(part["share"] for part in row.timing.values()) == pytest.approx(1, abs=1e-3)
    assert 0 < row.timing["zsre"]["computed"] <= row.timing["zsre"]["asked"]
    assert row.reach["edit prompts"] == 1
    assert set(row.gauges) == {"highest r", "mean r"}
    run = space.registry._client.get_run(space.registry.get(1).run_id)
    logged = {f"{name}/{figure}" for name in ("timing/zsre", "timing/editing") for figure in ("seconds", "share")}
    logged |= {"timing/zsre/items_per_second", "scope/edit prompts/hits", "scope/zsre/tokens", "gauges/highest r"}
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
    monkeypatch.setenv("ERRATA_BATCH_CANARIES__WEIGHT_CHANGE", "0.000001")
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_step_it_ends_like_an_unbroken_night(home, survives, first_feed):
    left = survives(first_feed, CHECKPOINTS)
    assert left["aliases"] == {CHAMPION: 1, CHALLENGER: None}


def test_a_lost_ledger_takes_no_champion_away_and_no_state_is_deleted(home, change, feed):
    space = open_workspace()
    feed(space, "january", change("Arden", "Finn Oake", "2018-01-04"))
    assert night(NightConfig(as_of=JANUARY)).champion == 1
    digest = space.champion.state_digest
    folder = space.state_folder(digest)

    # A damaged copy is moved aside, and the state comes from the registry.
    weights = next(folder.glob("*.safetensors"))
    weights.unlink()
    assert space.state(digest).digest == digest
    (aside,) = (space.settings.home / "damaged").glob(f"*/{digest}")
    assert (aside / "state.json").exists()
    aside.rename(folder)

    # Another base is no damage: nothing is touched.
    other = Workspace(space.settings.model_copy(update={"model": ModelSettings()}))
    with pytest.raises(StateError):
        other.state(digest)
    assert folder.exists()

    # Without its ledger the registry's champion stays where it is.
    settings = space.settings.model_copy(update={"ledger_url": f"sqlite:///{home}/empty.db"})
    lost = Workspace(settings)
    with pytest.raises(LedgerError, match="champion at version 1"), moving(lost):
        pass
    assert lost.registry.aliased(CHAMPION).number == 1
