"""What a night leaves in the ledger: the version and its facts, the night's row, and who serves from now on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.evals.gate import Decision, Verdict
from editing.evals.report import EvalReport
from tasks.artifacts import show_markdown, show_table
from tasks.champion.approval import close_requests, waiting
from tasks.champion.moves import BY_NIGHT, adopt_moves_by_hand, moving, point_aliases, record_move, standing
from tasks.champion.promotion import Promotion, moved_meanwhile
from tasks.faults import checkpoint
from tasks.ledger import Event, EventKind, RunPhase, RunRecord, VersionRecord
from tasks.night.culprits import search_of
from tasks.night.edit import applied_facts, carried_out, refusals, restored_facts
from tasks.night.evaluate import answered_facts, not_learned, report_of, suite_scores, verdict_of
from tasks.night.plan import NightWork
from tasks.night.summary import DRY_RUN, KIND, NOTHING, WAITING, NightSummary, scores_of
from tasks.night.telemetry import telemetry_of
from tasks.night.timing import night_timing
from tasks.registry import CHALLENGER, CHAMPION, Version
from tasks.workspace import Workspace, open_workspace

SETTLED = "settle aliases"  # the run that carries out what a finished night decided about them


@task(name="close", cache_policy=NO_CACHE)
def close_night(
    work: NightWork, version: int | None, promotion: Promotion | None = None, *, dry_run: bool = False
) -> NightSummary:
    """Write the night's row. In the ledger it is what makes the night final: a promotion follows from it.

    `promotion` says what becomes of a version that the gate has let through; without it the gate decides. One that
    waits for a person does so from now on, for the hours that the settings give, or as long as it waits already.

    The states between champion and candidate have served their purpose and go.
    """
    space = open_workspace()
    summary = _summarise(space, work, version, promotion, dry_run=dry_run)
    if not dry_run:
        now = datetime.now(UTC)
        space.ledger.record_run(
            RunRecord(
                run_id=work.key, kind=KIND, phase=RunPhase.FINISHED, as_of=work.time, detail=summary.to_dict(), at=now
            ),
            [*_refused(space, work, now), *_left_out(space, work, now)],
        )
    if summary.verdict == WAITING:
        show_markdown("approval", _form(space, work, summary), f"Version {version} {summary.decided}")
    show_table("night", [{name: _shown(value) for name, value in summary.to_dict().items()}], "The night in one row")
    checkpoint("closed")
    if not dry_run:
        last = space.ledger.commits(work.key)[-1:]
        space.tidy([work.parent, *(commit.state_digest for commit in last)])
    return summary


@task(name="settle aliases", retries=2, retry_delay_seconds=5, cache_policy=NO_CACHE)
def settle_aliases() -> int | None:
    """Make the aliases what the nights decided, in the ledger first and then in MLflow; the champion's number.

    What a killed night or answer still owes is made good here, and a version that nobody can approve any more waits no
    longer. An alias that somebody moved in MLflow is taken over into the ledger and stays where they put it.
    """
    space = open_workspace()
    with moving(space), space.registry.answering():
        adopt_moves_by_hand(space)
        _carry_out_last_night(space)
        close_requests(space)
        checkpoint("moved")
        point_aliases(space)
    return standing(space)


def _carry_out_last_night(space: Workspace) -> None:
    ended = [run for run in space.ledger.runs(KIND) if run.phase is RunPhase.FINISHED and run.detail["version"]]
    if not ended:
        return
    night, since = NightSummary.from_dict(ended[-1].detail), ended[-1].at
    if any(run.run_id == night.key and run.at >= since for run in space.ledger.runs(SETTLED)):
        return
    why = f"night {night.night}: {night.verdict}{f', {night.decided}' if night.decided else ''}"
    promoted = night.verdict == Decision.PROMOTE
    if promoted and standing(space) != night.version and (moved := moved_meanwhile(space, night.version)):
        promoted, why = False, f"{why}, but {moved}"
    if promoted:
        record_move(space, CHAMPION, night.version, who=BY_NIGHT, why=why, report=night.key)
    checkpoint("half moved")
    record_move(space, CHALLENGER, None if promoted else night.version, who=BY_NIGHT, why=why, report=night.key)
    space.ledger.record_run(RunRecord(run_id=night.key, kind=SETTLED, phase=RunPhase.FINISHED, at=datetime.now(UTC)))


def record_version(space: Workspace, work: NightWork, version: Version, report: EvalReport, verdict: Verdict) -> None:
    """The version in the ledger, and which of the facts that were asked it answers."""
    now = datetime.now(UTC)
    space.ledger.record_version(
        VersionRecord(
            version=version.number,
            state_digest=version.digest,
            parent_digest=work.parent,
            base_fingerprint=space.base.fingerprint,
            method=work.method,
            verdict=verdict.decision,
            night=work.time,
            report=work.key,
            run_id=work.key,
            at=now,
        ),
        applied=applied_facts(space, work),
        retracted=[fact for _, fact in work.retract],
        by=list(dict.fromkeys(change for change, _ in work.retract)),
        restored=restored_facts(space, work),
    )
    checkpoint("version recorded")
    asked = answered_facts(report)
    first = next(iter(asked), None)
    if first is None or any(event.state_digest == version.digest for event in _verdicts_on(space, first)):
        return
    tonight = not_learned(space, work, report)

    def verdict_on(fact_id: str, right: bool) -> Event:
        kind = EventKind.VERIFIED if right else EventKind.FORGOTTEN
        detail: dict[str, Any] = {"version": version.number}
        if fact_id in tonight:
            kind, detail = EventKind.NOT_LEARNED, {**detail, "why": tonight[fact_id]}
        elif not right and (before := _verdicts_on(space, fact_id)) and before[-1].kind is EventKind.NOT_LEARNED:
            kind, detail = EventKind.NOT_LEARNED, {**detail, "why": before[-1].detail["why"]}
        return Event(fact_id=fact_id, kind=kind, at=now, run_id=work.key, state_digest=version.digest, detail=detail)

    space.ledger.record([verdict_on(fact_id, item.score == 1.0) for fact_id, item in asked.items()])


def _refused(space: Workspace, work: NightWork, at: datetime) -> Iterator[Event]:
    for fact_id, why in refusals(space, work).items():
        yield Event(fact_id=fact_id, kind=EventKind.REFUSED, at=at, run_id=work.key, detail={"why": why})


def _left_out(space: Workspace, work: NightWork, at: datetime) -> Iterator[Event]:
    """The facts that the gate quarantines, with its evidence, those that wait, and those that come back.

    A fact that stayed out tonight for one in quarantine is to be decided about again.
    """
    search = search_of(space, work.key)
    if search is None:
        return

    def event(fact_id: str, kind: EventKind, why: str, **detail: Any) -> Event:
        told = {"why": why, "report": work.key, **detail}
        return Event(fact_id=fact_id, kind=kind, at=at, run_id=work.key, detail=told)

    for blamed in search.blamed:
        partners = list(blamed.partners)
        yield event(blamed.fact_id, EventKind.QUARANTINED, blamed.why, cause=blamed.cause, partners=partners)
        for loser in space.ledger.lost_to(blamed.fact_id):
            yield event(loser, EventKind.RELEASED, f"{blamed.fact_id}, for which it had stayed out, is in quarantine")
    for fact_id in search.postponed:
        yield event(fact_id, EventKind.POSTPONED, "too many at once: the gate passes alone, not with all the others")


def _verdicts_on(space: Workspace, fact_id: str) -> list[Event]:
    kinds = {EventKind.VERIFIED, EventKind.FORGOTTEN, EventKind.NOT_LEARNED}
    return [event for event in space.ledger.history(fact_id) if event.kind in kinds]


def _summarise(
    space: Workspace, work: NightWork, version: int | None, promotion: Promotion | None, *, dry_run: bool
) -> NightSummary:
    ended = [run for run in space.ledger.runs(KIND) if run.phase is RunPhase.FINISHED]
    since = ended[-1].at if ended else None
    files = [file for file in space.ledger.files() if since is None or file.at > since]
    steps = space.ledger.commits(work.key)
    search = search_of(space, work.key)
    row: dict[str, Any] = {"verdict": NOTHING, "suites": {}, "champion": standing(space)}
    if carried_out(space, work):
        report, verdict = report_of(space, work.key, "candidate"), verdict_of(space, work.key)
        decision = promotion.decision if promotion else verdict.decision
        promoted = decision is Decision.PROMOTE and not dry_run
        row = {
            "verdict": f"{DRY_RUN if dry_run else ''}{decision}",
            "decided": promotion.why if promotion else None,
            **(_waits(space, version) if promotion and promotion.waits and version else {}),
            "not_learned": len(not_learned(space, work, report)),
            "suites": suite_scores(report),
            "champion": version if promoted else row["champion"],
            **scores_of(report),
            **night_timing(space, work).summary(),
            **telemetry_of(space, work.key).summary(),
        }
    return NightSummary(
        night=f"{work.time:%Y-%m-%d}",
        key=work.key,
        facts=work.considered,
        quarantined=sum(file.quarantined for file in files),
        applied=len(applied_facts(space, work)),
        refused=len(refusals(space, work)),
        again=len(set(work.again) & set(applied_facts(space, work))),
        blamed=len(search.blamed) if search else 0,
        postponed=len(search.postponed) if search else 0,
        contradicting=len(work.contradicting),
        retracted=len(work.retract),
        known=len(work.known),
        superseded=work.superseded,
        waiting=space.ledger.waiting(work.time, _head(space))[0],
        version=version,
        seconds=round(sum(step.detail["seconds"] for step in steps), 3),
        **row,
    )


def _head(space: Workspace) -> str | None:
    return space.champion.state_digest if space.champion else None


def _waits(space: Workspace, version: int) -> dict[str, str]:
    """What the row says of a version that waits: a night that makes it again does not prolong its time."""
    now = datetime.now(UTC)
    earlier = [request.until for request in waiting(space) if request.version == version]
    until = earlier[0] if earlier else now + timedelta(hours=space.settings.gate.approval_hours)
    told = f"waits for approval until {until:%Y-%m-%d %H:%M} UTC"
    return {"verdict": WAITING, "decided": told, "waits_until": until.isoformat()}


def _form(space: Workspace, work: NightWork, summary: NightSummary) -> str:
    """What Prefect's page says of a version that waits: how to answer, above the gate's report."""
    return (
        f"Version {summary.version} passed the gate and {summary.decided}.\n\nTo answer, run the deployment "
        f"`approve/by-hand` with version {summary.version}, or `errata approve --version {summary.version}` (`--hold` "
        f"keeps the champion).\n\n{verdict_of(space, work.key).to_markdown()}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return "" if value is None else str(value)
