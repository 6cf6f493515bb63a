"""RECIPE as an editor: facts become rows of a repository, found by what a prompt asks.

"Lifelong Knowledge Editing for LLMs with Retrieval-Augmented Continuous Prompt Learning"
(arXiv 2405.03279). The base model and the encoder never change; applying facts appends rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from editing.editors.base import AppliedBatch, Candidate, Explanation, FactOutcome, Progress, Row, ScopeReading
from editing.editors.recipe import artifact
from editing.editors.recipe.asked import AskedText
from editing.editors.recipe.behind import openings, tune_behind
from editing.editors.recipe.config import RecipeConfig
from editing.editors.recipe.encoder import RecipeEncoder
from editing.editors.recipe.prompted import target_losses
from editing.editors.recipe.repository import Repository
from editing.editors.recipe.retrieval import gate_limits, retrieve
from editing.editors.recipe.segments import Segment
from editing.editors.recipe.sentence import SentenceEncoder
from editing.editors.recipe.serving import Beside, Lookup, Serving
from editing.editors.recipe.state import METHOD, RecipeState
from editing.editors.recipe.tuning import Tuning, tune_prompts
from editing.errors import EditRefusedError, StateError
from editing.facts import EditBatch, FactChange
from editing.models import BaseModel
from editing.statistics import SecondMoments
from editing.tokenisation import find_subject, join_target

CANDIDATES = 5
EARLIER = 256  # rows whose prompts tell what new ones begin with
ENOUGH = 0.1  # of `converged_loss`: a prompt is not tuned further


class Recipe:
    """The editor; see `editing.editors.base.Editor` for what each verb promises."""

    method = METHOD
    parts: tuple[str, ...] = ()

    def defaults(self, base: BaseModel) -> dict[str, Any]:
        """None: which encoder is used is for the user, or the model's folder, to say."""
        return {}

    def statistics_layers(self, config: RecipeConfig | Mapping[str, Any]) -> tuple[int, ...]:
        """None: RECIPE needs no statistics."""
        return ()

    def start(
        self, base: BaseModel, config: RecipeConfig | Mapping[str, Any], statistics: SecondMoments | None = None
    ) -> RecipeState:
        """The state before the first batch: the encoder or the sentence encoder that the config names, and no rows.

        Raises `ConfigError` for a bad config, `StateError` when the encoder is missing, damaged or made
        for another base. Statistics are not used.
        """
        if not isinstance(config, RecipeConfig):
            config = RecipeConfig.from_dict(config)
        return RecipeState(
            config=config,
            model_id=base.model_id,
            revision=base.revision,
            base_fingerprint=base.fingerprint,
            tokenizer_hash=base.tokenizer_hash,
            parent=None,
            encoder=RecipeEncoder.load(encoder_folder(base, config), base)
            if config.encoder
            else SentenceEncoder.find(config.backbone, base, config.prompt_tokens),
            repository=Repository(),
            form=base.form,
        )

    def apply(
        self,
        base: BaseModel,
        state: RecipeState,
        batch: EditBatch,
        *,
        progress: Progress | None = None,
        effort: int = 1,
    ) -> AppliedBatch:
        """The state with a row for each fact; costs the new facts only, however many rows there are.

        The prompt of a fact that its first one does not make the model say is tuned (`tuning_steps`). A fact's
        outcome is the loss of its target behind its own prompt; it converged when that is below
        `converged_loss` and its question finds its own knowledge above the gate's limit; without a trained encoder
        each of the target's tokens has to be the model's first choice as well. `effort` times the tuning's steps may
        be spent. Raises
        `EditRefusedError` for a batch that encodes to what is not finite; `state` itself never changes.
        """
        state.require_base(base)
        config, facts = state.config, batch.facts
        knowledge_NR, prompts_NPD, lead_N = encode_facts(base, state, facts, progress)
        for name, tensor in (("knowledge", knowledge_NR), ("prompts", prompts_NPD)):
            if not torch.isfinite(tensor).all():
                raise EditRefusedError(
                    f"the batch of {len(facts)} facts is refused: its {name} is not finite; train the encoder again"
                )
        prompts_NPD, losses, tuned = _steering(base, state, facts, prompts_NPD, progress, effort)
        repository = state.repository.append(Segment.of(facts, knowledge_NR, prompts_NPD))
        repository = repository.indexed(config.exact_rows, config.recall, lambda some: _questions(state, some))
        outcomes = tuple(
            FactOutcome(
                fact.fact_id, nats < config.converged_loss and lead > 0 and (said or not state.encoder.behind), nats
            )
            for fact, (nats, said), lead in zip(facts, losses, lead_N.tolist(), strict=True)
        )
        after = replace(state, parent=state.digest, repository=repository)
        canaries = {**_canaries(base, prompts_NPD, losses, lead_N), "tuned": tuned / len(facts)}
        return AppliedBatch(after, outcomes, canaries)

    def retract(
        self, base: BaseModel, state: RecipeState, fact_ids: Sequence[str], *, progress: Progress | None = None
    ) -> RecipeState:
        """The state without these facts; an older fact that one superseded holds again.

        Raises `StateError` for an id that the state does not hold.
        """
        state.require_base(base)
        return replace(state, parent=state.digest, repository=state.repository.retract(fact_ids))

    def compact(self, base: BaseModel, state: RecipeState) -> RecipeState:
        """See `editing.editors.base.Editor`: one segment without retracted rows, and one index where it is large."""
        state.require_base(base)
        config, repository = state.config, state.repository.compact()
        if repository is state.repository:
            return state
        repository = repository.indexed(config.exact_rows, config.recall, lambda some: _questions(state, some))
        return replace(state, parent=state.digest, repository=repository)

    def attach(
        self, base: BaseModel, state: RecipeState, *, lookups: list[Lookup] | None = None
    ) -> AbstractContextManager[Any]:
        """Inside it `base.model` is the edited model; `lookups` collects what was looked up and found.

        Say where the answer starts with `continuation_from` wherever prompt and answer pass through the
        model together.
        """
        state.require_base(base)
        return Serving(base, state, lookups)

    def serving(self, base: BaseModel, state: RecipeState, beside: Beside) -> Serving:
        """The serving beside hooks, for an attachment that has claimed the model for both."""
        state.require_base(base)
        return Serving(base, state, beside=beside)

    def explain(self, base: BaseModel, state: RecipeState, prompt: str) -> Explanation:
        """Which fact answers `prompt`, its score, the limit that it had to beat, and the next best facts."""
        state.require_base(base)
        asked = AskedText(base.tokenizer, state.config.asked, base.form).of_text(prompt)
        found = retrieve(state, [asked], CANDIDATES)
        candidates = tuple(
            Candidate(state.repository.fact_at(row), score)
            for row, score in zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True)
            if row >= 0
        )
        return Explanation(
            method=METHOD,
            prompt=prompt,
            asked=asked,
            answered_by=candidates[0].fact if found.used[0] else None,
            limit=float(found.limits[0]) if np.isfinite(found.limits[0]) else None,
            candidates=candidates,
        )

    def read_scope(
        self, base: BaseModel, state: RecipeState, rows: Sequence[Row], *, batch_size: int
    ) -> list[ScopeReading]:
        """See `editing.editors.base.Editor`: a row that uses a prompt is touched whole, any other not at all.

        Scores are the best fact's, thresholds the gate's limits.
        """
        state.require_base(base)
        asked = AskedText(base.tokenizer, state.config.asked, base.form)
        texts = [asked.of_ids(list(prompt)) for prompt, _ in rows]
        readings: list[ScopeReading] = []
        for start in range(0, len(rows), batch_size):
            found = retrieve(state, texts[start : start + batch_size])
            best = zip(found.rows[:, 0], found.scores[:, 0], found.limits, found.used, strict=True)
            for (prompt, rest), (row, score, limit, used) in zip(rows[start : start + batch_size], best, strict=True):
                length = len(prompt) + len(rest)
                fact_id = state.repository.fact_at(int(row)).fact_id if used else None
                readings.append(ScopeReading(length, length if used else 0, float(score), float(limit), fact_id))
        return readings

    def gauges(self, state: RecipeState) -> dict[str, float]:
        """Rows that can be found, and segments on disk."""
        repository = state.repository
        return {"live rows": float(repository.live.sum()), "segments": float(len(repository.segments))}

    def save(self, state: RecipeState, folder: Path) -> str:
        """Write or link the state's files; returns the digest."""
        return artifact.save(state, folder)

    def load(self, folder: Path, base: BaseModel, statistics: SecondMoments | None = None) -> RecipeState:
        """Read and verify a state; statistics are not used."""
        return artifact.load(folder, base)


