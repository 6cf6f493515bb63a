import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext

from editing.errors import StateError, SuiteError
from editing.evals.report import EvalReport
from editing.evals.scoring import GenerationWork
from flows.night import NightConfig, night
from tasks.champion.canary import check_version
from tasks.champion.fresh import Health
from tasks.evaluation import evaluate_version
from tasks.night.evaluate import report_of
from tasks.registry import CHAMPION
from tasks.shards import ShardLostError
from tasks.workspace import Workspace, open_workspace

JANUARY = datetime(2018, 1, 28, tzinfo=UTC)
PROMPTS = [f"The mayor of {place} is" for place in ("Arden", "Belmont", "Corvia", "Dunmore", "Eastvale", "Farholt")]
PARTS = [f"score shard {k}/2 of zsre {protocol}" for k in (1, 2) for protocol in ("generated", "teacher-forced")]


@pytest.fixture
def in_force(home, monkeypatch):
    """`in_force(shards, runner)`: the workspace under these settings, in batches of 4, with no score remembered."""

    def set_to(shards: int, runner: str) -> Workspace:
        monkeypatch.setenv("ERRATA_EVALUATION__BATCH_SIZE", "4")
        monkeypatch.setenv("ERRATA_EVALUATION__SHARDS", str(shards))
        monkeypatch.setenv("ERRATA_EVALUATION__TASK_RUNNER", runner)
        space = open_workspace()
        for entry in (space.settings.cache / "scores").rglob("*.json"):
            entry.unlink()
        return space

    return set_to


@pytest.fixture
def first_feed(feed, change):
    def write(space: Workspace) -> None:
        changes = change("Arden", "Hal Birch", "2018-01-05"), change("Belmont", "Cleo Vance", "2018-01-06")
        feed(space, "january", *changes)

    return write


@pytest.fixture
def champion(in_force, first_feed):
    """The workspace after one night, whose version 1 serves."""
    space = in_force(1, "threads")
    first_feed(space)
    assert night(NightConfig(as_of=JANUARY)).champion == 1
    return space


@flow
def evaluation(version: str) -> tuple[EvalReport, str]:
    """A version's report, and the flow run that it was made in."""
    return evaluate_version(open_workspace(), version), str(FlowRunContext.get().flow_run.id)


def task_runs(flow_run: str, expected: int) -> dict[str, str]:
    """The names and states of a flow run's task runs, which the server learns of a moment later."""
    with get_client(sync_client=True) as client:
        for _ in range(100):
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])))
            if len(runs) >= expected and all(run.state.is_final() for run in runs):
                break
            time.sleep(0.1)
    return {run.name: run.state.type.value for run in runs}


def test_shards_on_threads_are_task_runs_and_change_no_score(champion, in_force, monkeypatch):
    in_force(1, "threads")
    alone, run = evaluation("champion")
    assert task_runs(run, 0) == {}
    in_force(2, "threads")
    shared, run = evaluation("champion")
    assert shared.outcomes == alone.outcomes
    assert shared.digest == alone.digest
    assert sorted(task_runs(run, 4).items()) == [(name, "COMPLETED") for name in sorted(PARTS)]

    # What fails in a shard fails the evaluation with its error.
    def fail(*_):
        raise SuiteError("no text today")

    space = in_force(2, "threads")
    monkeypatch.setattr(GenerationWork, "answer", fail)
    with pytest.raises(SuiteError, match="no text today"):
        evaluate_version(space, "champion")
    monkeypatch.undo()


def killed_then_again(space: Workspace, monkeypatch) -> None:
    """A night loses a process that scores for it; the next run edits nothing again, and serves version 1."""
    monkeypatch.setenv("ERRATA_FAULT", "shard answered")
    with pytest.raises(ShardLostError, match="edits teacher-forced was killed or ran out of memory; nothing of it"):
        night(NightConfig(as_of=JANUARY))
    with get_client(sync_client=True) as client:
        latest = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
    states = task_runs(str(latest.id), 1)
    assert {states[name] for name in states if name.startswith("score shard")} == {"CRASHED"}
    assert not space.ledger.versions()
    monkeypatch.delenv("ERRATA_FAULT")
    commits = space.ledger.commits(latest_night(space))
    assert night(NightConfig(as_of=JANUARY)).champion == 1
    assert space.ledger.commits(latest_night(space)) == commits


def latest_night(space: Workspace) -> str:
    return max(space.settings.nights.iterdir(), key=lambda folder: folder.stat().st_mtime).name


def lose_its_files(space: Workspace) -> None:
    """Ask the champion after its kept state was damaged: the shards read it from there, and say so."""
    digest = space.champion.state_digest
    with space.scorer(digest) as scorer:
        (space.state_folder(digest) / "state.safetensors").write_bytes(b"torn")
        with pytest.raises(StateError, match="is damaged"):
            scorer.generate(PROMPTS, 4)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_shards_in_processes(in_force, first_feed, monkeypatch):
    space = in_force(2, "processes")
    first_feed(space)
    killed_then_again(space, monkeypatch)
    shared = report_of(space, latest_night(space), "candidate")
    assert check_version(1).health is Health.SOUND
    in_force(1, "threads")
    alone, _ = evaluation("champion")
    assert [outcome for outcome in shared.outcomes if outcome.suite == "zsre"] == list(alone.outcomes)
    lose_its_files(in_force(2, "processes"))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_shards_on_a_dask_cluster(champion, in_force, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="pip install 'errata[dask]'")
    in_force(1, "threads")
    alone, _ = evaluation("champion")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.setenv("ERRATA_EVALUATION__DASK_SCHEDULER", cluster.scheduler_address)
        in_force(2, "dask")
        shared, run = evaluation("champion")
        assert shared.outcomes == alone.outcomes
        assert sorted(task_runs(run, 4).items()) == [(name, "COMPLETED") for name in sorted(PARTS)]
    monkeypatch.delenv("ERRATA_EVALUATION__DASK_SCHEDULER")
    in_force(2, "dask")
    monkeypatch.setenv("ERRATA_FAULT", "shard answered")
    with pytest.raises(ShardLostError, match="killed or ran out of memory"):
        evaluate_version(open_workspace(), "champion")


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(home, in_force):
    in_force(2, "processes")
    script = (
        "import os, signal\n"
        "from prefect import task\n"
        "from tasks.shards import start_runner\n"
        "from tasks.workspace import open_workspace\n"
        "@task\n"
        "def pid():\n"
        "    return os.getpid()\n"
        "with start_runner(open_workspace().settings.evaluation) as runner:\n"
        "    print(runner.submit(pid, {}).result(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The output ends with the last process that could write to it.
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL
    assert int(done.stdout) > 0


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_night_with_shards_survives_being_killed_in_one(in_force, survives, first_feed):
    in_force(2, "threads")
    left = survives(first_feed, ("shard answered", "shard answered:3"))
    assert left["aliases"][CHAMPION] == 1
