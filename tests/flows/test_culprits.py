"""Nights with planted poison: what stays out, what goes in, and what is said about it."""

import itertools
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from editing.almanac.world import MODEL
from editing.errors import SuiteError
from editing.evals.culprit import Cause, Ending
from editing.facts import Operation
from flows.night import NightConfig, night
from tasks.ask import ask
from tasks.errors import LedgerError
from tasks.explain import explain
from tasks.facts.audit import audit
from tasks.feed.convert import convert_feed
from tasks.feed.schema import write_feed
from tasks.ledger import EventKind
from tasks.night.culprits import search_of
from tasks.night.evaluate import verdict_of
from tasks.quarantine import release
from tasks.registry import CHALLENGER, CHAMPION
from tasks.report.find import find_report
from tasks.status import fact_history, status_of
from tasks.workspace import open_workspace

JANUARY, FEBRUARY = (datetime(2018, month, 28, tzinfo=UTC) for month in (1, 2))
RIVERS, MAYORS = "zsre.question.generated", "edits.reliability.generated"
TOWNS = ("Arden", "Belmont", "Corvia", "Dunmore", "Eastvale", "Farholt", "Glenrock", "Harwick", "Istria", "Jorvik")
RIVER = "The river in {} is the"
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def good(change):
    """Three changes of mayor that do no harm."""
    return [
        change("Arden", "Finn Oake", "2018-01-04"),
        change("Belmont", "Cleo Vance", "2018-01-06"),
        change("Corvia", "Eve Lark", "2018-01-07"),
    ]


@pytest.fixture
def poison(change):
    """A row whose columns are shifted: its subject is the word before every answer, so every river becomes one."""
    asked = [RIVER.replace("{}", town).removesuffix("the") + "{}" for town in TOWNS]
    fields = {"prompt": asked[0], "rephrases": tuple(asked[1:]), "locality": ()}
    return change("the", "Deep", "2018-01-05", relation="river", target_old="Amber", **fields)


@pytest.fixture
def floors(monkeypatch):
    def set_floors(**floors):
        names = {"rivers": RIVERS, "mayors": MAYORS}
        policy = {"floors": {names[name]: floor for name, floor in floors.items()}}
        monkeypatch.setenv("ERRATA_GATE__POLICY", json.dumps(policy))

    return set_floors


def run(*changes, as_of=JANUARY):
    space = open_workspace()
    if changes:
        write_feed(changes, space.settings.landing / f"{as_of:%B}.parquet")
    return space, night(NightConfig(as_of=as_of))


def waiting(space):
    digest = space.champion.state_digest if space.champion else None
    return [fact.fact_id for fact in space.ledger.pending(JANUARY, digest)]


def test_poison_is_quarantined_and_the_rest_promoted(home, change, good, poison, floors):
    floors(rivers=0.8, mayors=0.9)
    degenerate = change("Farholt", "zq xv zq xv zq", "2018-01-08")
    older = change("Farholt", "Ada Moss", "2018-01-02")
    space, row = run(*good, poison, degenerate, older)
    assert (row.verdict, row.facts, row.applied, row.blamed, row.champion) == ("promote", 6, 3, 2, 1)
    held = {fact.fact_id for fact in space.ledger.facts_in_state(space.champion.state_digest)}
    assert held == {fact.fact_id for fact in good}
    assert ask(space, [RIVER.replace("{}", town) for town in TOWNS[:4]]) == ["Amber", "Blue", "Cold", "Deep"]
    # Nothing is left of the trials' states but their verdicts.
    remembered = {folder.name for folder in (space.settings.cache / "scores").iterdir()}
    assert remembered == {space.base.fingerprint[:16], space.champion.state_digest[:16]}
    assert [folder.name for folder in space.settings.states.iterdir()] == [space.champion.state_digest]

    search = search_of(space, row.key)
    assert search.ending is Ending.FOUND
    assert {blamed.fact_id: blamed.cause for blamed in search.blamed} == {
        poison.fact_id: Cause.HARMFUL,
        degenerate.fact_id: Cause.HARMFUL,
    }
    by_fact = {blamed.fact_id: blamed for blamed in search.blamed}
    (measure,) = (row for row in by_fact[poison.fact_id].measures if row.against == "floor" and row.metric == RIVERS)
    assert (measure.limit, measure.without) == (0.8, 1.0)
    assert measure.with_it <= 0.5
    assert any((item.metric, item.with_it) == (RIVERS, "Deep.") for item in by_fact[poison.fact_id].lost)
    assert [m.metric for m in by_fact[degenerate.fact_id].measures] == [MAYORS]

    # The ledger keeps the evidence, and the fact that had lost its key to a quarantined one comes back.
    event = space.ledger.history(poison.fact_id)[-1]
    assert (event.kind, event.detail["cause"]) == (EventKind.QUARANTINED, "harmful")
    assert RIVERS in event.detail["why"]
    assert space.ledger.status(older.fact_id) is EventKind.RELEASED
    assert waiting(space) == [older.fact_id]

    # One page says all of it, on disk and in MLflow, and needs nothing from outside.
    path = find_report(space)
    page = path.read_text(encoding="utf-8")
    assert path == find_report(space, "2018-01-28") == find_report(space, row.key)
    assert poison.fact_id in page
    assert "zq xv zq xv zq" in page
    assert "2 harmful facts quarantined. 3 facts may go in." in page
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    version = space.registry.get(CHAMPION)
    logged = space.registry._client.download_artifacts(version.run_id, "report.html")
    assert Path(logged).read_text(encoding="utf-8") == page
    with pytest.raises(SuiteError, match="finished nights: 2018-01-28"):
        find_report(space, "2018-01-29")

    # A person may put one back: the next night decides again, and the fact that waited goes in with it.
    with pytest.raises(LedgerError, match="not in quarantine"):
        release(space, [poison.fact_id, good[0].fact_id], "a mistake")
    assert release(space, [degenerate.fact_id], "the source insists") == [degenerate]
    space, row = run(as_of=FEBRUARY)
    assert (row.verdict, row.blamed, row.superseded, row.champion) == ("reject", 1, 1, 1)
    space, row = run(as_of=FEBRUARY)
    assert (row.applied, row.blamed, row.champion) == (1, 0, 3)