def encoder_folder(base: BaseModel, config: RecipeConfig) -> Path:
    """Where the config's encoder is: a relative path starts in the base model's own folder, if it is there.

    Raises `StateError` when it is in neither place.
    """
    beside, given = Path(base.model_id) / config.encoder, Path(config.encoder)
    for folder in (beside, given):
        if folder.is_dir():
            return folder
    raise StateError(
        f"encoder {config.encoder!r} is no folder, neither beside {base.model_id!r} nor by itself; train one for this "
        "base (`errata recipe train`) and name its folder in the option `encoder`"
    )


class EncodedFacts(NamedTuple):
    """Knowledge `[N, R]` and prompts `[N, P, D]` on the CPU, and by how much each fact's own question scores above the
    gate's limit `[N]`."""

    knowledge: Tensor
    prompts: Tensor
    lead: Tensor


@torch.no_grad()
def encode_facts(
    base: BaseModel, state: RecipeState, facts: Sequence[FactChange], progress: Progress | None = None
) -> EncodedFacts:
    """What the state's encoder makes of these facts, `encode_batch` at a time; a sentence encoder makes no prompts,
    and they begin as `openings`."""
    encoder, config = state.encoder, state.config
    knowledge, prompts, leads = [], [], []
    for begin in range(0, len(facts), config.encode_batch):
        chunk = facts[begin : begin + config.encode_batch]
        knowledge_NR = encoder.knowledge([join_target(fact.question, fact.target)[0] for fact in chunk])
        queries_NR = _questions(state, chunk)
        own_N = (queries_NR * knowledge_NR).sum(-1).cpu() / encoder.scale
        if config.gate == "subject":  # which asks less where the subject is named and the relation's words are its own
            named_N = torch.tensor([find_subject(fact.question, fact.subject) >= 0 for fact in chunk])
            lead_N = torch.where(named_N, (own_N + 1) / 2 - config.named_score, own_N - config.unnamed_score)
        else:
            lead_N = own_N - torch.from_numpy(gate_limits(state, queries_NR))
        knowledge.append(knowledge_NR.cpu())
        leads.append(lead_N)
        if isinstance(encoder, SentenceEncoder):
            prompts.append(openings(base, chunk, encoder.prompt_tokens, _tuned_before(state)))
        else:
            prompts.append(encoder.prompts(knowledge_NR).cpu())
        if progress is not None:
            progress("facts encoded", min(begin + config.encode_batch, len(facts)), len(facts))
    return EncodedFacts(torch.cat(knowledge), torch.cat(prompts), torch.cat(leads))


