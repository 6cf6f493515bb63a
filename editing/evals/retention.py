"""The forgetting curve: how many of the facts asked at each age are still answered.

Every night asks some facts again; each answer is one observation at the fact's age. Shares carry Wilson's score
interval (Wilson 1927), since old ages are asked less often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from scipy.stats import norm

LEVEL = 0.95
EDGES = (0, 7, 30, 90, 180, 365, 730, 1095, 1460, 1825, 2190)  # lower ends of the ages, in days


class Asked(NamedTuple):
    """One question about one applied fact: its age in days, and whether it was answered."""

    days: int
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgePoint:
    """Facts asked at an age of `from_days` to below `to_days` (None: no end): how many, and the share answered.

    `low` and `high` are the interval at 95%.
    """

    from_days: int
    to_days: int | None
    asked: int
    answered: float
    low: float
    high: float


def wilson(right: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The score interval of a share of `right` among `n` (n at least 1); it always holds the share itself."""
    z = float(norm.ppf((1 + level) / 2))
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, min(share, centre - spread)), min(1.0, max(share, centre + spread))


def forgetting_curve(observations: Iterable[Asked]) -> list[AgePoint]:
    """One point for each age at which something was asked, youngest first."""
    counts: dict[int, list[int]] = {}
    for asked in observations:
        if asked.days < 0:
            raise ValueError(f"a fact cannot be asked {-asked.days} days before it was applied")
        counted = counts.setdefault(max(edge for edge in EDGES if edge <= asked.days), [0, 0])
        counted[0] += asked.right
        counted[1] += 1
    ends = dict(pairwise(EDGES))
    points = []
    for edge, (right, n) in sorted(counts.items()):
        low, high = wilson(right, n)
        points.append(AgePoint(from_days=edge, to_days=ends.get(edge), asked=n, answered=right / n, low=low, high=high))
    return points
