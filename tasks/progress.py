"""Progress of long steps: forwarded to whoever watches this process, and to a Prefect progress artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

Listener = Callable[[str, int, int], None]
SECONDS_BETWEEN_UPDATES = 2.0

_listener: ContextVar[Listener | None] = ContextVar("progress listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the progress of everything inside to `listener(stage, done, total)`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def reporter(prefix: str = "") -> Listener:
    """A `progress` argument for the library: tells the listener, and Prefect where a task is running.

    Stages that end within `SECONDS_BETWEEN_UPDATES` leave no artifact.
    """
    in_task = TaskRunContext.get() is not None
    artifacts: dict[str, tuple[object, float]] = {}
    started: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        name = f"{prefix}{stage}"
        if listener := _listener.get():
            listener(name, done, total)
        now = time.monotonic()
        began = started.setdefault(stage, now)
        if not in_task or total < 1:
            return
        percent = 100.0 * done / total
        if stage not in artifacts:
            if now - began >= SECONDS_BETWEEN_UPDATES and done < total:
                artifacts[stage] = (create_progress_artifact(percent, description=name), now)
            return
        artifact, last = artifacts[stage]
        if done >= total or now - last >= SECONDS_BETWEEN_UPDATES:
            update_progress_artifact(artifact, percent, description=name)  # type: ignore[arg-type]
            artifacts[stage] = (artifact, now)

    return report
