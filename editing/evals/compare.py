"""Is the candidate worse than the reference? Paired, per-item, one-sided answers.

Three questions are asked of every metric, because "not shown to be worse" is not "shown to be no worse":

- *worse*: H0 "no drop". Right/wrong items: the exact McNemar test (McNemar 1947), which is a
  sign test on the items where the two disagree. Means: a paired bootstrap of the difference.
- *inferior*: H0 "the drop is at most the margin". Right/wrong items: the score test of Tango (Statistics in
  Medicine 17:891, 1998), which stays valid when few or no items disagree. Means: the same bootstrap.
- *non-inferior*: H0 "the drop is at least the margin", by the same tests from the other side.

Items of one record are not independent (the ten neighbourhood prompts of a CounterFact record stand and fall together).
Right/wrong counts are divided by the design effect of the records (Rao and Scott, Biometrics 48:577, 1992), the
bootstrap draws whole records.

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
from scipy.stats import binom, norm, t

from editing.errors import SuiteError
from editing.evals.report import EvalReport

BOOTSTRAP_SAMPLES = 4000
MCNEMAR, BOOTSTRAP = "McNemar exact / Tango score", "paired bootstrap"
_BOOTSTRAP_CELLS = 4_000_000  # counts held at once while drawing
_EXAMPLES = 5
FEWEST_RECORDS = 5  # of 4 records without a drop, 1 of 16 draws says as much: nothing is shown at a level of 0.05
_FEW_DISCORDANT = 10  # records that disagree, below which their likeness cannot be told and is taken to be whole
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Candidate against reference on one metric, over the same `n` items.

    `drop` is reference minus candidate (positive: worse); `drop_bound` its one-sided upper
    confidence bound at level `1 - alpha`. `losses` and `gains` count items scored lower and higher
    than the reference. `p_inferior` is of "no drop", `p_beyond` of "the drop is at most the margin"; both are
    Holm-adjusted where several metrics were compared. `detectable` is the smallest drop that the test would find with
    the stated power. `records` is how many records the items come from.
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
    p_beyond: float | None = None  # None in verdicts of before it was tested
    records: int | None = None

    def is_non_inferior(self, alpha: float) -> bool:
        """Whether the drop is shown to be below the margin."""
        return self.p_non_inferior < alpha

    def is_inferior(self, alpha: float) -> bool:
        """Whether the drop is shown to be beyond the margin."""
        return (self.p_inferior if self.p_beyond is None else self.p_beyond) < alpha and self.drop > self.margin


def mcnemar(losses: float, gains: float) -> float:
    """Exact one-sided p-value of "no drop": P(X >= losses), X ~ Binomial(losses + gains, 1/2).

    Counts that a design effect has made fractions are rounded against the finding: losses down, gains up.
    """
    losses, gains = math.floor(losses + 1e-9), math.ceil(gains - 1e-9)
    return float(binom.sf(losses - 1, losses + gains, 0.5)) if losses + gains else 1.0


def _tango_z(losses: float, gains: float, n: float, drop: float) -> float:
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


def tango(losses: float, gains: float, n: float, margin: float) -> float:
    """One-sided p-value of "the drop is at least `margin`" for `n` paired right/wrong items."""
    return float(norm.cdf(_tango_z(losses, gains, n, margin)))


def tango_beyond(losses: float, gains: float, n: float, margin: float) -> float:
    """One-sided p-value of "the drop is at most `margin`"; 1 where the observed drop is."""
    return float(norm.sf(_tango_z(losses, gains, n, margin))) if losses - gains > n * margin else 1.0


def tango_bound(losses: float, gains: float, n: float, alpha: float) -> float:
    """Upper confidence bound of the drop at level `1 - alpha`: the margin where `tango` gives `alpha`."""
    observed, z = (losses - gains) / n, norm.ppf(alpha)
    top = 1 - 1e-9
    if _tango_z(losses, gains, n, top) > z:
        return 1.0
    low = max(observed, -top)
    return float(brentq(lambda drop: _tango_z(losses, gains, n, drop) - z, low, top)) if low < top else 1.0


def design_effect(drops: Sequence[float], records: Sequence[Hashable]) -> float:
    """How many times the variance of the mean drop grows because items of one record go together; at least 1.

    Estimated from the records' summed residuals, and at most what wholly like items would give. Where too few records
    disagree to tell, or none does, the items of a record count as wholly alike.
    """
    residuals_N = np.asarray(drops, dtype=np.float64) - math.fsum(drops) / len(drops)
    _, index_N = np.unique([str(record) for record in records], return_inverse=True)
    sizes_R = np.bincount(index_N)
    most = float((sizes_R**2).sum() / sizes_R.sum())
    discordant = np.count_nonzero(np.bincount(index_N, weights=np.abs(np.asarray(drops, dtype=np.float64))))
    if most == 1 or discordant < _FEW_DISCORDANT:
        return most
    sums_R, n = np.bincount(index_N, weights=residuals_N), len(residuals_N)
    between = (sums_R**2).sum() * len(sizes_R) / (len(sizes_R) - 1)
    within = (residuals_N**2).sum() * n / (n - 1)
    return float(min(max(between / within, 1.0), most)) if within else most


def bootstrap(
    drops: Sequence[float],
    *,
    seed: int,
    samples: int = BOOTSTRAP_SAMPLES,
    records: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """Means `[samples]` of paired drops drawn with replacement (Efron 1979); the same seed gives the same.

    Whole records are drawn where `records` says which each drop is of (None: each of its own).
    """
    values_N = np.asarray(drops, dtype=np.float64)
    index_N = np.arange(len(values_N))
    if records is not None:
        _, index_N = np.unique([str(record) for record in records], return_inverse=True)
    sums_R, sizes_R = np.bincount(index_N, weights=values_N), np.bincount(index_N).astype(np.float64)
    kinds_K2, counts_K = np.unique(np.stack([sums_R, sizes_R], axis=1), axis=0, return_counts=True)
    n, rng = counts_K.sum(), np.random.default_rng(seed)
    chunk = max(1, _BOOTSTRAP_CELLS // len(kinds_K2))
    sizes = [min(chunk, samples - start) for start in range(0, samples, chunk)]
    drawn = np.concatenate([rng.multinomial(n, counts_K / n, size=size) @ kinds_K2 for size in sizes])
    return drawn[:, 0] / drawn[:, 1]


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Adjusted p-values that keep the family-wise error (Holm 1979), in the order given."""
    adjusted: dict[K, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], str(name)))):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def detectable_drop(n: float, *, alpha: float, power: float, discordance: float) -> float:
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

    if n <= 0 or shortfall(1.0) > 0:
        return 1.0
    return float(brentq(shortfall, 1e-12, 1.0))


