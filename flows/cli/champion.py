"""Who serves, on the command line: promote, rollback, compact, approve, canary."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import EVERY_DAY, UNDO, bars, errors, out, print_json, shown, table

if TYPE_CHECKING:
    from tasks.champion.change import Change

app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Reason = Annotated[str, typer.Option(help="Why; it goes into the ledger.")]
SHOWN = 5


@app.command(rich_help_panel=UNDO)
def promote(
    version: Annotated[int, typer.Argument(help="The version's number.")], reason: Reason = "", as_json: AsJson = False
) -> None:
    """Put a version into service: after checking that it loads, and with the canary behind it.

    A version that the gate did not let through needs a reason.

    Example: `errata promote 3 --reason "looked at the two lost items, both were wrong before"`
    """
    from flows.promotion import promote as run

    _tell(run(version, reason=reason), as_json)


@app.command(rich_help_panel=UNDO)
def rollback(
    to: Annotated[str | None, typer.Option(help="A version's number, or 'base'.")] = None,
    as_of: Annotated[datetime | None, typer.Option(help="The champion of this moment (UTC).")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Go back: to the previous champion, to a version, or to the champion of a moment.

    The facts of the versions left behind are to be applied again, so the next night may bring them
    back in a new version; what is wrong among them goes with `errata retract`. The very version that
    was left is not promoted again by a night.

    Example: `errata rollback --reason "answers about teams are off"`
    """
    from flows.promotion import rollback as run

    _tell(run(to=to, as_of=as_of, reason=reason), as_json)


@app.command(rich_help_panel=UNDO)
def compact(reason: Reason = "", as_json: AsJson = False) -> None:
    """Write the champion anew in as few bytes as its method can, as a version with the same facts and answers.

    For RECIPE: its segments become one, rows of facts that were taken back go, and an index is built anew.
    What is looked up is compared before anything moves; `errata rollback` goes back.

    Example: `errata compact --reason "hundreds of nights in small files"`
    """
    from flows.compaction import compact as run

    with bars():
        found = run(reason=reason)
    print_json(found.to_dict()) if as_json else out.print(shown(found.sentence), soft_wrap=True)


@app.command(rich_help_panel=EVERY_DAY)
def approve(
    hold: Annotated[bool, typer.Option("--hold", help="Do not promote: the champion stays.")] = False,
    version: Annotated[int | None, typer.Option(help="Which version, where several wait.")] = None,
    who: Annotated[str, typer.Option(help="Your name; default: the user.")] = "",
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Answer for a version that waits for approval, as `approval = "manual"` under [gate] demands it.

    `errata status` says which ones wait, and until when; `errata report` has what the gate found. The same form is
    the deployment `approve/by-hand` in Prefect. The canary follows a promotion.

    Example: `errata approve --reason "read the report"`
    """
    from flows.promotion import approve as run

    answered = run(decision="hold" if hold else "promote", version=version, who=who, reason=reason)
    print_json(answered.to_dict()) if as_json else out.print(answered.sentence, soft_wrap=True, markup=False)


@app.command(rich_help_panel=EVERY_DAY)
def canary(as_json: AsJson = False) -> None:
    """Check the champion in a fresh process: digest, base, and the answers recorded when it was registered.

    When it is not what was promoted, the last sound champion before it serves again. The exit code is 1 then, and
    in an outage of MLflow, in which nothing moves.

    Example: `errata canary`
    """
    from flows.canary import canary as run

    result = run()
    if as_json:
        print_json(result.to_dict())
        return
    out.print(shown(result.sentence), soft_wrap=True)
    for finding in result.findings:
        if finding.differences:
            errors.print(table("Answers that differ, within the tolerance", list(finding.differences)[:SHOWN]))


def _tell(change: Change, as_json: bool) -> None:
    if as_json:
        print_json({**change.to_dict(), "sentence": change.sentence})
    else:
        out.print(change.sentence, soft_wrap=True)
