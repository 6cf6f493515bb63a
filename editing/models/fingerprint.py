"""What a model's weights are: their digest, wherever they lie, and remembering it for files that have not changed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from editing.errors import ModelError
from editing.model_ids import GGUF
from editing.storage import canonical_json, read_json, tensors_digest, write_json

# Config entries that say where a model came from or how it is run, not what it computes.
_NOT_IDENTITY = (
    "_name_or_path",
    "_model_name_or_path",  # a GGUF file's own name for it
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
_WEIGHTS = (".safetensors", ".bin", GGUF)
_READ = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")
# A file written later than this before it was read may change again without a change of its times.
_SETTLED_NS = 2_000_000_000


class Weights(Mapping[str, Tensor]):
    """A model's `state_dict`, with weights that accelerate has offloaded read one at a time, as they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._there = model.state_dict()

    def __iter__(self) -> Iterator[str]:
        return iter(self._there)

    def __len__(self) -> int:
        return len(self._there)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._there[name]
        if tensor.device.type != "meta":
            return tensor
        path, _, leaf = name.rpartition(".")
        return read_weight(self._model.get_submodule(path), leaf)


def read_weight(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of `module`, detached; on the CPU where accelerate has offloaded it.

    Raises `ModelError` for one that is nowhere.
    """
    tensor: Tensor = getattr(module, name).detach()
    if tensor.device.type != "meta":
        return tensor
    from accelerate.utils import align_module_device  # whoever offloads has it

    with align_module_device(module, torch.device("cpu")):
        tensor = getattr(module, name).detach()
    if tensor.device.type == "meta":
        raise ModelError(f"{name!r} of {type(module).__name__} has no values; load the model's weights")
    return tensor


def fingerprint_of(model: PreTrainedModel, weights: str | None = None) -> str:
    """SHA-256 of the config entries that decide what `model` computes, and of the digest of its weights.

    `weights` is that digest where it is known already.
    """
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in _NOT_IDENTITY}
    return hashlib.sha256(f"{canonical_json(config)}{weights or tensors_digest(Weights(model))}".encode()).hexdigest()


class RememberedDigest:
    """The digest of the weights in `source`, computed once and kept in `folder` until a file changes.

    What is kept is found by names, sizes, times (of content and of status, in nanoseconds) and
    inodes of the files that a model is loaded from, the dtype it is loaded in and the version of
    what loads it. The files are looked at before the model is loaded, so make it first.
    """

    def __init__(self, folder: Path, source: Path, dtype: str) -> None:
        self._folder, self._source, self._dtype = folder, source, dtype
        self._began = time.time_ns()
        self._key = self._look()

    def of(self, digest: Callable[[], str]) -> str:
        """The digest that is kept for the files, or else that of `digest()`, which is kept from then on."""
        path = self._folder / f"{hashlib.sha256(canonical_json(self._key).encode()).hexdigest()[:32]}.json"
        with suppress(ModelError):
            kept = read_json(path, ModelError)
            if kept.get("of") == self._key and isinstance(kept.get("weights"), str):
                return kept["weights"]
        found = digest()
        if self._settled and self._look() == self._key:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"of": self._key, "weights": found})
        return found

    @property
    def _settled(self) -> bool:
        """Whether every file was left alone for a while before it was looked at, and weights are all that is read."""
        newest = max((file["modified"] for file in self._key["files"]), default=self._began)
        adapted = self._source.is_dir() and (self._source / "adapter_config.json").exists()
        return newest < self._began - _SETTLED_NS and not adapted

    def _look(self) -> dict[str, Any]:
        files = [self._source]
        if self._source.is_dir():
            files = sorted(
                path
                for path in self._source.iterdir()
                if path.is_file() and (path.suffix in _WEIGHTS or path.name in _READ)
            )
        return {
            "files": [_looks(path) for path in files],
            "dtype": self._dtype,
            "transformers": version("transformers"),
            "gguf": _installed("gguf") if self._source.suffix.lower() == GGUF else None,
        }


def _looks(path: Path) -> dict[str, Any]:
    seen = path.stat()
    return {
        "name": path.name,
        "bytes": seen.st_size,
        "modified": seen.st_mtime_ns,
        "changed": seen.st_ctime_ns,
        "inode": seen.st_ino,
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
