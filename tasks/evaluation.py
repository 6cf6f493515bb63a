"""Evaluations outside the night: a version on the configured suites, against another, through lm-eval, in edit mode."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from editing.bench.suite_edits import SuiteEdits, bench_suite
from editing.errors import SuiteError
from editing.evals.compare import Comparison, compare
from editing.evals.harness import Agreement, agreements
from editing.evals.report import EvalReport, SuiteRecord
from editing.evals.suite import evaluate
from tasks.champion.choose import digest_of
from tasks.progress import reporter
from tasks.suites import configured_suites, suite_path, suite_sources
from tasks.workspace import Workspace

COMPARABLE = ("mmlu", "gsm8k")


def evaluate_version(space: Workspace, version: str | int, only: Collection[str] = ()) -> EvalReport:
    """Score a version (alias, number or `base`) on the configured suites, or `only` those named."""
    suites = configured_suites(space.settings, only)
    with space.scorer(digest_of(space, version), reporter()) as scorer:
        return evaluate(scorer, suites, seeds={"sample": space.settings.evaluation.seed})


def compared(space: Workspace, candidate: EvalReport, reference: EvalReport) -> list[Comparison]:
    """Every metric of two reports, paired item by item, with the policy's margins where it has some."""
    tables = (space.settings.gate.policy.get(name) or {} for name in ("base_margins", "champion_margins"))
    given = {metric: margin for table in tables for metric, margin in table.items() if margin is not False}
    margins = {name: given.get(name, 0.05) for name in candidate.metrics}
    return list(compare(candidate, reference, margins).values())


def harness_agreements(space: Workspace, version: str | int, only: Collection[str] = ()) -> list[Agreement]:
    """MMLU and GSM8K, or `only` one of them, on a version through lm-eval and by us, item by item."""
    if unknown := sorted(set(only) - set(COMPARABLE)):
        raise SuiteError(f"suite {unknown[0]!r} has no task in lm-evaluation-harness; {' and '.join(COMPARABLE)} have")
    there = [name for name in suite_sources(space.settings) if name in (only or COMPARABLE)]
    if not there:
        raise SuiteError(f"none of {', '.join(only or COMPARABLE)} is configured under [evaluation.suites]; add one")
    rows: list[Agreement] = []
    with space.scorer(digest_of(space, version), reporter()) as scorer:
        for suite in configured_suites(space.settings, there):
            rows += agreements(scorer, suite)
    return rows


def edit_with_suite(space: Workspace, name: str, records: int, generation: int) -> SuiteEdits:
    """Apply the first records of a configured suite to the base in memory and score it in edit mode."""
    sources = suite_sources(space.settings)
    if name not in sources:
        raise SuiteError(f"no suite {name!r} is configured; there are {', '.join(sources)}")
    source = sources[name]
    options = {key: source.options[key] for key in ("split", "references") if key in source.options}
    return bench_suite(
        space.base,
        space.start(reporter()),
        name,
        suite_path(space.settings, source),
        records=records,
        batch_size=space.settings.editor.batch_size,
        scoring_batch_size=space.settings.evaluation.batch_size,
        generation=generation,
        progress=reporter(),
        **options,
    )


def metric_rows(report: EvalReport) -> list[dict[str, Any]]:
    """Every metric of a report with its protocol in the name, derived ones included."""
    rows = [{"metric": name, "value": m.value, "items": m.n} for name, m in report.metrics.items()]
    derived = {name: value for record in report.suites.values() for name, value in record.derived.items()}
    return rows + [{"metric": name, "value": value, "items": None} for name, value in derived.items()]


def speed_rows(report: EvalReport) -> list[dict[str, Any]]:
    """Time and rows of every suite of a report; the rate counts what was run, not what was remembered."""
    whole = report.seconds or 1.0
    return [
        {
            "suite": name,
            "version": record.version,
            "items": record.items,
            "excluded": sum(record.excluded.values()),
            "rows asked": record.asked,
            "rows run": record.computed,
            "seconds": record.seconds,
            "items per second": _rate(record),
            "share": record.seconds / whole,
        }
        for name, record in report.suites.items()
    ]


def _rate(record: SuiteRecord) -> float | None:
    """Items a second, of the share of their rows that was run; None where none was."""
    if not (record.seconds and record.computed and record.asked):
        return None
    return record.items * record.computed / record.asked / record.seconds


def as_rows(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Dataclasses as plain rows."""
    return [asdict(item) for item in found]
