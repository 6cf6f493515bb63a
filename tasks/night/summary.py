"""A night in one row: what came in, what was done with it, how it scored, what the gate said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from editing.evals.gate import Decision
from editing.evals.report import EvalReport
from tasks.ledger import Ledger, RunPhase

KIND = "night"
ANSWER = "approval"  # the run that ends the wait of a night's version
WAITING = "waiting"
NOTHING = "nothing to do"
DRY_RUN = "dry run: "
# The row's scores, and the metric of the candidate's report that each shows.
SCORES = {
    "reliability": "edits.reliability.generated",
    "generality": "edits.generality.generated",
    "locality": "edits.locality.generated",
    "same_subject": "edits.same_subject_locality.generated",
    "retention": "retention.reliability.generated",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NightSummary:
    """One row of the history. `night` is the date up to which facts were taken; scores are shares or None.

    `facts` were decided about; of those `refused` belong to batches that the editor refused, `blamed` were
    quarantined because the gate failed by them, `contradicting` because they contradict another fact through an
    inverse relation, and `postponed` wait because they were too many at once.
    Of the `applied` ones `again` were tried once more, and `not_learned` are not answered by the candidate.
    `quarantined` rows did not come in since the night before, and `waiting` facts are dated after the night or by a
    clock ahead of ours. `decided` says who or what had the last word on a version that the gate let through; one that
    waits for a person (verdict `waiting`) does so until `waits_until` (UTC), and `finished_nights` tells how that
    ended. `champion` is the version that serves after the night (None: the base). `seconds` went into editing;
    `timing` has the seconds, items per second and share of the night of every suite (`tasks.night.timing`), `reach` the
    share of prompts that an edit reaches, by kind, and `gauges` the method's own figures (`tasks.night.telemetry`).
    """

    night: str
    key: str
    facts: int
    quarantined: int
    applied: int
    refused: int
    retracted: int
    known: int
    superseded: int
    verdict: str
    decided: str | None = None
    waits_until: str | None = None
    reliability: float | None = None
    generality: float | None = None
    locality: float | None = None
    same_subject: float | None = None
    retention: float | None = None
    suites: Mapping[str, float]
    version: int | None = None
    champion: int | None = None
    blamed: int = 0
    postponed: int = 0
    contradicting: int = 0
    not_learned: int = 0
    waiting: int = 0
    again: int = 0
    seconds: float = 0.0
    timing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reach: Mapping[str, float] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The summary that `to_dict` wrote."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})


def scores_of(report: EvalReport) -> dict[str, Any]:
    """The row's scores from a candidate's report."""
    found = {name: report.metrics.get(metric) for name, metric in SCORES.items()}
    return {name: metric.value if metric else None for name, metric in found.items()}


def finished_nights(ledger: Ledger) -> list[NightSummary]:
    """Every finished night, oldest first; one that waited for a person as it was decided in the end."""
    rows: list[NightSummary] = []
    for run in ledger.runs(KIND, ANSWER):
        if run.phase is not RunPhase.FINISHED:
            continue
        night = NightSummary.from_dict(run.detail) if run.kind == KIND else None
        if night is None or (night.version is not None and night.verdict != WAITING):
            verdict, version = (night.verdict if night else run.detail["decision"]), run.detail["version"]
            ended: dict[str, Any] = {"verdict": verdict, "decided": run.detail["decided"]}
            if verdict == Decision.PROMOTE:
                ended["champion"] = version
            rows = [replace(row, **ended) if row.verdict == WAITING and row.version == version else row for row in rows]
        if night is not None:
            rows.append(night)
    return rows
