"""What the workspace is and was, as plain JSON types for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from tasks.champion.approval import waiting
from tasks.champion.canary import CANARY
from tasks.champion.moves import require_known_champion
from tasks.facts.find import find_fact
from tasks.feed.ingest import left_lying
from tasks.ledger import EventKind, VersionRecord
from tasks.ledger.nights import not_learned_facts
from tasks.night.plan import EFFORT
from tasks.night.summary import finished_nights
from tasks.registry import CHALLENGER
from tasks.workspace import Workspace


def status_of(space: Workspace) -> dict[str, Any]:
    """Who serves, which versions wait for approval, how many facts wait for their date, what is kept out, not taken in
    or not learned and why, and the last night's row."""
    require_known_champion(space)
    ledger = space.ledger
    champion = space.champion
    ahead, first = ledger.waiting(datetime.now(UTC), champion.state_digest if champion else None)
    nights = finished_nights(ledger)
    return {
        "home": str(space.settings.home),
        "champion": _version(space, champion),
        "challenger": _version(space, ledger.champion(alias=CHALLENGER)),
        "for_approval": [request.to_dict() for request in waiting(space)],
        "facts": dict(ledger.status_counts(champion.state_digest if champion else None)),
        "waiting": {"facts": ahead, "first": f"{first:%Y-%m-%d}" if first else None},
        "quarantined": dict(ledger.quarantine_counts()),
        "left_lying": list(left_lying(space.settings.landing).values()),
        "kept_out": list(_kept_out(space, champion.state_digest if champion else None)),
        "not_learned": list(_not_learned(space, champion.state_digest)) if champion else [],
        "last_night": nights[-1].to_dict() if nights else None,
    }


def _not_learned(space: Workspace, head: str) -> Iterator[dict[str, str]]:
    """The facts that the champion holds and does not tell, with what is said instead and what becomes of each."""
    for fact, why, tried in not_learned_facts(space.ledger, head):
        said = f"{fact.subject} / {fact.relation}: {fact.target}"
        yield {"fact_id": fact.fact_id, "fact": said, "why": why, "next": _next(space, fact.fact_id, tried)}


def _next(space: Workspace, fact_id: str, tried: int) -> str:
    """What becomes of a fact that was edited `tried` times and is not answered."""
    times = "once" if tried == 1 else f"{tried} times"
    if tried < space.settings.editor.tries:
        return f"edited {times}; the next night tries again with {EFFORT} times the steps"
    return (
        f"edited {times}: waits for a person. Send it in other words (another prompt or target), take it back "
        f"with `errata retract {fact_id[:12]}`, or raise editor.tries"
    )


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
    require_known_champion(space)
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
    """Everything that happened to a fact, by its id or the id's beginning. Raises `LedgerError` for an unknown one."""
    fact = find_fact(space.ledger, fact_id)
    events = [
        {
            "at": event.at.isoformat(timespec="seconds"),
            "what": event.kind.value,
            "detail": ", ".join(f"{name} {value}" for name, value in event.detail.items()),
        }
        for event in space.ledger.history(fact.fact_id)
    ]
    head = space.champion.state_digest if space.champion else None
    waiting = [tried for found, _, tried in not_learned_facts(space.ledger, head) if found.fact_id == fact.fact_id]
    return {
        "fact": f"{fact.subject} / {fact.relation}: {fact.target or 'retracted'}",
        "events": events,
        "next": _next(space, fact.fact_id, waiting[0]) if waiting else None,
    }


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
