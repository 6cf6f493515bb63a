"""Prompts that the encoder did not get right, tuned through the language model until they say their target.

RECIPE takes the encoder's prompt as it is (arXiv 2405.03279), so a target of a kind that the encoder never met is
lost. Its prompt is a good place to begin all the same: from there it is optimised as any continuous prompt is, the
language model frozen (prompt tuning, arXiv 2104.08691).

Shapes: N facts, P prompt tokens, D width of the language model, L target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.editors.base import Progress
from editing.editors.recipe.prompted import AskedRows
from editing.facts import FactChange
from editing.models import BaseModel
from editing.passes import ROWS_PER_PASS

FIRST, SECOND = 0.9, 0.999  # how much of its moments a step keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """`steps` at most, each about `rate` long per component, in units of `spread`, that of the word embeddings; a
    prompt is done when it says its target with a loss below `enough` nats per token."""

    steps: int
    rate: float
    enough: float
    spread: float


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What Adam (arXiv 1412.6980) keeps of the slopes of N prompts, with one second moment per prompt, the mean over
    its components: where Adam would move a component that hardly matters as far as any other, by the sign of what may
    be rounding, this one moves it little, so that a prompt does not depend on which others are tuned beside it."""

    first_NPD: Tensor
    second_N11: Tensor
    steps_N11: Tensor

    @classmethod
    def zeros(cls, prompts_NPD: Tensor) -> Moments:
        """Before the first step."""
        none_N11 = prompts_NPD.new_zeros(len(prompts_NPD), 1, 1)
        return cls(torch.zeros_like(prompts_NPD), none_N11, none_N11.clone())

    def step(self, slope_nPD: Tensor, rows_n: Tensor) -> Tensor:
        """The steps `[n, P, D]` that these rows' prompts go back, at a rate of 1; their moments move on in place."""
        self.steps_N11[rows_n] += 1
        self.first_NPD[rows_n] = FIRST * self.first_NPD[rows_n] + (1 - FIRST) * slope_nPD
        mean_n11 = slope_nPD.square().mean((1, 2), keepdim=True)
        self.second_N11[rows_n] = SECOND * self.second_N11[rows_n] + (1 - SECOND) * mean_n11
        steps_n11 = self.steps_N11[rows_n]
        size_n11 = (self.second_N11[rows_n] / (1 - SECOND**steps_n11)).sqrt()
        return self.first_NPD[rows_n] / (1 - FIRST**steps_n11) / size_n11.clamp(min=torch.finfo(torch.float32).tiny)


def tune_prompts(
    base: BaseModel,
    prompts_NPD: Tensor,
    facts: Sequence[FactChange],
    tuning: Tuning,
    progress: Progress | None = None,
) -> Tensor:
    """The prompts `[N, P, D]` after at most `tuning.steps` steps, each the best that it was: one that says its target
    before one that does not, then the one with the lower loss.

    To say a target is to have each of its tokens as the argmax. The loss is nats per token of the fact's target behind
    its own question. A step is one of `Moments`.
    """
    parts = []
    for begin in range(0, len(facts), ROWS_PER_PASS):
        end = min(begin + ROWS_PER_PASS, len(facts))
        parts.append(_tuned(base, prompts_NPD[begin:end], facts[begin:end], tuning))
        if progress is not None:
            progress("prompts tuned", end, len(facts))
    return torch.cat(parts) if parts else prompts_NPD


def _tuned(base: BaseModel, prompts_NPD: Tensor, facts: Sequence[FactChange], tuning: Tuning) -> Tensor:
    """`tune_prompts` of facts that share a pass."""
    with torch.inference_mode(False), torch.enable_grad():
        asked = AskedRows.targets(base, [fact.question for fact in facts], [fact.target for fact in facts])
        units_NPD = (prompts_NPD.to(base.device).float() / tuning.spread).clone()
        best_NPD, lowest_N = units_NPD.clone(), torch.full((len(facts),), torch.inf, device=base.device)
        said_N = torch.zeros_like(lowest_N, dtype=torch.bool)
        moments, rows_N = Moments.zeros(units_NPD), torch.arange(len(facts), device=base.device)
        for step in range(tuning.steps + 1):
            units_NPD.requires_grad_()
            logits_LV = asked.logits(base, units_NPD * tuning.spread)
            nats_N, says_N = asked.nats(logits_LV), asked.said(logits_LV)
            better_N = torch.where(says_N == said_N, nats_N.detach() < lowest_N, says_N)
            lowest_N = torch.where(better_N, nats_N.detach(), lowest_N)
            said_N = said_N | says_N
            best_NPD = torch.where(better_N[:, None, None], units_NPD.detach(), best_NPD)
            if step == tuning.steps or bool((said_N & (lowest_N < tuning.enough)).all()):
                break
            (slope_NPD,) = torch.autograd.grad(nats_N.sum(), units_NPD)
            units_NPD = (units_NPD - tuning.rate * moments.step(slope_NPD, rows_N)).detach()
    return (best_NPD * tuning.spread).to(prompts_NPD)
