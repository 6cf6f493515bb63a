"""Quarantine, from a person's side: facts that the gate or the editor turned down go back into the queue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from editing.facts import FactChange
from tasks.errors import LedgerError
from tasks.facts.find import find_fact
from tasks.ledger import Event, EventKind
from tasks.workspace import Workspace

OUT = frozenset({EventKind.QUARANTINED, EventKind.REFUSED})


def release(space: Workspace, references: Sequence[str], why: str) -> list[FactChange]:
    """Put facts, by id or its beginning, back in the queue: the next night decides about them again. All or none.

    Raises `LedgerError` for an id that is not in quarantine.
    """
    champion = space.champion
    head = champion.state_digest if champion else None
    fact_ids = [find_fact(space.ledger, reference).fact_id for reference in dict.fromkeys(references)]
    for fact_id in fact_ids:
        if (status := space.ledger.status(fact_id, head)) not in OUT:
            raise LedgerError(
                f"fact {fact_id} is {status.value if status else 'unknown'}, not in quarantine; "
                "`errata history FACT` tells its life"
            )
    now = datetime.now(UTC)
    space.ledger.record(
        Event(fact_id=fact_id, kind=EventKind.RELEASED, at=now, run_id="release", detail={"why": why})
        for fact_id in fact_ids
    )
    return space.ledger.facts(fact_ids)
