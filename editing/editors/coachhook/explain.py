"""What CoachHooK's hooks do to a prompt, token by token, and the scores that decide about many of them."""

from __future__ import annotations

from math import isfinite

import torch

from editing.editors.base import Candidate, Explanation, HookedToken
from editing.editors.coachhook.scope import Hooks, ScopeDecision
from editing.editors.coachhook.state import METHOD, CoachHookState
from editing.models import BaseModel
from editing.tokenisation import encode_prompts, find_subject


@torch.no_grad()
def explain(base: BaseModel, state: CoachHookState, prompt: str) -> Explanation:
    """Every token of `prompt` at every edited layer with its score, and the facts whose subject it names.

    `answered_by` is the fact whose key fired best in the leverage scope. In the others hooks know keys, not facts: it
    is the named fact where there is one only and a token took the hook. Raises `StateError` for another base.
    """
    state.require_base(base)
    encoded = encode_prompts(base.tokenizer, [prompt], form=base.form).to(base.device)
    decisions: list[ScopeDecision] = []
    with Hooks.of(base, state, decisions):
        base.model(**encoded, use_cache=False)
    ids = encoded["input_ids"][0].tolist()
    thresholds = {layer: content.alpha if isfinite(content.alpha) else None for layer, content in state.layers.items()}
    tokens = tuple(
        HookedToken(
            layer=decision.layer,
            position=place,
            token=str(base.tokenizer.decode([ids[place]])),
            score=float(decision.scores[0, place]),
            threshold=thresholds[decision.layer],
            fired=bool(decision.fired[0, place]),
        )
        for decision in decisions
        for place in range(len(ids))
    )
    fired = [token.score for token in tokens if token.fired]
    keys = decisions[0].keys
    if keys is not None and fired:
        best = max((token for token in tokens if token.fired), key=lambda token: token.score)
        named = list(state.facts_of(int(keys[0, best.position])))
    else:
        named = [fact for fact in state.facts if find_subject(prompt, fact.subject) >= 0]
    return Explanation(
        method=METHOD,
        prompt=prompt,
        asked=prompt,
        answered_by=named[0] if len(named) == 1 and fired else None,
        candidates=tuple(Candidate(fact, max(fired, default=0.0)) for fact in reversed(named)),
        tokens=tokens,
    )
