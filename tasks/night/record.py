"""What a night leaves in the ledger: the version and its facts, the night's row, and who serves from now on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.evals.gate import Decision, Verdict
from editing.evals.report import EvalReport
from tasks.artifacts import show_table
from tasks.faults import checkpoint
from tasks.ledger import AliasMove, Event, EventKind, RunPhase, RunRecord, VersionRecord
from tasks.night.edit import applied_facts, carried_out, refusals
from tasks.night.evaluate import answered_facts, report_of, suite_scores, verdict_of
from tasks.night.plan import NightWork
from tasks.night.summary import DRY_RUN, KIND, NOTHING, NightSummary, scores_of
from tasks.night.telemetry import telemetry_of
from tasks.night.timing import night_timing
from tasks.registry import CHALLENGER, CHAMPION, RegistryError, Version
from tasks.workspace import Workspace, open_workspace

SETTLED = "settle aliases"  # the run that carries out what a finished night decided about them


@task(name="close", cache_policy=NO_CACHE)
def close_night(work: NightWork, version: int | None, *, dry_run: bool = False) -> NightSummary:
    """Write the night's row. In the ledger it is what makes the night final: a promotion follows from it.

    The states between champion and candidate have served their purpose and go.
    """
    space = open_workspace()
    if not dry_run:
        _record_refusals(space, work)
    summary = _summarise(space, work, version, dry_run=dry_run)
    if not dry_run:
        now = datetime.now(UTC)
        space.ledger.record_run(
            RunRecord(
                run_id=work.key, kind=KIND, phase=RunPhase.FINISHED, as_of=work.time, detail=summary.to_dict(), at=now
            )
        )
    show_table("night", [{name: _shown(value) for name, value in summary.to_dict().items()}], "The night in one row")
    checkpoint("closed")
    if not dry_run:
        last = space.ledger.commits(work.key)[-1:]
        space.tidy([work.parent, *(commit.state_digest for commit in last)])
    return summary


@task(name="settle aliases", retries=2, retry_delay_seconds=5, cache_policy=NO_CACHE)
def settle_aliases() -> int | None:
    """Make the aliases what the nights decided, in the ledger first and then in MLflow; the champion's number.

    What a killed night still owes is made good here. An alias that somebody moved in MLflow is taken
    over into the ledger and stays where they put it.
    """
    space = open_workspace()
    for alias in (CHAMPION, CHALLENGER):
        _adopt_move_by_hand(space, alias)
    ended = [run for run in space.ledger.runs(KIND) if run.phase is RunPhase.FINISHED and run.detail["version"]]
    if ended:
        night, since = NightSummary.from_dict(ended[-1].detail), ended[-1].at
        if not any(run.run_id == night.key and run.at >= since for run in space.ledger.runs(SETTLED)):
            promoted = night.verdict == Decision.PROMOTE
            if promoted:
                _move(space, CHAMPION, night.version, night)
            checkpoint("half moved")
            _move(space, CHALLENGER, None if promoted else night.version, night)
            space.ledger.record_run(
                RunRecord(run_id=night.key, kind=SETTLED, phase=RunPhase.FINISHED, at=datetime.now(UTC))
            )
    checkpoint("moved")
    for alias in (CHAMPION, CHALLENGER):
        space.registry.point(alias, _standing(space, alias))
    return _standing(space, CHAMPION)


def _standing(space: Workspace, alias: str) -> int | None:
    record = space.ledger.champion(alias=alias)
    return record.version if record else None


def _move(space: Workspace, alias: str, to: int | None, night: NightSummary) -> None:
    stands = _standing(space, alias)
    if stands == to:
        return
    why = f"night {night.night}: {night.verdict}"
    space.ledger.record_alias_move(
        AliasMove(
            alias=alias,
            from_version=stands,
            to_version=to,
            who="night",
            why=why,
            report=night.key,
            at=datetime.now(UTC),
        )
    )


def _adopt_move_by_hand(space: Workspace, alias: str) -> None:
    moved, to = space.registry.moved_by_hand(alias)
    stands = _standing(space, alias)
    if not moved or to == stands:
        return
    if to is not None and space.ledger.version(to) is None:
        raise RegistryError(
            f"alias {alias!r} was moved in MLflow to version {to}, which no night made; point it at one of "
            f"{[record.version for record in space.ledger.versions()]}"
        )
    why = "moved by hand in MLflow"
    space.ledger.record_alias_move(
        AliasMove(alias=alias, from_version=stands, to_version=to, who="MLflow", why=why, at=datetime.now(UTC))
    )


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
    )
    checkpoint("version recorded")
    asked = answered_facts(report)
    first = next(iter(asked), None)
    if first is None or any(event.state_digest == version.digest for event in _verdicts_on(space, first)):
        return
    space.ledger.record(
        Event(
            fact_id=fact_id,
            kind=EventKind.VERIFIED if right else EventKind.FORGOTTEN,
            at=now,
            run_id=work.key,
            state_digest=version.digest,
            detail={"version": version.number},
        )
        for fact_id, right in asked.items()
    )


def _record_refusals(space: Workspace, work: NightWork) -> None:
    now = datetime.now(UTC)
    space.ledger.record(
        Event(fact_id=fact_id, kind=EventKind.REFUSED, at=now, run_id=work.key, detail={"why": why})
        for fact_id, why in refusals(space, work).items()
        if space.ledger.status(fact_id) is not EventKind.REFUSED
    )


def _verdicts_on(space: Workspace, fact_id: str) -> list[Event]:
    kinds = {EventKind.VERIFIED, EventKind.FORGOTTEN}
    return [event for event in space.ledger.history(fact_id) if event.kind in kinds]


def _summarise(space: Workspace, work: NightWork, version: int | None, *, dry_run: bool) -> NightSummary:
    ended = [run for run in space.ledger.runs(KIND) if run.phase is RunPhase.FINISHED]
    since = ended[-1].at if ended else None
    files = [file for file in space.ledger.files() if since is None or file.at > since]
    steps = space.ledger.commits(work.key)
    row: dict[str, Any] = {"verdict": NOTHING, "suites": {}, "champion": _standing(space, CHAMPION)}
    if carried_out(space, work):
        report, verdict = report_of(space, work.key, "candidate"), verdict_of(space, work.key)
        promoted = verdict.decision is Decision.PROMOTE and not dry_run
        row = {
            "verdict": f"{DRY_RUN if dry_run else ''}{verdict.decision}",
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
        retracted=len(work.retract),
        known=len(work.known),
        superseded=work.superseded,
        version=version,
        seconds=round(sum(step.detail["seconds"] for step in steps), 3),
        **row,
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return "" if value is None else str(value)
