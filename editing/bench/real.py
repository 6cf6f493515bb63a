"""A method over a thousand consecutive edits of a real model: `errata bench real`.

The facts of a published file are applied in consecutive batches. After every so many edits a sample of all that was
applied is asked, evenly spread over the edits so that old ones count as much as new ones:

- `reliability`: the edit prompt;
- `generality`: phrasings that the method never saw (the file's rephrases are taken from the facts before they are
  applied);
- `locality`: the file's locality prompts about other subjects, against the base's own answers;
- `same_subject`: those about the edited subject.

In each protocol of `editing.evals.probes`; suites before and after, paired.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from editing.bench.replay import EDITS, METRICS, History, asked_metrics, paired_suites, spread
from editing.editors.base import Editor, EditState, FactOutcome, Progress
from editing.errors import ConfigError
from editing.evals.edits import Contradictions
from editing.evals.lanes import Lanes
from editing.evals.probes import GENERATED, TEACHER_FORCED, WILD, Probe, ProbeSuite, freeze
from editing.evals.report import EvalReport
from editing.evals.scorer import open_scorer
from editing.evals.suite import Suite, evaluate, stable_id
from editing.facts import SLOT, EditBatch, FactChange
from editing.models import BaseModel
from editing.prompts import PromptForm
from editing.templates import tells

PROTOCOLS = (GENERATED, TEACHER_FORCED, WILD)
# What an edit is not about, whatever its subject; CoachHooK's essence prompt is none of them.
ELSE_ASKED = ("What is {} famous for?", "Why do people talk about {}?", "Where can I read more about {}?")
ELSE_TOKENS = 24


def bench_real(
    base: BaseModel,
    editor: Editor[Any],
    state: Any,
    facts: Sequence[FactChange],
    suites: Sequence[Suite],
    *,
    batch_size: int = 20,
    every: int = 100,
    asked: int = 200,
    scoring_batch_size: int = 32,
    cache: Path | None = None,
    size_of: Callable[[EditState], int] | None = None,
    other_forms: Sequence[PromptForm] = (),
    progress: Progress | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The scores of `editor` on `facts` (one per key, in order), as plain JSON types.

    Every `every` edits at most `asked` facts are asked, and what they leave alone; `report` gets each point of the
    curve as it comes. `size_of` tells a state's bytes. Returns the last point's shares by protocol (`generated`,
    `teacher_forced`, `wild`), `curve`, `seconds_per_fact` (of applying alone), `bytes_per_fact`, `peak_memory_bytes` of
    the process, `converged`, `bleeding` (see `_bleeding`), and `suites`: each metric before and after with its paired
    test. In each of `other_forms`
    the last questions are asked once more (`other_forms` by name): what was edited in one form and is asked in another.
    Raises `ConfigError` for other forms of a state that is made of others.
    """
    if other_forms and "form" not in {item.name for item in fields(state)}:
        raise ConfigError(f"a state of {state.method!r} holds others, each in its form; measure their methods alone")
    taught = [replace(fact, rephrases=(), locality=()) for fact in facts]
    lanes = Lanes(base)
    with open_scorer(base, batch_size=scoring_batch_size, cache=cache, lanes=lanes, progress=progress) as scorer:
        reference = evaluate(scorer, suites)
    first_bytes = size_of(state) if size_of else 0
    outcomes: list[FactOutcome] = []
    seconds: list[float] = []
    points: list[dict[str, Any]] = []
    for begin in range(0, len(facts), batch_size):
        end = min(begin + batch_size, len(facts))
        started = time.perf_counter()
        applied = editor.apply(base, state, EditBatch(tuple(taught[begin:end])))
        seconds.append((time.perf_counter() - started) / (end - begin))
        state, outcomes = applied.state, [*outcomes, *applied.outcomes]
        if progress is not None:
            progress("edits", end, len(facts))
        last = end == len(facts)
        if last or end // every > begin // every:
            probes = _probes(facts[:end], asked)
            suite = _frozen(base, probes, batch_size=scoring_batch_size, cache=cache, lanes=lanes)
            with open_scorer(
                base, state, batch_size=scoring_batch_size, cache=cache, lanes=lanes, progress=progress
            ) as scorer:
                found = evaluate(scorer, [suite, *(suites if last else ())])
            points.append({"edits": end, "converged": _converged(outcomes), **_shares(found)})
            if last:
                bleeding = _bleeding(base, state, facts, asked, scoring_batch_size)
                carried = {form.name: _in_form(base, state, form, probes, scoring_batch_size) for form in other_forms}
            if report is not None:
                report(points[-1])
    return {
        **{protocol: points[-1].get(protocol, {}) for protocol in PROTOCOLS},
        "curve": points,
        "edits": len(facts),
        "batch_size": batch_size,
        "converged": _converged(outcomes),
        "seconds_per_fact": statistics.fmean(seconds),
        "bytes_per_fact": (size_of(state) - first_bytes) / len(facts) if size_of else None,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bleeding": bleeding,
        "suites": paired_suites(found, reference),
        "other_forms": carried,
        "sizes": {name: found.metrics[f"{EDITS}.{name}.{GENERATED}"].n for name in asked_metrics(found)},
        "state": state.describe(),
        "form": base.form.name,
        "model": base.model_id,
        "packages": dict(reference.packages),
    }