def detectable_shift(drops: Sequence[float], *, alpha: float, power: float, deff: float = 1.0) -> float:
    """Smallest mean drop that a one-sided paired test finds with `power` when single drops scatter as these do.

    `deff` is their design effect. 1.0, as in `detectable_drop`, for a single item, which shows no scatter.
    """
    if len(drops) < 2:
        return 1.0
    error = np.std(drops, ddof=1) * math.sqrt(deff / len(drops))
    return float((norm.ppf(1 - alpha) + norm.ppf(power)) * error)


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

    The p-values of a drop are Holm-adjusted over these metrics. Raises `SuiteError` when a metric is missing
    from a report or the items differ.
    """
    return adjust(paired_tests(candidate, reference, margins, alpha=alpha, power=power, seed=seed))


def adjust(comparisons: Mapping[K, Comparison]) -> dict[K, Comparison]:
    """The comparisons, of which all stand or fall together, with `p_inferior` and `p_beyond` Holm-adjusted."""
    worse = holm({key: comparison.p_inferior for key, comparison in comparisons.items()})
    beyond = holm({key: c.p_beyond for key, c in comparisons.items() if c.p_beyond is not None})
    return {
        key: replace(comparison, p_inferior=worse[key], p_beyond=beyond.get(key))
        for key, comparison in comparisons.items()
    }


def paired_tests(
    candidate: EvalReport,
    reference: EvalReport,
    margins: Mapping[str, float],
    *,
    alpha: float,
    power: float,
    seed: int,
) -> dict[str, Comparison]:
    """`compare` with each p-value as its own test gives it."""
    raw: dict[str, Comparison] = {}
    for metric, margin in margins.items():
        require_same_items(candidate, reference, metric)
        ours, theirs = candidate.items(metric), reference.items(metric)
        drops = {item: theirs[item].score - ours[item].score for item in sorted(ours)}
        records = [ours[item].record or item for item in drops]
        losses, gains = (sum(sign * d > 0 for d in drops.values()) for sign in (1, -1))
        binary = candidate.metrics[metric].binary
        test = _binary if binary else _graded
        raw[metric] = Comparison(
            metric=metric,
            test=MCNEMAR if binary else BOOTSTRAP,
            n=len(drops),
            candidate=candidate.metrics[metric].value,
            reference=reference.metrics[metric].value,
            drop=math.fsum(drops.values()) / len(drops),
            margin=margin,
            losses=losses,
            gains=gains,
            lost_items=tuple(sorted((i for i in drops if drops[i] > 0), key=lambda i: (-drops[i], i))[:_EXAMPLES]),
            records=len(set(records)),
            **test(list(drops.values()), records, margin, alpha=alpha, power=power, seed=seed),
        )
    return raw


def _binary(
    drops: list[float], records: list[str], margin: float, *, alpha: float, power: float, seed: int
) -> dict[str, float]:
    """The p-values, bound and detectable drop of right/wrong items; nothing is drawn, so `seed` is not used."""
    deff = design_effect(drops, records)
    losses, gains = (sum(sign * d > 0 for d in drops) / deff for sign in (1, -1))
    n = len(drops) / deff
    return {
        "p_inferior": mcnemar(losses, gains),
        "p_beyond": tango_beyond(losses, gains, n, margin),
        "p_non_inferior": tango(losses, gains, n, margin),
        "drop_bound": tango_bound(losses, gains, n, alpha),
        "detectable": detectable_drop(n, alpha=alpha, power=power, discordance=(losses + gains) / n),
    }


def _graded(
    drops: list[float], records: list[str], margin: float, *, alpha: float, power: float, seed: int
) -> dict[str, float]:
    """The same of graded items; fewer than `FEWEST_RECORDS` records show nothing.

    The drawn means are spread by what a few records' scatter is short of (the expanded percentiles of Hesterberg, The
    American Statistician 69:371, 2015): without it 5 records err three times as often as they should.
    """
    n_records = len(set(records))
    if n_records < FEWEST_RECORDS:
        return {
            "p_inferior": 1.0,
            "p_beyond": 1.0,
            "p_non_inferior": 1.0,
            "drop_bound": max(1.0, *drops),
            "detectable": 1.0,
        }
    spread = math.sqrt(n_records / (n_records - 1)) * t.ppf(1 - alpha, n_records - 1) / norm.ppf(1 - alpha)
    drop = math.fsum(drops) / len(drops)
    means = drop + spread * (bootstrap(drops, seed=seed, records=records) - drop)
    p_inferior, p_beyond, p_non_inferior = (
        (float(extreme.sum()) + 1) / (len(means) + 1) for extreme in (means <= 0, means <= margin, means >= margin)
    )
    return {
        "p_inferior": p_inferior,
        "p_beyond": p_beyond,
        "p_non_inferior": p_non_inferior,
        "drop_bound": float(np.quantile(means, 1 - alpha)),
        "detectable": detectable_shift(drops, alpha=alpha, power=power, deff=design_effect(drops, records)),
    }
