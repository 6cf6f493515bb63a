"""Taking facts back: retract changes in the landing zone, which a night then carries out like any other."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.facts import FactChange, Operation
from tasks.errors import LedgerError
from tasks.facts.find import find_fact, find_facts
from tasks.faults import checkpoint
from tasks.feed.schema import write_feed
from tasks.ledger.records import CONTENDING, EventKind
from tasks.workspace import Workspace, open_workspace


@task(name="request retraction", cache_policy=NO_CACHE)
def request_retraction(facts: Sequence[str], reason: str, who: str, moment: datetime) -> list[str]:
    """Put a retract change for each fact into the landing zone, effective at `moment`; the changes' ids.

    `facts` are ids or their beginnings. Each change names the fact's target, so that what the fact had
    superseded holds again. Raises `LedgerError` for a fact that is neither in force nor waiting.
    """
    space = open_workspace()
    chosen = _meant(space, facts)
    for fact in chosen:
        _require_retractable(space, fact, moment)
    source = f"errata retract by {who}" + (f": {reason}" if reason else "")
    now = datetime.now(UTC)
    changes = [_retraction(fact, source, moment, now) for fact in chosen]
    name = f"retract-{now:%Y%m%dT%H%M%S}-{changes[0].fact_id[:8]}.parquet"
    write_feed(changes, space.settings.landing / name)
    checkpoint("retraction landed")
    return [change.fact_id for change in changes]


def retractable(facts: Sequence[str]) -> list[str]:
    """The ids of the facts that are meant: by id, its beginning, or a subject of which one fact can be taken back."""
    return [fact.fact_id for fact in _meant(open_workspace(), facts)]


def _meant(space: Workspace, references: Sequence[str]) -> list[FactChange]:
    """A reference to several facts means the one that is in force or waits. Raises as `find_fact` does."""
    found = []
    for reference in dict.fromkeys(references):
        facts = find_facts(space.ledger, reference)
        standing = [fact for fact in facts if fact.operation is Operation.ASSERT and _status(space, fact) in CONTENDING]
        found.append(standing[0] if len(standing) == 1 else find_fact(space.ledger, reference))
    return found


def _status(space: Workspace, fact: FactChange) -> EventKind | None:
    champion = space.champion
    return space.ledger.status(fact.fact_id, champion.state_digest if champion else None)


def still_held(fact_ids: Sequence[str]) -> list[FactChange]:
    """Those of the facts that the champion still holds."""
    space = open_workspace()
    champion = space.champion
    held = {fact.fact_id for fact in space.ledger.facts_in_state(champion.state_digest if champion else None)}
    return [fact for fact in (find_fact(space.ledger, item) for item in fact_ids) if fact.fact_id in held]


def _require_retractable(space: Workspace, fact: FactChange, moment: datetime) -> None:
    if fact.operation is not Operation.ASSERT:
        raise LedgerError(f"fact {fact.fact_id} is a retraction itself; state the fact anew to bring it back")
    if (status := _status(space, fact)) not in CONTENDING:
        raise LedgerError(
            f"fact {fact.fact_id} ({fact.subject} / {fact.relation}: {fact.target}) is {status}, there is nothing to "
            f"take back; `errata audit {fact.fact_id[:8]}` tells its life"
        )
    if moment < fact.effective_at:
        raise LedgerError(
            f"fact {fact.fact_id} takes effect on {fact.effective_at:%Y-%m-%d}, after {moment:%Y-%m-%d}; "
            "retract it as of a later time"
        )


def _retraction(fact: FactChange, source: str, moment: datetime, now: datetime) -> FactChange:
    return FactChange(
        operation=Operation.RETRACT,
        subject=fact.subject,
        relation=fact.relation,
        target=fact.target,
        prompt=fact.prompt,
        effective_at=moment,
        observed_at=now,
        source=source,
    )
