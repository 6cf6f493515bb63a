"""The encoder's place in MLflow: a registered model beside the edited one's, `NAME-encoder`, and one run a training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.almanac.recipe import measure_encoder, write_card
from editing.editors.recipe import RecipeEncoder
from editing.errors import StateError
from editing.storage import read_json
from tasks.artifacts import show_link, show_table
from tasks.faults import checkpoint
from tasks.recipe.plan import EncoderError, EncoderPlan, edit_source
from tasks.registry import NightRun, Registry
from tasks.workspace import Workspace, open_workspace

TRAINING_TAG = "errata.training"
FIGURES = "figures.json"


@dataclass(frozen=True, slots=True)
class TrainedEncoder:
    """A registered encoder: its folder, digest, registered name and version, its card's figures, its run's page."""

    folder: str
    digest: str
    name: str
    version: int
    figures: dict[str, Any]
    run: str


def encoder_registry(space: Workspace) -> Registry:
    """The registry of encoders, in the store that has the edited model's versions."""
    settings = space.settings
    return Registry(
        settings.tracking_uri,
        name=f"{settings.registered_model}-encoder",
        artifacts=settings.home / "mlflow" / "artifacts",
        cache=settings.cache / "encoder-versions",
    )


@contextmanager
def training_run(space: Workspace, plan: EncoderPlan) -> Iterator[NightRun]:
    """The MLflow run of a training; the same one after a kill."""
    with encoder_registry(space).night_run(plan.key, title=f"encoder {plan.key}", tag=TRAINING_TAG) as run:
        yield run


@task(name="measure encoder", cache_policy=NO_CACHE)
def measure(plan: EncoderPlan, folder: str) -> None:
    """Measure the encoder on subjects that it was not trained on, and write its card; once."""
    if (Path(folder) / FIGURES).is_file():
        return
    space = open_workspace()
    encoder = RecipeEncoder.load(Path(folder), space.base)
    figures = measure_encoder(space.base, encoder, edit_source(space))
    write_card(figures, plan.training, Path(folder), initial=plan.initial)
    checkpoint("encoder measured")


@task(name="register encoder", cache_policy=NO_CACHE)
def register(plan: EncoderPlan, folder: str) -> TrainedEncoder:
    """Register the encoder's files as a version; the version that has them already, if one does."""
    space = open_workspace()
    figures = read_json(Path(folder) / FIGURES, StateError)
    digest = RecipeEncoder.load(Path(folder), space.base).digest
    registry = encoder_registry(space)
    tags = {"errata.base_fingerprint": space.base.fingerprint, TRAINING_TAG: plan.key}
    with training_run(space, plan) as run:
        shares = {name: value for name, value in figures["validation"].items() if isinstance(value, float)}
        run.metrics({f"final.{name}": value for name, value in shares.items()}, timestamp=run.started)
        version = registry.register(run.run_id, Path(folder), digest=digest, tags=tags)
        run.tags({"errata.encoder_digest": digest})
        url = run.url
    show_table("encoder", [{"share": name, "value": value} for name, value in shares.items()], "The trained encoder")
    show_link("encoder-run", url, "the training in MLflow", "Loss curves, parameters and files of the encoder")
    return TrainedEncoder(folder, digest, registry.name, version.number, figures, url)


def copy_encoder(trained: TrainedEncoder, folder: Path) -> None:
    """Copy a trained encoder's files over those in `folder`. Raises `EncoderError` when it holds something else."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "encoder.json").is_file():
        raise EncoderError(f"{folder} holds something else than an encoder; give an empty folder")
    shutil.copytree(trained.folder, folder, dirs_exist_ok=True)
