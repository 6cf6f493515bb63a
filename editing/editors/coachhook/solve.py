"""The closed-form update of one layer.

Shapes: N keys, D model width, F inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from editing.errors import EditRefusedError


def condition_estimate(matrix: Tensor, factor: Tensor, iterations: int = 12) -> float:
    """Ratio of extreme eigenvalues of a symmetric positive definite `matrix` `[F, F]` by power iteration.

    `factor` is its lower Cholesky factor, used for the inverse. An estimate from below.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), 1, generator=generator, dtype=torch.float64).to(matrix.device)
    high = low = start / start.norm()
    largest = smallest_inverse = torch.tensor(1.0)
    for _ in range(iterations):
        high = matrix @ high
        largest = high.norm()
        high = high / largest
        low = torch.cholesky_solve(low, factor)
        smallest_inverse = low.norm()
        low = low / smallest_inverse
    return float(largest) * float(smallest_inverse)


def solve_update(
    moment_FF: Tensor, keys_NF: Tensor, residual_ND: Tensor, *, layer: int, max_condition: float
) -> Tensor:
    """`R K^T (C + K K^T)^-1` `[D, F]`, float64 (MEMIT, arXiv 2210.07229, equation 14).

    `moment_FF` is `lambda C0` plus, as CoachHooK (arXiv 2403.05330) accumulates it, the keys of earlier batches.

    Rows of `keys_NF` and `residual_ND` are K's and R's columns. Raises `EditRefusedError` when the
    system is not positive definite, worse conditioned than `max_condition`, or its solution not finite.
    """
    keys = keys_NF.double()
    system_FF = moment_FF.double() + keys.T @ keys
    factor, failed = torch.linalg.cholesky_ex(system_FF)
    if failed:
        raise EditRefusedError(
            f"layer {layer}: the second moment plus {len(keys)} keys is not positive definite; "
            "compute the statistics over more tokens or raise moment_ridge"
        )
    condition = condition_estimate(system_FF, factor)
    if not condition <= max_condition:
        raise EditRefusedError(
            f"layer {layer}: condition estimate {condition:.2g} exceeds max_condition {max_condition:.2g}; "
            "compute the statistics over more tokens, raise moment_ridge or apply fewer facts at once"
        )
    update_DF = (torch.cholesky_solve(keys.T, factor) @ residual_ND.double()).T
    if not torch.isfinite(update_DF).all():
        raise EditRefusedError(
            f"layer {layer}: the update of {len(keys)} keys is not finite; check that the base model computes in a "
            "dtype that holds its activations"
        )
    return update_DF
