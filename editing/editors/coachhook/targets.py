"""Target optimisation: for every subject of a batch a delta at its lookup token that makes its facts true.

The objective is MEMIT's (arXiv 2210.07229, equation 16, with the settings of its appendix): mean
negative log-likelihood of the targets, plus KL divergence from the base model where the subject
must keep its answers, plus weight decay. All subjects of a micro-batch are one tensor of deltas,
with Adam's state beside it; those that are done leave the batch.

Shapes: G groups (subjects), P asked positions, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.editors.base import Progress
from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.coachhook.frozen import UpperBlocks
from editing.editors.coachhook.prompts import Group, Row
from editing.editors.coachhook.scope import Hooks
from editing.errors import ModelError
from editing.models import BaseModel
from editing.tokenisation import pad, padding_id

BETAS, EPSILON = (0.9, 0.999), 1e-8
SHRINK_BELOW = 0.75


@dataclass(frozen=True, slots=True, eq=False)
class Optimised:
    """A group's result: `delta` `[D]` float32, the nats of each fact, and whether all terms came below the stop."""

    delta: Tensor
    losses: tuple[float, ...]
    converged: bool


@dataclass(slots=True, eq=False)
class _Positions:
    """What is asked at each of P positions: where, of which group and fact, the label or the row of `kept_logp`."""

    row: Tensor
    column: Tensor
    group: Tensor
    fact: Tensor
    label: Tensor
    weight: Tensor
    kept_logp: Tensor

    def of_groups(self, place: Tensor, row_place: Tensor) -> _Positions:
        """Only positions of the groups that have a `place` (>= 0), with groups and rows renumbered."""
        stay = place[self.group] >= 0
        return _Positions(
            row_place[self.row[stay]],
            self.column[stay],
            place[self.group[stay]],
            self.fact[stay],
            self.label[stay],
            self.weight[stay],
            self.kept_logp[stay[self.fact < 0]],
        )


def row_bytes(base: BaseModel, row: Row, before: int, layer: int) -> int:
    """Estimate of the bytes that one row needs in an optimisation step, forward and backward, in float32.

    `before` is the column of the lookup tokens. Counted are the activations that a block keeps for
    its backward pass, the kept keys and values, and the logits with their gradients.
    """
    width, inner = base.down_weight(layer).shape
    above = len(base.blocks) - 1 - layer
    columns = len(row.ids) - row.lookup
    activations = columns * above * (12 * width + 4 * inner)
    attention = 2 * columns * (columns + before) * above * int(getattr(base.model.config, "num_attention_heads", 1))
    prefix = before * len(base.blocks) * 2 * width
    logits = len(row.asked) * 4 * base.head.get_parameter("weight").shape[0]
    return 4 * (activations + attention + prefix + logits)


def plan(base: BaseModel, groups: Sequence[Group], layer: int, limit: int) -> tuple[list[list[int]], int]:
    """Cut groups into micro-batches of like lengths, each within `limit` bytes (one group at least).

    Returns the groups' indices per micro-batch and the estimate of the largest in bytes.
    """

    def extent(index: int) -> tuple[int, int]:
        rows = groups[index].rows
        return max(len(row.ids) - row.lookup for row in rows), max(row.lookup for row in rows)

    batches: list[list[int]] = []
    largest = used = 0
    for index in sorted(range(len(groups)), key=extent):
        need = sum(row_bytes(base, row, extent(index)[1], layer) for row in groups[index].rows)
        if not batches or used + need > limit:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += need
        largest = max(largest, used)
    return batches, largest


@torch.no_grad()
def _base_logp(base: BaseModel, hooks: Hooks, rows: Sequence[Row]) -> Tensor:
    """The base model's log-probabilities `[P, V]` float32 at the asked positions of `rows`, in their order."""
    if not rows:
        return torch.zeros(0, base.head.get_parameter("weight").shape[0], device=base.device)
    ids, mask = pad([row.ids for row in rows], padding_id(base.tokenizer), side="right")
    with hooks.paused():
        hidden = base.model.base_model(
            input_ids=ids.to(base.device), attention_mask=mask.to(base.device), use_cache=False
        ).last_hidden_state
    at = [(index, place - 1) for index, row in enumerate(rows) for place in row.asked]
    index, place = (torch.tensor(each, device=hidden.device) for each in zip(*at, strict=True))
    return base.head(hidden[index, place]).float().log_softmax(-1)


def _positions(
    base: BaseModel, hooks: Hooks, rows: Sequence[Row], owner: Sequence[int], upper: UpperBlocks
) -> _Positions:
    where = [
        (index, upper.column_of(index, place - 1), owner[index], row.fact, row.ids[place], row.weight)
        for index, row in enumerate(rows)
        for place in row.asked
    ]
    row, column, group, fact, label, weight = (
        torch.tensor(each, device=base.device) for each in zip(*where, strict=True)
    )
    kept = _base_logp(base, hooks, [row for row in rows if row.fact < 0])
    return _Positions(row, column, group, fact, label, weight.float(), kept)


