"""Reliability, generality, portability and locality of applied edits, and what is left of the older ones.

Three moments, one suite each: `batch` (right after a batch), `edits` (after the night's last
batch) and `retention` (facts of earlier nights, grouped by age).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain
from typing import Literal, TypeVar

from editing.evals.probes import Probe, ProbeSuite, freeze
from editing.evals.scorer import Scorer
from editing.evals.suite import Suite, stable_id
from editing.facts import FactChange, Operation, fold, precedence, resolve_conflicts

EDITS_VERSION = "3"
RELIABILITY, GENERALITY, PORTABILITY = "reliability", "generality", "portability"
LOCALITY, SAME_SUBJECT_LOCALITY = "locality", "same_subject_locality"
EDIT_METRICS = (RELIABILITY, GENERALITY, PORTABILITY, LOCALITY, SAME_SUBJECT_LOCALITY)
AGE_BUCKETS = (1, 7, 30, 90, 365)  # upper ends in days

AnySuite = TypeVar("AnySuite", bound=Suite)
Moment = Literal["batch", "edits", "retention"]


@dataclass(frozen=True, slots=True)
class AppliedFact:
    """A fact change and the night that applied it."""

    fact: FactChange
    night: date


def age_bucket(night: date, as_of: date) -> str:
    """The age group of an edit, as `NNN-NNN days`: sorts by age."""
    days = (as_of - night).days
    low = 0
    for high in AGE_BUCKETS:
        if days <= high:
            return f"{low:03}-{high:03} days"
        low = high + 1
    return f"{low:03}+ days"


class Contradictions:
    """Finds applied facts that make an expected answer out of date.

    A fact does so when it was taught on that very prompt with another answer, or when the prompt
    names its subject and expects the value it replaced.
    """

    def __init__(self, facts: Iterable[FactChange]) -> None:
        self._by_prompt: dict[str, list[FactChange]] = {}
        self._by_old: dict[str, list[FactChange]] = {}
        for fact in facts:
            for text in {fold(text) for text in (fact.question, *fact.paraphrases)}:
                self._by_prompt.setdefault(text, []).append(fact)
            if fact.target_old is not None:
                self._by_old.setdefault(fold(fact.target_old), []).append(fact)

    def find(self, prompt: str, *answers: str, than: FactChange | None = None) -> FactChange | None:
        """A fact that makes all `answers` to `prompt` out of date, or None; with `than`, one of higher precedence."""
        asked, expected = fold(prompt), {fold(answer) for answer in answers}
        by_old = chain.from_iterable(self._by_old.get(answer, []) for answer in expected)
        replaced = (fact for fact in by_old if fold(fact.subject) in asked)
        suspects = chain(self._by_prompt.get(asked, []), replaced)
        return next(
            (
                fact
                for fact in suspects
                if fold(fact.target) not in expected and (than is None or precedence(fact) > precedence(than))
            ),
            None,
        )


def without_edited(suite: AnySuite, facts: Iterable[FactChange]) -> AnySuite:
    """The suite without items whose expected answer one of the applied `facts` has made out of date."""
    applied = Contradictions(facts)
    return suite.without("contradicted by an edit", lambda item: applied.find(item.prompt, item.expected) is not None)


def current_facts(applied: Iterable[AppliedFact]) -> list[AppliedFact]:
    """The applied facts that no later change of their key has superseded or retracted, each once."""
    by_id = {item.fact.fact_id: item for item in applied}
    holding = resolve_conflicts(item.fact for item in by_id.values()).winners
    return [by_id[change.fact_id] for change in holding if change.operation is Operation.ASSERT]


def _probes(
    scored: Sequence[AppliedFact], in_force: Contradictions, as_of: date, metrics: frozenset[str]
) -> tuple[list[Probe], Counter[str]]:
    probes: dict[tuple[str, str], Probe] = {}
    excluded: Counter[str] = Counter()

    def add(metric: str, item_id: str, prompt: str, *answers: str, group: str, as_base: bool = False) -> None:
        if metric in metrics:
            probe = Probe(
                item_id=f"{metric}:{item_id}",
                metric=metric,
                prompt=prompt,
                answers=answers,
                group=group,
                as_base=as_base,
                any_forced=len(answers) > 1,
            )
            probes.setdefault((metric, item_id), probe)

    for item in scored:
        fact, group = item.fact, age_bucket(item.night, as_of)
        add(RELIABILITY, fact.fact_id, fact.question, fact.target, group=group)
        for text in dict.fromkeys(fact.paraphrases):
            if in_force.find(text, fact.target):
                excluded["rephrase contradicted by another edit"] += 1
            else:
                add(GENERALITY, f"{fact.fact_id}:{stable_id(text)}", text, fact.target, group=group)
        for ported in fact.portability:
            if in_force.find(ported.prompt, *ported.answers, than=fact):
                excluded["portability prompt contradicted by a newer edit"] += 1
            else:
                item_id = f"{fact.fact_id}:{stable_id(ported.prompt, ported.answer)}"
                add(PORTABILITY, item_id, ported.prompt, *ported.answers, group=group)
        for local in fact.locality:
            if not local.answer.strip():
                excluded["locality prompt without an answer"] += 1
                continue
            if in_force.find(local.prompt, local.answer):
                excluded["locality prompt contradicted by an edit"] += 1
                continue
            same = fold(fact.subject) in fold(local.prompt)
            metric = SAME_SUBJECT_LOCALITY if same else LOCALITY
            add(metric, stable_id(local.prompt, local.answer), local.prompt, local.answer, group=group, as_base=True)
    return list(probes.values()), excluded


def edit_suite(
    moment: Moment,
    scored: Sequence[AppliedFact],
    *,
    applied: Sequence[AppliedFact],
    as_of: date,
    base_scorer: Scorer,
    metrics: Iterable[str] = EDIT_METRICS,
) -> ProbeSuite:
    """The suite that scores the facts `scored` on a model that holds `applied` (all nights, tonight included).

    Facts whose key was superseded or retracted later are not scored; prompts that another edit
    contradicts are left out; both are counted in `excluded`. A portability prompt is left out for a fact of
    higher precedence only: what is older than the fact that it follows from, or less trusted, does not excuse
    a contradiction. `base_scorer` scores the unedited
    base, whose outputs are frozen into the suite: build it before any state is attached.
    """
    holding = current_facts(applied)
    in_force = {item.fact.fact_id for item in holding}
    current = [item for item in scored if item.fact.fact_id in in_force]
    probes, excluded = _probes(current, Contradictions(item.fact for item in holding), as_of, frozenset(metrics))
    if len(scored) > len(current):
        excluded["superseded or retracted"] += len(scored) - len(current)
    base_scorer.label = f"{moment}, before"
    return ProbeSuite(
        name=moment,
        version=EDITS_VERSION,
        items=tuple(probes),
        excluded=dict(excluded),
        frozen=freeze(base_scorer, probes),
    )
