"""RECIPE: facts as retrieved continuous prompts, gated by a knowledge sentinel (arXiv 2405.03279)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editing.lazily import lazily

if TYPE_CHECKING:
    from editing.editors.recipe.config import EncoderConfig, RecipeConfig, TrainingConfig
    from editing.editors.recipe.editor import Recipe
    from editing.editors.recipe.encoder import RecipeEncoder
    from editing.editors.recipe.meta import MetaEdit, MetaSource
    from editing.editors.recipe.serving import Lookup
    from editing.editors.recipe.state import RecipeState
    from editing.editors.recipe.training import train_encoder

__getattr__ = lazily(
    __name__,
    {
        "EncoderConfig": "config",
        "RecipeConfig": "config",
        "TrainingConfig": "config",
        "Recipe": "editor",
        "RecipeEncoder": "encoder",
        "MetaEdit": "meta",
        "MetaSource": "meta",
        "Lookup": "serving",
        "RecipeState": "state",
        "train_encoder": "training",
    },
)

__all__ = [
    "EncoderConfig",
    "Lookup",
    "MetaEdit",
    "MetaSource",
    "Recipe",
    "RecipeConfig",
    "RecipeEncoder",
    "RecipeState",
    "TrainingConfig",
    "train_encoder",
]
