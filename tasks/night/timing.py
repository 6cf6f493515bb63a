"""Where a night's time goes: editing, and every suite over all the models it scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from editing.errors import SuiteError
from editing.evals.report import EvalReport
from tasks.night.plan import NightWork
from tasks.registry import NightRun
from tasks.workspace import Workspace

EDITING = "editing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Time of a night in one suite or in editing: `items` scored (facts edited), `share` of the whole.

    Of the `asked` rows of tokens `computed` were run through a model; the others were remembered or are the base's.
    """

    items: int
    asked: int
    computed: int
    seconds: float
    share: float = 0.0

    @property
    def items_per_second(self) -> float:
        """Of the share of the items' rows that was run; 0 when no time was measured, or all was remembered."""
        run = self.computed / self.asked if self.asked else 1.0
        return self.items * run / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class NightTiming:
    """The parts of a night's time, by suite, and `EDITING`."""

    parts: Mapping[str, Spent]

    def summary(self) -> dict[str, Any]:
        """For the night's row."""
        return {
            "timing": {
                name: {**asdict(part), "items_per_second": round(part.items_per_second, 3)}
                for name, part in self.parts.items()
            }
        }


def night_timing(space: Workspace, work: NightWork) -> NightTiming:
    """The time that the night's commits and reports record."""
    editing = sum(step.detail["seconds"] for step in space.ledger.commits(work.key))
    reports = []
    for folder in sorted((space.night_folder(work.key) / "reports").glob("*")):
        try:
            reports.append(EvalReport.load(folder))
        except SuiteError:
            continue
    return timing_of(reports, editing, facts=sum(map(len, work.batches)))


def timing_of(reports: Iterable[EvalReport], editing: float, facts: int) -> NightTiming:
    """What `reports` and `editing` seconds make of a night; the suites in the order of the first report."""
    parts = {EDITING: Spent(items=facts, asked=0, computed=0, seconds=editing)}
    for report in reports:
        for name, record in report.suites.items():
            before = parts.get(name, Spent(items=0, asked=0, computed=0, seconds=0.0))
            parts[name] = Spent(
                items=before.items + record.items,
                asked=before.asked + record.asked,
                computed=before.computed + record.computed,
                seconds=before.seconds + record.seconds,
            )
    return shared_out(parts)


def shared_out(parts: Mapping[str, Spent]) -> NightTiming:
    """The parts with their shares of the sum."""
    whole = sum(part.seconds for part in parts.values()) or 1.0
    return NightTiming(
        {
            name: Spent(**{**asdict(part), "seconds": round(part.seconds, 3), "share": round(part.seconds / whole, 4)})
            for name, part in parts.items()
        }
    )


def added_up(rows: Iterable[Mapping[str, Mapping[str, Any]]]) -> NightTiming:
    """The timing of several nights' rows together."""
    parts: dict[str, Spent] = {}
    for row in rows:
        for name, figures in row.items():
            before = parts.get(name, Spent(items=0, asked=0, computed=0, seconds=0.0))
            sums = {key: getattr(before, key) + figures[key] for key in ("items", "asked", "computed", "seconds")}
            parts[name] = Spent(**sums)
    return shared_out(parts)


def log_timing(space: Workspace, work: NightWork, run: NightRun) -> None:
    """Metrics `timing/SUITE/...` of the night's MLflow run."""
    figures = {}
    for name, part in night_timing(space, work).parts.items():
        figures[f"timing/{name}/seconds"] = part.seconds
        figures[f"timing/{name}/share"] = part.share
        figures[f"timing/{name}/items_per_second"] = part.items_per_second
    run.metrics(figures, timestamp=int(datetime.now(UTC).timestamp() * 1000))
