"""Base models and their identity: what exactly an edit was made for, and on what it may be loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from editing.errors import ModelError
from editing.models.architectures import Architecture, architecture_of
from editing.prompts import RAW, FormChoice, PromptForm, find_form
from editing.storage import canonical_json, tensors_digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Config entries that say where a model came from or how it is run, not what it computes.
_NOT_IDENTITY = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A frozen causal LM with its tokenizer and identity.

    `fingerprint` is the SHA-256 of the weights (names, shapes, dtypes, bytes) and of the config
    entries that decide what the model computes; `tokenizer_hash` that of the tokenizer's pipeline. `form` is the
    form in which it is asked.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_id: str
    revision: str | None
    architecture: Architecture
    fingerprint: str
    tokenizer_hash: str
    form: PromptForm = RAW

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, bottom up."""
        return self.model.get_submodule(self.architecture.blocks)  # type: ignore[return-value]

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""
        return self.model.get_submodule(self.architecture.final_norm)

    @property
    def head(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return self.model.get_submodule(self.architecture.head)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[return-value]

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
        return self.blocks[layer].get_submodule(self.architecture.down_projection)

    def down_weight(self, layer: int) -> Tensor:
        """A float32 copy `[width, inner]` of the down-projection's weight, whatever its layout."""
        weight = self.down_projection(layer).get_parameter("weight").detach()
        return (weight.T if self.architecture.in_first else weight).to(torch.float32, copy=True).contiguous()


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
) -> BaseModel:
    """Freeze a model that is already in memory (eval mode, no gradients) and give it its identity.

    Raises `ModelError` when its architecture is unknown or its tokenizer reports no offsets.
    """
    architecture = architecture_of(model)
    model.eval().requires_grad_(False)
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in _NOT_IDENTITY}
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        model_id=model_id,
        revision=revision,
        architecture=architecture,
        fingerprint=hashlib.sha256(
            f"{canonical_json(config)}{tensors_digest(model.state_dict())}".encode()
        ).hexdigest(),
        tokenizer_hash=tokenizer_digest(tokenizer),
        form=form,
    )


def load_base_model(
    model_id: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: str | None = None,
    form: FormChoice = "auto",
    system: str | None = None,
) -> BaseModel:
    """Load a causal LM and its tokenizer from a hub id or a local folder; it is asked in `form` (see `find_form`).

    With `device_map` the layers are placed by accelerate and `device` is not used. Raises
    `ModelError` when it cannot be loaded or its architecture is unknown.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    placement = {} if device_map is None else {"device_map": device_map}
    try:
        model = AutoModelForCausalLM.from_pretrained(model_id, revision=revision, dtype=DTYPES[dtype], **placement)
        tokenizer = AutoTokenizer.from_pretrained(model_id, revision=revision)
    except (OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ModelError(
            f"model {model_id!r}{at} cannot be loaded: {error}; give a hub id or a folder with config, "
            "safetensors weights and tokenizer"
        ) from error
    if device_map is None:
        model.to(torch.device(device))  # type: ignore[arg-type]
    return wrap_model(model, tokenizer, model_id=model_id, revision=revision, form=find_form(tokenizer, form, system))
