"""The Almanac on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import bars, err, out, print_json, table

app = typer.Typer(help="The embedded world and its model.", no_args_is_help=True)


@app.callback()
def almanac() -> None:
    """The embedded world and its model."""


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Where model, tokenizer, card and figures go.")],
    seed: Annotated[int, typer.Option(help="Decides everything that is drawn.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: as shipped.")] = None,
) -> None:
    """Train the Almanac's model from scratch, measure it and write its card; up to two hours on 2 cores.

    Example: `errata almanac train build/almanac`
    """
    from dataclasses import replace

    from editing.almanac.card import measure_model, write_card, write_options
    from editing.almanac.training import AlmanacConfig
    from editing.almanac.training import train as run
    from editing.almanac.world import load_world
    from tasks.progress import reporter

    config = replace(AlmanacConfig(), seed=seed)
    config = replace(config, steps=steps) if steps else config
    world = load_world()
    with bars():
        run(world, config, progress=reporter(), report=lambda entry: err.print(entry)).save(folder)
        write_options(config, folder)
        write_card(measure_model(world, folder, reporter()), folder)
    out.print(f"wrote {folder}", soft_wrap=True)


@app.command()
def measure(
    folder: Annotated[Path | None, typer.Argument(help="A trained model; default: the one that ships.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Measure the figures of the model's card again; writes nothing.

    Example: `errata almanac measure --json`
    """
    from editing.almanac.card import figure_rows, measure_model
    from editing.almanac.world import MODEL, load_world
    from tasks.progress import reporter

    with bars():
        figures = measure_model(load_world(), folder or MODEL, reporter())
    if as_json:
        print_json(figures)
    else:
        rows = [{"figure": name, "value": value} for name, value in figure_rows(figures)]
        out.print(table("The Almanac's model", rows))
