"""The learning rate over a training."""

from __future__ import annotations

import math

from editing.editors.recipe.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int, steps: int, highest: float) -> float:
    """The rate of the step `step` (from 0) of `steps`: up from 0 over the warm-up, then as `config.schedule` says."""
    rate = highest * min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        done = max(0.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
        rate *= 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
    return rate
