"""What a model would cost, on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.console import SET_UP, out, print_json, table

app = typer.Typer()
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@app.command(rich_help_panel=SET_UP)
def plan(
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder or shape, such as gpt2-xl; default: the settings' model.")
    ] = None,
    facts: Annotated[int, typer.Option(min=1, help="Facts to edit.")] = 100,
    method: Annotated[str | None, typer.Option(help="coachhook or recipe; default: the settings'.")] = None,
    dtype: Annotated[str | None, typer.Option(help="The weights' dtype; default: the settings'.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Predict memory, time and bytes for statistics, editing, evaluation and serving, before loading anything.

    The rates of this machine are measured first, for a second or two.

    Example: `errata plan --model gpt2-xl --facts 100 --dtype bfloat16`
    """
    from tasks.planning import plan_model
    from tasks.settings import load_settings

    found = plan_model(load_settings(), model, facts, method, dtype)
    if as_json:
        print_json(found)
        return
    rows = [
        {"work": work, "memory": _size(cost["memory"]), "time": _time(cost["seconds"]), "on disk": _size(cost["disk"])}
        for work, cost in found["costs"].items()
    ]
    out.print(table(f"{found['model']} in {found['dtype']}, {facts} facts by {found['method']}", rows))
    load = found["workload"]
    out.print(
        f"\n{_time(found['seconds_a_fact'])} and {_size(found['bytes_a_fact'])} a fact; statistics over "
        f"{load['statistics_tokens']} tokens, an evaluation of {load['questions']} questions, a served answer of "
        f"{load['answer_tokens']} tokens; {found['threads']} threads",
        soft_wrap=True,
    )


def _size(count: int) -> str:
    for name, unit in UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.2f} s"
