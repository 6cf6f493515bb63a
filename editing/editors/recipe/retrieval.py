"""Retrieval: which row a question uses, if any.

Shapes: B questions, K rows found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from editing.editors.recipe.state import RecipeState
from editing.facts import SLOT, FactChange
from editing.tokenisation import find_subject

CONSIDERED = 32  # nearest rows of which the subject gate asks whether the question names their subject
ANYTHING = "it"  # stands for a subject where only the words of the relation are to count


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
    """The best `k` rows of each question; scores are `q . r / sqrt(R)` (arXiv 2405.03279), cosines without a trained
    encoder.

    With the sentinel's gate the best row is used when it scores above the sentinel for the same question; with the
    subject's see `_by_subject`.
    """
    queries_BR = state.encoder.query(questions)
    by_subject = state.config.gate == "subject"
    products, rows = state.repository.search(queries_BR, max(k, CONSIDERED) if by_subject else k)
    scores = products / state.encoder.scale
    if by_subject:
        return _by_subject(state, questions, rows, scores, k)
    limits = gate_limits(state, queries_BR)
    used = scores[:, 0] > limits if state.config.gate == "sentinel" else scores[:, 0] >= limits
    return Found(rows, scores, limits, used & (rows[:, 0] >= 0))


def gate_limits(state: RecipeState, queries_BR: torch.Tensor) -> np.ndarray:
    """The score `[B]` that each question's best row has to beat; by the subject gate, that of a row that it names."""
    config = state.config
    if config.gate == "sentinel":
        limits: np.ndarray = (queries_BR @ state.sentinel / state.encoder.scale).cpu().numpy()
        return limits
    fixed = {"fixed": config.fixed_score, "subject": config.named_score}
    return np.full(len(queries_BR), fixed.get(config.gate, -np.inf))


def _by_subject(
    state: RecipeState, questions: Sequence[str], rows_BC: np.ndarray, scores_BC: np.ndarray, k: int
) -> Found:
    """The best `k` of the rows found, those whose subject the question names and whose relation fits first.

    A question about another subject shares the relation's words, and one about the subject's other relations shares
    the subject. So a row whose subject the question names is judged by the mean of its score and of how near the
    question is to the fact's with the subject taken out of both, and has to reach `named_score`; any other row has to
    reach `unnamed_score`, which only a near copy of its statement does.
    """
    config, known = state.config, np.unique(rows_BC[rows_BC >= 0]).tolist()
    facts = dict(zip(known, state.repository.facts(known), strict=True))
    named = [
        (b, c, at)
        for b, text in enumerate(questions)
        for c, row in enumerate(rows_BC[b].tolist())
        if row >= 0 and (at := find_subject(text, facts[row].subject)) >= 0
    ]
    judged_BC, named_BC = scores_BC.astype(np.float64), np.zeros(scores_BC.shape, bool)
    if named:
        bare = [_without(questions[b], facts[rows_BC[b, c]], at) for b, c, at in named]
        own = [facts[rows_BC[b, c]].prompt.replace(SLOT, ANYTHING) for b, c, _ in named]
        texts = sorted({*bare, *own})
        place = {text: index for index, text in enumerate(texts)}
        queries_TR = state.encoder.query(texts)
        fit = (queries_TR[[place[text] for text in bare]] * queries_TR[[place[text] for text in own]]).sum(-1)
        for (b, c, _), near in zip(named, (fit / state.encoder.scale).tolist(), strict=True):
            judged_BC[b, c], named_BC[b, c] = (judged_BC[b, c] + near) / 2, True
    limits_BC = np.where(named_BC, config.named_score, config.unnamed_score)
    fits_BC = judged_BC >= limits_BC
    order_BC = np.lexsort((-judged_BC, ~(named_BC & fits_BC), ~fits_BC), axis=1)
    rows_BC, judged_BC, limits_BC, fits_BC = (
        np.take_along_axis(each, order_BC, 1) for each in (rows_BC, judged_BC, limits_BC, fits_BC)
    )
    return Found(rows_BC[:, :k], judged_BC[:, :k], limits_BC[:, 0], fits_BC[:, 0])


def _without(text: str, fact: FactChange, at: int) -> str:
    """`text` with `ANYTHING` for the fact's subject, which begins at character `at`."""
    return f"{text[:at]}{ANYTHING}{text[at + len(fact.subject) :]}"
