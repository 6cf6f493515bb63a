"""`errata calibrate`: CoachHooK's layers and the few other choices, found on one's own facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import bars, err, out, print_json, table

if TYPE_CHECKING:
    from editing.calibration import Trial


def calibrate(
    data: Annotated[str, typer.Option(help="A published file of facts with rephrases, or a configured suite.")],
    facts: Annotated[int, typer.Option(min=8, help="Its first facts, at most: half choose, half report.")] = 40,
    budget_minutes: Annotated[float, typer.Option(min=0.0, help="No trial begins after so many minutes.")] = 60,
    write: Annotated[bool, typer.Option(help="Write a better choice into errata.toml.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Find the layers to edit, by causal tracing and trials on your facts; goes on where it stopped.

    Example: `errata calibrate --data facts.json --budget-minutes 30`
    """
    from tasks.calibration import calibrate as run

    def told(trial: Trial) -> None:
        err.print(f"{_options(trial)}: {trial.score:.3f}", markup=False)

    with bars():
        found = run(data, facts=facts, budget_minutes=budget_minutes, write=write, report=told)
    if as_json:
        print_json(found.to_dict())
        return
    rows = [{"layer": str(layer), "share brought back": share} for layer, share in found.trace.items()]
    out.print(table("Causal trace", rows))
    columns = ("reliability", "generality", "locality")
    trials = [
        {
            "options": _options(trial),
            **{name: trial.shares.get(name) for name in columns},
            "score": f"{trial.score:.3f}",
        }
        for trial in sorted(found.trials, key=lambda trial: -trial.score)
    ]
    out.print(table("\nOn the facts that choose", trials))
    out.print(table("\nOn the others", [{"": name, **shares} for name, shares in found.reported.items()]))
    if found.written:
        out.print(f"\nwritten into {found.written}", soft_wrap=True)
    elif not found.finished:
        out.print("\nthe time is over; the same command goes on with what is left, and writes at the end")
    else:
        out.print("\nerrata.toml stays as it is")


def _options(trial: Trial) -> str:
    return ", ".join(f"{name} {value}" for name, value in trial.options.items()) or "the defaults"
