"""Artifacts on disk: sorted JSON and safetensors, written whole or not at all, with a digest of their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from editing.errors import EditingError


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in place in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def link_file(source: Path, target: Path) -> bool:
    """Make `target` the same file as `source`, or a copy where links cannot reach; False when there is no source."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except OSError:
        shutil.copyfile(source, target)
    return True


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, readable by whoever may read the other files of its folder."""

    def write(beside: Path) -> None:
        beside.touch()
        mode = beside.stat().st_mode
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
        beside.chmod(mode)

    replace_file(path, write)


def canonical_json(content: Any) -> str:
    """Sorted, compact JSON: equal content gives equal text. Raises `ValueError` for numbers JSON cannot hold."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write sorted, indented JSON in UTF-8."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
    replace_file(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path, error: type[EditingError]) -> dict[str, Any]:
    """A JSON object. Raises `error` when the file is missing, cut short or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(f"{path} is missing; give the folder that the artifact was saved to") from cause
    except ValueError as cause:
        raise error(f"{path} is not JSON ({cause}); restore the file or make the artifact again") from cause
    if not isinstance(content, dict):
        raise error(f"{path} holds a {type(content).__name__}, not an object; make the artifact again")
    return content


def read_tensors(path: Path, error: type[EditingError]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises `error` when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError as cause:
        raise error(f"{path} is missing; give the folder that the artifact was saved to") from cause
    except (SafetensorError, OSError) as cause:
        raise error(f"{path} is damaged ({cause}); restore the file or make the artifact again") from cause


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
