"""Checkpoints of trainings: one tensor file under a name of its own, and the JSON that points at it, written last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing.errors import StateError
from editing.storage import read_json, read_tensors, write_json, write_tensors

RECORD = "checkpoint.json"
ADAM = "adam."


def write_checkpoint(folder: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint of `content["step"]` and remove the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{content['step']}.safetensors"
    write_tensors(folder / name, tensors)
    write_json(folder / RECORD, {**content, "tensors": name})
    for old in folder.glob("step-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def read_checkpoint(folder: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The content and tensors in `folder`; None where there is none.

    Raises `StateError` when its key is another than `key`, or its tensors cannot be read.
    """
    if not (folder / RECORD).exists():
        return None
    content = read_json(folder / RECORD, StateError)
    if content.get("key") != key:
        raise StateError(
            f"{folder} holds a checkpoint of another training ({str(content.get('key'))[:12]}, this is "
            f"{key[:12]}): its base, encoder or training config differs; give an empty folder, or its settings"
        )
    return content, read_tensors(folder / content["tensors"], StateError)


def damaged(folder: Path, error: Exception) -> StateError:
    """The error for a checkpoint whose tensors do not fit the training."""
    return StateError(f"the checkpoint in {folder} is damaged: {error}; remove it to train anew")


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an Adam, as tensors to write; a whole number (the step of `SparseAdam`) becomes one."""
    return {
        f"{ADAM}{index}.{name}": torch.as_tensor(value)
        for index, moments in optimiser.state_dict()["state"].items()
        for name, value in moments.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` gave. Raises `ValueError` or `KeyError` for moments of other parameters."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in below(ADAM, tensors).items():
        index, moment = name.split(".", 1)
        state.setdefault(int(index), {})[moment] = int(value) if value.dtype == torch.int64 else value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
