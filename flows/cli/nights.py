"""A night's row as commands print it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.cli.console import table

KEY_DIGITS = 6
NIGHT_COLUMNS = {
    "night": "night",
    "facts": "facts\nin",
    "quarantined": "quaran-\ntined",
    "applied": "app-\nlied",
    "not_learned": "not\nlear-\nned",
    "blamed": "bla-\nmed",
    "reliability": "relia-\nbility",
    "generality": "gener-\nality",
    "locality": "loca-\nlity",
    "retention": "reten-\ntion",
    "mmlu": "MMLU",
    "gsm8k": "GSM8K",
    "verdict": "verdict",
    "version": "ver-\nsion",
    "champion": "cham-\npion",
}


def nights_table(title: str, summaries: Sequence[Mapping[str, Any]]) -> Table:
    """The nights' rows; facts that wait for their date have a column where there are any."""
    waits = {"waiting": "wait-\ning"} if any(summary.get("waiting") for summary in summaries) else {}
    night, facts, *others = NIGHT_COLUMNS.items()
    return table(title, night_rows(summaries), dict([night, facts, *waits.items(), *others]))


def print_timing(console: Console, timings: Sequence[Mapping[str, Any]]) -> None:
    """A table of what the nights' time went into, by suite."""
    from tasks.night.timing import added_up

    rows = [
        {
            "spent in": name,
            "items": part.items,
            "rows asked": part.asked or None,
            "rows run": part.computed if part.asked else None,
            "seconds": f"{part.seconds:.1f}",
            "items per second": f"{part.items_per_second:.1f}" if part.items_per_second else None,
            "share": part.share,
        }
        for name, part in added_up(timings).parts.items()
    ]
    if rows:
        console.print(table("\nWhere the time went", rows))


def night_row(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary as a row under `NIGHT_COLUMNS`."""
    suites = summary["suites"]
    return {**summary, **{name: suites.get(name) for name in ("zsre", "counterfact", "mmlu", "gsm8k")}}


def night_rows(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`night_row` of each; several of one date are told apart by the beginnings of their keys, which `report` takes."""
    dates = Counter(summary["night"] for summary in summaries)
    told = {row["key"]: f" {row['key'][:KEY_DIGITS]}" if dates[row["night"]] > 1 else "" for row in summaries}
    return [{**night_row(row), "night": row["night"] + told[row["key"]]} for row in summaries]


def night_told(summary: Mapping[str, Any]) -> str:
    """What became of a night's facts, in a sentence."""
    left_out = "".join(
        f", {summary[kind]} {kind.replace('_', ' ')}"
        for kind in ("blamed", "contradicting", "postponed", "not_learned", "waiting")
        if summary.get(kind)
    )
    if not summary["applied"] and not summary["retracted"]:
        return f"{summary['facts']} changes, nothing to edit{left_out}"
    if summary["champion"] == summary["version"]:
        return f"{summary['applied']} facts applied{left_out}, promoted as version {summary['version']}"
    serving = f"version {summary['champion']}" if summary["champion"] else "the base"
    edited = f"{summary['applied']} facts edited{left_out}"
    rest = "" if summary["verdict"] == "waiting" else ", they wait for the next night"
    return f"{edited}, {night_became(summary)}: {serving} goes on{rest}"


def night_became(summary: Mapping[str, Any]) -> str:
    """The verdict in words; of a version that waits for a person also until when, and how to answer."""
    if summary["verdict"] != "waiting":
        return str(summary["verdict"])
    version = summary["version"]
    return f"version {version} {summary['decided']} (`errata approve --version {version}`)"
