import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from flows.canary import canary
from flows.cli.app import app
from flows.night import NightConfig, night
from flows.promotion import approve, promote
from flows.retraction import retract
from tasks.ask import ask
from tasks.champion.approval import ApprovalError
from tasks.night.record import settle_aliases
from tasks.registry import CHALLENGER, CHAMPION
from tasks.status import night_history, status_of
from tasks.workspace import open_workspace

JANUARY = datetime(2018, 1, 28, tzinfo=UTC)
FEBRUARY = datetime(2018, 2, 28, tzinfo=UTC)
QUESTION = ["The mayor of Arden is"]


@pytest.fixture
def manual(home, change, feed, monkeypatch):
    """A workspace whose nights wait for a person, with a feed in the landing zone."""
    monkeypatch.setenv("ERRATA_GATE__APPROVAL", "manual")
    space = open_workspace()
    feed(space, "january", change("Arden", "Hal Birch", "2018-01-05"))
    return space


def waits(space):
    """The versions that wait, by the status."""
    return [request["version"] for request in status_of(space)["for_approval"]]


def test_a_person_approves(manual):
    state = night(NightConfig(as_of=JANUARY), return_state=True)
    row = state.result()
    assert (state.name, state.type.value) == ("Waiting", "COMPLETED")
    assert state.message == f"version 1 {row.decided}"
    assert (row.verdict, row.version, row.champion) == ("waiting", 1, None)
    until = datetime.fromisoformat(row.waits_until)
    assert timedelta(hours=11.9) < until - datetime.now(UTC) < timedelta(hours=12)
    assert status_of(manual)["for_approval"] == [
        {"version": 1, "key": row.key, "night": "2018-01-28", "until": until.isoformat(timespec="seconds")}
    ]
    assert manual.registry.get(CHALLENGER).number == 1
    assert ask(manual, QUESTION) == ["Ada Moss"]

    # The same night again asks for the same answer, and does not prolong the time for it.
    assert night(NightConfig(as_of=JANUARY)).waits_until == row.waits_until
    with pytest.raises(ApprovalError, match="version 9 does not wait for approval; version 1 waits"):
        approve("promote", 9)
    answered = approve("promote", who="ada", reason="read the report")
    assert answered.sentence == "version 1: approved by ada: read the report; version 1 serves"
    assert manual.champion.version == manual.registry.get(CHAMPION).number == 1
    assert manual.registry.aliased(CHALLENGER) is None
    assert manual.ledger.alias_moves(CHAMPION)[-1].why == "night 2018-01-28: promote, approved by ada: read the report"
    assert [(told["verdict"], told["champion"], told["decided"]) for told in night_history(manual)["nights"]] == [
        ("promote", 1, "approved by ada: read the report")
    ] * 2
    assert waits(manual) == []
    with pytest.raises(ApprovalError, match="the last that did is version 1, approved by ada: read the report"):
        approve("promote")

    # What is taken back waits as well, and where another night runs it is recorded.
    (fact,) = manual.ledger.facts_in_state(manual.champion.state_digest)
    with manual.ledger.lease("night", "another night"):
        state = retract([fact.fact_id], reason="withdrawn", return_state=True)
        assert (state.name, state.type.value) == ("Recorded", "COMPLETED")
        assert "the next night takes 1 facts back" in state.message
        done = CliRunner().invoke(app, ["retract", fact.fact_id])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "the next one takes them back; the champion still holds 1 of the facts" in done.stderr
    done = CliRunner().invoke(app, ["night"])
    assert "version 2 waits for approval until" in done.stdout
    assert night_history(manual)["nights"][-1]["retracted"] == 1
    assert ask(manual, QUESTION) == ["Hal Birch"]
    assert "version 2 waits until" in CliRunner().invoke(app, ["status"]).stdout
    done = CliRunner().invoke(app, ["approve", "--who", "ada"])
    assert done.stdout == "version 2: approved by ada; version 2 serves\n"
    assert ask(manual, QUESTION) == ["Ada Moss"]


