"""Evaluation of base, champion and candidate on the same items, and the gate's verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any, Final, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.errors import SuiteError
from editing.evals.edits import (
    EDIT_METRICS,
    EDITS_VERSION,
    GENERALITY,
    LOCALITY,
    RELIABILITY,
    AppliedFact,
    edit_suite,
    without_edited,
)
from editing.evals.gate import Decision, Verdict, decide
from editing.evals.policy import Policy
from editing.evals.probes import GENERATED, TEACHER_FORCED, WILD, ProbeSuite
from editing.evals.report import EvalReport, ItemOutcome
from editing.evals.scorer import Scorer
from editing.evals.suite import Suite, evaluate, fitting
from editing.facts import FactChange
from editing.storage import read_json, write_json
from tasks.artifacts import show_table
from tasks.champion.moves import require_ledger_of_registry
from tasks.faults import checkpoint
from tasks.ledger import EventKind
from tasks.night.edit import applied_facts, restored_facts
from tasks.night.plan import NightWork
from tasks.progress import reporter
from tasks.suites import HEADLINES, configured_suites
from tasks.workspace import Workspace, open_workspace

Who = Literal["base", "champion", "candidate"]
VERDICT_FILE = "verdict.json"
EDITS: Final = "edits"
RETENTION: Final = "retention"
# The default gate: floors for what the night did, a margin for what it must leave alone.
FLOORS = {
    f"{EDITS}.{RELIABILITY}": 0.6,
    f"{EDITS}.{GENERALITY}": 0.5,
    f"{EDITS}.{LOCALITY}": 0.9,
    f"{RETENTION}.{RELIABILITY}": 0.8,
}
MAY_BE_MISSING = (f"{EDITS}.{GENERALITY}", f"{EDITS}.{LOCALITY}")  # a feed need not bring what asks for them
MARGIN = 0.05
EDITED = [
    f"{moment}.{metric}.{protocol}"
    for moment, metrics in ((EDITS, EDIT_METRICS), (RETENTION, (RELIABILITY,)))
    for metric in metrics
    for protocol in (TEACHER_FORCED, GENERATED, WILD)
]


@task(name="check policy", cache_policy=NO_CACHE)
def check_policy() -> None:
    """Raise `PolicyError` before anything is edited when the suites could not decide what the policy asks.

    Raises `LedgerError` when MLflow has a champion that the ledger does not know.
    """
    space = open_workspace()
    require_ledger_of_registry(space)
    suites = configured_suites(space.settings)
    edits = [ProbeSuite(name=name, version=EDITS_VERSION, items=()) for name in (EDITS, RETENTION)]
    policy = policy_of(space, suites)
    scored = _as_scored(space, suites)
    policy.check([*scored, *edits], EDITED)
    floors = [{"metric": metric, "floor": floor} for metric, floor in sorted(policy.floors.items())]
    show_table("floors", floors, "Every floor that the gate has in force")
    rows = [asdict(row) for row in policy.sensitivity(scored)]
    show_table("detectable-drops", rows, "The smallest drop that tonight's items can show, by metric")


@task(name="evaluate", task_run_name="evaluate {who}", cache_policy=NO_CACHE)
def evaluate_model(work: NightWork, who: Who, digest: str | None) -> str:
    """Score the model with the state `digest` (None: the base) on tonight's suites; the digest of the report.

    The report is kept in the night's folder. One that an earlier run of the same night made of the
    same model on the same suites is not made again.
    """
    space = open_workspace()
    folder = space.night_folder(work.key) / "reports" / who
    with space.scorer(None) as base_scorer:
        suites = [fitting(suite, space.base) for suite in _tonights_suites(space, work, base_scorer)]
    with space.scorer(digest, reporter(f"{who}: ")) as scorer:
        try:
            report = EvalReport.load(folder)
        except SuiteError:
            report = None
        asked = {suite.name: suite.digest for suite in suites}
        if (
            report is None
            or report.model_digest != scorer.model_digest
            or {name: record.digest for name, record in report.suites.items()} != asked
        ):
            report = evaluate(scorer, suites, seeds={"sample": space.settings.evaluation.seed})
            report.save(folder)
    checkpoint("evaluated")
    return report.digest


@task(name="judge", cache_policy=NO_CACHE)
def judge(work: NightWork) -> Decision:
    """Let the gate decide on the three reports; the verdict is kept beside them."""
    space = open_workspace()
    champion = report_of(space, work.key, "champion") if work.parent else None
    candidate, base = (report_of(space, work.key, who) for who in ("candidate", "base"))
    policy = policy_of(space, configured_suites(space.settings))
    verdict = decide(policy, candidate, champion, base, required=required_floors(space, policy))
    write_json(space.night_folder(work.key) / VERDICT_FILE, verdict.to_dict())
    checkpoint("judged")
    return verdict.decision


def policy_of(space: Workspace, suites: list[Suite]) -> Policy:
    """The gate's policy: floors, and a margin on the headline metric of each suite, with the settings' changes."""
    measured = {metric for suite in suites for metric in suite.metric_sizes()}
    margins = {metric: MARGIN for metric in HEADLINES.values() if metric in measured}
    floors = {f"{metric}.{_gated_protocol(space)}": floor for metric, floor in FLOORS.items()}
    default = {"floors": floors, "champion_margins": margins, "base_margins": margins}
    return Policy.changed(default, space.settings.gate.policy)


def required_floors(space: Workspace, policy: Policy) -> list[str]:
    """The floors that hold a night when they could not be measured: those that the settings name, and of the default
    ones those that every feed has what to measure by."""
    named = space.settings.gate.policy.get("floors") or {}
    return [metric for metric in policy.floors if metric in named or metric.rsplit(".", 1)[0] not in MAY_BE_MISSING]


def _gated_protocol(space: Workspace) -> str:
    """The protocol of the default floors: answers to their own stop, where the model's form has one."""
    return WILD if space.base.form.end else GENERATED