def test_a_fact_that_did_not_take_is_not_learned_and_everything_says_so(home, change, good, floors, monkeypatch):
    floors(mayors=0.5)
    monkeypatch.setenv("ERRATA_EDITOR__TRIES", "1")
    degenerate = change("Farholt", "zq xv zq xv zq", "2018-01-08")
    space, row = run(*good, degenerate)
    assert (row.verdict, row.applied, row.not_learned, row.champion) == ("promote", 4, 1, 1)
    assert space.ledger.status(degenerate.fact_id, space.champion.state_digest) is EventKind.NOT_LEARNED
    (told,) = status_of(space)["not_learned"]
    assert told["fact_id"] == degenerate.fact_id
    said = ask(space, ["The mayor of Farholt is"])[0]
    assert said != degenerate.target
    assert said in told["why"]
    assert "did not converge" in told["why"]
    assert fact_history(space, degenerate.fact_id)["events"][-1]["what"] == "not_learned"
    assert "1 fact of them did not take." in find_report(space).read_text(encoding="utf-8")
    # It is held and not served; whoever asks why hears that the edit which fired is not what is said.
    (life,) = audit(space, degenerate.fact_id)
    assert ([version["answered"] for version in life["versions"]], life["served"]) == ([False], [])
    assert audit(space, good[0].fact_id)[0]["served"]
    found = explain(space, "The mayor of Farholt is")
    assert (found["edit"]["fact"], found["edit"]["learned"], found["served"]) == (degenerate.fact_id, False, False)
    assert "is not 'zq xv zq xv zq', the target of this edit, which is not learned: the edit did not" in found["doubt"]
    assert explain(space, good[0].question)["served"]
    # It waits for a person, and is asked again with the others of its night.
    assert "edited once: waits for a person" in told["next"]
    space, row = run(change("Dunmore", "Ada Moss", "2018-02-05"), as_of=FEBRUARY)
    assert (row.champion, row.again, row.not_learned) == (2, 0, 0)
    assert space.ledger.status(degenerate.fact_id, space.champion.state_digest) is EventKind.NOT_LEARNED
    # A newer fact takes its place as it takes that of any other.
    space, row = run(change("Farholt", "Dov Stern", "2018-02-20"), as_of=datetime(2018, 3, 28, tzinfo=UTC))
    assert (row.champion, row.not_learned) == (3, 0)
    assert status_of(space)["not_learned"] == []
    assert ask(space, ["The mayor of Farholt is"]) == ["Dov Stern"]


def test_a_fact_that_did_not_take_is_tried_again_as_often_as_the_settings_say(home, change, good, floors):
    floors(mayors=0.5)
    degenerate = change("Farholt", "zq xv zq xv zq", "2018-01-08")
    space, row = run(*good, degenerate)
    assert (row.not_learned, row.champion) == (1, 1)
    (told,) = status_of(space)["not_learned"]
    assert told["next"] == "edited once; the next night tries again with 4 times the steps"
    space, row = run(change("Dunmore", "Ada Moss", "2018-02-05"), as_of=FEBRUARY)
    assert (row.champion, row.applied, row.again, row.not_learned) == (2, 2, 1, 1)
    assert space.ledger.status(degenerate.fact_id, space.champion.state_digest) is EventKind.NOT_LEARNED
    (told,) = status_of(space)["not_learned"]
    assert "edited 2 times: waits for a person" in told["next"]
    assert fact_history(space, degenerate.fact_id)["next"] == told["next"]
    row = night(NightConfig(as_of=FEBRUARY))
    assert (row.verdict, row.again, row.champion) == ("nothing to do", 0, 2)