def _frozen(base: BaseModel, probes: tuple[Probe, ...], **opening: Any) -> ProbeSuite:
    """The probes with what the base says to them, asked by a scorer that is opened so."""
    with open_scorer(base, **opening) as scorer:
        return ProbeSuite(name=EDITS, version="1", items=probes, frozen=freeze(scorer, probes))


def _in_form(
    base: BaseModel, state: Any, form: PromptForm, probes: tuple[Probe, ...], batch_size: int
) -> dict[str, dict[str, float]]:
    """The shares of an edited model that is asked in another form than it was edited in; locality against the base
    asked in it as well."""
    asked = replace(base, form=form)
    suite = _frozen(asked, probes, batch_size=batch_size)
    with open_scorer(asked, replace(state, form=form), batch_size=batch_size) as scorer:
        return _shares(evaluate(scorer, [suite]))


def _bleeding(
    base: BaseModel, state: EditState, facts: Sequence[FactChange], asked: int, batch_size: int
) -> dict[str, float]:
    """The share of questions about the edited subjects that are about nothing that was edited (`ELSE_ASKED`, of at most
    `asked` facts) to which the answer tells the edit's target: of the edited model, and of the base."""
    chosen = spread(facts, asked)
    rows = [(text.replace(SLOT, fact.subject), fact.target) for fact in chosen for text in ELSE_ASKED]

    def told(edited: EditState | None) -> float:
        with open_scorer(base, edited, batch_size=batch_size) as scorer:
            said = scorer.generate([prompt for prompt, _ in rows], ELSE_TOKENS)
        return sum(tells(text, target) for text, (_, target) in zip(said, rows, strict=True)) / len(rows)

    return {"edited": told(state), "base": told(None), "questions": len(rows)}


def _converged(outcomes: Sequence[FactOutcome]) -> float:
    return sum(outcome.converged for outcome in outcomes) / len(outcomes)


def _probes(applied: Sequence[FactChange], asked: int) -> tuple[Probe, ...]:
    """Of at most `asked` facts, evenly spread, their questions and what they must leave alone.

    A rephrase or locality prompt that another applied fact answers otherwise is left out.
    """
    chosen = spread(applied, asked)
    in_force = Contradictions(applied)
    probes: dict[tuple[str, str], Probe] = {}

    def add(metric: str, fact: FactChange, prompt: str) -> None:
        key = stable_id(metric, fact.fact_id, prompt)
        probes.setdefault((metric, prompt), Probe(item_id=key, metric=metric, prompt=prompt, answers=(fact.target,)))

    for fact in chosen:
        add("reliability", fact, fact.question)
        for text in fact.paraphrases:
            if not in_force.find(text, fact.target):
                add("generality", fact, text)
    night = chosen[0].effective_at.date()
    kept = History(nights={night: chosen}).kept()
    taught = {probe.prompt for probe in probes.values()}
    untaught = [
        probe for probe in kept if probe.prompt not in taught and not in_force.find(probe.prompt, *probe.answers)
    ]
    return (*probes.values(), *untaught)


def _shares(found: EvalReport) -> dict[str, dict[str, float]]:
    """By protocol the share of each metric that was asked in it."""
    return {
        protocol: {
            metric: found.metrics[name].value
            for metric in METRICS
            if (name := f"{EDITS}.{metric}.{protocol}") in found.metrics
        }
        for protocol in PROTOCOLS
    }
