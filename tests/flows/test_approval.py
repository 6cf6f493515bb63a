import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import httpx
import pytest

from flows.night import NightConfig, night
from tasks.champion import approval
from tasks.champion.approval import Approval, ApprovalError, answer, ask_for_approval, waiting_runs
from tasks.registry import CHALLENGER, CHAMPION
from tasks.workspace import open_workspace

JANUARY = datetime(2018, 1, 28, tzinfo=UTC)
NIGHT = (
    "from datetime import datetime, UTC; from flows.night import *;"
    "print(night(NightConfig(as_of=datetime(2018, 1, 28, tzinfo=UTC))).to_dict())"
)


@pytest.fixture
def manual(home, change, feed, monkeypatch):
    """A workspace whose nights wait for a person, with a feed in the landing zone."""
    monkeypatch.setenv("ERRATA_GATE__APPROVAL", "manual")
    monkeypatch.setattr(approval, "POLL_SECONDS", 0.5)
    space = open_workspace()
    feed(space, "january", change("Arden", "Hal Birch", "2018-01-05"))
    return space


def test_a_person_approves(manual):
    seen = {}

    def person():
        while not waiting_runs():
            time.sleep(0.2)
        (run,) = waiting_runs()
        seen["state"] = run.state.name
        with pytest.raises(ApprovalError, match="version 9 does not wait for approval"):
            answer(Approval(decision="promote"), 9)
        seen["version"] = answer(Approval(decision="promote", who="ada", reason="read the report"))

    waiting = threading.Thread(target=person)
    waiting.start()
    row = night(NightConfig(as_of=JANUARY))
    waiting.join()
    assert seen == {"state": "Paused", "version": 1}
    assert (row.verdict, row.champion, row.decided) == ("promote", 1, "approved by ada: read the report")
    assert manual.ledger.alias_moves(CHAMPION)[-1].why == "night 2018-01-28: promote, approved by ada: read the report"
    with pytest.raises(ApprovalError, match="no version waits"):
        answer(Approval(decision="promote"))
    with pytest.raises(ApprovalError, match="only a flow run can ask"):
        ask_for_approval(1, "", 1.0)


def test_nobody_answers(manual, change, feed, monkeypatch):
    monkeypatch.setenv("ERRATA_GATE__APPROVAL_HOURS", str(1 / 3600))
    row = night(NightConfig(as_of=JANUARY))
    assert (row.verdict, row.version, row.champion) == ("hold", 1, None)
    assert row.decided == "held by nobody: no answer within 0.000277778 hours"
    assert manual.champion is None
    assert manual.registry.get(CHALLENGER).number == 1
    assert manual.ledger.alias_moves(CHALLENGER)[-1].why == f"night 2018-01-28: hold, {row.decided}"
    assert [fact.subject for fact in manual.ledger.pending(JANUARY)] == ["Arden"]

    # That night is over: the same facts are asked about again.
    monkeypatch.setenv("ERRATA_GATE__APPROVAL_HOURS", "1")
    waiting = threading.Thread(target=_approve_when_asked)
    waiting.start()
    row = night(NightConfig(as_of=JANUARY))
    waiting.join()
    assert (row.champion, row.decided) == (1, "approved by ada: back from holiday")


def _approve_when_asked():
    while not waiting_runs():
        time.sleep(0.2)
    answer(Approval(decision="promote", who="ada", reason="back from holiday"))


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def restartable(tmp_path):
    """The API's URL, and a way to start the real server behind it, again and again on one database."""
    port = _free_port()
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment.pop("PREFECT_API_URL", None)
    started = []

    def start():
        log = (tmp_path / "server.log").open("a")
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        started.append(process)
        until = time.monotonic() + 300
        while time.monotonic() < until:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/api/health").is_success:
                    return process
            except httpx.HTTPError:
                time.sleep(0.5)
        raise TimeoutError("the server did not start")

    yield f"http://127.0.0.1:{port}/api", start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_waiting_night_survives_the_servers_death(manual, restartable):
    api, start = restartable
    server = start()
    environment = {**os.environ, "PREFECT_API_URL": api}
    waiting = subprocess.Popen(
        [sys.executable, "-c", NIGHT], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run = _paused_run(api, waiting)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    time.sleep(8)
    assert waiting.poll() is None
    start()
    assert _paused_run(api, waiting)["id"] == run["id"]

    # The form: the gate's report above it, an answer that does not fit refused, and one that does.
    described = httpx.get(f"{api}/flow_runs/{run['id']}/input/paused-version-1-description").text
    assert "passed the gate" in described
    wrong = httpx.post(f"{api}/flow_runs/{run['id']}/resume", json={"run_input": {"decision": "perhaps"}})
    assert wrong.json()["status"] == "REJECT"
    said = {"decision": "promote", "who": "ada", "reason": "looked at it after the restart"}
    right = httpx.post(f"{api}/flow_runs/{run['id']}/resume", json={"run_input": said})
    assert right.status_code == 201, right.text
    out, err = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, err
    assert "approved by ada: looked at it after the restart" in out
    assert manual.champion.version == manual.registry.get(CHAMPION).number == 1
    assert httpx.get(f"{api}/flow_runs/{run['id']}").json()["state_type"] == "COMPLETED"


def _paused_run(api, waiting):
    until = time.monotonic() + 300
    while time.monotonic() < until and waiting.poll() is None:
        found = httpx.post(
            f"{api}/flow_runs/filter", json={"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}}
        ).json()
        if found:
            return found[0]
        time.sleep(1)
    raise AssertionError(f"no run is paused: {waiting.communicate()[1] if waiting.poll() is not None else 'timeout'}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_after_the_answer_nobody_is_asked_again(manual, server):
    environment = {**os.environ, "PREFECT_API_URL": server, "ERRATA_FAULT": "approved"}
    waiting = subprocess.Popen([sys.executable, "-c", NIGHT], env=environment, stderr=subprocess.PIPE, text=True)
    _paused_run(server, waiting)
    answer(Approval(decision="promote", who="ada"))
    assert waiting.wait(timeout=120) == -signal.SIGKILL
    row = night(NightConfig(as_of=datetime(2018, 2, 3, tzinfo=UTC)))  # as `errata night` does on another day
    assert (row.champion, row.decided) == (1, "approved by ada")
