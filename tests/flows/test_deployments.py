import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime

import httpx
import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from tasks.deploy import DEPLOYMENTS, POOL, DeployError, deploy_nights
from tasks.feed.schema import write_feed
from tasks.registry import CHAMPION
from tasks.settings import DEPLOYED_VARIABLE, load_settings
from tasks.status import night_history, status_of
from tasks.workspace import open_workspace

PLACE_SECONDS = 60  # how long the server lends a place among the concurrent runs; the least it takes
SPECIFIED = yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]


@pytest.mark.parametrize("deployment", SPECIFIED, ids=lambda deployment: deployment["entrypoint"])
def test_every_entrypoint_loads_from_elsewhere(deployment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert flow.name == deployment["entrypoint"].rsplit(".")[-1]
    assert deployment["concurrency_limit"]["limit"] == 1
    assert deployment["work_pool"]["name"] == POOL
    assert deployment["pull"]


def test_the_night_and_the_canary_run_by_themselves():
    schedules = {item["entrypoint"]: item["schedules"][0]["cron"] for item in SPECIFIED if "schedules" in item}
    assert schedules == {"flows.night.night": "0 2 * * *", "flows.canary.canary": "30 * * * *"}


def test_without_a_server_it_says_so(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(DeployError, match="PREFECT_API_URL"):
        deploy_nights(load_settings())


@pytest.fixture
def own_server(tmp_path, monkeypatch):
    """A real Prefect server of its own, and a way to run `prefect` against it."""
    port = 4269
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
    started = []

    def prefect(*arguments, wait=True):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        if wait:
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=600).stdout
        log = (tmp_path / f"{arguments[0]}.log").open("w")
        started.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT))
        return None

    prefect("server", "start", "--host", "127.0.0.1", "--port", str(port), wait=False)
    _wait_for(f"http://127.0.0.1:{port}/api/health")
    yield prefect
    for process in reversed(started):
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture
def mlflow_server(tmp_path):
    """The URL of a real MLflow server, with a user and a password in it, which this one does not ask for."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (tmp_path / "mlflow.log").open("w")
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
    _wait_for(f"http://127.0.0.1:{port}/health")
    yield f"http://ada:geheim@127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=30)


def _wait_for(url):
    until = time.monotonic() + 300
    while time.monotonic() < until:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"{url} does not answer")


def _completed(flow, count, log):
    """The first runs of a flow that are completed, once there are `count`."""
    api = os.environ["PREFECT_API_URL"]
    until = time.monotonic() + 900
    while time.monotonic() < until:
        runs = httpx.post(f"{api}/flow_runs/filter", json={"flows": {"name": {"any_": [flow]}}}).json()
        assert not {run["state_type"] for run in runs} & {"CRASHED", "FAILED"}, log.read_text()[-3000:]
        ended = [run for run in runs if run["state_type"] == "COMPLETED"]
        if len(ended) >= count:
            return sorted(ended, key=lambda run: run["end_time"])
        time.sleep(1)
    raise AssertionError(f"{flow} did not end: {log.read_text()[-3000:]}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nights_wait_for_approval_under_a_worker_with_other_settings(
    home, own_server, mlflow_server, change, tmp_path, monkeypatch
):
    monkeypatch.setenv("ERRATA_GATE__APPROVAL", "manual")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    settings = load_settings()
    file = tmp_path / "prefect.yaml"
    every_minute = DEPLOYMENTS.read_text().replace('cron: "0 2 * * *"', 'cron: "* * * * *"')
    file.write_text(every_minute.replace("grace_period_seconds: 600", f"grace_period_seconds: {PLACE_SECONDS}"))
    (settings.home / "landing").mkdir(parents=True)
    write_feed([change("Arden", "Hal Birch", "2018-01-05")], settings.home / "landing" / "feed.parquet")
    deploy_nights(settings, file, blocks=True)
    deployed = httpx.post(f"{os.environ['PREFECT_API_URL']}/deployments/filter", json={}).json()
    assert len(deployed) == len(SPECIFIED)
    for deployment in deployed:
        given = deployment["job_variables"]["env"]
        assert given["MLFLOW_TRACKING_URI"] == "{{ prefect.blocks.secret.errata-mlflow-tracking-uri }}"
        assert json.loads(given[DEPLOYED_VARIABLE])["settings"]["gate"]["approval"] == "manual"
        assert "geheim" not in json.dumps(deployment)

    # A worker that knows nothing of this, and has another ledger and another policy of its own.
    space = open_workspace()
    with monkeypatch.context() as elsewhere:
        for name in ("ERRATA_CONFIG", "MLFLOW_TRACKING_URI"):
            elsewhere.delenv(name)
        elsewhere.setenv("ERRATA_LEDGER_URL", f"sqlite:///{tmp_path}/another.db")
        elsewhere.setenv("ERRATA_GATE__APPROVAL", "auto")
        own_server("worker", "start", "--pool", POOL, wait=False)
    log = tmp_path / "worker.log"
    first, second = _completed("night", 2, log)[:2]  # the second comes while a version waits
    assert {(run["auto_scheduled"], run["state_name"]) for run in (first, second)} == {(True, "Waiting")}
    (request,) = status_of(space)["for_approval"]
    assert request["version"] == 1
    assert not (tmp_path / "another.db").exists()

    # Longer than the server lends a place among the concurrent runs.
    since = datetime.fromisoformat(first["end_time"])
    time.sleep(max(0, PLACE_SECONDS + 2 - (datetime.now(UTC) - since).total_seconds()))
    own_server("deployment", "run", "approve/by-hand", "-p", "decision=promote", "-p", "who=ada")
    assert len(_completed("approve", 1, log)) == 1
    assert space.champion.version == space.registry.get(CHAMPION).number == 1
    told = night_history(space)["nights"]
    assert {(row["applied"], row["decided"]) for row in told if row["version"]} == {(1, "approved by ada")}
    artifacts = httpx.post(f"{os.environ['PREFECT_API_URL']}/artifacts/filter", json={}).text
    assert "approve/by-hand" in artifacts
    assert "geheim" not in artifacts + log.read_text()
