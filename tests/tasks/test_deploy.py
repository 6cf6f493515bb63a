import os
import shutil
from pathlib import Path

import pytest
import yaml
from prefect.utilities.templating import apply_values

from tasks.deploy import DeployError, _placed, _with_variables, carries_secret, describe, secret_settings
from tasks.settings import DEPLOYED_VARIABLE, SettingsError, load_settings
from tasks.workspace import Workspace, open_workspace

SECRET = "postgresql+psycopg://errata:geheim@db.example/errata"
TOML = """
registered_model = "ours"
ledger_url = "sqlite:///ours.db"
[prompts]
system = "Say {{ $HOME }} and {{{ name }}}."
[editor]
options = { layers = [1, 2] }
[gate.policy.floors]
"edits.reliability.generated" = 0.7
"""


@pytest.fixture
def deployer(tmp_path, monkeypatch):
    """Where somebody deploys: a folder with settings in a file and in variables."""
    for name in os.environ:
        if name.startswith("ERRATA_") or name == "MLFLOW_TRACKING_URI":
            monkeypatch.delenv(name)
    folder = tmp_path / "deployer"
    folder.mkdir()
    (folder / "errata.toml").write_text(TOML)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ERRATA_GATE__APPROVAL", "manual")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return folder


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """`worker(given)`: go where a worker is that has other settings, with what a deployment carries."""

    def go(given: str) -> Path:
        folder = tmp_path / "worker"
        folder.mkdir(exist_ok=True)
        (folder / "errata.toml").write_text('[gate.policy.floors]\n"zsre.question.generated" = 0.1\n')
        monkeypatch.chdir(folder)
        monkeypatch.setenv(DEPLOYED_VARIABLE, given)
        monkeypatch.setenv("ERRATA_GATE__APPROVAL", "auto")
        monkeypatch.setenv("ERRATA_HOME", str(folder / "var"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
        monkeypatch.delenv("ERRATA_LEDGER_URL", raising=False)
        return folder

    return go


def test_a_run_has_the_settings_that_it_was_deployed_with(deployer, worker):
    made = _placed(load_settings())
    assert made.ledger == f"sqlite:///{deployer}/ours.db"
    given = describe(made, ledger="l", registry="r")
    assert apply_values({"env": given}, {}) == {"env": given}  # Prefect finds nothing in it to replace
    worker(given)
    found = load_settings()
    assert found == made
    assert (found.gate.approval, found.registered_model, found.editor.options) == ("manual", "ours", {"layers": [1, 2]})
    assert found.tracking_uri == f"sqlite:///{deployer}/mlflow.db"
    assert found.prompts.system == "Say {{ $HOME }} and {{{ name }}}."
    changed = load_settings(editor={**found.editor.model_dump(), "method": "recipe"})  # as a command does for a while
    assert (changed.editor.method, changed.gate) == ("recipe", found.gate)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (SECRET, True),
        ("https://ada:geheim@mlflow.example", True),
        ("https://token-geheim@mlflow.example", True),
        ("postgresql+psycopg://db/errata?user=errata&password=geheim", True),
        ("postgresql+psycopg://errata@db/errata", False),
        ("https://mlflow.example:5080/path", False),
        ("sqlite:////srv/errata/ledger.db", False),
        ("The password of {} is", False),
    ],
)
def test_what_carries_a_password(text, secret):
    assert carries_secret(text) is secret


def test_a_password_is_read_from_the_workers_own_variable(deployer, worker, monkeypatch):
    monkeypatch.setenv("ERRATA_LEDGER_URL", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:geheim@mlflow.example")
    made = _placed(load_settings())
    assert list(secret_settings(made)) == ["ledger_url", "mlflow_tracking_uri"]
    given = describe(made, ledger="l", registry="r")
    assert "geheim" not in given
    worker(given)
    with pytest.raises(SettingsError, match=r"ledger_url carries a password, .* no variable ERRATA_LEDGER_URL; start"):
        load_settings()
    monkeypatch.setenv("ERRATA_LEDGER_URL", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:geheim@mlflow.example")
    assert load_settings() == made

    # Anywhere else a password would stand in the deployment for all to see.
    monkeypatch.delenv(DEPLOYED_VARIABLE)
    monkeypatch.setenv("ERRATA_RECIPE__ENCODER", '{"backbone": "https://ada:geheim@models.example/b"}')
    with pytest.raises(DeployError, match=r"recipe\.encoder\.backbone carries a password, which"):
        describe(load_settings(), ledger="l", registry="r")


def test_a_deployment_of_another_errata_is_refused_in_a_sentence(deployer, worker):
    given = describe(_placed(load_settings()), ledger="l", registry="r")
    worker(given.replace('"culprit_budget"', '"culprits"'))
    with pytest.raises(SettingsError, match=r"culprits.*another Errata made this deployment"):
        load_settings()
    worker("[]")
    with pytest.raises(SettingsError, match="ERRATA_DEPLOYED is not what `errata deploy` gives"):
        load_settings()


def test_another_ledger_or_registry_is_refused_and_none_is_made(deployer, worker, tmp_path):
    made = _placed(load_settings())
    space = Workspace(made)
    own = space.ledger.identity()
    given = describe(made, ledger=own, registry=space.registry.identity())
    assert (own, space.registry.identity()) == (
        Workspace(made).ledger.identity(),
        Workspace(made).registry.identity(),
    )
    space.ledger.close()
    worker(given)
    assert open_workspace().ledger.identity() == own
    ledger = deployer / "ours.db"

    def refused(what, why):
        open_workspace.__globals__["_open"].cache_clear()  # as in a run of its own
        with pytest.raises(SettingsError, match=f"the {what} at .* is not the one .*{why}.*`errata deploy` again"):
            open_workspace()

    # The path of the ledger on a machine that has none; then one that has another; then a copy of the very one.
    kept = shutil.move(ledger, tmp_path / "kept.db")
    for beside in deployer.glob("ours.db-*"):
        beside.unlink()
    refused("ledger", "there is none here")
    assert not ledger.exists()
    other = Workspace(made).ledger
    refused("ledger", "there is none here")  # it has no id: no deployment was ever made with it
    assert other.identity() != own
    other.close()
    refused("ledger", "it is another one")
    for beside in deployer.glob("ours.db*"):
        beside.unlink()
    shutil.copy(kept, ledger)
    open_workspace()

    worker(given.replace("mlflow.db", "elsewhere.db"))
    refused("registry", "there is none here")
    assert not (deployer / "elsewhere.db").exists()
    Workspace(load_settings()).registry.identity()
    refused("registry", "it is another one")


def test_variables_of_the_runs_own_stay_and_those_of_settings_go(tmp_path):
    file = tmp_path / "prefect.yaml"
    file.write_text(
        """
        deployments:
          - name: a
            work_pool: {name: errata, job_variables: {env: {MLFLOW_TRACKING_URI: "{{ $MLFLOW_TRACKING_URI }}", N: "1"}}}
          - name: b
            work_pool: {name: errata}
        """
    )
    found = yaml.safe_load(_with_variables(file, {"ERRATA_DEPLOYED": "x"}))["deployments"]
    variables = [deployment["work_pool"]["job_variables"]["env"] for deployment in found]
    assert variables == [{"N": "1", "ERRATA_DEPLOYED": "x"}, {"ERRATA_DEPLOYED": "x"}]
    file.write_text("deployments: [{name: a}]")
    with pytest.raises(DeployError, match="does not describe deployments with a work_pool each"):
        _with_variables(file, {})
