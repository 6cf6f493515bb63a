"""How well an editing method and its ablations hold a history of edits: the tables of `errata bench`.

Every variant is the same code under another config. Each applies the same nights in the same
batches and is asked, in both protocols:

- `reliability`: the edit prompt of every fact's current holder;
- `generality`: all its other phrasings;
- `same_subject`: other facts of the edited subjects, against the base's own answers;
- `locality`: facts of subjects that were never edited, against the base's own answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, TypeVar

from editing.editors.base import Editor, EditState, FactOutcome, Progress
from editing.evals.compare import compare
from editing.evals.edits import AppliedFact, current_facts
from editing.evals.probes import GENERATED, TEACHER_FORCED, Probe, ProbeSuite, freeze
from editing.evals.report import EvalReport
from editing.evals.scorer import open_scorer
from editing.evals.suite import Suite, evaluate, stable_id
from editing.facts import FactChange, fold, make_batches, resolve_conflicts
from editing.models import BaseModel
from editing.statistics import SecondMoments

EDITS = "edits"
METRICS = ("reliability", "generality", "locality", "same_subject")
MARGIN = 0.02  # of the paired tests against the base

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class History:
    """What a bench replays: fact changes by night, and prompts whose answers must stay, with these answers."""

    nights: Mapping[date, Sequence[FactChange]]
    unedited: Sequence[tuple[str, str, str]] = field(default_factory=tuple)  # subject, prompt, answer

    @property
    def edited_subjects(self) -> set[str]:
        """Subjects of any change, folded."""
        return {fact.key.subject for facts in self.nights.values() for fact in facts}

    def kept(self) -> list[Probe]:
        """Probes of what must stay: the given prompts, else the locality prompts that came with the changes."""
        rows = list(self.unedited) or [
            (fact.subject if fold(fact.subject) in fold(local.prompt) else "", local.prompt, local.answer)
            for facts in self.nights.values()
            for fact in facts
            for local in fact.locality
        ]
        edited = self.edited_subjects
        probes = {
            prompt: Probe(
                item_id=stable_id("kept", prompt),
                metric="same_subject" if fold(subject) in edited else "locality",
                prompt=prompt,
                answers=(answer,),
                as_base=True,
            )
            for subject, prompt, answer in rows
        }
        return list(probes.values())


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of the items, evenly spread."""
    return items[:: -(-len(items) // most)] if items else items


def taught(applied: Iterable[AppliedFact]) -> list[Probe]:
    """Probes of what the applied facts teach: current holders only."""
    probes: dict[str, Probe] = {}
    for item in current_facts(applied):
        fact = item.fact
        questions = [("reliability", fact.question), *(("generality", text) for text in fact.paraphrases)]
        for metric, prompt in questions:
            if prompt not in probes:
                key = stable_id(metric, fact.fact_id, prompt)
                probes[prompt] = Probe(item_id=key, metric=metric, prompt=prompt, answers=(fact.target,))
    return list(probes.values())


def bench_replay(
    base: BaseModel,
    editor: Editor[Any],
    statistics: SecondMoments | None,
    history: History,
    suites: Sequence[Suite],
    variants: Mapping[str, Any],
    default: str,
    *,
    batch_size: int = 10,
    curve: Sequence[int] = (1, 10, 30, 60, 100),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores of `editor` under each config of `variants`, as plain JSON types.

    `generated` and `teacher_forced` at the top are those of the variant `default`; `by_variant`
    holds all of them, each with its curve over the number of edits (generated, at the first night
    that reaches each count) and its paired tests against the base on `suites`.
    """
    kept = history.kept()
    with open_scorer(base) as scorer:
        frozen = freeze(scorer, kept)
        reference = evaluate(scorer, suites)
    by_variant: dict[str, Any] = {}
    for name, config in variants.items():
        run = _Run(base, editor, statistics, config, kept, frozen)
        by_variant[name] = run.replay(history, suites, reference, batch_size, curve, name, progress)
    chosen = by_variant[default]
    return {
        GENERATED: chosen[GENERATED],
        TEACHER_FORCED: chosen[TEACHER_FORCED],
        "by_variant": by_variant,
        "base": {"model": base.model_id, "fingerprint": base.fingerprint, **reference.scalars()},
        "config": variants[default].to_dict(),
        "batch_size": batch_size,
        "sizes": chosen["sizes"],
        "packages": dict(reference.packages),
    }


@dataclass
class _Run:
    """One variant's replay."""

    base: BaseModel
    editor: Editor[Any]
    statistics: SecondMoments | None
    config: Any
    kept: Sequence[Probe]
    frozen: Mapping[str, Any]

    def replay(
        self,
        history: History,
        suites: Sequence[Suite],
        reference: EvalReport,
        batch_size: int,
        curve: Sequence[int],
        name: str,
        progress: Progress | None,
    ) -> dict[str, Any]:
        editor = self.editor
        state = editor.start(self.base, self.config, self.statistics)
        applied: list[AppliedFact] = []
        outcomes: list[FactOutcome] = []
        points: list[dict[str, float]] = []
        due = sorted(curve)
        nights = sorted(history.nights)
        for position, night in enumerate(nights, 1):
            winners = resolve_conflicts(history.nights[night]).winners
            for batch in make_batches(winners, batch_size):
                result = editor.apply(self.base, state, batch)
                state = result.state
                outcomes += result.outcomes
            applied += [AppliedFact(fact, night) for fact in winners]
            if position == len(nights) or (due and len(applied) >= due[0]):
                due = [count for count in due if count > len(applied)]
                report = self._report(state, applied, suites if position == len(nights) else ())
                points.append({"edits": len(applied), **scores_of(report, GENERATED)})
            if progress is not None:
                progress(f"nights ({name})", position, len(nights))
        return {
            GENERATED: scores_of(report, GENERATED),
            TEACHER_FORCED: scores_of(report, TEACHER_FORCED),
            "converged": sum(outcome.converged for outcome in outcomes) / len(outcomes),
            "targets_below_0.1": sum(outcome.loss < 0.1 for outcome in outcomes) / len(outcomes),
            "suites": paired_suites(report, reference),
            "curve": points,
            "state": state.describe(),
            "sizes": {metric: report.metrics[f"{EDITS}.{metric}.{GENERATED}"].n for metric in asked_metrics(report)},
        }

    def _report(self, state: EditState, applied: Sequence[AppliedFact], suites: Sequence[Suite]) -> EvalReport:
        probes = taught(applied)
        asked = {probe.prompt for probe in probes}
        items = (*probes, *(probe for probe in self.kept if probe.prompt not in asked))
        suite = ProbeSuite(name=EDITS, version="1", items=items, frozen=self.frozen)
        with open_scorer(self.base, state) as scorer:
            return evaluate(scorer, [suite, *suites])


def paired_suites(report: EvalReport, reference: EvalReport) -> dict[str, dict[str, float]]:
    """Each metric that both reports have, before and after, with its paired test."""
    margins = {metric: MARGIN for metric in report.metrics if metric in reference.metrics}
    return {
        metric: {
            "base": test.reference,
            "edited": test.candidate,
            "n": test.n,
            "p_worse": test.p_inferior,
            "drop_bound": test.drop_bound,
            "detectable_drop": test.detectable,
        }
        for metric, test in compare(report, reference, margins).items()
    }


def asked_metrics(report: EvalReport) -> list[str]:
    """Those of `METRICS` that the report's edits were asked for."""
    return [metric for metric in METRICS if f"{EDITS}.{metric}.{GENERATED}" in report.metrics]


def scores_of(report: EvalReport, protocol: str) -> dict[str, float]:
    """The shares of the edits by metric, in one protocol."""
    return {metric: report.metrics[f"{EDITS}.{metric}.{protocol}"].value for metric in asked_metrics(report)}