def test_nobody_answers_in_time(manual, monkeypatch):
    monkeypatch.setenv("ERRATA_GATE__APPROVAL_HOURS", str(2 / 3600))
    row = night(NightConfig(as_of=JANUARY))
    assert waits(manual) == [1]
    time.sleep(max(0, (datetime.fromisoformat(row.waits_until) - datetime.now(UTC)).total_seconds()))
    assert waits(manual) == []
    gone = f"held by nobody: no answer until {datetime.fromisoformat(row.waits_until):%Y-%m-%d %H:%M} UTC"
    canary()  # as it looks every hour
    (told,) = night_history(manual)["nights"]
    assert (told["verdict"], told["decided"], told["champion"]) == ("hold", gone, None)
    with pytest.raises(ApprovalError, match=f"version 1 does not wait for approval any more: {gone}"):
        approve("promote", 1)
    assert manual.champion is None
    assert [fact.subject for fact in manual.ledger.pending(JANUARY)] == ["Arden"]

    # The same facts are asked about again.
    monkeypatch.setenv("ERRATA_GATE__APPROVAL_HOURS", "1")
    assert night(NightConfig(as_of=JANUARY)).version == 1
    assert waits(manual) == [1]
    assert approve("hold", who="ada", reason="not today").sentence == (
        "version 1: held by ada: not today; the base serves"
    )
    assert [told["decided"] for told in night_history(manual)["nights"]] == [gone, "held by ada: not today"]

    # A person who promotes it by hand has answered.
    assert night(NightConfig(as_of=JANUARY)).verdict == "waiting"
    promote(1, reason="after all", who="ada")
    settle_aliases()
    assert (waits(manual), night_history(manual)["nights"][-1]["decided"]) == ([], "promote: after all")


def test_what_comes_meanwhile_is_not_lost_and_not_undone(manual, change, feed):
    assert night(NightConfig(as_of=JANUARY)).version == 1
    feed(manual, "february", change("Corvia", "Eve Lark", "2018-02-07"))
    row = night(NightConfig(as_of=FEBRUARY))
    assert (row.verdict, row.version, row.applied, waits(manual)) == ("waiting", 2, 2, [1, 2])
    with pytest.raises(ApprovalError, match="versions 1, 2 wait for approval; say which with --version"):
        approve("promote")

    # One of the two is approved: the other grew from what serves no more, and what it had more is asked about anew.
    assert approve("promote", 1).champion == 1
    with pytest.raises(ApprovalError, match="the champion became version 1 while it waited"):
        approve("promote", 2)
    row = night(NightConfig(as_of=FEBRUARY))
    assert (row.verdict, row.version, row.applied, waits(manual)) == ("waiting", 3, 1, [3])

    # A fact that waits is withdrawn: the version may not bring it into service now.
    (corvia,) = manual.ledger.pending(FEBRUARY, manual.champion.state_digest)
    assert retract([corvia.fact_id]).applied == 0
    assert waits(manual) == []
    with pytest.raises(ApprovalError, match=r"version 3 does not wait .*Corvia / mayor: Eve Lark\) was superseded"):
        approve("promote", 3)
    assert manual.champion.version == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_after_the_answer_nobody_is_asked_again(manual, server):
    assert night(NightConfig(as_of=JANUARY)).verdict == "waiting"
    script = "from flows.promotion import approve; approve('promote', who='ada')"
    environment = {**os.environ, "PREFECT_API_URL": server, "ERRATA_FAULT": "approved"}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (manual.registry.aliased(CHAMPION), waits(manual)) == (None, [])
    assert night(NightConfig(as_of=JANUARY)).champion == 1
    assert manual.registry.get(CHAMPION).number == 1
    assert manual.registry.aliased(CHALLENGER) is None
    assert night_history(manual)["nights"][0]["decided"] == "approved by ada"