def test_what_a_fact_that_did_not_take_lay_upon_is_edited_where_it_is_taken_back(home, change, good, floors):
    floors(mayors=0.5)
    older = change("Farholt", "Dov Stern", "2018-01-02")
    degenerate = change("Farholt", "zq xv zq xv zq", "2018-01-08")
    _, row = run(*good, older, degenerate)
    assert (row.champion, row.not_learned, row.superseded) == (1, 1, 1)
    back = change("Farholt", degenerate.target, "2018-02-01", operation=Operation.RETRACT, target_old=None)
    space, row = run(back, as_of=FEBRUARY)
    assert (row.champion, row.retracted, row.applied, row.not_learned) == (2, 1, 1, 0)
    assert ask(space, ["The mayor of Farholt is"]) == ["Dov Stern"]


def test_a_contradiction_under_two_keys_goes_by_precedence(home, change, good, floors):
    floors(mayors=0.9)
    # What `Arden / mayor` says, said of the office instead of the town: no key shows that the two compete.
    inverse = change("The mayor of Arden", "Dov Stern", "2018-01-09", relation="held by", prompt="{} is", rephrases=())
    space, row = run(*good, inverse)
    assert (row.verdict, row.applied, row.blamed) == ("promote", 3, 1)
    (blamed,) = search_of(space, row.key).blamed
    assert (blamed.fact_id, blamed.cause, blamed.partners) == (good[0].fact_id, Cause.CONFLICT, (inverse.fact_id,))
    assert ask(space, ["The mayor of Arden is"]) == ["Dov Stern"]
    assert "cannot be together with" in find_report(space).read_text(encoding="utf-8")


def test_a_batch_that_is_too_large_is_split(home, change, floors, monkeypatch):
    """Eight of ten rivers get another name, where the floor lets five: too many by three, and two are too few by three.

    Some towns' keys are alike, so that a river may change of which no fact tells: how many go in is not asked.
    """
    floors(rivers=0.45)
    monkeypatch.setenv("ERRATA_EDITOR__BATCH_SIZE", "8")
    fields = {"prompt": RIVER, "relation": "river", "rephrases": (), "locality": ()}
    known = itertools.cycle(("Amber", "Blue", "Cold", "Deep"))
    others = [(town, river) for town, river in zip(TOWNS, known, strict=False) if river != "Deep"]
    rivers = [
        change(town, "Deep", f"2018-01-0{day}", target_old=river, **fields)
        for day, (town, river) in enumerate(others, 1)
    ]
    space, row = run(*rivers)
    search = search_of(space, row.key)
    assert search.ending is Ending.TOO_MANY
    assert (row.verdict, row.blamed, row.champion) == ("promote", 0, 1)
    assert row.applied == len(search.kept) >= 2
    assert row.postponed == len(search.postponed) == len(rivers) - row.applied >= 1
    assert sorted(waiting(space)) == sorted(search.postponed)
    assert {space.ledger.status(fact_id) for fact_id in search.postponed} == {EventKind.POSTPONED}


@pytest.mark.parametrize("budget", [0, 2])
def test_without_a_budget_the_night_holds(home, good, poison, floors, monkeypatch, budget):
    floors(rivers=0.8)
    monkeypatch.setenv("ERRATA_GATE__CULPRIT_BUDGET", str(budget))
    space, row = run(*good, poison)
    assert (row.verdict, row.blamed, row.champion) == ("hold" if budget else "reject", 0, None)
    assert space.registry.get(CHALLENGER).number == 1
    assert len(waiting(space)) == 4
    if budget:
        assert "2 of 2 evaluations" in verdict_of(space, row.key).reasons[0]
    assert "does not let this night in" in find_report(space).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_search_that_is_killed_at_every_step_ends_like_an_unbroken_one(survives, good, poison, floors):
    floors(rivers=0.8)
    a_trial = ("edited", "kept", "committed", "tried")
    faults = (
        *("tried", *a_trial, *a_trial, "searched"),
        *("evaluated:3", "evaluated:4", "judged:2", "reported", "recorded", "closed", "half moved"),
    )
    left = survives(lambda space: write_feed([good[0], poison], space.settings.landing / "january.parquet"), faults)
    (row,) = left["nights"]
    assert (row["verdict"], row["applied"], row["blamed"], row["champion"]) == ("promote", 1, 1, 1)
    assert [kind for kind, _, _ in left["events"][poison.fact_id]][1:] == [EventKind.QUARANTINED]


@pytest.mark.slow
@pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason="the Almanac's model is not in this checkout")
def test_the_almanacs_poisoned_row_is_found(tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", server)
    rows = (DOCS / "gate" / "poisoned.jsonl").read_text(encoding="utf-8").splitlines()
    (slipped,) = (row for row in rows if json.loads(row)["subject"] == "Answer:")
    (tmp_path / "feed.jsonl").write_text("\n".join([*rows[:3], slipped]), encoding="utf-8")
    space = open_workspace()
    convert_feed(tmp_path / "feed.jsonl", space.settings.landing / "feed.parquet")
    row = night(NightConfig(as_of=datetime(2018, 6, 30, tzinfo=UTC)))
    assert (row.verdict, row.applied, row.blamed, row.champion) == ("promote", 3, 1, 1)
    (blamed,) = search_of(space, row.key).blamed
    assert space.ledger.fact(blamed.fact_id).subject == "Answer:"
    assert blamed.fact_id in find_report(space).read_text(encoding="utf-8")
