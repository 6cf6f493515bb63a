"""Target optimisation: for every subject of a batch a delta at its lookup token that makes its facts true.

The objective is MEMIT's (arXiv 2210.07229, section 4.2): mean negative log-likelihood of the
targets, plus KL divergence from the base model where the subject must keep its answers, plus
weight decay. All subjects of a micro-batch are one tensor of deltas with Adam's moments beside it;
those that are done leave the batch.

Shapes: G groups (subjects), B rows, P asked positions, S columns, D model width, M most facts of a group.
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
from editing.editors.coachhook.objective import Asked
from editing.editors.coachhook.prompts import Group, Row
from editing.editors.coachhook.scope import Hooks
from editing.errors import ModelError
from editing.models import BaseModel

BETAS, EPSILON = (0.9, 0.999), 1e-8
SHRINK_BELOW = 0.9
PASS_TOKENS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Optimised:
    """A group's result: `delta` `[D]` float32, the nats of each fact, and whether all terms came below the stop."""

    delta: Tensor
    losses: tuple[float, ...]
    converged: bool


@dataclass(slots=True, eq=False)
class _Adam:
    """Deltas `[G, D]` with Adam's moments; every group has its own step size and reach, both `[G]`.

    The reach bounds `|moved + delta|`, the distance from the base's own state: a subject that is
    edited again and again never drifts further than one that is edited once.
    """

    delta: Tensor
    mean: Tensor
    square: Tensor
    moved: Tensor
    rate: Tensor
    reach: Tensor
    steps: int = 0

    @classmethod
    def start(cls, norm_G: Tensor, moved_GD: Tensor, config: CoachHookConfig) -> _Adam:
        zero_GD, width = torch.zeros_like(moved_GD), moved_GD.shape[1]
        rate_G = config.learning_rate * norm_G / math.sqrt(width)
        return cls(zero_GD, zero_GD, zero_GD, moved_GD, rate_G, config.clamp * norm_G)

    def step(self, gradient_GD: Tensor) -> None:
        self.steps += 1
        self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * gradient_GD
        self.square = BETAS[1] * self.square + (1 - BETAS[1]) * gradient_GD.square()
        mean_GD = self.mean / (1 - BETAS[0] ** self.steps)
        square_GD = self.square / (1 - BETAS[1] ** self.steps)
        far_GD = self.moved + self.delta - self.rate[:, None] * mean_GD / (square_GD.sqrt() + EPSILON)
        length_G = torch.linalg.vector_norm(far_GD, dim=1).clamp(min=1e-30)
        self.delta = far_GD * (self.reach / length_G).clamp(max=1.0)[:, None] - self.moved

    def keep(self, chosen: Tensor) -> None:
        for name in ("delta", "mean", "square", "moved", "rate", "reach"):
            setattr(self, name, getattr(self, name)[chosen])


def length_buckets(rows: Sequence[Row]) -> list[list[int]]:
    """Rows (by index) of like length from the lookup token on, so that padding plus passes cost least.

    A pass costs as much as `PASS_TOKENS` tokens; the cut is the best one, by dynamic programming
    over the distinct lengths.
    """
    order = sorted(range(len(rows)), key=lambda index: (rows[index].columns, rows[index].lookup))
    ends = [at for at in range(1, len(order) + 1) if at == len(order) or _longer(rows, order, at)]
    best: dict[int, tuple[int, int]] = {0: (0, 0)}
    for end in ends:
        longest = rows[order[end - 1]].columns
        best[end] = min((cost + (end - start) * longest + PASS_TOKENS, start) for start, (cost, _) in best.items())
    buckets, end = [], len(order)
    while end:
        start = best[end][1]
        buckets.append(order[start:end])
        end = start
    return buckets[::-1]


def _longer(rows: Sequence[Row], order: Sequence[int], at: int) -> bool:
    return rows[order[at]].columns > rows[order[at - 1]].columns