def _as_scored(space: Workspace, suites: list[Suite]) -> list[Suite]:
    """The suites without what the night leaves out: what the champion's facts have put out of date, or is too long."""
    champion = space.champion
    holding = space.ledger.facts_in_state(champion.state_digest) if champion else []
    return [fitting(without_edited(suite, holding), space.base) for suite in suites]


def _tonights_suites(space: Workspace, work: NightWork, base_scorer: Scorer) -> Iterator[Suite]:
    """Tonight's edits, a sample of earlier nights', and the configured suites."""
    yield from edit_suites(space, work, space.ledger.facts(applied_facts(space, work)), base_scorer)
    yield from standing_suites(space, work)


def standing_suites(space: Workspace, work: NightWork) -> list[Suite]:
    """The configured suites, without the items whose answer a fact of an earlier night has replaced.

    Tonight's facts excuse nothing: a poisoned row would take out the very items that show its harm.
    """
    gone = {fact for _, fact in work.retract}
    holding = [fact for fact in space.ledger.facts_in_state(work.parent) if fact.fact_id not in gone]
    return [without_edited(suite, holding) for suite in configured_suites(space.settings)]


def edit_suites(
    space: Workspace,
    work: NightWork,
    tonight: Sequence[FactChange],
    base_scorer: Scorer,
    metrics: Iterable[str] = EDIT_METRICS,
) -> tuple[ProbeSuite, ProbeSuite]:
    """The suites of tonight's edits, the facts `tonight` in the state, and of a sample of earlier nights'.

    Facts that hold again, because what had superseded them is taken back, are earlier nights' and always asked, and so
    are those that are tried again.
    """
    as_of = work.time.date()
    again = {fact.fact_id for fact in tonight} & set(work.again)
    new = [AppliedFact(fact, as_of) for fact in tonight if fact.fact_id not in again]
    gone = {fact for _, fact in work.retract}
    standing = [fact for fact in space.ledger.facts_in_state(work.parent) if fact.fact_id not in gone]
    restored = list(_with_nights(space, space.ledger.facts(restored_facts(space, work))))
    earlier = sorted(_with_nights(space, standing), key=lambda item: sha256(item.fact.fact_id.encode()).digest())
    earlier.sort(key=lambda item: item.fact.fact_id not in again)
    always = len(restored) + len(again)
    sample = [*restored, *earlier][: max(space.settings.evaluation.retention, always)]
    applied = [*restored, *earlier, *new]
    return (
        edit_suite(EDITS, new, applied=applied, as_of=as_of, base_scorer=base_scorer, metrics=metrics),
        edit_suite(RETENTION, sample, applied=applied, as_of=as_of, base_scorer=base_scorer, metrics=[RELIABILITY]),
    )


