"""Evaluations on the command line: `errata eval`, `errata retention`, and the suites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.console import bars, complain, out, print_json, table

suites_app = typer.Typer(help="The evaluation suites.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Version = Annotated[str, typer.Option(help="champion, challenger, base, or a version's number.")]
Suites = Annotated[list[str] | None, typer.Option("--suite", help="Only this suite; may be given again.")]


@suites_app.callback()
def suites() -> None:
    """The evaluation suites."""


def evaluate(
    version: Version = "champion",
    suite: Suites = None,
    against: Annotated[str | None, typer.Option(help="Compare item by item with this version.")] = None,
    save: Annotated[Path | None, typer.Option(help="Folder for report.json and items.parquet.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a version on the configured suites, with every metric, its items and its speed.

    Example: `errata eval --version champion --against base --suite mmlu`
    """
    from tasks.evaluation import as_rows, compared, evaluate_version, metric_rows, speed_rows
    from tasks.workspace import open_workspace

    space = open_workspace()
    with bars():
        reference = evaluate_version(space, against, suite or ()) if against else None
        report = evaluate_version(space, version, suite or ())
    if save:
        report.save(save)
    comparisons = as_rows(compared(space, report, reference)) if reference else []
    if as_json:
        print_json(
            {
                "version": version,
                "model_digest": report.model_digest,
                "metrics": metric_rows(report),
                "speed": speed_rows(report),
                "against": {"version": against, "comparisons": comparisons} if against else None,
            }
        )
        return
    out.print(table(f"Version {version} on its suites", [_figures(row) for row in metric_rows(report)]))
    out.print(table("\nSpeed", [_figures(row, ("share",)) for row in speed_rows(report)]))
    if comparisons:
        kept = ("metric", "n", "candidate", "reference", "losses", "gains", "drop_bound", "detectable", "p_inferior")
        rows = [_figures({name: row[name] for name in kept}) for row in comparisons]
        out.print(table(f"\nAgainst {against}, paired", rows))


def retention(as_json: AsJson = False) -> None:
    """How many of the facts asked at each age are still answered: the forgetting curve of all promoted versions.

    Example: `errata retention --json`
    """
    from tasks.forgetting import observations
    from tasks.plots import age_label
    from tasks.workspace import open_workspace

    curve = observations(open_workspace())
    if as_json:
        print_json(curve.rows())
        return
    rows = [
        {
            "age in days": age_label(point),
            "facts asked": point.asked,
            "answered": point.answered,
            "at least (95%)": point.low,
            "at most (95%)": point.high,
        }
        for point in curve.curve()
    ]
    out.print(table("Forgetting curve (generated exact match)", rows) if rows else "no applied fact was asked yet")


@suites_app.command("list")
def list_suites(as_json: AsJson = False) -> None:
    """The suites of the nightly evaluation: version, items, where they come from, what they measure.

    Example: `errata suites list`
    """
    from tasks.suites import configured_suites, suite_sources
    from tasks.workspace import open_workspace

    settings = open_workspace().settings
    sources = suite_sources(settings)
    rows = [
        {
            "suite": suite.name,
            "version": suite.version,
            "items": len(suite),
            "digest": suite.digest[:12],
            "metrics": ", ".join(f"{name} ({n})" for name, n in suite.metric_sizes().items()),
            "source": str(source.path or source.dataset),
        }
        for suite, source in zip(configured_suites(settings), sources.values(), strict=True)
    ]
    if as_json:
        print_json(rows)
    else:
        out.print(table("Suites", [{k: v for k, v in row.items() if k != "source"} for row in rows]))


@suites_app.command()
def compare(version: Version = "champion", suite: Suites = None, as_json: AsJson = False) -> None:
    """Run the items of MMLU and GSM8K through lm-evaluation-harness too; fails unless every item agrees.

    Example: `errata suites compare --version base`
    """
    from tasks.evaluation import as_rows, harness_agreements
    from tasks.workspace import open_workspace

    with bars():
        found = harness_agreements(open_workspace(), version, suite or ())
    rows = as_rows(found)
    if as_json:
        print_json(rows)
    else:
        shown = ("metric", "items", "ours", "harness", "same_prompts", "same_scores")
        title = f"Version {version}: our scores and those of lm-eval {found[0].harness_version}"
        out.print(table(title, [_figures({name: row[name] for name in shown}) for row in rows]))
    if differing := [row for row in found if not row.complete]:
        row = differing[0]
        complain(
            f"{row.metric}: {row.items - row.same_prompts} prompts and {row.items - row.same_scores} scores of "
            f"{row.items} differ, such as item {next(iter(row.differing), 'none')}"
        )
        raise typer.Exit(1)


@suites_app.command()
def edit(
    name: Annotated[str, typer.Argument(help="zsre or counterfact.")],
    records: Annotated[int, typer.Option(min=1, help="The first so many records are applied.")] = 50,
    generation: Annotated[int, typer.Option(min=0, help="Records whose texts are drawn (CounterFact).")] = 10,
    as_json: AsJson = False,
) -> None:
    """Apply a suite's own edits to the base in memory, batch by batch, and score them as the papers do.

    Example: `errata suites edit counterfact --records 50`
    """
    from tasks.evaluation import edit_with_suite
    from tasks.workspace import open_workspace

    with bars():
        found = edit_with_suite(open_workspace(), name, records, generation)
    before, after = found.base.scalars(), found.edited.scalars()
    rows = [{"metric": metric, "base": before.get(metric), "edited": value} for metric, value in after.items()]
    if as_json:
        print_json({"suite": name, "facts": len(found.facts), "state": found.state.describe(), "metrics": rows})
    else:
        out.print(table(f"{len(found.facts)} edits of {name}", [_figures(row) for row in rows]))


def _figures(row: dict[str, Any], shares: tuple[str, ...] = ()) -> dict[str, Any]:
    """The row with its numbers to three places, shares left to the table."""
    return {k: f"{v:.3f}" if isinstance(v, float) and k not in shares else v for k, v in row.items()}
