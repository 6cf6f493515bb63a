"""What a candidate has to show: floors and margins, and whether the suites can decide them at all."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Self

from editing.errors import PolicyError
from editing.evals.compare import detectable_drop, detectable_shift, items_needed
from editing.evals.suite import Suite

TABLES = ("floors", "champion_margins", "base_margins")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a candidate has to show. Metrics go by full name, `suite.metric.protocol`.

    `floors`: the least acceptable mean. `champion_margins` and `base_margins`: the largest
    acceptable drop against each, as a share (0.02 is two points). `discordance`: the share of
    items on which two healthy models are expected to disagree, for the size check.
    """

    floors: Mapping[str, float] = field(default_factory=dict)
    champion_margins: Mapping[str, float] = field(default_factory=dict)
    base_margins: Mapping[str, float] = field(default_factory=dict)
    alpha: float = 0.05
    power: float = 0.8
    discordance: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        margins = [*self.champion_margins.items(), *self.base_margins.items()]
        for kind, table in (("floor", list(self.floors.items())), ("margin", margins)):
            for name, value in table:
                if name.count(".") != 2 or not all(name.split(".")):
                    raise PolicyError(f"{kind} names metric {name!r}; write suite.metric.protocol")
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise PolicyError(f"{kind} of {name} is {value!r}; give a share between 0 and 1")
                if not 0 <= value <= 1 or (kind == "margin" and value in (0, 1)):
                    raise PolicyError(f"{kind} of {name} is {value}; give a share between 0 and 1")
        for name, value, low, high in (("alpha", self.alpha, 0.0, 0.5), ("power", self.power, 0.5, 1.0)):
            if not low < value < high:
                raise PolicyError(f"{name} is {value}; give a value above {low} and below {high}")
        if not 0 <= self.discordance <= 1:
            raise PolicyError(f"discordance is {self.discordance}; give a share between 0 and 1")
        if not self.floors and not margins:
            raise PolicyError("the policy has no floor and no margin; it would promote anything")

    @classmethod
    def changed(cls, default: Mapping[str, Mapping[str, float]], changes: Mapping[str, Any]) -> Self:
        """The policy of these `default` tables with a user's `changes`.

        A table of the changes adds to the default's; `false` takes away a metric's limit, or a whole table. Raises
        `PolicyError` for a name that is no field, and as the policy does.
        """
        names = [field.name for field in fields(cls)]
        for name in changes:
            if name not in names:
                raise PolicyError(f"[gate.policy] has no {name!r}; {_instead(name, names)}")
        given = dict(changes)
        for table in TABLES:
            added = given.pop(table, {})
            if added is False:
                merged: dict[str, Any] = {}
            elif isinstance(added, Mapping):
                merged = {**default.get(table, {}), **added}
            else:
                raise PolicyError(f"{table} is {added!r}; write a table of metrics, or false for none")
            given[table] = {metric: limit for metric, limit in merged.items() if limit is not False}
        return cls(**given)

    def check(self, suites: Iterable[Suite], also: Iterable[str] = ()) -> None:
        """Raise `PolicyError` unless these suites can decide this policy; to be called before the night.

        Every metric must be one of theirs, or of `also` (those of suites whose items the night brings), and every
        margin must be detectable on its items.
        """
        suites = list(suites)
        sizes = {metric: n for suite in suites for metric, n in suite.metric_sizes().items()}
        require_suites(self.metrics, {suite.name for suite in suites})
        measured = [*sizes, *also]
        having = {metric.split(".", 1)[0] for metric in measured}
        for metric in self.metrics:
            if metric not in measured and metric.split(".", 1)[0] in having:
                raise PolicyError(f"the policy names {metric}, which nothing measures; {_instead(metric, measured)}")
        setting = {"alpha": self.alpha, "power": self.power, "discordance": self.discordance}
        complaints = []
        for metric, margin in _smallest(self.champion_margins, self.base_margins).items():
            n = sizes.get(metric, 0)
            found = detectable_drop(n, **setting)
            if found > margin:
                complaints.append(
                    f"{metric} has {n} items, which detect a drop of {found:.3f}, not its margin of {margin:g}: "
                    f"give it {items_needed(margin, **setting)} items or a margin of {_round_up(found)}"
                )
        if complaints:
            raise PolicyError("; ".join(complaints))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that the policy names, each once."""
        return tuple(dict.fromkeys([*self.floors, *self.champion_margins, *self.base_margins]))

    def sensitivity(self, suites: Iterable[Suite]) -> list[Sensitivity]:
        """What drop each metric of these suites can show, as far as it is known before anything is measured.

        A graded metric's drop depends on how its items scatter, which only the night shows.
        """
        sizes = {metric: n for suite in suites for metric, n in suite.metric_sizes().items() if n}
        return [sensitivity_of(self, metric, n) for metric, n in sorted(sizes.items())]

    def part(self, metrics: Mapping[str, Collection[str]]) -> Self:
        """The policy with these metrics of each table alone (`floors`, `champion_margins`, `base_margins`)."""

        def only(table: str) -> dict[str, float]:
            limits: Mapping[str, float] = getattr(self, table)
            return {metric: limit for metric, limit in limits.items() if metric in metrics.get(table, ())}

        floors, champion, base = map(only, TABLES)
        return replace(self, floors=floors, champion_margins=champion, base_margins=base)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `Policy(**content)` is the inverse."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The smallest drop that the items of a metric can show, and the margin it is held to (None: to none)."""

    metric: str
    n: int
    detectable: float
    margin: float | None


def sensitivity_of(
    policy: Policy, metric: str, n: int, drops: Sequence[float] | None = None, *, deff: float = 1.0
) -> Sensitivity:
    """Right/wrong items show a drop by their number, graded ones by how their `drops` scatter; either the less, the
    more the items of one record go together (`compare.design_effect`)."""
    setting = {"alpha": policy.alpha, "power": policy.power}
    if drops is None:
        detectable = detectable_drop(n / deff, **setting, discordance=policy.discordance)
    else:
        detectable = detectable_shift(drops, **setting, deff=deff)
    margin = _smallest(policy.champion_margins, policy.base_margins).get(metric)
    return Sensitivity(metric=metric, n=n, detectable=detectable, margin=margin)


def _instead(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"


def _smallest(*tables: Mapping[str, float]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for table in tables:
        for name, value in table.items():
            merged[name] = min(value, merged.get(name, 1.0))
    return merged


def _round_up(share: float) -> float:
    return math.ceil(share * 1000) / 1000


def require_suites(metrics: Iterable[str], suites: set[str]) -> None:
    """Raise `PolicyError` for a metric whose suite is not among those that are evaluated."""
    for metric in metrics:
        suite = metric.split(".", 1)[0]
        if suite not in suites:
            raise PolicyError(
                f"the policy names {metric}, but no suite {suite!r} is evaluated; "
                f"the suites are {', '.join(sorted(suites)) or 'none'}"
            )
