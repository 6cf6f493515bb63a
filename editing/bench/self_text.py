"""How far second moments over a model's own text are from those over real text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from editing.editors.base import Progress
from editing.editors.coachhook.config import CoachHookConfig
from editing.errors import StatisticsError
from editing.models import BaseModel
from editing.statistics import SecondMoments, compute_second_moments


def compare_corpora(
    base: BaseModel,
    own: Sequence[str],
    real: Sequence[str],
    layers: Sequence[int],
    *,
    tokens: int,
    max_length: int = 256,
    ridge: float | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Moments over `own` texts, and over half of the `real` ones, judged by the other half; a row per layer.

    `frobenius` is the relative distance of the moments from the held-out half's, `|C - H| / |H|`, for
    own and real text. `leverage` is the mean over held-out keys of `k^T (C + r I)^-1 k / F`, with
    `r = ridge * tr(C) / F` (default: the editor's `moment_ridge`): how freely an edit may move what the
    model does with such a key; 1 where the keys are distributed as those of C. `leverage_99` is the
    99% quantile. Each sample has at most `tokens` tokens. Raises `StatisticsError` for fewer than two
    real texts.
    """
    if len(real) < 2:
        raise StatisticsError(f"{len(real)} real texts cannot be halved; give a corpus with more")
    shuffled = list(real)
    random.Random(0).shuffle(shuffled)

    def moments(texts: Sequence[str]) -> SecondMoments:
        return compute_second_moments(base, texts, layers, max_tokens=tokens, max_length=max_length, progress=progress)

    made = {"own": moments(own), "real": moments(shuffled[::2])}
    held_out = moments(shuffled[1::2])
    ridge = CoachHookConfig(layers=tuple(sorted(layers))).moment_ridge if ridge is None else ridge
    rows = []
    for layer in sorted(layers):
        row: dict[str, Any] = {"layer": layer}
        for name, statistics in made.items():
            moment_FF, truth_FF = statistics.moments[layer].double(), held_out.moments[layer].double()
            leverages = _leverages(moment_FF, held_out.background[layer].double(), ridge)
            row[name] = {
                "tokens": statistics.n_tokens,
                "frobenius": float(torch.linalg.matrix_norm(moment_FF - truth_FF) / torch.linalg.matrix_norm(truth_FF)),
                "leverage": float(leverages.mean()),
                "leverage_99": float(leverages.quantile(0.99)),
            }
        rows.append(row)
    return rows


def _leverages(moment_FF: Tensor, keys_SF: Tensor, ridge: float) -> Tensor:
    """`k^T (C + r I)^-1 k / F` of each key `[S]`."""
    inner = len(moment_FF)
    shift = ridge * moment_FF.diagonal().mean() * torch.eye(inner, dtype=moment_FF.dtype)
    factor_FF = torch.linalg.cholesky(moment_FF + shift)
    whitened_FS = torch.linalg.solve_triangular(factor_FF, keys_SF.T, upper=False)
    return whitened_FS.square().sum(0) / inner
