import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from tasks.deploy import DEPLOYMENTS, POOL, DeployError, deploy_nights
from tasks.feed.schema import write_feed
from tasks.settings import load_settings
from tasks.status import night_history
from tasks.workspace import open_workspace

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
    started = []

    def prefect(*arguments, wait=True):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        if wait:
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=600).stdout
        log = (tmp_path / f"{arguments[0]}.log").open("w")
        started.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT))
        return None

    prefect("server", "start", "--host", "127.0.0.1", "--port", str(port), wait=False)
    until = time.monotonic() + 300
    while time.monotonic() < until:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/api/health").is_success:
                break
        except httpx.HTTPError:
            time.sleep(0.5)
    yield prefect
    for process in reversed(started):
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_scheduled_and_a_triggered_night_on_a_real_server_and_worker(home, own_server, change, tmp_path):
    settings = load_settings()
    every_minute = DEPLOYMENTS.read_text().replace('cron: "0 2 * * *"', 'cron: "* * * * *"')
    file = tmp_path / "prefect.yaml"
    file.write_text(every_minute)
    (settings.home / "landing").mkdir(parents=True)
    write_feed([change("Arden", "Hal Birch", "2018-01-05")], settings.home / "landing" / "feed.parquet")
    deploy_nights(settings, file)
    own_server("worker", "start", "--pool", POOL, wait=False)
    own_server("deployment", "run", "night/nightly")
    api = os.environ["PREFECT_API_URL"]
    until = time.monotonic() + 900
    ended: dict[bool, str] = {}
    while time.monotonic() < until and set(ended) != {True, False}:
        runs = httpx.post(f"{api}/flow_runs/filter", json={}).json()
        final = [run for run in runs if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
        ended = {run["auto_scheduled"]: run["state_type"] for run in final}
        time.sleep(2)
    log = Path(tmp_path / "worker.log").read_text()
    assert ended == {True: "COMPLETED", False: "COMPLETED"}, log[-3000:]
    told = night_history(open_workspace())
    assert [night["applied"] for night in told["nights"]][:2] == [1, 0]
    assert told["moves"][0]["to"] == 1
