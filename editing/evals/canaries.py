"""The health of a state after each batch, whatever its method: what is measured, and when the batch is turned down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from editing.editors import get_editor
from editing.editors.base import EditState
from editing.errors import ConfigError, EditRefusedError
from editing.models import BaseModel
from editing.tokenisation import encode_prompts

TEXT = (
    "The committee met in the morning to discuss the new bridge. It will cross the river near the old mill and should "
    "be open to traffic by the end of next summer. Several members asked how much it would cost."
)


ROOM = 8  # positions that the text leaves to what an editor puts in front of it


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryLimits:
    """What a batch may do to the model at most.

    `perplexity_ratio`: of a fixed text that no fact is about, edited over base. `weight_change`: the
    largest relative change (Frobenius) of any weight that the method edits; None sets no limit, since
    behind a gate a large change may harm nothing.
    """

    perplexity_ratio: float = 2.0
    weight_change: float | None = None

    def __post_init__(self) -> None:
        if self.weight_change is not None and not self.weight_change > 0:
            raise ConfigError(f"canary limit weight_change is {self.weight_change}; give a positive number")
        if not self.perplexity_ratio > 1:
            raise ConfigError(f"canary limit perplexity_ratio is {self.perplexity_ratio}; an unharmed model has 1.0")


@torch.inference_mode()
def canaries(base: BaseModel, state: EditState, reported: Mapping[str, float]) -> dict[str, float]:
    """Health figures of `state`, which is not attached: those its editor `reported`, and those of any method.

    `not_finite` counts values of the state's tensors; `perplexity_ratio` is that of a fixed text, the editor's own
    or `TEXT`, over the base's; `weight_change` is the largest of the editor's figures named `relative_change`.
    """
    tensors: Mapping[str, Any] = getattr(state, "tensors", dict)()
    broken = sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors.values() if tensor.is_floating_point())
    if not {"perplexity_base", "perplexity_edited"} <= reported.keys():
        measured = {"perplexity_base": _perplexity(base)}
        with get_editor(state.method).attach(base, state):
            measured["perplexity_edited"] = _perplexity(base)
        reported = {**reported, **measured}
    changes = [value for name, value in reported.items() if name.endswith("relative_change")]
    return {
        **reported,
        "not_finite": float(broken),
        "perplexity_ratio": reported["perplexity_edited"] / reported["perplexity_base"],
        "weight_change": max(changes, default=0.0),
    }


def require_healthy(
    base: BaseModel, state: EditState, reported: Mapping[str, float], limits: CanaryLimits
) -> dict[str, float]:
    """The `canaries` of a state. Raises `EditRefusedError` naming the one that is beyond its limit."""
    found = canaries(base, state, reported)
    if found["not_finite"]:
        raise EditRefusedError(f"{found['not_finite']:.0f} values of the state are not finite; the batch is refused")
    for name in (field.name for field in fields(limits)):
        limit = getattr(limits, name)
        if limit is not None and not found[name] <= limit:
            raise EditRefusedError(
                f"canary {name} is {found[name]:.3g} after the batch, above its limit of {limit:g}; the batch is "
                f"refused, look at its facts or raise batch_canaries.{name}"
            )
    return found


def _perplexity(base: BaseModel) -> float:
    """Of the fixed text, under whatever is attached."""
    ids = encode_prompts(base.tokenizer, [TEXT])["input_ids"].to(base.device)
    longest = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    ids = ids if longest is None else ids[:, : longest - ROOM]
    logits = base.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return math.exp(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:].to(logits.device))))
