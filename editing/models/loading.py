"""Base models and their identity: what exactly an edit was made for, and on what it may be loaded."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from editing.errors import ModelError
from editing.models.architectures import ARCHITECTURES, Architecture, architecture_of, unknown_architecture
from editing.models.fingerprint import RememberedDigest, Weights, fingerprint_of, read_weight
from editing.models.sources import find_source, read_gguf
from editing.prompts import RAW, FormChoice, PromptForm, find_form
from editing.storage import canonical_json, tensors_digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What transformers, safetensors and the readers of GGUF raise for files that are missing, cut short or unknown.
_UNREADABLE = (OSError, ValueError, LookupError, NotImplementedError, struct.error, SafetensorError)


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A frozen causal LM with its tokenizer and identity.

    `architecture` is None for a `model_type` that the table does not have: such a model has a head,
    but its blocks, final norm and down-projections are refused with `ModelError`. `fingerprint` is
    the SHA-256 of the weights (names, shapes, dtypes, bytes) and of the config entries that decide
    what the model computes; `tokenizer_hash` that of the tokenizer's pipeline. `form` is the form in
    which it is asked.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_id: str
    revision: str | None
    architecture: Architecture | None
    fingerprint: str
    tokenizer_hash: str
    form: PromptForm = RAW

    @property
    def _places(self) -> Architecture:
        if self.architecture is None:
            raise unknown_architecture(self.model)
        return self.architecture

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, bottom up."""
        return self.model.get_submodule(self._places.blocks)  # type: ignore[return-value]

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""
        return self.model.get_submodule(self._places.final_norm)

    @property
    def head(self) -> nn.Module:
        """The projection onto the vocabulary."""
        if self.architecture is None:
            return self.model.get_output_embeddings()
        return self.model.get_submodule(self.architecture.head)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        embeddings = self.model.get_input_embeddings()
        if embeddings.weight.device.type == "meta":  # offloaded: accelerate's hook brings it to where it is run
            hook: Any = embeddings._hf_hook
            return torch.device(hook.execution_device)
        return embeddings.weight.device  # type: ignore[return-value]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end what the model writes: its own, the tokenizer's, and the end of a turn in its form."""
        own = getattr(self.model.generation_config, "eos_token_id", None)
        ids = [self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        if self.form.end:
            ids.append(self.tokenizer.get_added_vocab().get(self.form.end))
        return tuple(dict.fromkeys(int(token) for token in ids if token is not None))

    def down_projection(self, layer: int) -> nn.Module:
        """The MLP's down-projection of block `layer`: inner width -> model width.

        Raises `ModelError` when the model has no such layer.
        """
        if not 0 <= layer < len(self.blocks):
            raise ModelError(
                f"layer {layer} is outside {self.model_id!r}, which has layers 0 to {len(self.blocks) - 1}; "
                "mend `layers` in the method's config"
            )
        return self.blocks[layer].get_submodule(self._places.down_projection)

    def down_weight(self, layer: int) -> Tensor:
        """A float32 copy `[width, inner]` of the down-projection's weight, whatever its layout."""
        weight = read_weight(self.down_projection(layer), "weight")
        return (weight.T if self._places.in_first else weight).to(torch.float32, copy=True).contiguous()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what the tokenizer does to a text. Raises `ModelError` for one that reports no offsets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{type(tokenizer).__name__} of {tokenizer.name_or_path!r} reports no character offsets; "
            "use the model's fast tokenizer"
        )
    pipeline = json.loads(backend.to_str())
    for call_state in ("padding", "truncation"):
        pipeline.pop(call_state, None)
    content = {"pipeline": pipeline, "special": {name: str(t) for name, t in tokenizer.special_tokens_map.items()}}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model_id: str,
    revision: str | None = None,
    form: PromptForm = RAW,
    weights: str | None = None,
) -> BaseModel:
    """Freeze a model that is already in memory (eval mode, no gradients) and give it its identity.

    `weights` is the digest of its weights where it is known already. Raises `ModelError` when its
    tokenizer reports no offsets, or a path of the architecture table is not in it.
    """
    architecture = architecture_of(model) if model.config.model_type in ARCHITECTURES else None
    model.eval().requires_grad_(False)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        model_id=model_id,
        revision=revision,
        architecture=architecture,
        fingerprint=fingerprint_of(model, weights),
        tokenizer_hash=tokenizer_digest(tokenizer),
        form=form,
    )


def load_base_model(
    model_id: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: str | Mapping[str, str | int] | None = None,
    fingerprints: Path | None = None,
    form: FormChoice = "auto",
    system: str | None = None,
) -> BaseModel:
    """Load a causal LM and its tokenizer from a local folder, a GGUF file (dequantised) or a hub id.

    It is asked in `form` (see `find_form`).

    `model_id` is what `editing.models.sources.find_source` takes. With `device_map` the layers are
    placed by accelerate and `device` is not used. In the folder `fingerprints` the digests of weights
    are remembered, so that only files that are new or have changed are hashed; without it they are
    hashed each time. Raises `ModelError` when the model cannot be loaded whole.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    if device_map is None:
        _require_device(device)
    source = find_source(model_id)
    remembered = RememberedDigest(fingerprints, source, dtype) if fingerprints and source else None
    named, options = _arguments(model_id, source)
    placing: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
    if "gguf_file" in options:  # blocks unpacked for good, so that the model can be edited and saved
        placing["quantization_config"] = GgufConfig(dequantize=True)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            named, revision=revision, dtype=DTYPES[dtype], output_loading_info=True, **options, **placing
        )
        model, told = loaded
        tokenizer = AutoTokenizer.from_pretrained(named, revision=revision, **options)
    except _UNREADABLE as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"model {model_id!r}{at} cannot be loaded: {error}; give a hub id, a GGUF file, or a folder with config, "
            "safetensors weights and tokenizer"
        ) from error
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"model {model_id!r} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]!r}; "
            "give the whole checkpoint of a causal language model"
        )
    if device_map is None:
        model.to(torch.device(device))
    if fingerprints and source is None and (cached := _in_hub_cache(model_id, model)):
        remembered = RememberedDigest(fingerprints, cached, dtype)
    weights = remembered.of(lambda: tensors_digest(Weights(model))) if remembered else None
    asked_in = find_form(tokenizer, form, system)
    return wrap_model(model, tokenizer, model_id=model_id, revision=revision, weights=weights, form=asked_in)


def _require_device(device: str) -> None:
    """Raise `ModelError` for a device that torch does not know or this machine does not have."""
    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the model cannot go to device {device!r} ({said}); set model.device to cpu, or to one that this "
            "machine and this build of torch have"
        ) from error


def _arguments(model_id: str, source: Path | None) -> tuple[str, dict[str, Any]]:
    """What transformers calls the model, and its further arguments."""
    if source is None or source.is_dir():
        return str(source or model_id), {}
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ModelError(f"{source} needs {' and '.join(missing)} to be read: pip install 'errata[gguf]'")
    read_gguf(source)
    return str(source.parent), {"gguf_file": source.name}


def _in_hub_cache(model_id: str, model: PreTrainedModel) -> Path | None:
    """The folder that the hub's files of this very revision were put in."""
    found = try_to_load_from_cache(model_id, "config.json", revision=getattr(model.config, "_commit_hash", None))
    return Path(found).parent if isinstance(found, str) else None
