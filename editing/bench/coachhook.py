"""CoachHooK and its ablations over a history of edits: the variants of `errata bench coachhook`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from editing.bench.replay import History, bench_replay
from editing.editors.base import Progress
from editing.editors.coachhook import CoachHook, CoachHookConfig
from editing.evals.suite import Suite
from editing.models import BaseModel
from editing.statistics import SecondMoments

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "leverage": {"scope": "leverage"},
    "calibrated": {"scope": "calibrated"},
    "sequence": {"scope": "sequence"},
    "no_hook": {"scope": "always"},
    "memit": {"scope": "always", "accumulate": False},
    "no_preservation": {"preservation": 0.0},
}


def bench_coachhook(
    base: BaseModel,
    statistics: SecondMoments,
    history: History,
    suites: Sequence[Suite],
    config: CoachHookConfig,
    *,
    batch_size: int = 10,
    variants: Sequence[str] = tuple(VARIANTS),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`bench_replay` of `config` under each of `variants`; the one with the config's scope is the default."""
    default = config.scope if config.scope in variants else variants[0]
    configs = {name: replace(config, **VARIANTS[name]) for name in variants}
    return bench_replay(
        base, CoachHook(), statistics, history, suites, configs, default, batch_size=batch_size, progress=progress
    )