def _tuned_before(state: RecipeState) -> Tensor | None:
    """The prompts `[M, P, D]` of the last rows, at most `EARLIER`; None of a state without tuning."""
    rows = len(state.repository)
    if not rows or not state.config.tuning_steps:
        return None
    return state.repository.prompts(np.arange(max(0, rows - EARLIER), rows))


@torch.no_grad()
def _questions(state: RecipeState, facts: Sequence[FactChange]) -> Tensor:
    """Query representations `[N, R]` of the facts' own questions."""
    return state.encoder.query([fact.question for fact in facts])


def _steering(
    base: BaseModel,
    state: RecipeState,
    facts: Sequence[FactChange],
    prompts_NPD: Tensor,
    progress: Progress | None,
    effort: int,
) -> tuple[Tensor, list[tuple[float, bool]], int]:
    """The facts' prompts, tuned where the encoder's own does not make the model say the target; what `target_losses`
    tells of each; and how many were tuned."""
    config, behind = state.config, state.encoder.behind
    if behind and config.tuning_steps:  # such a prompt says its target behind one phrasing at best as it begins
        losses, wanting = [(math.inf, False)] * len(facts), list(range(len(facts)))
    else:
        losses = _losses(base, prompts_NPD, facts, config, behind)
        wanting = [row for row, (nats, right) in enumerate(losses) if nats >= config.converged_loss or not right]
    if not wanting or not config.tuning_steps:
        return prompts_NPD, losses, 0
    some = [facts[row] for row in wanting]
    tuning = Tuning(
        steps=config.tuning_steps * effort,
        rate=config.tuning_rate,
        enough=ENOUGH * config.converged_loss,
        spread=state.encoder.spread,
    )
    tune = tune_behind if behind else tune_prompts
    tuned_MPD = tune(base, prompts_NPD[wanting], some, tuning, progress)
    for row, told in zip(wanting, _losses(base, tuned_MPD, some, config, behind), strict=True):
        losses[row] = told
    return prompts_NPD.index_copy(0, torch.tensor(wanting), tuned_MPD), losses, len(wanting)


def _losses(
    base: BaseModel, prompts_NPD: Tensor, facts: Sequence[FactChange], config: RecipeConfig, behind: bool
) -> list[tuple[float, bool]]:
    """`target_losses` of each fact's target with its own prompt and question."""
    questions, targets = [fact.question for fact in facts], [fact.target for fact in facts]
    return target_losses(base, prompts_NPD, questions, targets, config.encode_batch, behind=behind)


def _canaries(
    base: BaseModel, prompts_NPD: Tensor, losses: Sequence[tuple[float, bool]], lead_N: Tensor
) -> dict[str, float]:
    """Shares of the batch that find their own knowledge and that their prompt steers, and how long prompts are
    against the model's word embeddings."""
    words_VD = base.model.get_input_embeddings().get_parameter("weight")
    return {
        "found": float((lead_N > 0).float().mean()),
        "steered": sum(right for _, right in losses) / len(losses),
        "prompt_norm": float(prompts_NPD.norm(dim=-1).mean() / words_VD.float().norm(dim=-1).mean()),
    }
