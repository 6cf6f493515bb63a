"""Retrieval: which row a question uses, if any.

Shapes: B questions, K rows found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from editing.editors.recipe.state import RecipeState


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """For each question the best rows `[B, K]` with their scores (-1 and -inf where there are no more), the score
    `limits` `[B]` that the best had to beat, and whether it did, `used` `[B]`."""

    rows: np.ndarray
    scores: np.ndarray
    limits: np.ndarray
    used: np.ndarray


@torch.no_grad()
def retrieve(state: RecipeState, questions: Sequence[str], k: int = 1) -> Found:
    """The best `k` rows of each question; scores are `q . r / sqrt(R)` (arXiv 2405.03279).

    With the sentinel's gate the best row is used when it scores above the sentinel for the same question.
    """
    queries_BR = state.encoder.query(questions)
    products, rows = state.repository.search(queries_BR, k)
    scores = products / state.encoder.config.width**0.5
    if state.config.gate == "sentinel":
        limits = state.encoder.scores(queries_BR, state.sentinel[None])[:, 0].cpu().numpy()
        used = scores[:, 0] > limits
    else:
        limits = np.full(len(rows), state.config.fixed_score if state.config.gate == "fixed" else -np.inf)
        used = scores[:, 0] >= limits
    return Found(rows, scores, limits, used & (rows[:, 0] >= 0))
