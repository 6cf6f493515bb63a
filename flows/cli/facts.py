"""One fact at a time, on the command line: retract, audit."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from editing.shown import printable
from flows.cli.console import EVERY_DAY, UNDO, bars, errors, out, print_json, shown, table
from flows.cli.nights import night_became

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
DIGITS = 12


@app.command(rich_help_panel=UNDO)
def retract(
    facts: Annotated[list[str], typer.Argument(help="Ids of facts, their beginnings, or subjects.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the ledger with the retraction.")] = "",
    as_of: Annotated[datetime | None, typer.Option(help="When they ceased to hold (UTC); default: now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take facts back now, in a night of their own: edited, evaluated, judged and promoted like any other.

    What a fact had superseded holds again, else the base answers. Other changes in the landing zone are
    received, and wait for the next night. The exit code is 0 when the champion no longer holds the facts:
    1 means that the gate or a person held it back (the report says why), that the version without them waits
    for approval, or that another night runs and the next one takes them back.

    Example: `errata retract 3f9a01c2 --reason "the source withdrew it"`
    """
    from flows.retraction import retract as run
    from tasks.facts.retract import retractable, still_held

    meant = retractable(facts)
    with bars():
        summary = run(meant, reason=reason, as_of=as_of)
    held = still_held(meant)
    if as_json:
        row = summary.to_dict() if summary else {"verdict": "recorded"}
        print_json({**row, "still_held": [fact.fact_id for fact in held]})
    elif summary and not held:
        serving = f"version {summary.champion}" if summary.champion else "the base"
        out.print(f"{summary.retracted} facts taken back; {serving} serves", soft_wrap=True)
    if held or summary is None:
        recorded = "recorded: another night runs, and the next one takes them back"
        became = night_became(summary.to_dict()) if summary else recorded
        errors.print(f"{became}; the champion still holds {len(held)} of the facts", soft_wrap=True)
        raise typer.Exit(1)


@app.command(rich_help_panel=EVERY_DAY)
def audit(
    fact: Annotated[str, typer.Argument(help="A fact's id, its beginning, or a subject.")],
    relation: Annotated[str | None, typer.Option(help="Of a subject's facts, those of this relation.")] = None,
    as_json: AsJson = False,
) -> None:
    """A fact's whole life: file and row, source, batches, versions, scores by night, and when it was served.

    Example: `errata audit "the United Kingdom" --relation head_of_government`
    """
    from tasks.facts.audit import audit as run
    from tasks.workspace import open_workspace

    lives = run(open_workspace(), fact, relation)
    if as_json:
        print_json(lives)
        return
    for life in lives:
        _show(life)


def _show(life: dict[str, Any]) -> None:
    fact = life["fact"]
    said = fact["target"] if fact["operation"] == "assert" else f"retracted {fact['target']}".strip()
    named = shown(f"{fact['subject']} / {fact['relation']}: {said}")
    out.print(f"[bold]{named}[/bold]  ({life['status']})", soft_wrap=True)
    out.print(f"id         {life['fact_id']}")
    out.print(f"effective  {fact['effective_at'][:10]}, was: {shown(fact['target_old'] or 'not said')}")
    out.print(f"source     {printable(fact['source'])} (rank {fact['source_rank']})", soft_wrap=True, markup=False)
    for title, rows in (
        ("Read in", life["sightings"]),
        ("What happened", life["events"]),
        ("Batches", life["batches"]),
        ("Versions that hold it", life["versions"]),
        ("Scores by night", life["scores"]),
        ("Served", life["served"]),
    ):
        if rows:
            out.print(table(f"\n{title}", [_short(row) for row in rows]))
    out.print()


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """The row with digests cut and yes or no in words."""
    digests = ("digest", "state", "night")
    shown = {name: value[:DIGITS] if name in digests and value else value for name, value in row.items()}
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in shown.items()}
