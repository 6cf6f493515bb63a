import os
import signal
import threading
import time
from datetime import UTC, datetime

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext

from editing.errors import StateError
from editing.evals.report import EvalReport
from tasks.evaluation import evaluate_version
from tasks.shards import ShardLostError
from tasks.workspace import open_workspace

JANUARY = datetime(2018, 1, 28, tzinfo=UTC)


@pytest.fixture
def fresh_scores(two_nights, monkeypatch):
    """`fresh_scores(shards, runner)`: the champion's report, every row run, and the names of its task runs."""
    monkeypatch.setenv("ERRATA_EVALUATION__BATCH_SIZE", "4")

    @flow
    def evaluation() -> tuple[EvalReport, str]:
        return evaluate_version(open_workspace(), "champion"), str(FlowRunContext.get().flow_run.id)

    def score(shards: int, runner: str) -> tuple[EvalReport, list[str]]:
        monkeypatch.setenv("ERRATA_EVALUATION__SHARDS", str(shards))
        monkeypatch.setenv("ERRATA_EVALUATION__TASK_RUNNER", runner)
        space = open_workspace()
        for entry in (space.settings.cache / "scores").rglob("*.json"):
            entry.unlink()
        report, run = evaluation()
        time.sleep(1)
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        return report, sorted((task.name, task.state.type.value) for task in runs)

    return score


def test_threads_change_no_score(fresh_scores):
    alone, runs = fresh_scores(1, "threads")
    assert runs == []
    shared, runs = fresh_scores(2, "threads")
    print(runs)
    assert shared.outcomes == alone.outcomes
    assert shared.digest == alone.digest


@pytest.mark.slow
def test_processes_change_no_score(fresh_scores):
    alone, _ = fresh_scores(1, "processes")
    shared, runs = fresh_scores(2, "processes")
    print(runs)
    assert shared.outcomes == alone.outcomes
