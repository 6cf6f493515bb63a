"""The joint loss that trains a RECIPE encoder (arXiv 2405.03279), the language model frozen.

Shapes: N edits whose knowledge competes, of which the first B go through the language model; Q
queries, M candidates (knowledge and, last, the sentinel), R representation, L target tokens, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editing.editors.recipe.config import TrainingConfig
from editing.editors.recipe.encoder import RecipeEncoder
from editing.editors.recipe.free_prompts import FreePrompts
from editing.editors.recipe.meta import MetaEdit
from editing.editors.recipe.prompted import AskedRows
from editing.models import BaseModel

NAMING_NATS = 36.0  # two free prompts are, on average, two variances apart


@dataclass(frozen=True, slots=True)
class DrawnBatch:
    """Edits with the queries drawn for them: one of each role per edit, and locality queries with their edit."""

    edits: tuple[MetaEdit, ...]
    reliability: tuple[str, ...]
    generality: tuple[str, ...]
    locality: tuple[str, ...]
    locality_edit: tuple[int, ...]

    @classmethod
    def draw(cls, edits: Sequence[MetaEdit], rng: random.Random, locality_queries: int) -> DrawnBatch:
        """One pair of queries per edit, which swap roles at random, and `locality_queries` locality prompts."""
        reliability, generality, locality, owners = [], [], [], []
        for index, edit in enumerate(edits):
            pair = [edit.queries[0], rng.choice(edit.queries[1:] or edit.queries)]
            rng.shuffle(pair)
            reliability.append(pair[0])
            generality.append(pair[1])
            chosen = rng.sample(edit.locality, min(locality_queries, len(edit.locality)))
            locality += chosen
            owners += [index] * len(chosen)
        return cls(tuple(edits), tuple(reliability), tuple(generality), tuple(locality), tuple(owners))


def hinged_nll(logits_QM: Tensor, wanted_Q: Tensor, margin: float) -> Tensor:
    """Negative log-likelihood `[Q]` of the wanted column where its probability is below `margin` times the
    second best's, else 0."""
    nats_Q = cross_entropy(logits_QM, wanted_Q, reduction="none")
    others_Q = logits_QM.detach().scatter(1, wanted_Q[:, None], -torch.inf).amax(1)
    lead_Q = logits_QM.detach().gather(1, wanted_Q[:, None])[:, 0] - others_Q
    return torch.where(lead_Q < torch.tensor(margin).log().item(), nats_Q, 0.0)


