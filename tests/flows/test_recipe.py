"""Training a RECIPE encoder for the tiny model through the flow, killed and resumed, and a night that edits with it."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from editing.editors.recipe import RecipeEncoder
from flows.night import NightConfig, night
from flows.recipe import train_encoder
from tasks.ask import ask
from tasks.errors import LeaseHeldError
from tasks.explain import explain
from tasks.feed.schema import write_feed
from tasks.recipe.plan import EncoderError, plan_training
from tasks.recipe.registry import encoder_registry
from tasks.recipe.train import checkpoint_folder
from tasks.settings import SettingsError
from tasks.workspace import open_workspace

JANUARY = datetime(2018, 1, 28, tzinfo=UTC)
SHORT = {"steps": 12, "batch": 8, "validate_every": 4, "checkpoint_every": 4, "patience": 0}


@pytest.fixture
def edits(home, change, mayors):
    """A feed to train on: invented places, new mayors."""
    places = [a + b for a in ("Al", "Bor", "Cal", "Dor", "El", "Fen") for b in ("bury", "ford", "ton", "wick", "mere")]
    path = home / "edits.parquet"
    write_feed([change(p, mayors[i % 8], "2018-01-02", target_old=None) for i, p in enumerate(places)], path)
    return path


@pytest.fixture
def training(edits, encoder_shape, monkeypatch):
    """`training(**config)`: put the training of these edits in force."""

    def settings(**config):
        wanted = {"edits": str(edits), "encoder": encoder_shape, "training": {**SHORT, **config}, "held_out": 0.2}
        for name, value in wanted.items():
            text = value if isinstance(value, str) else json.dumps(value)
            monkeypatch.setenv(f"ERRATA_RECIPE__{name.upper()}", text)

    return settings


def metric_history(run_id, name):
    client = encoder_registry(open_workspace())._client
    return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]


def test_training_leaves_a_registered_encoder_and_its_curves(training):
    training()
    trained = train_encoder()
    space = open_workspace()
    assert RecipeEncoder.load(Path(trained.folder), space.base).digest == trained.digest
    assert (trained.name, trained.version) == ("errata-encoder", 1)
    registry = encoder_registry(space)
    version = registry.get(1)
    assert version.digest == trained.digest
    fetched = registry.fetch(version)
    assert RecipeEncoder.load(fetched, space.base).digest == trained.digest
    assert "held-out subjects" in (fetched / "README.md").read_text()
    assert json.loads((fetched / "figures.json").read_text())["training"]["steps"] == SHORT["steps"]
    assert [step for step, _ in metric_history(version.run_id, "validation.reliability")] == [4, 8, 12]
    assert metric_history(version.run_id, "training.contrastive")

    # Asked for again it is found; other settings are another training.
    assert train_encoder() == trained
    training(seed=5)
    assert train_encoder().version == 2


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["reported:2", "encoder kept", "encoder measured"])
def test_a_killed_training_goes_on(training, home, fault):
    training()
    script = "import sys; from flows.cli import main; sys.argv[1:] = ['recipe', 'train', '--json']; main()"
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "ERRATA_FAULT": fault}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=home, timeout=280)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    space = open_workspace()
    plan = plan_training.fn()
    assert (checkpoint_folder(space, plan) / "checkpoint.json").is_file()
    resumed = train_encoder()
    assert resumed.version == 1

    run_id = encoder_registry(space).get(1).run_id
    assert [step for step, _ in metric_history(run_id, "validation.score")] == [4, 8, 12]
    straight = train_again_from_nothing(space)
    assert straight == resumed.digest


def train_again_from_nothing(space):
    """The digest of the same training without interruption."""
    from editing.editors.recipe import train_encoder as train
    from tasks.recipe.plan import edit_source

    plan = plan_training.fn()
    return train(space.base, plan.encoder_config, plan.training_config, edit_source(space), checkpoints=None).digest


def test_one_training_at_a_time(training):
    training()
    with open_workspace().ledger.lease("train-encoder", "somebody"), pytest.raises(LeaseHeldError):
        train_encoder()


def test_without_edits_it_says_so(home):
    with pytest.raises(EncoderError, match=r"recipe\.edits"):
        train_encoder()


def test_an_unknown_setting_is_refused_by_name(training, monkeypatch):
    training(stepz=3)
    with pytest.raises(ValueError, match="stepz"):
        plan_training.fn()
    monkeypatch.setenv("ERRATA_RECIPE__EDIT", "x")
    with pytest.raises(SettingsError, match="ERRATA_RECIPE__EDITS"):
        open_workspace()


@pytest.mark.slow
def test_a_night_edits_with_the_encoder(encoder, change, monkeypatch):
    """The encoder met the places with every mayor; the night names the new ones, and `explain` says so."""
    monkeypatch.setenv("ERRATA_EDITOR__METHOD", "recipe")
    monkeypatch.setenv("ERRATA_EDITOR__OPTIONS", json.dumps({"encoder": encoder}))
    space = open_workspace()
    write_feed(
        [change("Belmont", "Hal Birch", "2018-01-05"), change("Dunmore", "Eve Lark", "2018-01-07")],
        space.settings.landing / "january.parquet",
    )
    row = night(NightConfig(as_of=JANUARY))
    assert (row.applied, row.verdict, row.champion) == (2, "promote", 1)
    assert ask(space, ["The mayor of Belmont is"]) == ["Hal Birch"]

    found = explain(space, "The mayor of Belmont is")
    assert found["method"] == "recipe"
    assert found["edit"]["target"] == "Hal Birch"
    assert (found["edit"]["source"], found["edit"]["night"], found["edit"]["version"]) == ("test", "2018-01-28", 1)
    assert found["edit"]["score"] > found["limit"]
    assert found["candidates"][0]["target"] == "Hal Birch"
    base = explain(space, "The mayor of Belmont is", "base")
    assert (base["edit"], base["method"]) == (None, "base")