def _with_nights(space: Workspace, facts: Iterable[FactChange]) -> Iterator[AppliedFact]:
    """Facts of earlier nights, each with the night that applied it."""
    nights = {record.version: record.night.date() for record in space.ledger.versions()}
    for fact in facts:
        applied = [event for event in space.ledger.history(fact.fact_id) if event.kind is EventKind.APPLIED]
        yield AppliedFact(fact, nights[applied[-1].detail["version"]])


def answered_facts(report: EvalReport) -> dict[str, ItemOutcome]:
    """What the model says to the edit prompt of each fact that was asked, by fact id: as a whole answer in a form that
    ends answers, else as it begins. A score of 1 is the target."""
    return answered_items(report.by_metric)


def answered_items(by_metric: Mapping[str, Mapping[str, ItemOutcome]]) -> dict[str, ItemOutcome]:
    """`answered_facts` of outcomes by full metric name and item id."""
    found: dict[str, ItemOutcome] = {}
    for moment in (EDITS, RETENTION):
        names = (f"{moment}.{RELIABILITY}.{protocol}" for protocol in (WILD, GENERATED))
        items: Mapping[str, ItemOutcome] = next((by_metric[name] for name in names if name in by_metric), {})
        found |= {item.item_id.removeprefix(f"{RELIABILITY}:"): item for item in items.values()}
    return found


def not_learned(space: Workspace, work: NightWork, report: EvalReport) -> dict[str, str]:
    """The facts that tonight's batches hold and the candidate does not tell, each with why, in a sentence."""
    outcomes = {
        row["fact_id"]: row for commit in space.ledger.commits(work.key) for row in commit.detail.get("outcomes", [])
    }
    asked = answered_facts(report)
    return {
        fact_id: why_not_learned(outcomes[fact_id], asked[fact_id])
        for fact_id in applied_facts(space, work)
        if fact_id in asked and asked[fact_id].score < 1.0
    }


def why_not_learned(outcome: Mapping[str, Any], item: ItemOutcome) -> str:
    """Why a fact counts as not learned: what is said instead, and whether its edit converged."""
    said = f"it is answered {item.got!r}"
    return said if outcome["converged"] else f"the edit did not converge (loss {outcome['loss']:.2f} nats); {said}"


def retention_groups(report: EvalReport) -> dict[str, tuple[float, int]]:
    """Share and number of facts of earlier nights that are still answered, by age."""
    name = f"{RETENTION}.{RELIABILITY}.{GENERATED}"
    if name not in report.by_metric:
        return {}
    return {group: (metric.value, metric.n) for group, metric in report.groups(name).items()}


def suite_scores(report: EvalReport) -> dict[str, float]:
    """One number for each configured suite: its headline metric."""
    return {name: report.metrics[metric].value for name, metric in HEADLINES.items() if metric in report.metrics}


def report_of(space: Workspace, night: str, who: Who) -> EvalReport:
    """One of a night's reports. Raises `SuiteError` when it is missing or altered."""
    return EvalReport.load(space.night_folder(night) / "reports" / who)


def verdict_of(space: Workspace, night: str) -> Verdict:
    """A night's verdict. Raises `SuiteError` when there is none."""
    return Verdict.from_dict(read_json(space.night_folder(night) / VERDICT_FILE, SuiteError))
