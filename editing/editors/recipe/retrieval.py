"""Retrieval: which row a question uses, if any.

Shapes: B questions, K rows found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from editing.editors.recipe.repository import Repository
from editing.editors.recipe.state import RecipeState
from editing.facts import SLOT
from editing.sentences import ANYTHING, SentenceModel, last_sentence, without_subject
from editing.tokenisation import find_subject

CONSIDERED = 32  # nearest rows of which the subject gate asks whether the question names their subject


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
    if state.config.gate == "subject":
        return _by_subject(state, questions, k)
    queries_BR = state.encoder.query(questions)
    products, rows = state.repository.search(queries_BR, k)
    scores = products / state.encoder.scale
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


def _by_subject(state: RecipeState, questions: Sequence[str], k: int) -> Found:
    """The best `k` of the rows near each question, those whose subject the question names and whose relation fits
    first.

    A question about another subject shares the relation's words, and one about the subject's other relations shares
    the subject. So a row whose subject the question names is judged by the mean of its score and of how near the
    question is to the fact's with the subject taken out of both (`relation`), and has to reach `named_score`; any other
    row has to reach `unnamed_score`, which only a near copy of its statement does.

    A question of several sentences is read twice, as a whole and by its last alone, since what is said before a
    question moves its representation; the better reading counts.
    """
    last = [(b, sentence) for b, text in enumerate(questions) if (sentence := last_sentence(text)) != text]
    readings = [*questions, *(sentence for _, sentence in last)]
    rows_RC, judged_RC, named_RC = _judged(state, readings, max(k, CONSIDERED))
    n = len(questions)
    rows_BC, judged_BC, named_BC = (
        np.concatenate([each_RC[:n], np.full_like(each_RC[:n], nothing)], axis=1)
        for each_RC, nothing in ((rows_RC, -1), (judged_RC, -np.inf), (named_RC, False))
    )
    width = rows_RC.shape[1]
    for reading, (b, _) in enumerate(last, start=n):
        for each_BC, each_RC in ((rows_BC, rows_RC), (judged_BC, judged_RC), (named_BC, named_RC)):
            each_BC[b, width:] = each_RC[reading]
    limits_BC = np.where(named_BC, state.config.named_score, state.config.unnamed_score)
    fits_BC = judged_BC >= limits_BC
    order_BC = np.lexsort((-judged_BC, ~(named_BC & fits_BC), ~fits_BC), axis=1)
    rows_BC, judged_BC, limits_BC, fits_BC = (
        np.take_along_axis(each, order_BC, 1) for each in (rows_BC, judged_BC, limits_BC, fits_BC)
    )
    for b, _ in last:
        _once(rows_BC[b], judged_BC[b])
    return Found(rows_BC[:, :k], judged_BC[:, :k], limits_BC[:, 0], fits_BC[:, 0])


def _judged(state: RecipeState, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `k` rows nearest to each text and as many whose subject it names `[B, C]`, what the subject gate makes of
    their scores, and which are named."""
    queries_BR = state.encoder.query(texts)
    products_BC, rows_BC = _with_named(state.repository, texts, queries_BR, *state.repository.search(queries_BR, k))
    judged_BC, named_BC = (products_BC / state.encoder.scale).astype(np.float64), np.zeros(rows_BC.shape, bool)
    known = np.unique(rows_BC[rows_BC >= 0]).tolist()
    facts = dict(zip(known, state.repository.facts(known), strict=True))
    named = [
        (b, c, at)
        for b, text in enumerate(texts)
        for c, row in enumerate(rows_BC[b].tolist())
        if row >= 0 and (at := find_subject(text, facts[row].subject)) >= 0
    ]
    if named:
        bare = [without_subject(texts[b], facts[rows_BC[b, c]].subject, at) for b, c, at in named]
        own = [facts[rows_BC[b, c]].prompt.replace(SLOT, ANYTHING) for b, c, _ in named]
        relations = sorted({*bare, *own})
        place = {text: index for index, text in enumerate(relations)}
        queries_TR = _relations(state, relations)
        fit = (queries_TR[[place[text] for text in bare]] * queries_TR[[place[text] for text in own]]).sum(-1)
        for (b, c, _), near in zip(named, (fit / state.encoder.scale).tolist(), strict=True):
            judged_BC[b, c], named_BC[b, c] = (judged_BC[b, c] + near) / 2, True
    return rows_BC, judged_BC, named_BC


def _relations(state: RecipeState, texts: Sequence[str]) -> torch.Tensor:
    """Representations `[N, R]` of questions without their subjects, as the option `relation` compares them."""
    if state.config.relation == "asked" and isinstance(state.encoder, SentenceModel):
        return state.encoder.represent_asked(texts)
    return state.encoder.query(texts)


def _with_named(
    repository: Repository, texts: Sequence[str], queries_BR: torch.Tensor, products_BK: np.ndarray, rows_BK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products and rows `[B, C]`: those found, and behind them other rows whose subject the text may name.

    Among many facts of one relation the nearest are not enough: its words are shared by all of them.
    """
    n, k = rows_BK.shape
    products_BC = np.concatenate([products_BK, np.full((n, k), -np.inf, np.float32)], axis=1)
    rows_BC = np.concatenate([rows_BK, np.full((n, k), -1)], axis=1)
    for b, text in enumerate(texts):
        products, rows = repository.naming(queries_BR[b], text, k)
        other = ~np.isin(rows, rows_BK[b])
        products_BC[b, k : k + other.sum()], rows_BC[b, k : k + other.sum()] = products[other], rows[other]
    return products_BC, rows_BC


def _once(rows_C: np.ndarray, judged_C: np.ndarray) -> None:
    """Leave a row that both readings found only where it is judged better, in place; the best stay in front."""
    _, first = np.unique(rows_C, return_index=True)
    kept = np.isin(np.arange(len(rows_C)), first) & (rows_C >= 0)
    rows_C[:], judged_C[:] = (
        np.concatenate([each[kept], np.full((~kept).sum(), nothing)])
        for each, nothing in ((rows_C, -1), (judged_C, -np.inf))
    )
