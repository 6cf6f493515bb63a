"""Registers flows and schedules with a Prefect server: the work pool, and the deployments of `prefect.yaml`.

A deployment carries every setting in force (`ERRATA_DEPLOYED` in its job variables), so its runs use these whatever
file and variables there are where the worker runs, and two ids: one is kept in the ledger, one is a tag of MLflow's
registered model. A run compares them with those of the stores that it reaches before it does anything, because a URL
alone is no identity: `sqlite:////srv/errata/ledger.db` is another ledger on another machine.

A URL that carries a password is no part of it. It is read where the run is, from a variable of the worker's own or from
a Prefect block that the worker resolves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from tasks.errors import TasksError, without_password
from tasks.settings import CONFIG_VARIABLE, DEPLOYED_VARIABLE, SECRETS, Settings
from tasks.workspace import Workspace

POOL = "errata"
DEPLOYMENTS = Path(__file__).parents[1] / "deployments" / "prefect.yaml"
BLOCK_PREFIX = "errata-"
# MLflow's own, which no setting names.
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
URL_PRINTED = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"  # MLflow prints its URL as it is, into the worker's log
_SECRET_WORDS = ("pass", "pwd", "secret", "token", "odbc_connect")


class DeployError(TasksError, RuntimeError):
    """There is no server to register with, it refused, or a setting has no place in a deployment."""


def deploy_nights(settings: Settings, file: Path = DEPLOYMENTS, *, blocks: bool = False) -> list[str]:
    """Register what `file` describes; runs will have these settings, this ledger and this registry, or refuse.

    URLs that carry a password are kept in Secret blocks of the Prefect server with `blocks`, else the worker needs
    them as variables. Answers what to do next. Raises `DeployError` when no server is named, Prefect refuses, or a
    setting other than those of `SECRETS` carries a password.
    """
    server = os.environ.get("PREFECT_API_URL")
    if not server:
        raise DeployError(
            "no Prefect server is named; start one with `prefect server start` and set PREFECT_API_URL or "
            "prefect_api_url in errata.toml"
        )
    if not file.is_file():
        raise DeployError(f"{file} is missing; deploy from a checkout, or name another file")
    settings = _placed(settings)
    secrets = secret_settings(settings)
    space = Workspace(settings)
    with space.registry.answering():
        given = describe(settings, ledger=space.ledger.identity(), registry=space.registry.identity())
    # Prefect resolves references to blocks when it deploys, but not those that come from a variable of this process.
    kept = {SECRETS[name]: f"{{{{ prefect.blocks.secret.{_block(name)} }}}}" for name in secrets if blocks}
    passed = {DEPLOYED_VARIABLE: given, **{f"DEPLOYED_{name}": reference for name, reference in kept.items()}}
    variables = {DEPLOYED_VARIABLE: _placeholder(DEPLOYED_VARIABLE), URL_PRINTED: "true"}
    variables |= {name: _placeholder(f"DEPLOYED_{name}") for name in kept}
    if blocks:
        _keep_in_blocks(server, secrets)
    environment = {**os.environ, "ERRATA_HOME": str(settings.home), **passed}
    _prefect(["work-pool", "create", POOL, "--type", "process", "--overwrite"], environment)
    with tempfile.TemporaryDirectory(prefix="errata-deploy-") as folder:
        complete = Path(folder) / "prefect.yaml"
        complete.write_text(_with_variables(file, variables), encoding="utf-8")
        _prefect(["deploy", "--all", "--prefect-file", str(complete)], environment)
    needed = [SECRETS[name] for name in secrets if not blocks] + [name for name in CREDENTIALS if name in os.environ]
    told = "  with a variable that carries a password and is no part of the deployment: "
    return [
        f"the night, the canary and what a person does by hand are deployed to {without_password(server)}",
        f"start a worker:  prefect worker start --pool {POOL}",
        *[told + name for name in needed],
        "run one now:     prefect deployment run night/nightly",
    ]


def describe(settings: Settings, *, ledger: str, registry: str) -> str:
    """What a deployment carries, as `tasks.settings.deployment` reads it; without the settings that carry a password.

    Raises `DeployError` for a password in a setting that no variable of a worker's stands for.
    """
    secrets = secret_settings(settings)
    content = settings.model_dump(mode="json", exclude={"prefect_api_url", *secrets})
    for key, value in _texts(content):
        if carries_secret(value):
            raise DeployError(
                f"{key} carries a password, which everybody who sees the deployment could read; only "
                f"{' and '.join(SECRETS)} may carry one"
            )
    given = {"settings": content, "secrets": list(secrets), "ledger": ledger, "registry": registry}
    return json.dumps(given).replace("{{", "{\\u007b")  # JSON has no two in a row but in texts, and Prefect reads them


def secret_settings(settings: Settings) -> dict[str, str]:
    """Those of the settings of `SECRETS` that carry a password, with their values."""
    content = {name: getattr(settings, name) for name in SECRETS}
    return {name: value for name, value in content.items() if value and carries_secret(value)}


def carries_secret(text: str) -> bool:
    """Whether `text` is a URL with a password: behind the user's name, as a token in its place, or in its query."""
    if "://" not in text:
        return False
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        return without_password(text) != text
    if url.password or (url.username and url.drivername.startswith("http")):
        return True
    return any(word in name.lower() for name in url.query for word in _SECRET_WORDS)


def _placed(settings: Settings) -> Settings:
    """The settings with the URLs in force, those of SQLite with their whole paths."""
    return settings.model_copy(
        update={"ledger_url": _whole(settings.ledger), "mlflow_tracking_uri": _whole(settings.tracking_uri)}
    )


def _whole(url: str) -> str:
    if not url.startswith("sqlite:") or not (database := make_url(url).database) or database.startswith("file:"):
        return url
    return make_url(url).set(database=str(Path(database).resolve())).render_as_string(hide_password=False)


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a JSON content, with its dotted key."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _texts(value, f"{key}.{name}" if key else name)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)
    elif isinstance(content, str):
        yield key, content


def _with_variables(file: Path, variables: Mapping[str, str]) -> str:
    """The file's text with these variables for the runs of every deployment, beside those that it gives them itself.

    What names a setting is taken away: a run has all of them.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for deployment in content["deployments"]:
            job = deployment["work_pool"].setdefault("job_variables", {})
            own = {name: value for name, value in (job.get("env") or {}).items() if not _is_ours(name)}
            job["env"] = own | dict(variables)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise DeployError(f"{file} does not describe deployments with a work_pool each: {error}") from error
    return yaml.safe_dump(content, sort_keys=False)


def _is_ours(name: str) -> bool:
    return name in (CONFIG_VARIABLE, "ERRATA_HOME", DEPLOYED_VARIABLE, *SECRETS.values())


def _placeholder(variable: str) -> str:
    return f"{{{{ ${variable} }}}}"


def _block(name: str) -> str:
    return BLOCK_PREFIX + name.replace("_", "-")


def _keep_in_blocks(server: str, secrets: Mapping[str, str]) -> None:
    from prefect.blocks.system import Secret
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server}):
        for name, value in secrets.items():
            Secret(value=value).save(_block(name), overwrite=True)


def _prefect(arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise DeployError(f"`prefect {' '.join(arguments)}` failed: {told[-1]}")
