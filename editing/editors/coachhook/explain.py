"""What CoachHooK's hooks do to a prompt, token by token, and the scores that decide about many of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from editing.editors.base import Candidate, Explanation, GateScores, HookedToken
from editing.editors.coachhook.scope import Hooks, ScopeDecision
from editing.editors.coachhook.state import METHOD, CoachHookState
from editing.models import BaseModel
from editing.tokenisation import encode_prompts, find_subject


@torch.no_grad()
def explain(base: BaseModel, state: CoachHookState, prompt: str) -> Explanation:
    """Every token of `prompt` at every edited layer with its score, and the facts whose subject it names.

    Hooks know keys, not facts: `answered_by` is the named fact where there is one only and a token took
    the hook. Raises `StateError` for another base.
    """
    state.require_base(base)
    encoded = encode_prompts(base.tokenizer, [prompt]).to(base.device)
    decisions: list[ScopeDecision] = []
    with Hooks(base, state.layers, state.config, decisions):
        base.model(**encoded, use_cache=False)
    ids = encoded["input_ids"][0].tolist()
    tokens = tuple(
        HookedToken(
            layer=decision.layer,
            position=place,
            token=str(base.tokenizer.decode([ids[place]])),
            score=float(decision.scores[0, place]),
            threshold=state.layers[decision.layer].alpha,
            fired=bool(decision.fired[0, place]),
        )
        for decision in decisions
        for place in range(len(ids))
    )
    fired = [token.score for token in tokens if token.fired]
    named = [fact for fact in state.facts if find_subject(prompt, fact.subject) >= 0]
    return Explanation(
        method=METHOD,
        prompt=prompt,
        asked=prompt,
        answered_by=named[0] if len(named) == 1 and fired else None,
        candidates=tuple(Candidate(fact, max(fired, default=0.0)) for fact in reversed(named)),
        tokens=tokens,
    )


@torch.inference_mode()
def gate_scores(
    base: BaseModel, state: CoachHookState, prompts: Sequence[str], batch_size: int
) -> tuple[GateScores, ...]:
    """The highest score of each prompt's tokens at the last edited layer; none where every token takes the hook."""
    layer = state.config.layers[-1]
    highest: list[float] = []
    for start in range(0, len(prompts), batch_size):
        inputs = encode_prompts(base.tokenizer, prompts[start : start + batch_size]).to(base.device)
        decisions: list[ScopeDecision] = []
        with Hooks(base, state.layers, state.config, decisions):
            base.model(**inputs)
        padding = ~inputs["attention_mask"].bool()
        for decision in decisions:
            if decision.layer == layer:
                highest += decision.scores.masked_fill(padding, float("-inf")).amax(1).tolist()
    if not highest:
        return ()
    return (GateScores("scope-scores", f"Scope scores at layer {layer}", tuple(highest), state.layers[layer].alpha),)
