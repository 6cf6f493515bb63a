"""RECIPE: facts as retrieved continuous prompts, gated by a knowledge sentinel (arXiv 2405.03279)."""

from editing.editors.recipe.config import EncoderConfig, RecipeConfig, TrainingConfig
from editing.editors.recipe.encoder import RecipeEncoder
from editing.editors.recipe.meta import MetaEdit, MetaSource
from editing.editors.recipe.training import train_encoder

__all__ = [
    "EncoderConfig",
    "MetaEdit",
    "MetaSource",
    "RecipeConfig",
    "RecipeEncoder",
    "TrainingConfig",
    "train_encoder",
]
