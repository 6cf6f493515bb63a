"""RECIPE: facts as retrieved continuous prompts, gated by a knowledge sentinel (arXiv 2405.03279)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editing.editors.recipe.config import EncoderConfig, RecipeConfig, TrainingConfig
    from editing.editors.recipe.editor import Recipe
    from editing.editors.recipe.encoder import RecipeEncoder
    from editing.editors.recipe.meta import MetaEdit, MetaSource
    from editing.editors.recipe.serving import Lookup
    from editing.editors.recipe.state import RecipeState
    from editing.editors.recipe.training import train_encoder

# What the package has, imported when it is first asked for: the settings alone need no model library.
_MODULES = {
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
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


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
