"""A fact's whole life: where it came from, what was done with it, how it scored, and where and when it was served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from editing.errors import StateError, SuiteError
from editing.evals.report import EvalReport
from editing.facts import FactChange
from editing.storage import read_json
from tasks.facts.find import find_facts
from tasks.ledger import Event, VersionRecord
from tasks.ledger.records import IN_STATE, SERVED
from tasks.night.plan import PLAN_FILE, NightWork
from tasks.workspace import Workspace


def audit(space: Workspace, reference: str, relation: str | None = None) -> list[dict[str, Any]]:
    """The lives of the facts that are meant (see `find_facts`), as plain JSON types, oldest fact first."""
    return [_life(space, fact) for fact in find_facts(space.ledger, reference, relation)]


def _life(space: Workspace, fact: FactChange) -> dict[str, Any]:
    champion = space.champion
    status = space.ledger.status(fact.fact_id, champion.state_digest if champion else None)
    events = space.ledger.history(fact.fact_id)
    statuses = {
        record.version: space.ledger.status(fact.fact_id, record.state_digest) for record in space.ledger.versions()
    }
    holding = [record for record in space.ledger.versions() if statuses[record.version] in IN_STATE]
    return {
        "fact_id": fact.fact_id,
        "status": str(status),
        "fact": fact.to_dict(),
        "sightings": [
            {
                "file": seen.file,
                "row": seen.row,
                "digest": seen.file_digest,
                "observed": _day(seen.observed_at),
                "taken_in": _time(seen.at),
            }
            for seen in space.ledger.sightings(fact.fact_id)
        ],
        "events": [_event(event) for event in events],
        "batches": list(_batches(space, fact.fact_id, events)),
        "versions": [
            {
                "version": record.version,
                "night": _day(record.night),
                "verdict": record.verdict,
                "state": record.state_digest,
                "registered": _time(record.at),
                "answered": statuses[record.version] in SERVED,
            }
            for record in holding
        ],
        "scores": [row for record in holding for row in _scores(space, fact.fact_id, record)],
        "served": list(_served(space, {number for number, status in statuses.items() if status in SERVED})),
    }


def _event(event: Event) -> dict[str, Any]:
    detail = ", ".join(f"{name} {value}" for name, value in event.detail.items())
    return {"at": _time(event.at), "what": event.kind.value, "state": event.state_digest, "detail": detail}


def _batches(space: Workspace, fact_id: str, events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    """The committed steps, of the nights that touched the fact, that applied it or took it back."""
    for night in dict.fromkeys(event.run_id for event in events):
        commits = space.ledger.commits(night)
        plan = space.settings.nights / night / PLAN_FILE
        if not commits or not plan.is_file():
            continue
        steps = NightWork.from_dict(read_json(plan, StateError)).steps
        for step, commit in zip(steps, commits, strict=False):
            if fact_id not in step.fact_ids:
                continue
            outcomes = {row["fact_id"]: row for row in commit.detail.get("outcomes", [])}
            yield {
                "night": night,
                "step": commit.position,
                "did": "retract" if step.retracts else "apply",
                "facts": len(step.fact_ids),
                "converged": outcomes.get(fact_id, {}).get("converged"),
                "loss": outcomes.get(fact_id, {}).get("loss"),
                "refused": commit.detail.get("refused"),
                "state": commit.state_digest,
                "at": _time(commit.at),
            }


def _scores(space: Workspace, fact_id: str, record: VersionRecord) -> Iterator[dict[str, Any]]:
    """What the night that made the version measured on the fact's own prompts."""
    try:
        report = EvalReport.load(space.settings.nights / str(record.report) / "reports" / "candidate")
    except SuiteError:
        return
    for outcome in report.outcomes:
        if fact_id in outcome.item_id.split(":"):
            yield {
                "night": _day(record.night),
                "version": record.version,
                "metric": outcome.name,
                "prompt": outcome.prompt,
                "answer": outcome.got,
                "score": outcome.score,
            }


def _served(space: Workspace, versions: set[int]) -> Iterator[dict[str, Any]]:
    """The times during which an alias named a version that answered the fact; `until` None: it still does."""
    moves = space.ledger.alias_moves()
    for index, move in enumerate(moves):
        if move.to_version not in versions:
            continue
        until = next((later.at for later in moves[index + 1 :] if later.alias == move.alias), None)
        yield {
            "alias": move.alias,
            "version": move.to_version,
            "since": _time(move.at),
            "until": _time(until) if until else None,
            "why": move.why,
        }


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
