"""Feeds on the command line: convert published formats, validate, show."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from editing.shown import printable
from flows.cli.console import errors, out, print_json, table

if TYPE_CHECKING:
    from tasks.feed.records import ConversionReport

app = typer.Typer(help="Convert, validate and show feeds of fact changes.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SHOWN = 20
LOST = 3  # exit code of a conversion that lost records


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A file, a folder or a hub id.")],
    target: Annotated[Path, typer.Argument(help="The Parquet feed to write.")],
    format: Annotated[str | None, typer.Option(help="The source's format; recognised when not given.")] = None,
    at: Annotated[datetime | None, typer.Option(help="Date of changes that carry none (UTC).")] = None,
    name: Annotated[str | None, typer.Option(help="Who says so; default: the data set's name.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="Trust in the source; 0 is the highest.")] = 0,
    templates: Annotated[
        Path | None, typer.Option(help="For triples: a TOML or JSON file with a prompt for each relation.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an output that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a published data set as a feed; `tasks/feed/README.md` lists the formats and what becomes of each field.

    Three columns (subject, relation, object) need a prompt for each relation: `--templates` names a file of lines
    like `capital = "The capital of {} is"`, and a relation without one takes a default that is shown.

    Records that gave nothing are named with their number, counted from 0, and the reason; the exit code is 3 then.

    Example: `errata feed convert zsre_mend_train.json var/landing/zsre.parquet`
    """
    from tasks.feed.convert import convert_feed, read_templates

    options = {"format": format, "at": at and at.replace(tzinfo=UTC), "name": name, "rank": rank}
    report = convert_feed(source, target, force=force, **options, templates=templates and read_templates(templates))
    if as_json:
        print_json(report.to_dict())
    else:
        _show_conversion(report, target)
    if report.skipped:
        raise typer.Exit(LOST)


def _show_conversion(report: ConversionReport, target: Path) -> None:
    out.print(f"{report.converted} fact changes from {report.read} records in {target}", soft_wrap=True, markup=False)
    for title, counts in (("repaired", report.repaired), ("left out", report.left_out)):
        for what, count in counts.most_common():
            out.print(f"  {title}: {count} x {printable(what)}", soft_wrap=True, markup=False)
    for skipped in report.skipped[:SHOWN]:
        errors.print(f"  skipped: record {skipped.record}: {printable(skipped.reason)}", soft_wrap=True, markup=False)
    if len(report.skipped) > SHOWN:
        errors.print(f"  and {len(report.skipped) - SHOWN} more were skipped: --json lists them all")


@app.command()
def template(
    target: Annotated[Path, typer.Argument(help="The CSV file to write.")],
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write a CSV of two facts to start from; fill it in, and `errata feed convert` makes a feed of it.

    Example: `errata feed template facts.csv`
    """
    from tasks.feed.schema import COLUMNS
    from tasks.feed.template import MUST, write_template

    write_template(target, force=force)
    out.print(
        table(
            "Columns",
            [{"column": c.name, "needed": "yes" if c.name in MUST else "no", "meaning": c.meaning} for c in COLUMNS],
        )
    )
    out.print(
        f"\nwrote {target}; put your facts in place of its two, then `errata feed convert {target} facts.parquet`",
        soft_wrap=True,
        markup=False,
    )


@app.command()
def validate(feed: Annotated[Path, typer.Argument(help="A Parquet feed.")], as_json: AsJson = False) -> None:
    """Check a feed as the night will, row by row; exit code 1 when a row would be quarantined.

    Facts of the file that contradict each other through `[feed.inverse_relations]` count as well; what stands
    in the ledger already is for the night to compare. Example: `errata feed validate tonight.parquet`
    """
    from editing.inverse import InverseRelations
    from tasks.feed.reading import validate_feed
    from tasks.night.receive import limits_of
    from tasks.workspace import open_workspace

    space = open_workspace()
    found = validate_feed(feed, limits_of(space), InverseRelations(space.settings.feed.inverse_relations))
    if as_json:
        print_json(asdict(found))
    else:
        out.print(f"{found.accepted} of {found.rows} rows are sound")
        if found.ignored:
            out.print(f"  not read: the index of pandas ({', '.join(found.ignored)})", markup=False)
        for problem in found.problems[:SHOWN]:
            errors.print(f"  row {problem.row}: {printable(problem.sentence)}", soft_wrap=True, markup=False)
        if len(found.problems) > SHOWN:
            errors.print(f"  and {len(found.problems) - SHOWN} more: --json lists them all")
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def show(
    feed: Annotated[Path, typer.Argument(help="A Parquet feed.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show a feed's first rows.

    Example: `errata feed show tonight.parquet --rows 3`
    """
    from tasks.feed.reading import show_feed

    found = show_feed(feed, rows)
    if as_json:
        print_json(asdict(found))
        return
    columns = ("operation", "subject", "relation", "target", "target_old", "effective_at", "source")
    out.print(table(f"{feed.name}: {found.rows} rows, schema version {found.schema_version}", found.first, columns))
