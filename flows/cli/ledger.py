"""The ledger itself, on the command line: made again when it is lost."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.console import bars, out, print_json, shown

app = typer.Typer(help="The ledger itself: make a lost one again.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The ledger itself: make a lost one again."""


@app.command()
def rebuild(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False) -> None:
    """Make a lost ledger again from MLflow's versions and the files under home, and say what is lost for good.

    Facts, versions with what each added, nights and the champion's lineage come back, all at once or not at all. A
    ledger that holds anything is left alone. A copy of the ledger tells more: put it back where there is one.

    Example: `errata ledger rebuild`
    """
    from tasks.rebuild import rebuild_ledger
    from tasks.workspace import open_workspace

    with bars():
        made = rebuild_ledger(open_workspace())
    if as_json:
        print_json(made.to_dict())
        return
    serving = f"version {made.champion}" if made.champion else "the base"
    out.print(
        f"rebuilt: {made.facts} facts of {made.files} files, {len(made.versions)} versions of {made.nights} nights; "
        f"{serving} serves",
        soft_wrap=True,
    )
    out.print("\n[bold]Could not be made again[/bold]")
    for line in made.lost:
        out.print(f"- {shown(line)}", soft_wrap=True)
