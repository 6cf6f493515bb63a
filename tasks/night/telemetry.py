"""What a night shows of its edits' inner life: how far they reach, the method's gauges, canaries, forgetting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from editing.errors import StateError
from editing.evals.telemetry import Reach, asked_kinds, reach, readings, suite_kinds
from editing.facts import FactChange
from editing.storage import read_json, write_json
from tasks.forgetting import observations
from tasks.night.plan import NightWork
from tasks.night.summary import finished_nights
from tasks.plots import forgetting_curve as curve_figure
from tasks.plots import over_nights, scope_margins
from tasks.registry import NightRun
from tasks.suites import configured_suites
from tasks.workspace import Workspace

TELEMETRY_FILE = "telemetry.json"
PROMPTS_OF_A_SUITE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Of one state: rows of reach, and gauges by name."""

    digest: str = ""
    reach: tuple[Reach, ...] = ()
    gauges: Mapping[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """For the night's row: the share of prompts that are reached, by kind, and the gauges."""
        return {"reach": {row.kind: row.hits for row in self.reach}, "gauges": dict(self.gauges)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The telemetry that `asdict` took apart."""
        return cls(**{**content, "reach": tuple(Reach(**row) for row in content["reach"])})


def telemetry_of(space: Workspace, night: str) -> Telemetry:
    """What `log_telemetry` kept of a night; empty when it was not run, as in a dry run."""
    try:
        return Telemetry.from_dict(read_json(space.night_folder(night) / TELEMETRY_FILE, StateError))
    except StateError:
        return Telemetry()


def log_telemetry(space: Workspace, work: NightWork, run: NightRun, facts: Sequence[FactChange]) -> None:
    """Measure the candidate's reach and keep it; log it, the batches' canaries and the curves to MLflow."""
    commits = space.ledger.commits(work.key)
    made = _measured(space, work, run, commits[-1].state_digest, facts)
    now = int(datetime.now(UTC).timestamp() * 1000)
    figures = {f"scope/{name}": value for row in made.reach for name, value in row.scalars().items()}
    figures |= {f"gauges/{name}": value for name, value in made.gauges.items()}
    run.metrics({_plain(name): value for name, value in figures.items()}, timestamp=now)
    for commit in commits:
        health = commit.detail.get("canaries", {})
        run.metrics({f"canary/{name}": value for name, value in health.items()}, timestamp=now, step=commit.position)
    run.table("reach", [asdict(row) for row in made.reach])
    nights = [(row.night, row.gauges) for row in finished_nights(space.ledger) if row.gauges]
    tonight = (f"{work.time:%Y-%m-%d}", made.gauges)
    if made.gauges:
        run.figure("gauges", over_nights("The method's gauges over the nights", [*nights, tonight], "value"))
    if points := observations(space).curve():
        run.figure("forgetting-curve", curve_figure(points))


def _measured(space: Workspace, work: NightWork, run: NightRun, digest: str, facts: Sequence[FactChange]) -> Telemetry:
    kept = telemetry_of(space, work.key)
    if kept.digest == digest:
        return kept
    state = space.state(digest)
    kinds = {**asked_kinds(facts), **suite_kinds(configured_suites(space.settings), PROMPTS_OF_A_SUITE)}
    batch_size = space.settings.evaluation.batch_size
    found = {
        kind: readings(space.base, state, prompts, batch_size=batch_size) for kind, prompts in kinds.items() if prompts
    }
    margins = {kind: [reading.margin for reading in found[kind]] for kind in asked_kinds(facts) if kind in found}
    if any(math.isfinite(margin) for group in margins.values() for margin in group):
        run.figure("scope-margins", scope_margins(margins))
    rows = [reach(kind, of_kind) for kind, of_kind in found.items()]
    made = Telemetry(digest=digest, reach=tuple(rows), gauges=space.editor.gauges(state))
    write_json(space.night_folder(work.key) / TELEMETRY_FILE, asdict(made))
    return made


def _plain(name: str) -> str:
    return name.replace(",", "")
