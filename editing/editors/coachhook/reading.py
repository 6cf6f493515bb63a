"""What a state's hooks reach in given texts: the telemetry of CoachHooK.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from editing.editors.base import Row, ScopeReading, continuation_from
from editing.editors.coachhook.scope import Hooks, ScopeDecision
from editing.editors.coachhook.state import CoachHookState
from editing.models import BaseModel
from editing.models.trace import output_of
from editing.tokenisation import pad, padding_id


@torch.inference_mode()
def read_scope(base: BaseModel, state: CoachHookState, rows: Sequence[Row], batch_size: int) -> list[ScopeReading]:
    """Tokens whose hook fires at any layer, and the highest score over layers and tokens.

    Scores are in units of the layer's own threshold, so that layers compare; the threshold is 1.
    """
    if state.config.scope == "always":
        return [ScopeReading(len(a) + len(b), len(a) + len(b), math.inf, 1.0) for a, b in rows]
    top = base.down_projection(max(state.layers))
    readings: dict[int, ScopeReading] = {}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids_BT, mask_BT = (
            each.to(base.device)
            for each in pad([(*rows[i][0], *rows[i][1]) for i in chosen], padding_id(base.tokenizer), side="right")
        )
        column_B = torch.tensor([len(rows[i][0]) for i in chosen], device=ids_BT.device)
        decisions: list[ScopeDecision] = []
        with Hooks.of(base, state, decisions), continuation_from(column_B):
            output_of(base.model.base_model, top, input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        real_BT = mask_BT.bool()
        fired_BT = torch.zeros_like(real_BT)
        score_B = torch.full((len(chosen),), -math.inf)
        for decision in decisions:
            fired_BT |= decision.fired.to(real_BT.device)
            relative_BT = decision.scores.to(real_BT.device) / state.layers[decision.layer].alpha
            score_B = torch.maximum(score_B, relative_BT.masked_fill(~real_BT, -math.inf).amax(1).float().cpu())
        facts_B = _named(state, decisions[0], real_BT)
        counts = real_BT.sum(1).tolist(), (fired_BT & real_BT).sum(1).tolist(), score_B.tolist()
        found = (ScopeReading(n, k, s, 1.0, fact) for n, k, s, fact in zip(*counts, facts_B, strict=True))
        readings.update(zip(chosen, found, strict=True))
    return [readings[i] for i in range(len(rows))]


def _named(state: CoachHookState, decision: ScopeDecision, real_BT: torch.Tensor) -> list[str | None]:
    """Of each row the fact whose key fired best, where the leverage scope names one."""
    if state.gate is None or decision.keys is None:
        return [None] * len(real_BT)
    scores_BT = decision.scores.masked_fill(~(decision.fired & real_BT.to(decision.fired.device)), -math.inf)
    best_B = scores_BT.max(dim=1)
    rows_B = decision.keys.gather(1, best_B.indices[:, None])[:, 0].tolist()
    return [
        state.fact_of(row) if math.isfinite(score) else None
        for row, score in zip(rows_B, best_B.values.tolist(), strict=True)
    ]


def gauges(state: CoachHookState) -> dict[str, float]:
    """Each layer's threshold, where it has one yet; of the leverage scope the highest and the mean of its keys'."""
    if state.gate is not None:
        thresholds = state.gate.thresholds
        return {"highest r": float(thresholds.max()), "mean r": float(thresholds.mean())} if len(thresholds) else {}
    return {
        f"alpha, layer {layer}": content.alpha
        for layer, content in sorted(state.layers.items())
        if math.isfinite(content.alpha)
    }
