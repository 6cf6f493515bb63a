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
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from editing.bench.replay import EDITS, METRICS, History, asked_metrics, paired_suites, spread
from editing.editors.base import Editor, EditState, Progress
from editing.errors import ConfigError, StateError
from editing.evals.edits import Contradictions
from editing.evals.lanes import Lanes
from editing.evals.probes import GENERATED, TEACHER_FORCED, WILD, Probe, ProbeSuite, freeze
from editing.evals.report import EvalReport
from editing.evals.scorer import open_scorer
from editing.evals.suite import Suite, evaluate, stable_id
from editing.facts import SLOT, EditBatch, FactChange
from editing.models import BaseModel
from editing.prompts import PromptForm
from editing.statistics import SecondMoments
from editing.storage import read_json, write_json
from editing.templates import tells

PROTOCOLS = (GENERATED, TEACHER_FORCED, WILD)
# What an edit is not about, whatever its subject; CoachHooK's essence prompt is none of them.
ELSE_ASKED = ("What is {} famous for?", "Why do people talk about {}?", "Where can I read more about {}?")
ELSE_TOKENS = 24
_PROGRESS = "progress.json"


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
    kept: Path | None = None,
    statistics: SecondMoments | None = None,
) -> dict[str, Any]:
    """The scores of `editor` on `facts` (one per key, in order), as plain JSON types.

    Every `every` edits at most `asked` facts are asked, and what they leave alone; `report` gets each point of the
    curve as it comes. `size_of` tells a state's bytes. In the folder `kept` each batch's state stays until the next, so
    that a run that was cut off goes on there (with the `statistics` that the method edits with), and the folder goes
    when the run ends. Returns the last point's shares by protocol (`generated`,
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
    run = _Run(kept)
    state = run.resumed(editor, base, state, statistics)
    for begin in range(run.edits, len(facts), batch_size):
        end = min(begin + batch_size, len(facts))
        started = time.perf_counter()
        applied = editor.apply(base, state, EditBatch(tuple(taught[begin:end])))
        state = applied.state
        run.seconds.append((time.perf_counter() - started) / (end - begin))
        run.converged += sum(outcome.converged for outcome in applied.outcomes)
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
            run.points.append({"edits": end, "converged": run.converged / end, **_shares(found)})
            if last:
                bleeding = _bleeding(base, state, facts, asked, scoring_batch_size)
                carried = {form.name: _in_form(base, state, form, probes, scoring_batch_size) for form in other_forms}
            if report is not None:
                report(run.points[-1])
        if not last:
            run.keep(editor, state, end)
    run.end()
    return {
        **{protocol: run.points[-1].get(protocol, {}) for protocol in PROTOCOLS},
        "curve": run.points,
        "edits": len(facts),
        "batch_size": batch_size,
        "converged": run.converged / len(facts),
        "seconds_per_fact": fmean(run.seconds),
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


class _Run:
    """How far a run came, in `folder`: the state after the last batch and what was found until then."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.edits = 0
        self.converged = 0
        self.seconds: list[float] = []  # a fact, by batch
        self.points: list[dict[str, Any]] = []

    def resumed(self, editor: Editor[Any], base: BaseModel, start: Any, statistics: SecondMoments | None) -> Any:
        """The state to go on from; `start` where nothing was kept. Raises `StateError` for one that is damaged."""
        if self._folder is None or not (path := self._folder / _PROGRESS).exists():
            return start
        found = read_json(path, StateError)
        self.edits, self.converged = found["edits"], found["converged"]
        self.seconds, self.points = found["seconds"], found["points"]
        return editor.load(self._folder / str(self.edits), base, statistics)

    def keep(self, editor: Editor[Any], state: EditState, edits: int) -> None:
        if self._folder is None:
            return
        before, self.edits = self._folder / str(self.edits), edits
        folder = self._folder / str(edits)
        shutil.rmtree(folder, ignore_errors=True)  # half of one, where a run was cut off
        editor.save(state, folder)
        found = {"edits": edits, "converged": self.converged, "seconds": self.seconds, "points": self.points}
        write_json(self._folder / _PROGRESS, found)
        shutil.rmtree(before, ignore_errors=True)

    def end(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


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
