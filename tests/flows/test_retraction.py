import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from editing.facts import Operation
from flows.night import NightConfig, night
from flows.retraction import retract
from tasks.ask import ask
from tasks.errors import LedgerError
from tasks.facts.audit import audit
from tasks.facts.find import find_fact, find_facts
from tasks.ledger import EventKind

MARCH, APRIL, MAY = (datetime(2018, month, 28, tzinfo=UTC) for month in (3, 4, 5))
QUESTION = ["The mayor of Arden is"]


def held(space):
    champion = space.champion
    return {fact.subject: fact.target for fact in space.ledger.facts_in_state(champion and champion.state_digest)}


def id_of(space, subject, target):
    return next(fact.fact_id for fact in space.ledger.facts_of_subject(subject.casefold()) if fact.target == target)


def test_what_is_taken_back_uncovers_the_older_fact_and_nothing_else_happens(two_nights, change, feed):
    space = two_nights
    newer, older = id_of(space, "Arden", "Gia Reed"), id_of(space, "Arden", "Hal Birch")
    feed(space, "march", change("Farholt", "Ben Hale", "2018-03-05"))
    row = retract([newer[:8]], reason="the source withdrew it", who="ada", as_of=MARCH)
    assert (row.verdict, row.applied, row.retracted, row.champion) == ("promote", 0, 1, 3)
    assert ask(space, QUESTION) == ["Hal Birch"]
    assert held(space) == {"Arden": "Hal Birch", "Belmont": "Cleo Vance", "Corvia": "Eve Lark"}
    digest = space.champion.state_digest
    assert set(space.state(digest).fact_ids) == {fact.fact_id for fact in space.ledger.facts_in_state(digest)}
    # It was asked at once, like any fact of an earlier night.
    events = [event.kind for event in space.ledger.history(older) if event.state_digest == digest]
    assert events == [EventKind.RESTORED, EventKind.VERIFIED]
    (life,) = audit(space, older[:8])
    scores = {(score["version"], score["metric"]): score["score"] for score in life["scores"]}
    assert scores[3, "retention.reliability.generated"] == 1.0
    assert [fact.subject for fact in space.ledger.pending(MARCH, digest)] == ["Farholt"]

    with pytest.raises(LedgerError, match=r"is retracted, there is nothing to take back; `errata audit"):
        retract([newer], as_of=MARCH)
    with pytest.raises(LedgerError, match="takes effect on 2018-01-05"):
        retract([older], as_of=datetime(2018, 1, 1, tzinfo=UTC))

    row = retract([older], as_of=APRIL)
    assert (row.retracted, row.champion) == (1, 4)
    assert ask(space, QUESTION) == ask(space, QUESTION, "base")
    assert held(space) == {"Belmont": "Cleo Vance", "Corvia": "Eve Lark"}

    (life,) = audit(space, newer[:8])
    assert life["sightings"][0]["file"] == "february.parquet"
    assert [event["what"] for event in life["events"]] == ["received", "applied", "verified", "retracted"]
    assert [(batch["did"], batch["facts"]) for batch in life["batches"]] == [("apply", 2), ("retract", 1)]
    assert [row["version"] for row in life["versions"]] == [2]
    scores = {row["metric"]: row["score"] for row in life["scores"]}
    assert scores["edits.reliability.generated"] == 1.0
    assert [(row["alias"], row["version"]) for row in life["served"]] == [("champion", 2)]
    assert life["served"][0]["until"] is not None
    lives = audit(space, "arden", "Mayor")
    assert [life["fact"]["target"] for life in lives] == ["Hal Birch", "Gia Reed", "Gia Reed", "Hal Birch"]
    assert lives[2]["fact"]["source"] == "errata retract by ada: the source withdrew it"
    assert lives[2]["status"] == "carried_out"
    with pytest.raises(LedgerError, match="several facts"):
        find_fact(space.ledger, "Arden")
    with pytest.raises(LedgerError, match="no fact 'Atlantis'"):
        find_facts(space.ledger, "Atlantis")


@pytest.mark.slow
def test_a_feed_that_names_no_target_takes_back_everything_said_before(two_nights, change, feed):
    space = two_nights
    feed(space, "march", change("Arden", "", "2018-03-01", operation=Operation.RETRACT, target_old=None))
    row = night(NightConfig(as_of=MARCH))
    assert (row.verdict, row.retracted) == ("promote", 2)
    assert ask(space, QUESTION) == ask(space, QUESTION, "base")
    assert held(space) == {"Belmont": "Cleo Vance", "Corvia": "Eve Lark"}
    assert len(space.state(space.champion.state_digest).fact_ids) == 2

    # An older report of what was superseded before it was ever edited in.
    feed(
        space,
        "april",
        change("Arden", "Dov Stern", "2018-04-01"),
        change("Arden", "Finn Oake", "2018-04-02"),
    )
    assert night(NightConfig(as_of=APRIL)).superseded == 1
    row = retract([id_of(space, "Arden", "Finn Oake")], as_of=MAY)
    assert (row.applied, row.retracted) == (1, 1)
    assert ask(space, QUESTION) == ["Dov Stern"]
    assert held(space)["Arden"] == "Dov Stern"


@pytest.mark.slow
def test_a_retraction_that_was_killed_is_carried_out_by_the_next_night(two_nights, server):
    space = two_nights
    newer = id_of(space, "Arden", "Gia Reed")
    script = (
        "from datetime import datetime, UTC; from flows.retraction import retract;"
        f"retract(['{newer}'], as_of=datetime(2018, 3, 28, tzinfo=UTC))"
    )
    environment = {**os.environ, "PREFECT_API_URL": server, "ERRATA_FAULT": "retraction landed"}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert night(NightConfig(as_of=MARCH)).retracted == 1
    assert ask(space, QUESTION) == ["Hal Birch"]
