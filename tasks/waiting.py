"""Calls to the outside say what they wait for, once it takes longer than a person takes for granted."""

from __future__ import annotations

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.errors import TasksError, without_password
from tasks.log import log

HUB = "the Hugging Face hub"
SECONDS_UNTOLD = 2.0
SECONDS_TO_ANSWER = 10.0
waiting: logging.Logger = log.getChild("waiting")  # what a person who waits should read


class UnreachableError(TasksError, RuntimeError):
    """A server that the settings name does not answer."""


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Around a call to the outside: when it takes longer than `SECONDS_UNTOLD`, `what` it waits for is told."""
    timer = threading.Timer(SECONDS_UNTOLD, waiting.info, ["waiting for %s", without_password(what)])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Patient:
    """A client whose every call says what it waits for; otherwise it is the client."""

    def __init__(self, client: Any, what: str) -> None:
        self._client, self._what = client, what

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            with waiting_for(self._what):
                return found(*arguments, **options)

        return call


def require_prefect(url: str) -> None:
    """Raise `UnreachableError` unless something answers at `url`, Prefect's API, within `SECONDS_TO_ANSWER`."""
    shown = without_password(url)
    try:
        with (
            waiting_for(f"Prefect's server at {shown}"),
            urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=SECONDS_TO_ANSWER),
        ):
            return
    except urllib.error.HTTPError:
        return  # it answers; whom it lets in is its own matter
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise UnreachableError(
            f"Prefect's server at {shown} does not answer ({why}); start it with `prefect server start`, or correct "
            "PREFECT_API_URL (prefect_api_url in errata.toml)"
        ) from error
