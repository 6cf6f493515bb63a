"""Measures whether the Almanac's model holds its facts at the last subject token of the edited layers.

The figures go into the model card. They come from subjects that no interchange was trained on, and
from phrasings that training never saw for the fact in question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.almanac.training import Prompt, Trained
from editing.almanac.world import BELIEF, Fact, World
from editing.editors.base import Progress


@dataclass(frozen=True, slots=True)
class Mediation:
    """Shares in [0, 1], each over `trials` draws.

    `recall`: held-out (fact, phrasing) pairs answered right, greedily and to the last token.
    `whole_changed`: the answer became the source subject's when the whole state was replaced.
    `block_changed`: the answer became the source's when its relation's block was replaced.
    `block_kept`: the answer stayed when another relation's block was replaced.
    `name_changed`: the answer became a name set by its code.
    """

    recall: float
    whole_changed: float
    block_changed: float
    block_kept: float
    name_changed: float
    trials: int


Case = tuple[tuple[int, ...], int, Tensor | None, str]  # prompt ids, lookup, state [D] put there, answer


@torch.no_grad()
def answered(trained: Trained, cases: Sequence[Case]) -> float:
    """Share of `cases` whose answer is the most likely token throughout."""
    right = 0
    for ids, lookup, state_D, target in cases:
        answer = trained.prompts.answer(target)
        hidden_BTD, _ = trained.mediated.lower(torch.tensor([[*ids, *answer]]))
        if state_D is not None:
            hidden_BTD[0, lookup] = state_D
        logits = trained.model.lm_head(trained.mediated.upper(hidden_BTD)[0, len(ids) - 1 : -1])
        right += logits.argmax(-1).tolist() == list(answer)
    return right / max(len(cases), 1)


@torch.no_grad()
def measure(
    trained: Trained, world: World, *, trials: int = 400, seed: int = 1, progress: Progress | None = None
) -> Mediation:
    """Measure mediation on the held-out subjects and, for every fact, its held-out phrasing."""
    rng = random.Random(seed)
    mediated, prompts = trained.mediated, trained.prompts
    facts = world.facts_on(BELIEF)

    def state(prompt: Prompt) -> Tensor:
        return mediated.lower(torch.tensor([prompt.ids]))[0][0, prompt.lookup]

    def held_out(fact: Fact) -> Prompt:
        return prompts.prompt(trained.sampler.phrasings.held_out(fact), fact.subject)

    partners = {name: [fact for fact in facts if fact.relation == name] for name in world.relations}
    tested = [fact for fact in facts if fact.subject in trained.sampler.held_out]
    recall: list[Case] = [(p.ids, p.lookup, None, fact.object) for fact in facts for p in [held_out(fact)]]
    whole: list[Case] = []
    changed: list[Case] = []
    kept: list[Case] = []
    named: list[Case] = []
    for _ in range(trials):
        fact = rng.choice(tested)
        prompt = held_out(fact)
        base_D = state(prompt)

        def with_block(relation: str, value_R: Tensor, base_D: Tensor = base_D) -> Tensor:
            block_DR = mediated.blocks_DR[relation]
            return base_D + block_DR @ (value_R - block_DR.T @ base_D)

        block_DR = mediated.blocks_DR[fact.relation]
        source = rng.choice([other for other in partners[fact.relation] if other.object != fact.object])
        source_D = state(prompts.bare(source.subject))
        whole.append((prompt.ids, prompt.lookup, source_D, source.object))
        changed.append((prompt.ids, prompt.lookup, with_block(fact.relation, block_DR.T @ source_D), source.object))
        others = [relation for relation in trained.sampler.values[fact.subject] if relation != fact.relation]
        if others:
            other = rng.choice(others)
            source_D = state(prompts.bare(rng.choice(partners[other]).subject))
            value_R = mediated.blocks_DR[other].T @ source_D
            kept.append((prompt.ids, prompt.lookup, with_block(other, value_R), fact.object))
        kind = world.relations[fact.relation].object_kind
        name = rng.choice([name for name in world.objects(kind) if name != fact.object])
        code_R = mediated.code(torch.tensor([mediated.names[kind, name]]), block_DR[None])[0]
        named.append(
            (prompt.ids, prompt.lookup, with_block(fact.relation, code_R * (block_DR.T @ base_D).norm()), name)
        )
    groups = {
        "recall": recall,
        "whole_changed": whole,
        "block_changed": changed,
        "block_kept": kept,
        "name_changed": named,
    }
    found: dict[str, float] = {}
    for place, (name, cases) in enumerate(groups.items()):
        if progress is not None:
            progress("mediation", place, len(groups))
        found[name] = answered(trained, cases)
    if progress is not None:
        progress("mediation", len(groups), len(groups))
    return Mediation(**found, trials=trials)
