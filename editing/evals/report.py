"""Typed evaluation results: what was asked, what came back, and under which conditions.

A metric is named `suite.metric.protocol`, so a score never travels without its protocol.
Outcomes are kept per item, which is what makes two reports comparable item by item.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from editing.errors import SuiteError
from editing.storage import canonical_json, read_json, replace_file, write_json

REPORT_FORMAT = 1
REPORT_FILE = "report.json"
ITEMS_FILE = "items.parquet"


def content_digest(content: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `content`."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOutcome:
    """One item under one metric. `binary` outcomes score 0 or 1; the others any finite number.

    Items that name one `record` are not independent of each other; without it an item stands alone.
    """

    suite: str
    metric: str
    protocol: str
    item_id: str
    prompt: str
    expected: str
    got: str
    score: float
    binary: bool
    group: str = ""
    record: str = ""

    @property
    def name(self) -> str:
        """The full metric name, `suite.metric.protocol`."""
        return f"{self.suite}.{self.metric}.{self.protocol}"


@dataclass(frozen=True, slots=True)
class Metric:
    """The mean score of `n` items."""

    value: float
    n: int
    binary: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRecord:
    """Which suite was scored: `digest` covers its items and prompt forms, `excluded` counts items left out by reason.

    `derived` holds metrics that are no mean over items, by full name. Of the rows that the items
    `asked` of the model, `computed` were run; the others were remembered, or are the base's.
    """

    name: str
    version: str
    digest: str
    items: int
    seconds: float
    excluded: Mapping[str, int] = field(default_factory=dict)
    derived: Mapping[str, float] = field(default_factory=dict)
    asked: int = 0
    computed: int = 0


def _summarise(outcomes: Iterable[ItemOutcome]) -> Metric:
    scores = []
    binary = True
    for outcome in outcomes:
        scores.append(outcome.score)
        binary &= outcome.binary
    return Metric(math.fsum(scores) / len(scores), len(scores), binary)


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """The results of one model, base or edited, on a list of suites.

    `model_digest` is the edit state's digest, or the base's fingerprint for the base itself
    (then `method` is None).
    """

    model_digest: str
    base_fingerprint: str
    tokenizer_hash: str
    model_id: str
    method: str | None
    batch_size: int
    dtype: str
    device: str
    packages: Mapping[str, str]
    seeds: Mapping[str, int]
    created_at: str
    suites: Mapping[str, SuiteRecord]
    outcomes: tuple[ItemOutcome, ...]

    def __post_init__(self) -> None:
        seen = set()
        for outcome in self.outcomes:
            if outcome.suite not in self.suites:
                raise SuiteError(f"outcome {outcome.item_id!r} names suite {outcome.suite!r}, which has no record")
            if not math.isfinite(outcome.score):
                raise SuiteError(f"{outcome.name} of item {outcome.item_id!r} is {outcome.score}; scores are finite")
            identity = (outcome.name, outcome.item_id)
            if identity in seen:
                raise SuiteError(f"{outcome.name} holds item {outcome.item_id!r} twice; item ids are unique")
            seen.add(identity)

    @cached_property
    def by_metric(self) -> dict[str, dict[str, ItemOutcome]]:
        """Outcomes by full metric name, then by item id."""
        table: dict[str, dict[str, ItemOutcome]] = {}
        for outcome in self.outcomes:
            table.setdefault(outcome.name, {})[outcome.item_id] = outcome
        return table

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Mean and item count of every metric, by full name in sorted order."""
        return {name: _summarise(items.values()) for name, items in sorted(self.by_metric.items())}

    def items(self, name: str) -> dict[str, ItemOutcome]:
        """Outcomes of one metric by item id. Raises `SuiteError` naming the metrics there are."""
        if name not in self.by_metric:
            raise SuiteError(f"no metric {name!r} in this report; it has {', '.join(sorted(self.by_metric)) or 'none'}")
        return self.by_metric[name]

    def groups(self, name: str) -> dict[str, Metric]:
        """One metric by group (an age bucket, a subject of MMLU), groups in sorted order."""
        table: dict[str, list[ItemOutcome]] = {}
        for outcome in self.items(name).values():
            table.setdefault(outcome.group, []).append(outcome)
        return {group: _summarise(outcomes) for group, outcomes in sorted(table.items())}

    @property
    def seconds(self) -> float:
        """Time spent scoring, all suites."""
        return math.fsum(record.seconds for record in self.suites.values())

    @property
    def items_per_second(self) -> float:
        """Suite items scored per second (0 when no time was measured)."""
        return sum(record.items for record in self.suites.values()) / self.seconds if self.seconds else 0.0

    def scalars(self) -> dict[str, float]:
        """Every metric, mean or derived, as one flat mapping for a tracking server."""
        derived = {name: value for record in self.suites.values() for name, value in record.derived.items()}
        return {name: metric.value for name, metric in self.metrics.items()} | derived

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the outcomes: two runs that answered alike have one digest, whatever their speed."""
        rows = (asdict(outcome) for outcome in self.outcomes)  # without names of records they are as they always were
        return content_digest([{key: row[key] for key in row if key != "record" or row[key]} for row in rows])

    def table(self) -> pa.Table:
        """One row per outcome, columns as in `ItemOutcome`."""
        return pa.table(
            {f.name: pa.array([getattr(o, f.name) for o in self.outcomes], _ARROW[str(f.type)]) for f in _COLUMNS}
        )

    def save(self, folder: Path) -> None:
        """Write `report.json` and `items.parquet` into `folder`; the JSON comes last and seals the items."""
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / ITEMS_FILE, lambda file: pq.write_table(self.table(), file))
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("outcomes", "suites")}
        content = head | {
            "format": REPORT_FORMAT,
            "suites": {name: asdict(record) for name, record in self.suites.items()},
            "outcomes_digest": self.digest,
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
        }
        write_json(folder / REPORT_FILE, content)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The report that `save` wrote. Raises `SuiteError` when it is missing, of another format or altered."""
        head = read_json(folder / REPORT_FILE, SuiteError)
        try:
            rows = pq.read_table(folder / ITEMS_FILE).to_pylist()
            if head.pop("format") != REPORT_FORMAT:
                raise SuiteError(f"{folder / REPORT_FILE} is not of format {REPORT_FORMAT}; evaluate again")
            sealed = head.pop("outcomes_digest")
            suites = {name: SuiteRecord(**record) for name, record in head.pop("suites").items()}
            del head["metrics"]
            report = cls(**head, suites=suites, outcomes=tuple(ItemOutcome(**row) for row in rows))
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise SuiteError(f"the report in {folder} cannot be read ({error}); evaluate again") from error
        if report.digest != sealed:
            raise SuiteError(f"{ITEMS_FILE} in {folder} does not match its {REPORT_FILE}; evaluate again")
        return report


_COLUMNS = fields(ItemOutcome)
_ARROW = {"str": pa.string(), "float": pa.float64(), "bool": pa.bool_()}
