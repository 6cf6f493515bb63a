"""Why the model answers as it does, on the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.cli.console import EVERY_DAY, out, print_json, require_text, table

app = typer.Typer()
COLUMNS = ("subject", "relation", "target", "source", "night", "version", "learned", "score")


@app.command(rich_help_panel=EVERY_DAY)
def explain(
    prompt: Annotated[str, typer.Argument(help="A text to go on with.")],
    version: Annotated[str, typer.Option(help="champion, challenger, base, or a version's number.")] = "champion",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Say which edit answers a prompt, from which source and night, by what score, and what came next.

    Example: `errata explain "The head of government of the United Kingdom is"`
    """
    require_text(prompt)
    from tasks.explain import explain as run
    from tasks.workspace import open_workspace

    found = run(open_workspace(), prompt, version)
    if as_json:
        print_json(found)
        return
    out.print(f"answer   {found['answer']}", markup=False)
    out.print(f"by       {_by(found)}", markup=False, soft_wrap=True)
    if found["doubt"]:
        out.print(f"but      {found['doubt']}", markup=False, soft_wrap=True)
    if found["asked"] != found["prompt"]:
        out.print(f"asked    {found['asked']!r}", markup=False, soft_wrap=True)
    if found["limit"] is not None:
        out.print(f"limit    {found['limit']:.3f}, the score that an edit must beat")
    if found["candidates"]:
        out.print(table("\nEdits by score", [_scored(row) for row in found["candidates"]], COLUMNS))
    if found["tokens"]:
        out.print(table("\nTokens at the edited layers", [_scored(row) for row in found["tokens"]]))


def _by(found: dict[str, Any]) -> str:
    edit = found["edit"]
    if edit is None:
        return "the base model, no edit is about this"
    night = f", night of {edit['night']}, version {edit['version']}" if edit["night"] else ""
    return f"{edit['subject']} / {edit['relation']}: {edit['target']} (fact {edit['fact']}, {edit['source']}{night})"


def _scored(row: dict[str, Any]) -> dict[str, Any]:
    words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()}
    return {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in words.items()}
