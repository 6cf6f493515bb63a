import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from flows.night import NightConfig, night
from flows.promotion import promote, rollback
from tasks.ask import ask
from tasks.champion.choose import ChoiceError, champion_as_of
from tasks.registry import CHALLENGER, CHAMPION
from tasks.status import night_history

FEBRUARY, MARCH = (datetime(2018, month, 28, tzinfo=UTC) for month in (2, 3))
QUESTION = ["The mayor of Arden is"]
STEPS = ("change begun", "move recorded", "half carried out", "carried out")


def champion_of(space):
    """The champion by the ledger, which MLflow must agree with."""
    registered, known = space.registry.aliased(CHAMPION), space.champion
    assert (registered and registered.number) == (known and known.version)
    return known and known.version


def test_there_and_back(two_nights, change, feed, monkeypatch):
    space = two_nights
    assert ask(space, QUESTION) == ["Gia Reed"]

    # The champion of a moment, by the dates of the nights.
    answers = [ask(space, QUESTION, as_of=datetime(2018, month, day, tzinfo=UTC)) for month, day in ((1, 1), (2, 1))]
    assert [*answers, ask(space, QUESTION, as_of=FEBRUARY)] == [["Ada Moss"], ["Hal Birch"], ["Gia Reed"]]

    back = rollback(reason="answers are off", who="ada")
    assert (back.start, back.to, champion_of(space)) == (2, 1, 1)
    assert ask(space, QUESTION) == ["Hal Birch"]
    move = night_history(space)["moves"][-1]
    assert (move["who"], move["why"], move["to"]) == ("ada", "rollback: answers are off", 1)
    assert champion_as_of(space, FEBRUARY).version == 2  # the rollback came later

    # What was taken back is made again by the next night, and not promoted by itself.
    row = night(NightConfig(as_of=FEBRUARY))
    assert (row.verdict, row.version, row.champion, champion_of(space)) == ("hold", 2, 1, 1)
    assert "answers are off" in row.decided
    assert space.registry.get(CHALLENGER).number == 2
    assert "answers are off" in night_history(space)["moves"][-1]["why"]

    forward = promote(2, reason="it was the question that was off", who="ada")
    assert (forward.start, forward.to, champion_of(space)) == (1, 2, 2)
    assert space.registry.aliased(CHALLENGER) is None
    assert promote(2).sentence == "version 2 serves already"

    assert rollback(as_of=datetime(2018, 2, 1, tzinfo=UTC)).to == champion_of(space) == 1
    assert rollback().to is None
    assert champion_of(space) is None
    assert ask(space, QUESTION) == ["Ada Moss"]
    with pytest.raises(ChoiceError, match="nothing to go back to"):
        rollback()
    with pytest.raises(ChoiceError, match="no night made version '7'"):
        rollback(to="7")
    with pytest.raises(ChoiceError, match="both name a version"):
        rollback(to="1", as_of=FEBRUARY)
    assert rollback(to="2").to == champion_of(space) == 2
    assert rollback(to="base").to is champion_of(space) is None

    # What the gate turned down needs a reason.
    monkeypatch.setenv("ERRATA_GATE__POLICY", '{"floors": {"zsre.unrelated.generated": 0.5}}')
    feed(space, "march", change("Farholt", "Gia Reed", "2018-03-05"))
    assert night(NightConfig(as_of=MARCH)).verdict == "reject"
    with pytest.raises(ChoiceError, match="verdict on version 3 is 'reject'"):
        promote(3)
    assert promote(3, reason="the floor is wrong").to == champion_of(space) == 3


def test_a_night_does_not_undo_a_rollback_that_came_while_it_ran(two_nights, change, feed, monkeypatch):
    space = two_nights
    feed(space, "march", change("Farholt", "Ben Hale", "2018-03-05"))

    def publish(work, candidate):
        number = published(work, candidate)
        rollback(reason="while the night ran", who="ada")
        return number

    import flows.night

    published = flows.night.publish
    monkeypatch.setattr(flows.night, "publish", publish)
    row = night(NightConfig(as_of=MARCH))
    assert (row.verdict, row.version, row.champion, champion_of(space)) == ("hold", 3, 1, 1)
    assert "the champion became version 1 while the night ran (ada: rollback: while the night ran)" in row.decided


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_step_a_rollback_goes_back_once(two_nights, server):
    space = two_nights
    script = "from flows.promotion import rollback; print(rollback(reason='off', who='ada').sentence)"

    def run(fault=""):
        environment = {**os.environ, "PREFECT_API_URL": server, **({"ERRATA_FAULT": fault} if fault else {})}
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    for step in STEPS:
        before = len(space.ledger.alias_moves(CHAMPION))
        killed = run(step)
        assert killed.returncode == -signal.SIGKILL, f"{step}: {killed.stderr}"
        resumed = run()
        assert resumed.returncode == 0, f"{step}: {resumed.stderr}"
        assert "ended an interrupted rollback" in resumed.stdout
        assert champion_of(space) == 1
        made = space.ledger.alias_moves(CHAMPION)[before:]
        assert [(move.from_version, move.to_version, move.why) for move in made] == [(2, 1, "rollback: off")]
        promote(2)
