"""What is asked of the rows of target optimisation, and how far the model is from it.

Shapes: P asked positions, of which the first L ask for a fact's token; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editing.editors.coachhook.prompts import Row
from editing.editors.coachhook.scope import Hooks
from editing.models import BaseModel
from editing.tokenisation import pad, padding_id


@torch.no_grad()
def _base_probabilities(base: BaseModel, hooks: Hooks, rows: Sequence[Row]) -> Tensor:
    """The base model's probabilities `[P, V]` float32 at the asked positions of `rows`, in their order."""
    if not rows:
        return torch.zeros(0, base.head.get_parameter("weight").shape[0], device=base.device)
    ids, mask = pad([row.ids for row in rows], padding_id(base.tokenizer), side="right")
    with hooks.paused():
        hidden_BTD = base.model.base_model(
            input_ids=ids.to(base.device), attention_mask=mask.to(base.device), use_cache=False
        ).last_hidden_state
    at = [(index, place - 1) for index, row in enumerate(rows) for place in row.asked]
    index, place = (torch.tensor(each, device=hidden_BTD.device) for each in zip(*at, strict=True))
    return base.head(hidden_BTD[index, place]).float().softmax(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The asked positions of a micro-batch: first those of facts, then those whose distribution is kept.

    `row`, `group`, `fact` (-1 where kept) and `weight` are `[P]`, as is `offset`, the position's
    distance from its row's lookup token. `label` `[L]` are the facts' tokens, `kept` `[P - L, V]`
    the base's probabilities and `entropy` `[P - L]` their entropies in nats.
    """

    row: Tensor
    group: Tensor
    fact: Tensor
    weight: Tensor
    offset: Tensor
    label: Tensor
    kept: Tensor
    entropy: Tensor

    @classmethod
    def of_rows(cls, base: BaseModel, hooks: Hooks, rows: Sequence[Row], owners: Sequence[int]) -> Asked:
        """What `rows` ask, `owners` being their groups; rows that ask for facts come before the others."""
        where = [
            (index, owner, row.fact, place - 1 - row.lookup, row.ids[place])
            for index, (row, owner) in enumerate(zip(rows, owners, strict=True))
            for place in row.asked
        ]
        row, group, fact, offset, label = (torch.tensor(each, device=base.device) for each in zip(*where, strict=True))
        weight = torch.tensor([row.weight for row in rows for _ in row.asked], device=base.device)
        kept = _base_probabilities(base, hooks, [row for row in rows if row.fact < 0]).to(base.device)
        return cls(row, group, fact, weight, offset, label[fact >= 0], kept, torch.special.entr(kept).sum(-1))

    def losses(self, logits_PV: Tensor) -> Tensor:
        """Nats per position `[P]`: a label's negative log-likelihood, or the divergence from what is kept."""
        told = len(self.label)
        likelihood = cross_entropy(logits_PV[:told], self.label, reduction="none")
        return torch.cat([likelihood, cross_entropy(logits_PV[told:], self.kept, reduction="none") - self.entropy])

    def only(self, group_place: Tensor, row_place: Tensor) -> Asked:
        """The positions of groups that have a place (not -1), under the new numbers of groups and rows."""
        stay = group_place[self.group] >= 0
        told = len(self.label)
        return Asked(
            row_place[self.row[stay]],
            group_place[self.group[stay]],
            self.fact[stay],
            self.weight[stay],
            self.offset[stay],
            self.label[stay[:told]],
            self.kept[stay[told:]],
            self.entropy[stay[told:]],
        )
