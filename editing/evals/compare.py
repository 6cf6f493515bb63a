"""Is the candidate worse than the reference? Paired, per-item, one-sided answers.

Two questions are asked of every metric, because "not shown to be worse" is not "shown to be no worse":

- *inferior*: H0 "no drop". Right/wrong items: the exact McNemar test (McNemar 1947), which is a
  sign test on the items where the two disagree. Means: a paired bootstrap of the difference.
- *non-inferior* to a margin: H0 "the drop is at least the margin". Right/wrong items: the score
  test of Tango (Statistics in Medicine 17:891, 1998), which stays valid when few or no
  items disagree. Means: the same bootstrap.

Saying that something is worse when many metrics are looked at needs a correction (`holm`).
Promotion needs every metric to be non-inferior, an intersection-union test, which needs none
(Berger 1982).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm

from editing.errors import SuiteError
from editing.evals.report import EvalReport

BOOTSTRAP_SAMPLES = 4000
MCNEMAR, BOOTSTRAP = "McNemar exact / Tango score", "paired bootstrap"
_BOOTSTRAP_CELLS = 4_000_000  # counts held at once while drawing
_EXAMPLES = 5
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate against reference on one metric, over the same `n` items.

    `drop` is reference minus candidate (positive: worse); `drop_bound` its one-sided upper
    confidence bound at level `1 - alpha`. `losses` and `gains` count items scored lower and higher
    than the reference. `p_inferior` is Holm-adjusted where several metrics were compared.
    `detectable` is the smallest drop that the test would find with the stated power.
    """

    metric: str
    test: str
    n: int
    candidate: float
    reference: float
    drop: float
    drop_bound: float
    margin: float
    p_inferior: float
    p_non_inferior: float
    losses: int
    gains: int
    detectable: float
    lost_items: tuple[str, ...]

    def is_non_inferior(self, alpha: float) -> bool:
        """Whether the drop is shown to be below the margin."""
        return self.p_non_inferior < alpha

    def is_inferior(self, alpha: float) -> bool:
        """Whether a drop is shown, and the observed one is beyond the margin."""
        return self.p_inferior < alpha and self.drop > self.margin


def mcnemar(losses: int, gains: int) -> float:
    """Exact one-sided p-value of "no drop": P(X >= losses), X ~ Binomial(losses + gains, 1/2)."""
    return float(binom.sf(losses - 1, losses + gains, 0.5)) if losses + gains else 1.0


def _tango_z(losses: int, gains: int, n: int, drop: float) -> float:
    """Score statistic of "the drop is `drop`": negative when fewer items were lost than that.

    The nuisance parameter, the share of gains, is its maximum-likelihood estimate given the drop.
    """
    b = -(losses + gains) + (2 * n - losses + gains) * drop
    root = math.sqrt(max(b * b + 8 * n * gains * drop * (1 - drop), 0.0))
    gain_share = max((root - b) / (4 * n), 0.0)
    variance = n * (2 * gain_share + drop * (1 - drop))
    excess = losses - gains - n * drop
    if variance <= 0:
        return 0.0 if excess == 0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def tango(losses: int, gains: int, n: int, margin: float) -> float:
    """One-sided p-value of "the drop is at least `margin`" for `n` paired right/wrong items."""
    return float(norm.cdf(_tango_z(losses, gains, n, margin)))


def tango_bound(losses: int, gains: int, n: int, alpha: float) -> float:
    """Upper confidence bound of the drop at level `1 - alpha`: the margin where `tango` gives `alpha`."""
    observed, z = (losses - gains) / n, norm.ppf(alpha)
    top = 1 - 1e-9
    if _tango_z(losses, gains, n, top) > z:
        return 1.0
    low = max(observed, -top)
    return float(brentq(lambda drop: _tango_z(losses, gains, n, drop) - z, low, top)) if low < top else 1.0


