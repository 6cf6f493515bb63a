"""Prefect's and MLflow's own pages on a workspace, started as their servers and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tasks.errors import TasksError, without_password
from tasks.settings import MLFLOW_PORT, PREFECT_PORT, Settings

SECONDS_TO_START = 120


class PagesError(TasksError, RuntimeError):
    """A page's server did not start, or ended by itself."""


@dataclass(frozen=True)
class Pages:
    """Servers that run, and where their pages are."""

    urls: Mapping[str, str]
    processes: Mapping[str, subprocess.Popen[bytes]]

    def wait(self) -> None:
        """Return when interrupted; raise `PagesError` when a server ends by itself."""
        while True:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise PagesError(f"{name}'s server ended with code {process.returncode}; is its port taken?")
            time.sleep(1)


@contextmanager
def serve_pages(settings: Settings) -> Iterator[Pages]:
    """Both pages up and answering, ended with the block. Servers that the user names are linked, not started.

    Raises `PagesError` when one does not come up.
    """
    tracking = settings.tracking_uri
    commands: dict[str, list[str]] = {}
    urls: dict[str, str] = {}
    if own := os.environ.get("PREFECT_API_URL"):
        urls["Prefect"] = without_password(own).removesuffix("/api")
    else:
        urls["Prefect"] = f"http://127.0.0.1:{PREFECT_PORT}"
        commands["Prefect"] = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(PREFECT_PORT)]
    if tracking.startswith("http"):
        urls["MLflow"] = without_password(tracking)
    else:
        urls["MLflow"] = f"http://127.0.0.1:{MLFLOW_PORT}"
        commands["MLflow"] = ["mlflow", "server", "--host", "127.0.0.1"]
        commands["MLflow"] += ["--port", str(MLFLOW_PORT), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": tracking,  # not an argument: those are shown to everybody on the machine
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a group of its own, which is ended whole
            )
        for name in processes:
            _wait_for(name, urls[name], processes[name])
        yield Pages(urls, processes)
    finally:
        _end(list(processes.values()))


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """End the servers with all that they have started, by force what is still there after ten seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)


def _wait_for(name: str, url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise PagesError(f"{name}'s page did not come up at {url}; is the port taken?")
