"""`errata catch-up`: the three nights on a real model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flows.cli.console import WIDTH_OF_FILES, bars, err, out, print_json, table
from flows.cli.nights import NIGHT_COLUMNS, night_row, print_timing

if TYPE_CHECKING:
    from flows.catch_up import CaughtUp

SHOWN = 12
HEADINGS = {"believed": "believed", "was_true_until": "was true\nuntil", "is_true_now": "is true now"}


def catch_up(
    method: Annotated[list[str] | None, typer.Option(help="A method; again for the next. Default: both.")] = None,
    facts: Annotated[int | None, typer.Option(min=2, help="Facts of the feed, at most; default: 40.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Also draw what is printed into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Bring the configured model up to date with the Almanac's table: what it answers wrongly is the feed.

    The first method runs two nights, one of them with a row of a faulty export, which the gate has to
    find; then its versions are rolled back, and the next method does all of it in one night.

    Example: `errata catch-up --svg docs/real.svg`
    """
    from flows.catch_up import FACTS, METHODS
    from flows.catch_up import catch_up as run

    with bars():
        found = run(method or METHODS, facts or FACTS, lambda line: err.print(line, markup=False))
    if as_json:
        print_json(found.to_dict())
        return
    _print(out, found)
    if svg:
        canvas = Console(record=True, width=WIDTH_OF_FILES, file=StringIO(), highlight=False)
        _print(canvas, found)
        canvas.save_svg(str(svg), title="make real")


def _print(console: Console, found: CaughtUp) -> None:
    told = found.to_dict()
    methods = list(told["methods"])
    facts = told["facts"]
    console.print(
        f"{told['asked']} dated facts asked, {told['right_before']} told as they are; {len(facts)} became the feed, "
        f"{sum(row['was_true_until'] is not None for row in facts)} of them with a former holder",
        soft_wrap=True,
    )
    nights = [{"method": stage.method, **night_row(row.to_dict())} for stage in found.stages for row in stage.nights]
    columns = {name: heading for name, heading in NIGHT_COLUMNS.items() if name not in ("night", "quarantined")}
    console.print(table("\nThe nights", nights, {"method": "method", **columns}))
    print_timing(console, [row.timing for stage in found.stages for row in stage.nights])
    for stage in found.stages:
        for search in stage.searches:
            console.print(f"\n{stage.method}: {search.sentence}", soft_wrap=True, markup=False)
            for blamed in search.blamed:
                row = "the planted row" if blamed.fact_id == found.planted.fact_id else f"fact {blamed.fact_id[:12]}"
                console.print(f"  {row}: {blamed.why}", soft_wrap=True, markup=False)
    console.print(
        table(
            "\nBefore and after",
            _chosen(facts, methods),
            {"question": "question", **HEADINGS, **{name: name for name in methods}},
        )
    )
    rows = [{"": "before", "facts told": str(told["told_before"]), "of": str(len(facts))}]
    rows += [{"": name, "facts told": str(row["right"]), "of": str(row["of"])} for name, row in told["methods"].items()]
    console.print(table("\nThe feed's facts that answers begin with", rows))


def _chosen(facts: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Some of the facts, evenly spread; those that the model knew as they were come first. Long answers are cut."""
    ordered = sorted(facts, key=lambda row: row["was_true_until"] is None)
    step = max(1, len(ordered) // SHOWN)
    return [
        {**row, "believed": _cut(row["believed"]), **{name: _cut(row[name]) for name in methods}}
        for row in ordered[::step][:SHOWN]
    ]


def _cut(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
