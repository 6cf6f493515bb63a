"""Where a model comes from: a folder, a GGUF file, one inside an installed package, or a hub id."""

from __future__ import annotations

import os
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers.integrations.gguf import read_gguf_metadata

from editing.errors import ModelError
from editing.model_ids import GGUF, PACKAGE, looks_like_path

_DESCRIBED = ("*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICEN[CS]E*", "COPYING*", "NOTICE*")


def find_source(model_id: str) -> Path | None:
    """The folder or GGUF file that `model_id` names; None for a hub id.

    `package:NAME` is the only GGUF file of the installed package NAME, or its folder when it is laid
    out like one of the hub; `package:NAME/PATH` is a file or folder inside it. The package is not
    imported. Raises `ModelError` at once, without asking a hub, for what looks like a path and is
    not there.
    """
    if model_id.startswith(PACKAGE):
        return _in_package(model_id)
    path = Path(model_id).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() != GGUF:
            raise ModelError(f"{path} is neither a GGUF file nor a folder; give a {GGUF} file, or the model's folder")
        return path
    if looks_like_path(model_id):
        raise ModelError(
            f"there is no model at {path} (working directory {Path.cwd()}); give a GGUF file, a folder with "
            "config.json and safetensors weights, the name of an imported model (`errata model list`), or a hub id"
        )
    return None


def fetch_model(hub_id: str, revision: str | None = None) -> Path:
    """The folder in the hub's cache with a model's config, tokenizer, card and weights, fetched where missing.

    PyTorch's own files are fetched only where there are no safetensors. Raises `ModelError` when the
    model cannot be had.
    """
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*_DESCRIBED, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*_DESCRIBED, "*.bin"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"model {hub_id!r}{at} is no file or folder here, and cannot be had from the hub: {error}; check the name "
            "and the network, or give a path"
        ) from error
    return folder


def read_gguf(file: Path) -> dict[str, Any]:
    """The metadata of a GGUF file; of its lists of words only the lengths.

    Raises `ModelError` when it is none or is cut short, or when transformers would load another model
    than the file holds: it leaves out the scaling of rotary positions (Llama 3.1 and later).
    """
    try:
        metadata, tensors = read_gguf_metadata(str(file))
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"{file} cannot be loaded: {error}; give a whole GGUF file") from error
    scaling = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensors:
        raise ModelError(
            f"{file} scales its rotary positions, which transformers does not read from a GGUF file: it would compute "
            "something else; give the same model as a folder of safetensors, or its hub id"
        )
    return metadata


def _in_package(model_id: str) -> Path:
    name, _, inside = model_id.removeprefix(PACKAGE).partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{model_id!r} names no installed package; install {name!r}, or give the model's path")
    folder = Path(next(iter(spec.submodule_search_locations)))
    if inside:
        found = find_source(os.fspath((folder / inside).resolve()))
        assert found is not None  # an absolute path is found or refused
        return found
    if (folder / "config.json").is_file():
        return folder
    files = sorted(folder.rglob(f"*{GGUF}"))
    if len(files) == 1:
        return files[0]
    there = ", ".join(str(file.relative_to(folder)) for file in files) or "none"
    raise ModelError(
        f"package {name!r} must hold one GGUF file or a config.json to be a model by itself (GGUF files: {there}); "
        f"name the file or folder: {PACKAGE}{name}/PATH"
    )
