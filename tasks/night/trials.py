"""Trials: a part of the night's facts on the champion, evaluated on nothing but what failed, and remembered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editing.errors import SuiteError
from editing.evals.edits import LOCALITY, SAME_SUBJECT_LOCALITY
from editing.evals.gate import Decision, Verdict, decide
from editing.evals.policy import Policy
from editing.evals.probes import ProbeSuite
from editing.evals.report import EvalReport, content_digest
from editing.evals.suite import Suite, evaluate
from editing.storage import read_json, write_json
from tasks.faults import checkpoint
from tasks.night.edit import applied_facts, edit_step, resume
from tasks.night.evaluate import EDITS, RETENTION, VERDICT_FILE, edit_suites, standing_suites
from tasks.night.plan import NightWork
from tasks.progress import reporter
from tasks.workspace import Workspace

TRIALS = "trials"
_ABOUT_OTHERS = frozenset({LOCALITY, SAME_SUBJECT_LOCALITY})


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a part of the night's facts: the gate's verdict by the part of the policy that had failed."""

    verdict: Verdict
    report: EvalReport

    @property
    def passes(self) -> bool:
        """Whether nothing fails any more of what had failed."""
        return self.verdict.decision is Decision.PROMOTE


def try_facts(
    space: Workspace, work: NightWork, fact_ids: Collection[str], policy: Policy, renew: Callable[[], None]
) -> Trial:
    """Apply only `fact_ids` of the night's facts to the champion and judge by `policy`.

    The edits are committed like a night's own, and the verdict is kept: a killed night does neither again.
    `renew` is called before each edit and evaluation.
    """
    part = work if set(fact_ids) == set(work.facts) else work.only(fact_ids)
    folder = _folder(space, work, part, policy)
    if (kept := _recall(folder, policy)) is not None:
        return kept
    first, state = resume(part)
    for position in range(first, len(part.steps)):
        renew()
        state = edit_step(part, position, state)
    renew()
    verdict, report = _judge(space, work, part, state, policy)
    report.save(folder)
    write_json(folder / VERDICT_FILE, verdict.to_dict())
    checkpoint("tried")
    return Trial(verdict, report)


def _folder(space: Workspace, work: NightWork, part: NightWork, policy: Policy) -> Path:
    """Where a trial is kept: in the folder of the night as it was planned, by its facts and what was judged."""
    name = f"{part.key}-{content_digest(policy.to_dict())[:8]}"
    return space.night_folder(work.origin or work.key) / TRIALS / name


def _recall(folder: Path, policy: Policy) -> Trial | None:
    try:
        verdict = Verdict.from_dict(read_json(folder / VERDICT_FILE, SuiteError))
        report = EvalReport.load(folder)
    except SuiteError:
        return None
    fits = verdict.policy == policy and verdict.candidate == report.model_digest
    return Trial(verdict, report) if fits else None


def _judge(
    space: Workspace, work: NightWork, part: NightWork, state: str | None, policy: Policy
) -> tuple[Verdict, EvalReport]:
    suites = list(_restricted_suites(space, work, part, policy))
    compared = {metric.split(".", 1)[0] for metric in (*policy.champion_margins, *policy.base_margins)}
    shared = [suite for suite in suites if suite.name in compared]

    def ask(who: str, digest: str | None, asked: list[Suite]) -> EvalReport:
        with space.scorer(digest, reporter(f"{who}: ")) as scorer:
            return evaluate(scorer, asked, seeds={"sample": space.settings.evaluation.seed})

    candidate = ask("trial", state, suites)
    champion = ask("champion", work.parent, shared) if work.parent else None
    verdict = decide(policy, candidate, champion, ask("base", None, shared), required=())
    return verdict, candidate


def _restricted_suites(space: Workspace, work: NightWork, part: NightWork, policy: Policy) -> Iterator[Suite]:
    """The suites that the policy names, without the questions that none of its metrics needs.

    The locality of all of the night's facts is asked, applied or not: what one fact damages may be
    another's to watch. Reliability and generality are asked of the applied ones.
    """
    wanted: dict[str, set[str]] = {}
    for name in policy.metrics:
        of, metric, _ = name.split(".")
        wanted.setdefault(of, set()).add(metric)
    if wanted.keys() & {EDITS, RETENTION}:
        inside = set(applied_facts(space, part))
        with space.scorer(None) as base_scorer:
            facts = space.ledger.facts(work.facts)
            edits, retention = edit_suites(space, work, facts, base_scorer, wanted.get(EDITS, ()))
        if EDITS in wanted:
            yield edits.without("not applied in this trial", lambda item: _is_about_another(item, inside))
        if RETENTION in wanted:
            yield retention
    for suite in standing_suites(space, work):
        if suite.name in wanted:
            yield _with_metrics(suite, wanted[suite.name])


def _is_about_another(item: Any, inside: Collection[str]) -> bool:
    """Whether the probe asks for the new answer of a fact that is not `inside`."""
    return item.metric not in _ABOUT_OTHERS and item.item_id.split(":")[1] not in inside


def _with_metrics(suite: Suite, metrics: Collection[str]) -> Suite:
    """The suite without the probes of other metrics; one whose items serve several metrics stays whole."""
    if not isinstance(suite, ProbeSuite):
        return suite
    return replace(suite, items=tuple(item for item in suite.items if item.metric in metrics))
