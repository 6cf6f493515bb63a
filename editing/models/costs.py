"""What a model will need, estimated from its shape before anything is loaded.

Memory is in bytes. B sequences, T tokens, L layers, D width, F inner width of the MLP, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from editing.errors import ModelError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
EDITED_LAYERS = 3
SERVED_TOKENS = 1024
BATCH, BATCH_TOKENS = 16, 256  # of the statistics' passes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers of a decoder that costs depend on.

    `parameters` counts a weight that is shared (`tied`: embeddings and head) once. `head_width` is
    given where it is not `width / heads`.
    """

    layers: int
    width: int
    inner: int
    vocabulary: int
    heads: int
    kv_heads: int
    parameters: int
    tied: bool
    head_width: int | None = None

    @property
    def kv_width(self) -> int:
        """Numbers of the keys (and again of the values) of one token in one layer."""
        return self.kv_heads * (self.head_width or self.width // self.heads)

    @classmethod
    def of_config(cls, config: PreTrainedConfig) -> ModelShape:
        """The shape of a causal LM with this config; its parameters are counted without their values.

        Raises `ModelError` when the config names no sizes of a decoder, or is of no causal LM.
        """
        text = config.get_text_config()
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            width, heads = text.hidden_size, text.num_attention_heads
            return cls(
                layers=text.num_hidden_layers,
                width=width,
                inner=_first(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * width,
                vocabulary=text.vocab_size,
                heads=heads,
                kv_heads=_first(text, "num_key_value_heads") or heads,
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                tied=bool(text.tie_word_embeddings),
                head_width=_first(text, "head_dim"),
            )
        except (AttributeError, ValueError) as error:
            raise ModelError(
                f"the shape of a {config.model_type!r} cannot be told: {error}; give the config of a causal language "
                "model"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Peak memory in bytes: of the weights alone, of serving, of editing with CoachHooK, of its statistics."""

    weights: int
    serving: int
    editing: int
    statistics: int


def estimate_costs(shape: ModelShape, *, facts: int, dtype: str) -> Costs:
    """Memory of a model of `shape` with weights in `dtype` on one device; `facts` are edited in one batch.

    Serving is the weights, the keys and values of one sequence of `SERVED_TOKENS`, `2 L T kv`, and its
    logits. Statistics add the float32 moments `[F, F]` of `EDITED_LAYERS` layers and one pass over
    `BATCH` texts of `BATCH_TOKENS`. Editing adds for each edited layer the hook's weight `[D, F]`, its
    original in float32 and the accumulated moments, and the float64 system and factor of one solve
    `[F, F]`; for each fact a target with its gradient and Adam's two moments `[D]`, and the states and
    logits of `BATCH_TOKENS` tokens. These are MEMIT's closed form (arXiv 2210.07229, equation 14) as
    this project solves it. Raises `ModelError` for a dtype that is unknown.
    """
    if dtype not in BYTES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of {', '.join(BYTES)}")
    size = BYTES[dtype]
    weights = shape.parameters * size
    cache = 2 * shape.layers * shape.kv_width * SERVED_TOKENS * size
    layers = min(EDITED_LAYERS, shape.layers)
    moments = layers * shape.inner**2 * 4
    one_pass = BATCH * BATCH_TOKENS * (2 * shape.inner + 6 * shape.width) * size
    hooks = layers * 2 * shape.width * shape.inner * 4
    solve = 2 * shape.inner**2 * 8
    targets = facts * (4 * shape.width * 4 + BATCH_TOKENS * (6 * shape.width + 2 * shape.inner) * size)
    return Costs(
        weights=weights,
        serving=weights + cache + shape.vocabulary * 4,
        editing=weights + moments + hooks + solve + targets,
        statistics=weights + moments + one_pass,
    )


def _first(config: PreTrainedConfig, *names: str) -> int | None:
    for name in names:
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    return None
