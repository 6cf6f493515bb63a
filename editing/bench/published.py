"""Target optimisation the way the published implementations run it: the yardstick of the batched one.

One subject at a time; every step runs every layer on every position and every position's logits.
The objective, the stop and the step rule are those of `editing.editors.coachhook.targets`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.coachhook.prompts import Group
from editing.editors.coachhook.targets import BETAS, EPSILON, Optimised
from editing.models import BaseModel
from editing.models.trace import hidden_of, output_of, removing
from editing.tokenisation import pad, padding_id


def optimise_alone(base: BaseModel, group: Group, config: CoachHookConfig) -> Optimised:
    """The delta of one subject on the unedited base model, by full forward passes."""
    block = base.blocks[config.layers[-1]]
    ids, mask = (
        each.to(base.device) for each in pad([row.ids for row in group.rows], padding_id(base.tokenizer), side="right")
    )
    rows = torch.arange(len(ids))
    lookups = torch.tensor([row.lookup for row in group.rows])
    with torch.no_grad():
        hidden = output_of(base.model, block, input_ids=ids, attention_mask=mask, use_cache=False)
        norm = torch.linalg.vector_norm(hidden[rows, lookups], dim=1).mean()
        kept_logp = base.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
    delta = torch.zeros(hidden.shape[-1], device=base.device, requires_grad=True)
    adam = torch.optim.Adam(
        [delta], lr=float(config.learning_rate * norm / math.sqrt(len(delta))), betas=BETAS, eps=EPSILON
    )

    def add(_: Any, __: Any, output: Any) -> Any:
        changed = hidden_of(output).clone()
        changed[rows, lookups] += delta
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def terms() -> tuple[Tensor, Tensor]:
        with removing([block.register_forward_hook(add)]):
            logp = base.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
        facts = torch.zeros(len(group.facts), device=base.device)
        kept = torch.zeros((), device=base.device)
        for index, row in enumerate(group.rows):
            at = torch.tensor(row.asked)
            if row.fact >= 0:
                told = logp[index, at - 1].gather(1, ids[index, at][:, None]).sum()
                facts = facts.index_add(0, torch.tensor([row.fact]), -row.weight * told[None])
            else:
                was = kept_logp[index, at - 1]
                kept = kept + row.weight * (was.exp() * (was - logp[index, at - 1])).sum()
        return facts, kept

    for step in range(config.max_steps + 1):
        facts, kept = terms()
        losses = facts.detach() * len(group.facts)
        reached = bool(losses.max() < config.stop_loss and kept.detach() < config.stop_kept)
        if reached or step == config.max_steps:
            break
        adam.zero_grad()
        decay = config.weight_decay * torch.linalg.vector_norm(delta) / norm.square()
        (facts.sum() + kept + decay).backward()
        adam.step()
        with torch.no_grad():
            delta *= (config.clamp * norm / torch.linalg.vector_norm(delta).clamp(min=1e-30)).clamp(max=1.0)
    return Optimised(delta.detach(), tuple(losses.tolist()), reached)
