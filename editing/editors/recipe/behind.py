"""Prompts that stand behind what is asked, where the answer begins: what they begin with, and how they are tuned.

In front of a text a prompt has to be tuned through the whole text, in every phrasing. Behind it the text's keys and
values never change: a step passes only the prompt and its target through the language model, and a prompt that the
model reads last says its target nearly whatever was asked. It begins with words: the target, and what a reply begins
with in the model's form, as if the model had just answered and were asked again; from there it is optimised as any
continuous prompt is (prompt tuning, arXiv 2104.08691), over several texts in turn.

Shapes: N facts, n of them not done, P prompt tokens, D width of the language model, T tokens of a text, L of a target.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editing.editors.base import Progress
from editing.editors.recipe.tuning import Moments, Tuning
from editing.facts import FactChange
from editing.models import BaseModel
from editing.tokenisation import encode_prompts, pad, padding_id, tokenise, tokenise_with_target

TOGETHER = 32  # facts that are tuned together
MARGIN = 2.0  # nats by which each of a target's tokens is ahead of any other before its prompt is done
TRIES = ((1.0, 1), (2.0, 2))  # of each fact: the rate and the steps, in units of the config's
WRAPPERS = ("What can you tell me about {subject}?", "I have a question about {subject}. {question}")


def openings(base: BaseModel, facts: Sequence[FactChange], prompt_tokens: int, tuned_MPD: Tensor | None) -> Tensor:
    """What the facts' prompts begin with, `[N, P, D]` on the CPU: word embeddings of line breaks, the target's first
    tokens, and what stands before a reply in the model's form; of that the mean of what it became in prompts that
    were tuned before, where there are any, which saves half of the steps."""
    words_VD = base.model.get_input_embeddings().get_parameter("weight").detach()
    texts = [base.form.behind or "\n", "\n", *(fact.target.strip() for fact in facts)]
    reply, blank, *targets = (tokens.ids for tokens in tokenise(base.tokenizer, texts, special_tokens=False))
    reply = reply[-(prompt_tokens - 1) :] if prompt_tokens > 1 else []
    room = prompt_tokens - len(reply)
    rows = [[*([blank[-1]] * (room - len(target[:room]))), *target[:room], *reply] for target in targets]
    made_NPD = words_VD[torch.tensor(rows, device=words_VD.device)].float().cpu()
    if tuned_MPD is not None and len(tuned_MPD):
        made_NPD[:, room:] = tuned_MPD[:, room:].mean(0)
    return made_NPD


def phrasings(facts: Sequence[FactChange]) -> list[list[str]]:
    """Texts that each fact's prompt is tuned behind, one list of N a phrasing: its question, and `WRAPPERS`.

    A fact's own rephrases are not among them: what it says to those shows whether it holds for phrasings never seen.
    """
    return [
        [fact.question for fact in facts],
        *([wrapper.format(subject=fact.subject, question=fact.question) for fact in facts] for wrapper in WRAPPERS),
    ]


def tune_behind(
    base: BaseModel,
    prompts_NPD: Tensor,
    facts: Sequence[FactChange],
    tuning: Tuning,
    progress: Progress | None = None,
) -> Tensor:
    """The prompts `[N, P, D]`, each tuned until it says its target, the end of the turn with it, behind every one of
    `phrasings` with `MARGIN`.

    At most `tuning.steps` steps; a fact that is not done by then is tried once more from the start, with longer and
    more of them (`TRIES`). A step takes one phrasing, the phrasings in turn, and leaves a prompt that says its target
    behind it with the margin as it is.
    """
    parts = []
    for begin in range(0, len(facts), TOGETHER):
        some = slice(begin, min(begin + TOGETHER, len(facts)))
        parts.append(_tuned(base, prompts_NPD[some], facts[some], tuning))
        if progress is not None:
            progress("prompts tuned", some.stop, len(facts))
    return torch.cat(parts) if parts else prompts_NPD


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """Texts that have passed through the model: their cache, and their mask `[N, T]`."""

    cache: Any
    mask_NT: Tensor

    @classmethod
    @torch.no_grad()
    def read(cls, base: BaseModel, texts: Sequence[str]) -> _Text:
        encoded = encode_prompts(base.tokenizer, texts, form=base.form).to(base.device)
        mask_NT = encoded["attention_mask"]
        places_NT = (mask_NT.cumsum(-1) - 1).clamp(min=0)
        output = base.model.base_model(**encoded, position_ids=places_NT, use_cache=True)
        return cls(output.past_key_values, mask_NT)

    def hidden(self, base: BaseModel, rows_n: Tensor, embeds_nSD: Tensor) -> Tensor:
        """Last hidden states `[n, S, D]` of embeddings behind the texts of these rows."""
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(rows_n)
        mask_nS = torch.cat([self.mask_NT[rows_n], self.mask_NT.new_ones(embeds_nSD.shape[:2])], dim=1)
        places_nS = (mask_nS.cumsum(-1) - 1)[:, -embeds_nSD.shape[1] :]
        states: Tensor = base.model.base_model(
            inputs_embeds=embeds_nSD,
            attention_mask=mask_nS,
            position_ids=places_nS,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return states


def _tuned(base: BaseModel, prompts_NPD: Tensor, facts: Sequence[FactChange], tuning: Tuning) -> Tensor:
    """`tune_behind` of facts that are tuned together."""
    with torch.inference_mode(False), torch.enable_grad():
        texts = [_Text.read(base, asked) for asked in phrasings(facts)]
        rows = tokenise_with_target(base.tokenizer, [(fact.question, fact.target) for fact in facts], base.form)
        targets = [[tokens.ids[place] for place in inside] for tokens, inside in rows]
        ids_NL, said_NL = (x.to(base.device) for x in pad(targets, padding_id(base.tokenizer), side="right"))
        start_NPD = (prompts_NPD.to(base.device).float() / tuning.spread).clone()
        units_NPD, left_N = start_NPD.clone(), torch.arange(len(facts), device=base.device)
        for rate, steps in TRIES:
            units_NPD[left_N] = start_NPD[left_N]
            tried = Tuning(steps=tuning.steps * steps, rate=tuning.rate * rate, enough=0.0, spread=tuning.spread)
            left_N = _try(base, units_NPD, left_N, texts, ids_NL, said_NL.bool(), tried)
            if not len(left_N):
                break
    return (units_NPD * tuning.spread).to(prompts_NPD)


def _try(
    base: BaseModel,
    units_NPD: Tensor,
    rows_N: Tensor,
    texts: Sequence[_Text],
    ids_NL: Tensor,
    said_NL: Tensor,
    tuning: Tuning,
) -> Tensor:
    """Move the prompts of these rows in place; those of them that are not done."""
    embedding = base.model.get_input_embeddings()
    moments = Moments.zeros(units_NPD)
    in_a_row_N = torch.zeros(len(units_NPD), dtype=torch.int64, device=units_NPD.device)
    left_n = rows_N
    for step in range(tuning.steps):
        mine_nPD = units_NPD[left_n].requires_grad_()
        spoken = embedding(ids_NL[left_n, :-1])
        embeds_nSD = torch.cat([(mine_nPD * tuning.spread).to(spoken), spoken], dim=1)
        hidden_nSD = texts[step % len(texts)].hidden(base, left_n, embeds_nSD)
        asked_nL = said_NL[left_n]
        row_A = asked_nL.nonzero()[:, 0]
        logits_AV = base.head(hidden_nSD[:, mine_nPD.shape[1] - 1 :][asked_nL]).float()
        label_A = ids_NL[left_n][asked_nL]
        with torch.no_grad():
            ahead_A = _ahead(logits_AV, label_A)
            lowest_n = ahead_A.new_full((len(left_n),), torch.inf).scatter_reduce(0, row_A, ahead_A, "amin")
            right_n = lowest_n > MARGIN
            in_a_row_N[left_n] = torch.where(right_n, in_a_row_N[left_n] + 1, 0)
        nats_A = cross_entropy(logits_AV, label_A, reduction="none") / asked_nL.sum(1)[row_A]
        if not bool(right_n.all()):
            (slope_nPD,) = torch.autograd.grad(nats_A.sum(), mine_nPD)
            move_nPD = moments.step(slope_nPD, left_n) * tuning.rate
            units_NPD[left_n] = mine_nPD.detach() - move_nPD * ~right_n[:, None, None]
        left_n = left_n[in_a_row_N[left_n] < len(texts)]
        if not len(left_n):
            break
    return left_n


def _ahead(logits_AV: Tensor, label_A: Tensor) -> Tensor:
    """By how much each label's logit is above all others, `[A]`."""
    own_A1 = logits_AV.gather(1, label_A[:, None])
    return own_A1[:, 0] - logits_AV.scatter(1, label_A[:, None], -torch.inf).amax(1)