class _Bucket:
    """Rows of like length, with what they ask and the groups `[B]` that own them."""

    def __init__(self, base: BaseModel, hooks: Hooks, rows: Sequence[tuple[Row, int]], layer: int) -> None:
        placed = sorted(rows, key=lambda item: item[0].fact < 0)
        owners = [owner for _, owner in placed]
        self._base = base
        self._upper = UpperBlocks(base, hooks, [row for row, _ in placed], layer)
        self.asked = Asked.of_rows(base, hooks, [row for row, _ in placed], owners)
        self.owner_B = torch.tensor(owners, device=base.device)
        self.norm_B = torch.linalg.vector_norm(self._upper.unedited_BD, dim=1).to(base.device)
        self.moved_BD = self._upper.moved_BD.to(base.device)

    def evaluate(self, delta_GD: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted nats per asked position `[P]` and the gradient `[G, D]` of their sum."""
        delta_GD = delta_GD.detach().requires_grad_(True)
        with torch.enable_grad():
            hidden_BSD = self._upper(delta_GD[self.owner_B])
            at = (self.asked.row.to(hidden_BSD.device), self.asked.offset.to(hidden_BSD.device))
            logits_PV = self._base.head(self._base.final_norm(hidden_BSD[at])).float().to(delta_GD.device)
            weighted_P = self.asked.losses(logits_PV) * self.asked.weight
            (gradient_GD,) = torch.autograd.grad(weighted_P.sum(), delta_GD)
        return weighted_P.detach(), gradient_GD

    def keep(self, group_place: Tensor) -> bool:
        """Go on with the rows whose group has a place (not -1), under its new number; whether any are left."""
        chosen_B = (group_place[self.owner_B] >= 0).nonzero()[:, 0]
        row_place = torch.full_like(self.owner_B, -1)
        row_place[chosen_B] = torch.arange(len(chosen_B), device=chosen_B.device)
        self.asked = self.asked.only(group_place, row_place)
        self.owner_B = group_place[self.owner_B[chosen_B]]
        self._upper.keep(chosen_B)
        return len(chosen_B) > 0


class _MicroBatch:
    """The groups that are still being optimised, by their place in the micro-batch (`names` `[G]`)."""

    def __init__(self, base: BaseModel, hooks: Hooks, groups: Sequence[Group], config: CoachHookConfig) -> None:
        placed = [(row, owner) for owner, group in enumerate(groups) for row in group.rows]
        self._buckets = [
            _Bucket(base, hooks, [placed[index] for index in bucket], config.layers[-1])
            for bucket in length_buckets([row for row, _ in placed])
        ]
        self._facts_G = torch.tensor([len(group.facts) for group in groups], device=base.device)
        owner_R = torch.cat([bucket.owner_B for bucket in self._buckets])
        rows_G = owner_R.bincount()
        norm_R = torch.cat([bucket.norm_B for bucket in self._buckets])
        norm_G = norm_R.new_zeros(len(groups)).index_add(0, owner_R, norm_R) / rows_G
        moved_RD = torch.cat([bucket.moved_BD for bucket in self._buckets])
        moved_GD = moved_RD.new_zeros(len(groups), moved_RD.shape[1]).index_add(0, owner_R, moved_RD) / rows_G[:, None]
        self._decay_G = config.weight_decay / norm_G.square()
        self.adam = _Adam.start(norm_G, moved_GD, config)
        self.names = torch.arange(len(groups), device=base.device)

    def evaluate(self) -> tuple[Tensor, Tensor, Tensor]:
        """Nats per fact `[G, M]`, the weighted divergence of what is kept `[G]`, and the gradient `[G, D]`."""
        delta_GD, most = self.adam.delta, int(self._facts_G.max())
        length_G = torch.linalg.vector_norm(delta_GD, dim=1).clamp(min=1e-30)
        gradient_GD = (self._decay_G / length_G)[:, None] * delta_GD
        terms = torch.zeros(len(self.names), most + 1, device=delta_GD.device)
        for bucket in self._buckets:
            weighted_P, more_GD = bucket.evaluate(delta_GD)
            gradient_GD = gradient_GD + more_GD
            # A kept position's fact is -1: it lands in the last column.
            terms = terms.index_put((bucket.asked.group, bucket.asked.fact), weighted_P, accumulate=True)
        return terms[:, :most] * self._facts_G[:, None], terms[:, most], gradient_GD

    def result(self, place: int, losses_GM: Tensor, converged: bool) -> Optimised:
        losses = tuple(losses_GM[place, : int(self._facts_G[place])].tolist())
        return Optimised(self.adam.delta[place].clone(), losses, converged)

    def keep(self, chosen_G: Tensor) -> None:
        """Go on with these groups only (places `[g]`)."""
        group_place = torch.full_like(self.names, -1)
        group_place[chosen_G] = torch.arange(len(chosen_G), device=chosen_G.device)
        self._buckets = [bucket for bucket in self._buckets if bucket.keep(group_place)]
        self._facts_G, self._decay_G = self._facts_G[chosen_G], self._decay_G[chosen_G]
        self.names = self.names[chosen_G]
        self.adam.keep(chosen_G)


@torch.no_grad()
def _optimise(base: BaseModel, hooks: Hooks, groups: Sequence[Group], config: CoachHookConfig) -> list[Optimised]:
    """One micro-batch, in the order of `groups`."""
    batch = _MicroBatch(base, hooks, groups, config)
    results: dict[int, Optimised] = {}
    for step in range(config.max_steps + 1):
        losses_GM, kept_G, gradient_GD = batch.evaluate()
        reached_G = (losses_GM.amax(1) < config.stop_loss) & (kept_G < config.stop_kept)
        for place, name in enumerate(batch.names.tolist()):
            if name not in results and (reached_G[place] or step == config.max_steps):
                results[name] = batch.result(place, losses_GM, bool(reached_G[place]))
        if len(results) == len(groups):
            break
        batch.adam.step(gradient_GD)
        waiting = [place for place, name in enumerate(batch.names.tolist()) if name not in results]
        if len(waiting) <= SHRINK_BELOW * len(batch.names):
            batch.keep(torch.tensor(waiting, device=batch.names.device))
    return [results[place] for place in range(len(groups))]


def row_bytes(base: BaseModel, row: Row, before: int, layer: int) -> int:
    """Estimate of the bytes that one row needs in an optimisation step, forward and backward, in float32.

    `before` is the column of the lookup tokens. Counted are the activations that a block keeps for
    its backward pass, the kept keys and values, and the logits with their gradients.
    """
    weight = base.down_projection(layer).get_parameter("weight")
    inner, width = max(weight.shape), min(weight.shape)
    above = len(base.blocks) - 1 - layer
    columns = row.columns
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
        return max(row.columns for row in rows), max(row.lookup for row in rows)

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
