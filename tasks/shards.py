"""Shards of an evaluation over a Prefect task runner: on threads, in processes, or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from threading import Thread
from typing import Any, Self

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from editing.editors.base import EditState
from editing.evals.shards import Work, answers
from tasks.errors import TasksError
from tasks.faults import checkpoint
from tasks.progress import reporter
from tasks.settings import EvaluationSettings
from tasks.workspace import Workspace


class ShardLostError(TasksError, RuntimeError):
    """The process that scored a shard ended before it had an answer."""


class Shard:
    """A part of an evaluation's work, with the state that it is to be asked (None: the base) and where that is kept.

    Another process has the workspace open once and reads the state from its folder, by its digest. A plain class,
    because Prefect looks through dataclasses and lists that a task is given, item by item.
    """

    def __init__(
        self, space: Workspace, state: EditState | None, folder: Path | None, work: Work, threads: int
    ) -> None:
        self.space, self.state, self.work, self.threads = space, state, work, threads
        self.place = None if state is None or folder is None else (folder, state.digest)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "state": None}

    def answers(self, done: Callable[[int, int], None]) -> list[list[Any]]:
        """The model's answers to each batch, on `threads` threads of arithmetic."""
        state = self.state
        if state is None and self.place is not None:
            state = self.space.served(*self.place)
        torch.set_num_threads(self.threads)
        with self.space.lanes.serving(state) as model:
            found = answers(self.work, model, done)
        checkpoint("shard answered")
        return found


@task(name="score shard", task_run_name="score shard {part} of {what}", cache_policy=NO_CACHE, persist_result=False)
def score_shard(shard: Shard, part: str, what: str) -> list[list[Any]]:
    """Answer a shard's batches."""
    return shard.answers(partial(reporter(), f"{what}, shard {part}"))


def start_runner(settings: EvaluationSettings) -> TaskRunner[Any]:
    """The task runner of the settings, for as many shards at once as they say; to be entered."""
    count = settings.shards
    if settings.task_runner == "threads":
        return ThreadPoolTaskRunner(max_workers=count)
    if settings.task_runner == "processes":
        return ProcessPoolTaskRunner(max_workers=count, initializer=_end_with_parent)
    from prefect_dask import DaskTaskRunner

    if settings.dask_scheduler:
        return DaskTaskRunner(address=settings.dask_scheduler)
    return DaskTaskRunner(cluster_kwargs={"n_workers": count, "threads_per_worker": 1, "dashboard_address": None})


def lost_errors(settings: EvaluationSettings) -> tuple[type[Exception], ...]:
    """What the task runner raises for work whose process ended."""
    if settings.task_runner != "dask":
        return (BrokenExecutor,)
    from distributed import KilledWorker

    return (KilledWorker,)


def _end_with_parent() -> None:
    """Let this process end with the one that started it, even killed: a pool's processes would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


class PrefectShards:
    """Shares the work of one scorer's model out to the configured task runner.

    The runner is started when it is first needed and ends with the `with`.
    """

    def __init__(self, space: Workspace, state: EditState | None, folder: Path | None) -> None:
        self._space, self._state, self._folder = space, state, folder
        self._settings = space.settings.evaluation
        self.count = self._settings.shards
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    @cached_property
    def _runner(self) -> TaskRunner[Any]:
        return self._open.enter_context(start_runner(self._settings))

    def run(self, parts: Sequence[Work], what: str) -> Iterator[list[list[Any]]]:
        """See `editing.evals.shards.Shards`; each part is a task run. Raises `ShardLostError` when its process dies."""
        whole = torch.get_num_threads()
        share = max(1, whole // self.count)
        try:
            with nullcontext() if self._settings.task_runner == "threads" else _one_server():
                futures = [
                    self._runner.submit(
                        score_shard,
                        {
                            "shard": Shard(self._space, self._state, self._folder, part, share),
                            "part": f"{k}/{len(parts)}",
                            "what": what,
                        },
                    )
                    for k, part in enumerate(parts, 1)
                ]
            for future in futures:
                try:
                    yield future.result()
                except lost_errors(self._settings) as error:
                    raise _lost(futures, what) from error
        finally:
            torch.set_num_threads(whole)


@contextmanager
def _one_server() -> Iterator[None]:
    """Inside it other processes are told this one's Prefect server: with an ephemeral one each would start its own."""
    with get_client(sync_client=True) as client:
        url = str(client.api_url)
    with temporary_settings({PREFECT_API_URL: url}):
        yield


def _lost(futures: Sequence[PrefectFuture[Any]], what: str) -> ShardLostError:
    """The error for shards of `what` that ended with a process, whose task runs nobody else would close."""
    message = (
        f"a process that scored a shard of {what} was killed or ran out of memory; nothing of it was kept, run the "
        "same again, with fewer evaluation.shards where memory is short"
    )
    with get_client(sync_client=True) as client:
        for future in futures:
            with suppress(ObjectNotFound):  # a run that had not begun
                run = client.read_task_run(future.task_run_id)
                if run.state is None or not run.state.is_final():
                    client.set_task_run_state(future.task_run_id, Crashed(message=message), force=True)
    return ShardLostError(message)
