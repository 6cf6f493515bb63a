"""The append-only history: facts, what happened to them, versions, alias moves, runs and leases."""

from tasks.ledger.leases import Lease
from tasks.ledger.nights import NightPlan, Retraction, evidence, plan_night, record_plan
from tasks.ledger.records import (
    AliasMove,
    BatchCommit,
    Event,
    EventKind,
    FileOutcome,
    FileRecord,
    QuarantinedRow,
    ReceivedFact,
    RecordedAnswer,
    RunPhase,
    RunRecord,
    VersionRecord,
)
from tasks.ledger.store import Intake, Ledger, identity_of

__all__ = [
    "AliasMove",
    "BatchCommit",
    "Event",
    "EventKind",
    "FileOutcome",
    "FileRecord",
    "Intake",
    "Lease",
    "Ledger",
    "NightPlan",
    "QuarantinedRow",
    "ReceivedFact",
    "RecordedAnswer",
    "Retraction",
    "RunPhase",
    "RunRecord",
    "VersionRecord",
    "evidence",
    "identity_of",
    "plan_night",
    "record_plan",
]