def _optimise(base: BaseModel, hooks: Hooks, groups: Sequence[Group], config: CoachHookConfig) -> list[Optimised]:
    """One micro-batch."""
    rows = [row for group in groups for row in group.rows]
    owner = [index for index, group in enumerate(groups) for _ in group.rows]
    upper = UpperBlocks(base, hooks, rows, config.layers[-1])
    asked = _positions(base, hooks, rows, owner, upper)
    owner_B = torch.tensor(owner, device=base.device)
    n_facts = torch.tensor([len(group.facts) for group in groups], device=base.device)
    most = int(n_facts.max())
    sizes_B = torch.ones(len(rows), device=base.device)
    norm_G = torch.zeros(len(groups), device=base.device).index_add_(0, owner_B, upper.lookup_norms.to(base.device))
    norm_G /= torch.zeros_like(norm_G).index_add_(0, owner_B, sizes_B)
    width = base.down_weight(config.layers[-1]).shape[0]
    delta_GD = torch.zeros(len(groups), width, device=base.device)
    mean_GD, square_GD = torch.zeros_like(delta_GD), torch.zeros_like(delta_GD)
    names = torch.arange(len(groups), device=base.device)
    done_G = torch.zeros(len(groups), dtype=torch.bool, device=base.device)
    results: dict[int, Optimised] = {}
    for step in range(config.max_steps + 1):
        delta_GD.requires_grad_(True)
        with torch.enable_grad():
            hidden_BSD = upper(delta_GD[owner_B])
            asked_PD = hidden_BSD[asked.row, asked.column]
            logp_PV = base.head(base.final_norm(asked_PD)).float().log_softmax(-1)
            told = asked.fact >= 0
            loss_P = torch.empty(len(told), device=logp_PV.device)
            nll = -logp_PV[told].gather(1, asked.label[told, None])[:, 0]
            kept = (asked.kept_logp.exp() * (asked.kept_logp - logp_PV[~told])).sum(-1)
            loss_P = loss_P.index_put((told.nonzero()[:, 0],), nll).index_put(((~told).nonzero()[:, 0],), kept)
            weighted_P = loss_P * asked.weight
            decay_G = config.weight_decay * torch.linalg.vector_norm(delta_GD, dim=1) / norm_G.square()
            (gradient_GD,) = torch.autograd.grad(weighted_P.sum() + decay_G.sum(), delta_GD)
        delta_GD = delta_GD.detach()
        with torch.no_grad():
            terms = torch.zeros(len(names), most + 1, device=base.device)
            terms = terms.index_put((asked.group, asked.fact), weighted_P.detach(), accumulate=True)
            losses_GM = terms[:, :most] * n_facts[:, None]
            reached_G = torch.maximum(losses_GM.amax(1), terms[:, most]) < config.stop_loss
            ending_G = (reached_G | (step == config.max_steps)) & ~done_G
            for place in ending_G.nonzero()[:, 0].tolist():
                losses = tuple(losses_GM[place, : int(n_facts[place])].tolist())
                results[int(names[place])] = Optimised(delta_GD[place].clone(), losses, bool(reached_G[place]))
            done_G |= ending_G
            if done_G.all():
                break
            mean_GD = BETAS[0] * mean_GD + (1 - BETAS[0]) * gradient_GD
            square_GD = BETAS[1] * square_GD + (1 - BETAS[1]) * gradient_GD.square()
            direction = (mean_GD / (1 - BETAS[0] ** (step + 1))) / (
                (square_GD / (1 - BETAS[1] ** (step + 1))).sqrt() + EPSILON
            )
            delta_GD = delta_GD - config.learning_rate * (norm_G / math.sqrt(width))[:, None] * direction
            length_G = torch.linalg.vector_norm(delta_GD, dim=1)
            delta_GD = delta_GD * (config.clamp * norm_G / length_G.clamp(min=1e-30)).clamp(max=1.0)[:, None]
            if int((~done_G).sum()) <= SHRINK_BELOW * len(names):
                stay_G = (~done_G).nonzero()[:, 0]
                place = torch.full((len(names),), -1, device=base.device)
                place[stay_G] = torch.arange(len(stay_G), device=base.device)
                stay_B = (place[owner_B] >= 0).nonzero()[:, 0]
                row_place = torch.full((len(owner_B),), -1, device=base.device)
                row_place[stay_B] = torch.arange(len(stay_B), device=base.device)
                upper.keep(stay_B)
                asked = asked.of_groups(place, row_place)
                owner_B = place[owner_B[stay_B]]
                names, n_facts, norm_G, done_G = names[stay_G], n_facts[stay_G], norm_G[stay_G], done_G[stay_G]
                delta_GD, mean_GD, square_GD = delta_GD[stay_G], mean_GD[stay_G], square_GD[stay_G]
    return [results[index] for index in range(len(groups))]


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


def optimise_targets(
    base: BaseModel, hooks: Hooks, groups: Sequence[Group], config: CoachHookConfig, progress: Progress | None = None
) -> list[Optimised]:
    """The delta of every group at the last edited layer, under the present hooks.

    Micro-batches are planned from a memory estimate, told through `progress`, and halved when
    memory runs out all the same. Raises `ModelError` when one subject alone does not fit.
    """
    if not groups:
        return []
    pending, largest = plan(base, groups, config.layers[-1], config.memory_mib * 2**20)
    stage = f"targets (about {max(1, largest >> 20)} MiB)"
    results: dict[int, Optimised] = {}
    if progress is not None:
        progress(stage, 0, len(groups))
    while pending:
        chosen = pending.pop(0)
        try:
            solved = _optimise(base, hooks, [groups[index] for index in chosen], config)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if len(chosen) == 1:
                raise ModelError(
                    f"the facts of {groups[chosen[0]].subject!r} alone do not fit in memory "
                    f"({len(groups[chosen[0]].rows)} prompts); shorten or drop locality prompts"
                ) from error
            half = len(chosen) // 2
            pending[:0] = [chosen[:half], chosen[half:]]
            continue
        results.update(zip(chosen, solved, strict=True))
        if progress is not None:
            progress(stage, len(results), len(groups))
    return [results[index] for index in range(len(groups))]