def rivals(edits: Sequence[MetaEdit], queries: Sequence[str], own: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which knowledge each query may find, `[Q, N]` each: its own edit's, and all that says nothing of it.

    Another edit that is asked by the very same text says something of it, and is neither.
    """
    asked = [frozenset((edit.statement_prompt, *edit.queries)) for edit in edits]
    own_QN = torch.zeros(len(queries), len(edits), dtype=torch.bool)
    foreign_QN = torch.tensor([[query not in texts for texts in asked] for query in queries]).reshape(own_QN.shape)
    for row, edit in enumerate(own):
        if edit >= 0:
            own_QN[row, edit] = True
            foreign_QN[row, edit] = False
    return own_QN, foreign_QN


def retrieval_losses(
    encoder: RecipeEncoder, batch: DrawnBatch, knowledge_NR: Tensor, config: TrainingConfig
) -> dict[str, Tensor]:
    """`contrastive`: each query finds its own knowledge among all and the sentinel (InfoNCE). `sentinel`: without
    its own knowledge it prefers the sentinel, and so do locality queries; hinged by the margin."""
    edits = len(batch.edits)
    queries = [*batch.reliability, *batch.generality, *batch.locality]
    own = [*range(edits), *range(edits), *([-1] * len(batch.locality))]
    own_QN, foreign_QN = (each.to(knowledge_NR.device) for each in rivals(batch.edits, queries, own))
    candidates_MR = torch.cat([knowledge_NR, encoder.sentinel()[None]])
    scores_QM = encoder.scores(encoder.query(queries), candidates_MR) / config.temperature
    always = torch.ones(len(queries), 1, dtype=torch.bool, device=scores_QM.device)
    found_QM = scores_QM.masked_fill(~torch.cat([own_QN | foreign_QN, always], 1), -torch.inf)
    without_QM = scores_QM.masked_fill(~torch.cat([foreign_QN, always], 1), -torch.inf)
    own_Q = torch.tensor(own[: 2 * edits], device=scores_QM.device)
    sentinel_Q = torch.full((len(queries),), edits, device=scores_QM.device)
    hinged_Q = hinged_nll(without_QM, sentinel_Q, config.margin)
    return {
        "contrastive": cross_entropy(found_QM[: 2 * edits], own_Q),
        "sentinel": hinged_Q[: 2 * edits].mean() + hinged_Q[2 * edits :].mean(),
    }


def edit_losses(
    base: BaseModel, encoder: RecipeEncoder, batch: DrawnBatch, knowledge_BR: Tensor, config: TrainingConfig
) -> dict[str, Tensor]:
    """`reliability` and `generality`: hinged nats per target token behind the edit's own prompt. `locality`: nats of
    divergence of the next token from the unedited model's on locality queries."""
    count = len(knowledge_BR)
    prompts_BPD = encoder.prompts(knowledge_BR)
    targets = [edit.target for edit in batch.edits[:count]]
    owners = torch.tensor([edit for edit in batch.locality_edit if edit < min(count, config.locality_edits)])
    asked = AskedRows.targets(base, [*batch.reliability[:count], *batch.generality[:count]], targets * 2)
    kept = AskedRows.ends(base, batch.locality[: len(owners)])
    rows = AskedRows(
        (*asked.ids, *kept.ids),
        torch.cat([asked.row, kept.row + 2 * count]),
        torch.cat([asked.place, kept.place]),
        torch.cat([asked.label, kept.label]),
    )
    behind = torch.cat([torch.arange(count), torch.arange(count), owners]).to(prompts_BPD.device)
    logits_LV = rows.logits(base, prompts_BPD[behind])
    told = len(asked.label)
    label_L = asked.label.to(logits_LV.device)
    nats_L = hinged_nll(logits_LV[:told], label_L, config.margin)
    per_row = asked.mean_by_row(nats_L)
    with torch.no_grad():
        unedited_LV = kept.logits(base, None).softmax(-1)
    crossed_L = cross_entropy(logits_LV[told:], unedited_LV, reduction="none")
    return {
        "reliability": per_row[:count].mean(),
        "generality": per_row[count:].mean(),
        "locality": (crossed_L - torch.special.entr(unedited_LV).sum(-1)).mean(),
    }


def imitation_losses(
    encoder: RecipeEncoder, batch: DrawnBatch, knowledge_NR: Tensor, free: FreePrompts
) -> dict[str, Tensor]:
    """`imitation`: mean square distance of the prompts from their targets' free ones, as a share of the free prompts'
    variance. `naming`: nats of the own target among all, by distance; full confidence is worth `NAMING_NATS`."""
    made_NF = (encoder.prompts(knowledge_NR) / encoder.prompt_head.spread).flatten(1)
    every_MF = free.units_NPD.flatten(1)
    own_N = free.rows([edit.target for edit in batch.edits]).to(made_NF.device)
    distance_NM = torch.cdist(made_NF, every_MF).square() / every_MF.shape[1] / free.variance
    return {
        "imitation": (made_NF - every_MF[own_N]).square().mean() / free.variance,
        "naming": cross_entropy(distance_NM * (-NAMING_NATS / 2), own_N),
    }


def joint_losses(
    base: BaseModel,
    encoder: RecipeEncoder,
    batch: DrawnBatch,
    config: TrainingConfig,
    free: FreePrompts | None = None,
    *,
    steering: bool = True,
) -> dict[str, Tensor]:
    """Every term by its name, and their weighted sum as `loss`; without `steering` none asks the language model."""
    knowledge_NR = encoder.knowledge([edit.statement for edit in batch.edits])
    terms = retrieval_losses(encoder, batch, knowledge_NR, config)
    if free is not None:
        terms |= imitation_losses(encoder, batch, knowledge_NR, free)
    if steering:
        terms |= edit_losses(base, encoder, batch, knowledge_NR[: config.batch], config)
    weights = {name: getattr(config, f"{name}_weight") for name in terms}
    return {"loss": sum((weights[name] * term for name, term in terms.items()), torch.zeros(())), **terms}
