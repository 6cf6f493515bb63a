"""ZsRE and CounterFact in edit mode: a suite's own records applied to the base in memory, and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from editing.editors import get_editor
from editing.editors.base import EditState, Progress
from editing.errors import SuiteError
from editing.evals.edits import AppliedFact, Contradictions, edit_suite
from editing.evals.report import EvalReport
from editing.evals.scorer import Scorer, open_scorer
from editing.evals.suite import Suite, evaluate
from editing.evals.suites import counterfact, zsre
from editing.facts import FactChange, make_batches, resolve_conflicts
from editing.models import BaseModel

NIGHT = date(1970, 1, 1)
MakeSuite = Callable[[Sequence[FactChange], Scorer], Suite]


@dataclass(frozen=True, slots=True)
class SuiteEdits:
    """What was applied of a suite's records, and the reports of the base and of the edited model on it."""

    facts: tuple[FactChange, ...]
    state: EditState
    base: EvalReport
    edited: EvalReport


def bench_suite(
    base: BaseModel,
    state: Any,
    name: str,
    path: Path,
    *,
    records: int,
    batch_size: int,
    scoring_batch_size: int,
    split: str | None = None,
    generation: int | None = 0,
    references: str | Path | None = None,
    progress: Progress | None = None,
) -> SuiteEdits:
    """Apply the first `records` records of suite `name` to `state`, batch by batch, and score base and result.

    Of records with one subject and relation one is applied, and only it is scored. `generation` and
    `references` are CounterFact's options. Raises `SuiteError` for a suite without an edit mode.
    """
    if name == "zsre":
        facts, suite_of = _zsre(zsre.fact_changes(path, split=split)[:records])
    elif name == "counterfact":
        facts, suite_of = _counterfact(counterfact.read(path, split)[:records], generation, references)
    else:
        raise SuiteError(f"suite {name!r} has no edits of its own; zsre and counterfact have")
    editor = get_editor(state.method)
    batches = make_batches(facts, batch_size)
    for done, batch in enumerate(batches, 1):
        state = editor.apply(base, state, batch).state
        if progress:
            progress("batches", done, len(batches))
    reports = []
    with open_scorer(base, batch_size=scoring_batch_size, progress=progress) as scorer:
        suite = suite_of(facts, scorer)
        reports.append(evaluate(scorer, [suite]))
    with open_scorer(base, state, batch_size=scoring_batch_size, progress=progress) as scorer:
        reports.append(evaluate(scorer, [suite]))
    return SuiteEdits(tuple(facts), state, *reports)


def _zsre(changes: Sequence[FactChange]) -> tuple[Sequence[FactChange], MakeSuite]:
    def suite_of(facts: Sequence[FactChange], scorer: Scorer) -> Suite:
        applied = [AppliedFact(fact, NIGHT) for fact in facts]
        return edit_suite("edits", applied, applied=applied, as_of=NIGHT, base_scorer=scorer)

    return resolve_conflicts(changes).winners, suite_of


def _counterfact(
    records: Sequence[counterfact.CounterFactRecord], generation: int | None, references: str | Path | None
) -> tuple[Sequence[FactChange], MakeSuite]:
    by_id = {change.fact_id: record for record in records if (change := counterfact.change_of(record))}
    winners = resolve_conflicts(change for record in records if (change := counterfact.change_of(record))).winners

    def suite_of(facts: Sequence[FactChange], _: Scorer) -> Suite:
        suite = counterfact.suite_of(
            [by_id[fact.fact_id] for fact in facts], edited=True, generation=generation, references=references
        )
        applied = Contradictions(facts)

        def contradicted(item: Any) -> bool:
            return item.kind == counterfact.NEIGHBOURHOOD and applied.find(item.prompt, item.true) is not None

        return suite.without("contradicted by another edit", contradicted)

    return winners, suite_of
