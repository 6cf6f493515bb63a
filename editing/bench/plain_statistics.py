"""Second moments the plain way: the yardstick of `editing.statistics`.

Sixteen texts at a time in the order of the corpus, padded to the longest of them, and float64 products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editing.models import BaseModel
from editing.models.trace import inputs_of, removing
from editing.tokenisation import pad, padding_id, tokenise

TEXTS_PER_STEP = 16


@torch.no_grad()
def plain_second_moments(
    base: BaseModel, texts: Sequence[str], layers: Sequence[int], *, max_tokens: int, max_length: int
) -> tuple[dict[int, Tensor], int]:
    """The second moments `[F, F]` float32 per layer, and over how many tokens; what cuts as `compute_second_moments`.

    `texts` must have tokens.
    """
    *lower, top = sorted(layers)
    modules = {layer: base.down_projection(layer) for layer in layers}
    sums = {layer: torch.zeros(2 * (base.down_weight(layer).shape[1],), dtype=torch.float64) for layer in layers}
    seen: dict[int, Tensor] = {}
    count = at = 0
    while at < len(texts) and count < max_tokens:
        chunk = texts[at : at + TEXTS_PER_STEP]
        at += len(chunk)
        rows = [row for tokens in tokenise(base.tokenizer, chunk) if (row := tokens.ids[:max_length])]
        if not rows:
            continue
        ids, mask = (each.to(base.device) for each in pad(rows, padding_id(base.tokenizer), side="right"))
        handles = [
            modules[layer].register_forward_pre_hook(lambda _, args, layer=layer: seen.update({layer: args[0]}))
            for layer in lower
        ]
        with removing(handles):
            seen[top] = inputs_of(base.model, modules[top], input_ids=ids, attention_mask=mask, use_cache=False)
        for layer, keys_BTF in seen.items():
            keys_NF = keys_BTF[mask.bool()][: max_tokens - count].double()
            sums[layer].addmm_(keys_NF.T, keys_NF)
        count += min(int(mask.sum()), max_tokens - count)
    return {layer: (total / count).float() for layer, total in sums.items()}, count