def bootstrap(drops: Sequence[float], *, seed: int, samples: int = BOOTSTRAP_SAMPLES) -> np.ndarray:
    """Means `[samples]` of paired drops drawn with replacement (Efron 1979); the same seed gives the same."""
    values, counts = np.unique(np.asarray(drops, dtype=np.float64), return_counts=True)
    n, rng = counts.sum(), np.random.default_rng(seed)
    chunk = max(1, _BOOTSTRAP_CELLS // len(values))
    sizes = [min(chunk, samples - start) for start in range(0, samples, chunk)]
    return np.concatenate([rng.multinomial(n, counts / n, size=size) @ values / n for size in sizes])


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Adjusted p-values that keep the family-wise error (Holm 1979), in the order given."""
    adjusted: dict[K, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], str(name)))):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def detectable_drop(n: int, *, alpha: float, power: float, discordance: float) -> float:
    """Smallest drop that a one-sided paired test over `n` right/wrong items finds with `power`.

    `discordance` is the share of items on which the two models are expected to disagree anyway; a
    drop cannot be larger than the share it implies. Normal approximation of McNemar's test
    (Connor, Biometrics 43:207, 1987): sqrt(n) d = z_alpha sqrt(psi) + z_power sqrt(psi - d^2). 1.0 means that
    no drop can be found.
    """
    z_alpha, z_power = norm.ppf(1 - alpha), norm.ppf(power)

    def shortfall(drop: float) -> float:
        psi = max(discordance, drop)
        return z_alpha * math.sqrt(psi) + z_power * math.sqrt(max(psi - drop * drop, 0.0)) - math.sqrt(n) * drop

    if n < 1 or shortfall(1.0) > 0:
        return 1.0
    return float(brentq(shortfall, 1e-12, 1.0))


def detectable_shift(drops: Sequence[float], *, alpha: float, power: float) -> float:
    """Smallest mean drop that a one-sided paired test finds with `power` when single drops scatter as these do."""
    return float((norm.ppf(1 - alpha) + norm.ppf(power)) * np.std(drops) / math.sqrt(len(drops)))


def items_needed(margin: float, *, alpha: float, power: float, discordance: float) -> int:
    """The fewest items for which `detectable_drop` is at most `margin`."""
    low, high = 1, 2
    while detectable_drop(high, alpha=alpha, power=power, discordance=discordance) > margin:
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        if detectable_drop(middle, alpha=alpha, power=power, discordance=discordance) > margin:
            low = middle + 1
        else:
            high = middle
    return low


def require_same_items(candidate: EvalReport, reference: EvalReport, metric: str) -> None:
    """Raise `SuiteError` unless both reports asked the same items in the same way, on one base."""
    ours, theirs = candidate.items(metric), reference.items(metric)
    suite = next(iter(ours.values())).suite
    mine, other = candidate.suites[suite], reference.suites[suite]
    conditions = [
        ("suite version", mine.version, other.version),
        ("suite content", mine.digest[:12], other.digest[:12]),
        ("base", candidate.base_fingerprint[:12], reference.base_fingerprint[:12]),
        ("tokenizer", candidate.tokenizer_hash[:12], reference.tokenizer_hash[:12]),
        ("batch size", candidate.batch_size, reference.batch_size),
        ("dtype", candidate.dtype, reference.dtype),
        ("packages", dict(candidate.packages), dict(reference.packages)),
    ]
    for what, a, b in conditions:
        if a != b:
            raise SuiteError(f"{metric} cannot be compared: {what} is {a} and {b}; evaluate both models in one run")
    if ours.keys() != theirs.keys():
        odd = min(ours.keys() ^ theirs.keys())
        raise SuiteError(f"{metric} cannot be compared: item {odd!r} is in one report only; evaluate both in one run")


def compare(
    candidate: EvalReport,
    reference: EvalReport,
    margins: Mapping[str, float],
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare every metric of `margins` (full name to the largest drop that is acceptable), item by item.

    `p_inferior` is Holm-adjusted over these metrics. Raises `SuiteError` when a metric is missing
    from a report or the items differ.
    """
    return adjust(paired_tests(candidate, reference, margins, alpha=alpha, power=power, seed=seed))


def adjust(comparisons: Mapping[K, Comparison]) -> dict[K, Comparison]:
    """The comparisons, of which all stand or fall together, with `p_inferior` Holm-adjusted."""
    adjusted = holm({key: comparison.p_inferior for key, comparison in comparisons.items()})
    return {key: replace(comparison, p_inferior=adjusted[key]) for key, comparison in comparisons.items()}


def paired_tests(
    candidate: EvalReport,
    reference: EvalReport,
    margins: Mapping[str, float],
    *,
    alpha: float,
    power: float,
    seed: int,
) -> dict[str, Comparison]:
    """`compare` with each `p_inferior` as its own test gives it."""
    raw: dict[str, Comparison] = {}
    for metric, margin in margins.items():
        require_same_items(candidate, reference, metric)
        ours, theirs = candidate.items(metric), reference.items(metric)
        drops = {item: theirs[item].score - ours[item].score for item in sorted(ours)}
        n, drop = len(drops), math.fsum(drops.values()) / len(drops)
        losses, gains = (sum(sign * d > 0 for d in drops.values()) for sign in (1, -1))
        binary = candidate.metrics[metric].binary
        if binary:
            p_inferior, p_non_inferior = mcnemar(losses, gains), tango(losses, gains, n, margin)
            bound = tango_bound(losses, gains, n, alpha)
            spread = detectable_drop(n, alpha=alpha, power=power, discordance=(losses + gains) / n)
        else:
            means = bootstrap(list(drops.values()), seed=seed)
            p_inferior, p_non_inferior = (
                (float(extreme.sum()) + 1) / (len(means) + 1) for extreme in (means <= 0, means >= margin)
            )
            bound = float(np.quantile(means, 1 - alpha))
            spread = detectable_shift(list(drops.values()), alpha=alpha, power=power)
        raw[metric] = Comparison(
            metric=metric,
            test=MCNEMAR if binary else BOOTSTRAP,
            n=n,
            candidate=candidate.metrics[metric].value,
            reference=reference.metrics[metric].value,
            drop=drop,
            drop_bound=bound,
            margin=margin,
            p_inferior=p_inferior,
            p_non_inferior=p_non_inferior,
            losses=losses,
            gains=gains,
            detectable=spread,
            lost_items=tuple(sorted((i for i in drops if drops[i] > 0), key=lambda i: (-drops[i], i))[:_EXAMPLES]),
        )
    return raw
