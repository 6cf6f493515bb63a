"""RECIPE's encoder on the command line."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.console import bars, out, print_json, table

app = typer.Typer(help="Train the encoder that RECIPE edits with.", no_args_is_help=True)


@app.callback()
def recipe() -> None:
    """Train the encoder that RECIPE edits with."""


@app.command()
def train(
    edits: Annotated[
        Path | None, typer.Option(help="Facts to train on: a feed, ZsRE, CounterFact, ...; the Almanac has its own.")
    ] = None,
    without: Annotated[
        list[Path] | None, typer.Option(help="Facts whose subjects must not be trained on: evaluations, feeds.")
    ] = None,
    initial: Annotated[Path | None, typer.Option(help="Folder of an encoder whose weights to begin with.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps at most; default: the settings'.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, max=5, help="Prompt tokens of a fact.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Also copy the encoder and its card here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Train an encoder for the base model, measure it and register it; run again after a kill, it goes on.

    Everything else about it is set under [recipe.encoder] and [recipe.training].

    Example: `errata recipe train --edits zsre_mend_train.json --without zsre_mend_eval.json`
    """
    from flows.recipe import train_encoder
    from tasks.recipe.registry import copy_encoder
    from tasks.settings import load_settings
    from tasks.workspace import changed_settings

    settings = load_settings().recipe
    changes: dict[str, Any] = {
        "edits": edits and edits.resolve(),
        "without": [path.resolve() for path in without] if without else None,
        "initial": initial and initial.resolve(),
        "training": {**settings.training, "steps": steps} if steps else None,
        "encoder": {**settings.encoder, "prompt_tokens": prompt_tokens} if prompt_tokens else None,
    }
    asked = settings.model_copy(update={name: value for name, value in changes.items() if value is not None})
    with bars(), changed_settings(recipe=asked.model_dump()):
        trained = train_encoder()
    if folder:
        copy_encoder(trained, folder)
    if as_json:
        print_json(asdict(trained))
        return
    rows = [{"share": name, "value": value} for name, value in trained.figures["validation"].items()]
    out.print(table(f"{trained.name} version {trained.version}, on held-out subjects", rows))
    out.print(f"encoder  {trained.folder}\nrun      {trained.run}", soft_wrap=True)
    out.print(
        f'use it   ERRATA_EDITOR__METHOD=recipe ERRATA_EDITOR__OPTIONS=\'{{"encoder": "{trained.folder}"}}\'',
        soft_wrap=True,
        markup=False,
    )
