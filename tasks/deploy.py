"""Registers flows and schedules with a Prefect server: the work pool, and the deployments of `prefect.yaml`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tasks.errors import TasksError, without_password
from tasks.settings import CONFIG_VARIABLE, Settings, find_config

POOL = "errata"
DEPLOYMENTS = Path(__file__).parents[1] / "deployments" / "prefect.yaml"


class DeployError(TasksError, RuntimeError):
    """There is no server to register with, or it refused."""


def deploy_nights(settings: Settings, file: Path = DEPLOYMENTS) -> list[str]:
    """Register what `file` describes; runs will find these settings whatever directory they run in.

    Answers what to do next. Raises `DeployError` when no server is named, or Prefect refuses.
    """
    server = os.environ.get("PREFECT_API_URL")
    if not server:
        raise DeployError(
            "no Prefect server is named; start one with `prefect server start` and set PREFECT_API_URL or "
            "prefect_api_url in errata.toml"
        )
    if not file.is_file():
        raise DeployError(f"{file} is missing; deploy from a checkout, or name another file")
    environment = {
        **os.environ,
        CONFIG_VARIABLE: str(find_config() or ""),
        "ERRATA_HOME": str(settings.home),
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
    }
    settings.home.mkdir(parents=True, exist_ok=True)
    _prefect(["work-pool", "create", POOL, "--type", "process", "--overwrite"], environment)
    _prefect(["deploy", "--all", "--prefect-file", str(file)], environment)
    return [
        f"the night, the canary, promote, rollback and retract are deployed to {without_password(server)}",
        f"start a worker:  prefect worker start --pool {POOL}",
        "run one now:     prefect deployment run night/nightly",
    ]


def _prefect(arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise DeployError(f"`prefect {' '.join(arguments)}` failed: {told[-1]}")
