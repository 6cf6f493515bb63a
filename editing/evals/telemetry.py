"""How far a state's edits reach: into the prompts they are for, those they are not for, and every suite's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from editing.editors import get_editor
from editing.editors.base import EditState, ScopeReading
from editing.evals.requests import prompt_ids
from editing.evals.suite import Suite
from editing.facts import FactChange, fold
from editing.models import BaseModel

EDIT_PROMPTS, REPHRASES = "edit prompts", "rephrases"
SAME_SUBJECT, OTHER_SUBJECTS = "same subject", "other subjects"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What edits reach of a kind of prompt: `prompts` of them, shares 0 to 1, margins in the method's unit.

    `tokens` is the share of all their tokens that an edit computes, `hits` the share of prompts with
    at least one; `margin` is the median of score minus threshold, `low` and `high` its extremes (None
    where everything or nothing is in scope, whatever its score).
    """

    kind: str
    prompts: int
    tokens: float
    hits: float
    margin: float | None
    low: float | None
    high: float | None

    def scalars(self) -> dict[str, float]:
        """The figures by name, for a tracking server."""
        figures = {name: getattr(self, name) for name in ("tokens", "hits", "margin", "low", "high")}
        return {f"{self.kind}/{name}": value for name, value in figures.items() if value is not None}


def asked_kinds(facts: Iterable[FactChange]) -> dict[str, list[str]]:
    """The prompts of `facts` by what an edit is to do with them."""
    kinds: dict[str, list[str]] = {EDIT_PROMPTS: [], REPHRASES: [], SAME_SUBJECT: [], OTHER_SUBJECTS: []}
    for fact in facts:
        kinds[EDIT_PROMPTS].append(fact.question)
        kinds[REPHRASES].extend(fact.paraphrases)
        for item in fact.locality:
            kinds[SAME_SUBJECT if fold(fact.subject) in fold(item.prompt) else OTHER_SUBJECTS].append(item.prompt)
    return kinds


def suite_kinds(suites: Iterable[Suite], limit: int) -> dict[str, list[str]]:
    """At most `limit` prompts of every suite, by its name."""
    return {suite.name: [item.prompt for item in suite.sample(limit).items] for suite in suites}


def readings(base: BaseModel, state: EditState, prompts: Sequence[str], *, batch_size: int) -> list[ScopeReading]:
    """What `state`, which is not attached, does to each prompt."""
    rows = [(ids, ()) for ids in prompt_ids(base, prompts)]
    found: list[ScopeReading] = get_editor(state.method).read_scope(base, state, rows, batch_size=batch_size)
    return found


def reach(kind: str, found: Sequence[ScopeReading]) -> Reach:
    """The row of one kind of prompt; at least one reading."""
    margins = [reading.margin for reading in found if math.isfinite(reading.margin)]
    return Reach(
        kind=kind,
        prompts=len(found),
        tokens=sum(reading.touched for reading in found) / sum(reading.tokens for reading in found),
        hits=sum(reading.touched > 0 for reading in found) / len(found),
        margin=statistics.median(margins) if margins else None,
        low=min(margins, default=None),
        high=max(margins, default=None),
    )
