"""The `errata.toml` that `errata init` proposes: for a model and a method, with what each choice offers beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from editing.editors.coachhook.presets import PUBLISHED, preset_layers
from editing.model_ids import PACKAGE, looks_like_path
from tasks.checks import CONFIGS, METRICS, OF_NIGHTS, check_options
from tasks.feed.schema import COLUMNS
from tasks.settings import ALMANAC, SettingsError, template, toml_value

METHODS = {
    "coachhook": "closed-form edits of some layers, behind hooks that only the edited facts pass",
    "recipe": "a retrieval repository: each fact is a short prompt that is put before a question about it",
    "both": "hooks for some relations, prompts for the others",
}
_BLOCKS = ("num_hidden_layers", "n_layer", "num_layers")
_PATHS = {"zsre": "zsre_mend_eval.json", "counterfact": "counterfact.json", "mmlu": "mmlu/", "gsm8k": "gsm8k/"}


def proposal(model: str | None, method: str) -> str:
    """The text of an `errata.toml` for `model` (a hub id, an imported model's name, a folder or a GGUF file; None: the
    Almanac) and `method`, which runs as it is.

    Raises `SettingsError` for a place without a model, or a method that there is not.
    """
    check_options(method, {})
    model = model or ALMANAC
    given: dict[str, dict[str, Any]] = {"model": {"id": _place_of(model)}, "editor": {"method": method}}
    return template(given, {"editor": [*_editor(model, method)], "feed": [*_feed()], "evaluation": [*_suites()]})


def _place_of(model: str) -> str:
    """A place on disk in full, so that the file may lie anywhere; what is no place as it is."""
    path = Path(model).expanduser()
    if not model.startswith(PACKAGE) and path.exists():
        return str(path.resolve())
    if looks_like_path(model):
        raise SettingsError(f"there is no model at {path} (working directory {Path.cwd()}); correct --model")
    return model


def _editor(model: str, method: str) -> Iterator[str]:
    yield "# The methods: " + "; ".join(f"{name}, {what}" for name, what in METHODS.items()) + "."
    for part in ("coachhook", "recipe") if method == "both" else (method,):
        yield f"[editor.options.{part}]" if method == "both" else "[editor.options]"
        config = CONFIGS[part]
        told = get_type_hints(config, include_extras=True)
        for field in fields(config):
            default: Any = "" if field.default is MISSING else field.default
            if field.name == "layers":
                default, said = _layers(model)
                yield f"# {said}"
            yield f"# {told[field.name].__metadata__[0]}"
            yield f"# {field.name} = {toml_value(default)}"
        yield ""


def _layers(model: str) -> tuple[tuple[int, ...], str]:
    """Layers to propose, and the sentence that says for what."""
    known = "; ".join(f"{kind} of {n} blocks: {list(layers)}" for (kind, n), layers in PUBLISHED.items())
    rule = f"Where nothing is set: of the papers ({known}), else from a quarter of the depth on."
    file = Path(model).expanduser() / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, blocks = str(config["model_type"]), next(int(config[name]) for name in _BLOCKS if name in config)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return next(iter(PUBLISHED.values())), f"{rule} `errata calibrate` finds them on your facts."
    return preset_layers(kind, blocks), f"{rule} Here, {kind} of {blocks} blocks. `errata calibrate` finds better ones."


def _suites() -> Iterator[str]:
    yield "# The suites, each with the metrics that [gate.policy] may name; without any here, the Almanac's four."
    for name, metrics in METRICS.items():
        if name not in OF_NIGHTS:
            yield f"# [evaluation.suites.{name}] # {', '.join(f'{name}.{metric}' for metric in metrics)}"
            if name in _PATHS:
                yield f'# path = "{_PATHS[name]}"'
    yield ""


def _feed() -> Iterator[str]:
    yield "# The columns of a feed (`errata feed template FILE.csv` writes two rows to start from):"
    for column in COLUMNS:
        yield f"#   {column.name}: {column.meaning}{'' if column.required else ' (may be left out)'}"
    yield ""
