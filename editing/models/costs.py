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
RUNTIME = 450_000_000  # Python with torch and transformers, before anything is loaded
PASS_TOKENS = 2048  # of the statistics' passes
BACKGROUND_KEYS = 2048
ROWS_PER_FACT, TAIL_TOKENS, ASKED_TOKENS = 2, 12, 4  # prompt and essence; from the subject's end on; with a loss
MICRO_BATCH = 2048 * 2**20  # CoachHooK's `memory_mib`


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
    """Peak memory of a process in bytes: of the weights alone, of serving, of editing with CoachHooK, of statistics."""

    weights: int
    serving: int
    editing: int
    statistics: int


def estimate_costs(
    shape: ModelShape, *, facts: int, dtype: str, edited: int = EDITED_LAYERS, passed: int = PASS_TOKENS
) -> Costs:
    """Memory of a model of `shape` with weights in `dtype` on one device; `facts` are edited in one batch.

    Every figure has the process itself (`RUNTIME`) and the weights. Serving adds the keys and values of one
    sequence of `SERVED_TOKENS`, `2 L T kv`, and its logits. Statistics of `edited` layers add for each the float64
    sums and the float32 moments `[F, F]` and the background `[S, F]`, the two float64 copies that one layer's
    moments are made with, and one pass over `passed` tokens: a few tensors of width D and of F, and the keys of all
    layers. Editing adds for each layer the statistics, the hook's weight `[D, F]` and the accumulated
    moments before and after the batch, and the larger of the five float64 `[F, F]` of one solve (MEMIT, arXiv
    2210.07229, equation 14) and one micro-batch: what a backward pass keeps of the upper three quarters of the
    layers for the `TAIL_TOKENS` of `ROWS_PER_FACT` rows a fact, and the logits of those that are asked,
    `MICRO_BATCH` at most. Raises `ModelError` for a dtype that is unknown.
    """
    if dtype not in BYTES:
        raise ModelError(f"dtype {dtype!r} is unknown; use one of {', '.join(BYTES)}")
    size = BYTES[dtype]
    weights = shape.parameters * size
    held = RUNTIME + weights
    cache = 2 * shape.layers * shape.kv_width * SERVED_TOKENS * size
    layers = min(edited, shape.layers)
    square, background = shape.inner**2, BACKGROUND_KEYS * shape.inner * 4
    one_pass = passed * ((4 + layers) * shape.inner + 8 * shape.width) * size
    statistics = layers * (square * 12 + 2 * background) + 2 * square * 8
    moments = layers * (3 * square * 4 + background + 2 * shape.width * shape.inner * 4)
    above = shape.layers - shape.layers // 4
    tail = facts * ROWS_PER_FACT * TAIL_TOKENS * above * (10 * shape.width + 4 * shape.inner) * size
    logits = facts * ROWS_PER_FACT * ASKED_TOKENS * shape.vocabulary * 4 * 4
    return Costs(
        weights=weights,
        serving=held + cache + shape.vocabulary * 4,
        editing=held + moments + max(5 * square * 8, min(tail + logits, MICRO_BATCH)),
        statistics=held + statistics + one_pass,
    )


def _first(config: PreTrainedConfig, *names: str) -> int | None:
    for name in names:
        if (value := getattr(config, name, None)) is not None:
            return int(value)
    return None
