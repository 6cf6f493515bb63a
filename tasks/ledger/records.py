"""What the ledger writes down: one frozen dataclass per table, field for column."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from editing.facts import FactChange


class EventKind(StrEnum):
    """What can happen to a fact change after it was received."""

    RECEIVED = "received"
    SUPERSEDED = "superseded"
    KNOWN = "known"
    APPLIED = "applied"
    VERIFIED = "verified"
    FORGOTTEN = "forgotten"
    NOT_LEARNED = "not_learned"
    RETRACTED = "retracted"
    RESTORED = "restored"
    CARRIED_OUT = "carried_out"
    NOTHING_TO_RETRACT = "nothing_to_retract"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    POSTPONED = "postponed"
    RELEASED = "released"


IN_STATE = frozenset(
    {EventKind.APPLIED, EventKind.VERIFIED, EventKind.FORGOTTEN, EventKind.NOT_LEARNED, EventKind.RESTORED}
)
"""The fact is part of the edit state that the event names; what was not learned takes up room there and no more."""

SERVED = IN_STATE - {EventKind.NOT_LEARNED}
"""The fact is part of the state, and the state answers it as far as it was asked."""

PENDING = frozenset({EventKind.RECEIVED, EventKind.RELEASED, EventKind.POSTPONED})
"""The next night must deal with the fact."""

STANDING = IN_STATE | PENDING | {EventKind.KNOWN, EventKind.CARRIED_OUT, EventKind.NOTHING_TO_RETRACT}
"""The fact still competes for its key: a later arrival of lower precedence loses to it."""

CONTENDING = STANDING | {EventKind.SUPERSEDED}
"""The fact can hold once what stands above it is taken back."""


class FileOutcome(StrEnum):
    """What became of a feed file as a whole."""

    INGESTED = "ingested"
    QUARANTINED = "quarantined"


class RunPhase(StrEnum):
    """A moment in the life of a run."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A feed file that was taken in; `digest` is the SHA-256 of its bytes and identifies it."""

    digest: str
    name: str
    size: int
    outcome: FileOutcome
    rows: int
    accepted: int
    quarantined: int
    reason: str | None = None
    sentence: str | None = None
    curated: str | None = None
    quarantine: str | None = None
    run_id: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedFact:
    """A valid row; `canonical` is the text whose SHA-256 is the id, so the ledger proves itself."""

    fact_id: str
    subject_key: str
    relation_key: str
    effective_at: datetime
    observed_at: datetime
    canonical: str
    file_digest: str
    row: int

    @classmethod
    def of(cls, change: FactChange, file_digest: str, row: int) -> ReceivedFact:
        """The ledger's row for `change`, which stood in row `row` (from 0) of the file."""
        return cls(
            fact_id=change.fact_id,
            subject_key=change.key.subject,
            relation_key=change.key.relation,
            effective_at=change.effective_at,
            observed_at=change.observed_at,
            canonical=change.canonical,
            file_digest=file_digest,
            row=row,
        )

    def change(self) -> FactChange:
        """The fact change as it was received."""
        return FactChange.from_dict(json.loads(self.canonical) | {"observed_at": self.observed_at.isoformat()})


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedRow:
    """A row that was not let in; the row itself stands in the file's quarantine Parquet."""

    file_digest: str
    row: int
    reason: str
    sentence: str
    fact_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a fact.

    With a `state_digest` it counts only where that state is in the lineage one looks from: a
    fact applied in a candidate that was never promoted is still to be applied.
    """

    fact_id: str
    kind: EventKind
    at: datetime
    run_id: str
    state_digest: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """A registered version: an edit state, the state it grew from, and what the gate said."""

    version: int
    state_digest: str
    parent_digest: str | None
    base_fingerprint: str
    method: str
    verdict: str
    night: datetime
    report: str | None = None
    run_id: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """An alias that went from one version to another (None: from or to nothing), and why."""

    alias: str
    from_version: int | None
    to_version: int | None
    who: str
    why: str
    report: str | None = None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAnswer:
    """What a state answered when it was registered. `suite` is `facts`, or that of an evaluation's item."""

    state_digest: str
    suite: str
    item_id: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCommit:
    """A batch whose state is on disk: where a killed night goes on.

    `night` names the work (not the run), so that a second run of the same night finds it.
    """

    night: str
    position: int
    batch_id: str
    parent_digest: str | None
    state_digest: str
    path: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    run_id: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run that started, finished or failed; `as_of` is the time up to which it took facts."""

    run_id: str
    kind: str
    phase: RunPhase
    as_of: datetime | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    at: datetime
