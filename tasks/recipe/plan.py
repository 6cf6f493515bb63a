"""What an encoder is to be trained on and with, settled before the first step: a training is known by its key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.almanac.meta_edits import AlmanacEdits
from editing.almanac.recipe import ALMANAC_ENCODER, ALMANAC_TRAINING
from editing.almanac.world import load_world
from editing.editors.recipe import EncoderConfig, MetaSource, RecipeEncoder, TrainingConfig
from editing.editors.recipe.fact_edits import FactEdits
from editing.storage import canonical_json
from tasks.errors import TasksError
from tasks.feed.convert import Conversion
from tasks.feed.files import file_digest
from tasks.settings import ALMANAC, Settings
from tasks.workspace import Workspace, open_workspace

KEY_LENGTH = 16


class EncoderError(TasksError, ValueError):
    """An encoder has nothing to be trained on."""


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """One training: both configs as plain JSON types, the edits, the encoder that it begins with (None: at random),
    and the `key` over all that decides the weights."""

    key: str
    encoder: Mapping[str, Any]
    training: Mapping[str, Any]
    edits: str
    initial: str | None

    @property
    def encoder_config(self) -> EncoderConfig:
        """The shape of the encoder."""
        return EncoderConfig.from_dict(self.encoder)

    @property
    def training_config(self) -> TrainingConfig:
        """How it is trained."""
        return TrainingConfig.from_dict(self.training)


@task(name="plan training", cache_policy=NO_CACHE)
def plan_training() -> EncoderPlan:
    """The training that the settings ask for. Raises `ConfigError` for settings that contradict each other."""
    space = open_workspace()
    wanted = space.settings.recipe
    shipped = wanted.edits is None and space.settings.model.id == ALMANAC
    encoder = {**(ALMANAC_ENCODER.to_dict() if shipped else {}), **wanted.encoder}
    training = {**(ALMANAC_TRAINING.to_dict() if shipped else {}), **wanted.training}
    content: dict[str, Any] = {
        "base": space.base.fingerprint,
        "tokenizer": space.base.tokenizer_hash,
        "encoder": EncoderConfig.from_dict(encoder).to_dict(),
        "training": TrainingConfig.from_dict(training).to_dict(),
        "edits": _edits_digest(space.settings),
        "initial": None if wanted.initial is None else RecipeEncoder.load(wanted.initial, space.base).digest,
    }
    key = hashlib.sha256(canonical_json(content).encode()).hexdigest()[:KEY_LENGTH]
    return EncoderPlan(key, content["encoder"], content["training"], content["edits"], content["initial"])


def edit_source(space: Workspace) -> MetaSource:
    """The meta-edits that the settings name: those of a file, or the Almanac's own.

    Raises `EncoderError` when the base is another and no file is named, `FeedError` for a file that
    cannot be read, `FactError` for one with too few subjects.
    """
    wanted = space.settings.recipe
    if wanted.edits is None:
        if space.settings.model.id != ALMANAC:
            raise EncoderError(
                f"no edits are known to train an encoder for {space.settings.model.id!r} on; set recipe.edits to a "
                "file (a feed, ZsRE, CounterFact or another format that `errata feed convert` reads)"
            )
        return AlmanacEdits(load_world())
    asked_later = {fact.key.subject for path in wanted.without for fact in Conversion(path)}
    return FactEdits(Conversion(wanted.edits), held_out=wanted.held_out, without=asked_later)


def _edits_digest(settings: Settings) -> str:
    wanted = settings.recipe
    if wanted.edits is None:
        return ALMANAC
    parts = [str(wanted.held_out), *(_edits_file_digest(path) for path in (wanted.edits, *wanted.without))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _edits_file_digest(path: Path) -> str:
    if not path.is_file():
        raise EncoderError(f"{path} is no file; give the edits to train on as one")
    return file_digest(path)
