"""Where prompt tokens lie among the model's word embeddings (arXiv 2405.03279, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from editing.editors.recipe import RecipeEncoder
from editing.models import BaseModel


@dataclass(frozen=True, eq=False, slots=True)
class PromptSpace:
    """Points in the plane of the two first principal components of words and prompt tokens together.

    `words_N2`, `prompts_NP2` (P prompt tokens of each statement), `explained` the share of the
    variance that each component has, and `norm_ratio` the mean length of a prompt token over that of a word.
    """

    words_N2: np.ndarray
    prompts_NP2: np.ndarray
    explained: tuple[float, float]
    norm_ratio: float


@torch.no_grad()
def prompt_space(base: BaseModel, encoder: RecipeEncoder, statements: Sequence[str], words: int = 2000) -> PromptSpace:
    """Project the prompt tokens of `statements` and `words` evenly chosen word embeddings.

    Both are scaled to unit length first, so that the picture shows directions.
    """
    table_VD = base.model.get_input_embeddings().get_parameter("weight").float().cpu()
    chosen = torch.linspace(0, len(table_VD) - 1, min(words, len(table_VD))).round().long()
    words_ND = table_VD[chosen]
    prompts_NPD = encoder.prompts(encoder.knowledge(statements)).float().cpu()
    ratio = float(prompts_NPD.norm(dim=-1).mean() / words_ND.norm(dim=-1).mean())
    points_MD = torch.nn.functional.normalize(torch.cat([words_ND, prompts_NPD.flatten(0, 1)]), dim=-1)
    centred_MD = points_MD - points_MD.mean(0)
    _, singular_D, axes_DD = torch.linalg.svd(centred_MD, full_matrices=False)
    plane_M2 = (centred_MD @ axes_DD[:2].T).numpy()
    shares = (singular_D.square() / singular_D.square().sum()).tolist()
    return PromptSpace(
        plane_M2[: len(words_ND)],
        plane_M2[len(words_ND) :].reshape(*prompts_NPD.shape[:2], 2),
        (shares[0], shares[1]),
        ratio,
    )
