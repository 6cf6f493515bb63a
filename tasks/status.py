"""What the workspace is and was, as plain JSON types for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.champion.approval import waiting
from tasks.champion.canary import CANARY
from tasks.errors import LedgerError
from tasks.ledger import EventKind, VersionRecord
from tasks.night.summary import finished_nights
from tasks.registry import CHALLENGER
from tasks.workspace import Workspace


def status_of(space: Workspace) -> dict[str, Any]:
    """Who serves, which versions wait for approval, how facts stand, which are kept out or not learned and why, and the
    last night's row."""
    ledger = space.ledger
    champion = space.champion
    nights = finished_nights(ledger)
    return {
        "home": str(space.settings.home),
        "champion": _version(space, champion),
        "challenger": _version(space, ledger.champion(alias=CHALLENGER)),
        "waiting": [request.to_dict() for request in waiting(space)],
        "facts": dict(ledger.status_counts(champion.state_digest if champion else None)),
        "quarantined": dict(ledger.quarantine_counts()),
        "kept_out": list(_kept_out(space, champion.state_digest if champion else None)),
        "not_learned": list(_not_learned(space, champion.state_digest)) if champion else [],
        "last_night": nights[-1].to_dict() if nights else None,
    }


def _not_learned(space: Workspace, head: str) -> Iterator[dict[str, str]]:
    """The facts that the champion holds and does not tell, with what is said instead."""
    for events in space.ledger.events_by_fact({EventKind.NOT_LEARNED}):
        last = events[-1]
        if space.ledger.status(last.fact_id, head) is EventKind.NOT_LEARNED:
            (fact,) = space.ledger.facts([last.fact_id])
            said = f"{fact.subject} / {fact.relation}: {fact.target}"
            yield {"fact_id": fact.fact_id, "fact": said, "why": last.detail["why"]}


def _kept_out(space: Workspace, head: str | None) -> Iterator[dict[str, str]]:
    """The facts that are in quarantine, with the evidence: by the gate, or for a contradiction."""
    for events in space.ledger.events_by_fact({EventKind.QUARANTINED}):
        last = events[-1]
        if space.ledger.status(last.fact_id, head) is not EventKind.QUARANTINED:
            continue
        (fact,) = space.ledger.facts([last.fact_id])
        said = f"{fact.subject} / {fact.relation}: {fact.target}"
        yield {"fact_id": fact.fact_id, "fact": said, "why": last.detail["why"]}


def night_history(space: Workspace) -> dict[str, Any]:
    """Every finished night, every move of an alias with its reason, and every check of the champion, oldest first."""
    moves = [
        {
            "at": move.at.isoformat(timespec="seconds"),
            "alias": move.alias,
            "from": move.from_version,
            "to": move.to_version,
            "who": move.who,
            "why": move.why,
        }
        for move in space.ledger.alias_moves()
    ]
    checks = [
        {
            "at": run.at.isoformat(timespec="seconds"),
            "checked": run.detail["checked"],
            "serving": run.detail["serving"],
            "found": run.detail["sentence"],
        }
        for run in space.ledger.runs(CANARY)
    ]
    nights = [row.to_dict() for row in finished_nights(space.ledger)]
    return {"nights": nights, "moves": moves, "checks": checks}


def fact_history(space: Workspace, fact_id: str) -> dict[str, Any]:
    """Everything that happened to a fact. Raises `LedgerError` for an unknown id."""
    fact = space.ledger.fact(fact_id)
    if fact is None:
        raise LedgerError(f"no fact {fact_id!r} was ever received; `errata status` counts those that were")
    events = [
        {
            "at": event.at.isoformat(timespec="seconds"),
            "what": event.kind.value,
            "detail": ", ".join(f"{name} {value}" for name, value in event.detail.items()),
        }
        for event in space.ledger.history(fact_id)
    ]
    return {"fact": f"{fact.subject} / {fact.relation}: {fact.target or 'retracted'}", "events": events}


def _version(space: Workspace, record: VersionRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "version": record.version,
        "night": f"{record.night:%Y-%m-%d}",
        "verdict": record.verdict,
        "facts": len(space.ledger.facts_in_state(record.state_digest)),
        "state": record.state_digest,
    }
