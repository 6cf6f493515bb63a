"""The gate: floors, and no drop against champion and base that matters. Promote, hold or reject.

- reject: a floor is missed, or a drop beyond its margin is shown (Holm-adjusted over all comparisons,
  against champion and base).
- hold: nothing is shown to be worse, but some metric is not shown to be within its margin either.
- promote: every floor is met and every metric is non-inferior.

A policy says beforehand whether its suites can decide it (`Policy.check`): a margin that so few
items cannot detect is an error, not a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from editing.errors import PolicyError
from editing.evals.compare import (
    Comparison,
    adjust,
    detectable_drop,
    detectable_shift,
    items_needed,
    paired_tests,
)
from editing.evals.report import EvalReport, ItemOutcome
from editing.evals.suite import Suite

_EXAMPLES = 10
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
                if not 0 <= value <= 1 or (kind == "margin" and value in (0, 1)):
                    raise PolicyError(f"{kind} of {name} is {value}; give a share between 0 and 1")
        for name, value, low, high in (("alpha", self.alpha, 0.0, 0.5), ("power", self.power, 0.5, 1.0)):
            if not low < value < high:
                raise PolicyError(f"{name} is {value}; give a value above {low} and below {high}")
        if not 0 <= self.discordance <= 1:
            raise PolicyError(f"discordance is {self.discordance}; give a share between 0 and 1")
        if not self.floors and not margins:
            raise PolicyError("the policy has no floor and no margin; it would promote anything")

    def check(self, suites: Iterable[Suite]) -> None:
        """Raise `PolicyError` unless these suites can decide this policy; to be called before the night.

        Every metric must belong to one of them, and every margin must be detectable on its items.
        """
        suites = list(suites)
        sizes = {metric: n for suite in suites for metric, n in suite.metric_sizes().items()}
        _require_suites(self.metrics, {suite.name for suite in suites})
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
        return [_sensitivity(self, metric, n) for metric, n in sorted(sizes.items())]

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


def _sensitivity(policy: Policy, metric: str, n: int, drops: Sequence[float] | None = None) -> Sensitivity:
    """Right/wrong items show a drop by their number, graded ones by how their `drops` scatter."""
    setting = {"alpha": policy.alpha, "power": policy.power}
    if drops is None:
        detectable = detectable_drop(n, **setting, discordance=policy.discordance)
    else:
        detectable = detectable_shift(drops, **setting)
    margin = _smallest(policy.champion_margins, policy.base_margins).get(metric)
    return Sensitivity(metric=metric, n=n, detectable=detectable, margin=margin)


def _smallest(*tables: Mapping[str, float]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for table in tables:
        for name, value in table.items():
            merged[name] = min(value, merged.get(name, 1.0))
    return merged


def _round_up(share: float) -> float:
    return math.ceil(share * 1000) / 1000


def _require_suites(metrics: Iterable[str], suites: set[str]) -> None:
    for metric in metrics:
        suite = metric.split(".", 1)[0]
        if suite not in suites:
            raise PolicyError(
                f"the policy names {metric}, but no suite {suite!r} is evaluated; "
                f"the suites are {', '.join(sorted(suites)) or 'none'}"
            )


class Decision(StrEnum):
    """What becomes of the candidate."""

    PROMOTE = "promote"
    HOLD = "hold"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorResult:
    """A floor and what was measured: `value` is None where the suite had no such item, which fails nothing."""

    metric: str
    floor: float
    value: float | None
    n: int

    @property
    def met(self) -> bool:
        """Whether the floor is reached, or nothing was there to measure."""
        return self.value is None or self.value >= self.floor


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision, why, and every number it rests on.

    `examples` are items that the candidate lost, from the metrics that stopped it.
    """

    decision: Decision
    reasons: tuple[str, ...]
    floors: tuple[FloorResult, ...]
    against_champion: tuple[Comparison, ...]
    against_base: tuple[Comparison, ...]
    examples: tuple[ItemOutcome, ...]
    candidate: str
    champion: str | None
    base: str
    policy: Policy
    sensitivity: tuple[Sensitivity, ...] = ()

    @property
    def failed(self) -> dict[str, tuple[str, ...]]:
        """The metrics that stop a promotion, by the policy's table that names them."""
        alpha = self.policy.alpha
        return {
            "floors": tuple(row.metric for row in self.floors if not row.met),
            "champion_margins": tuple(c.metric for c in self.against_champion if not c.is_non_inferior(alpha)),
            "base_margins": tuple(c.metric for c in self.against_base if not c.is_non_inferior(alpha)),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The verdict that `to_dict` wrote."""
        return cls(
            **{
                **content,
                "decision": Decision(content["decision"]),
                "reasons": tuple(content["reasons"]),
                "floors": tuple(FloorResult(**row) for row in content["floors"]),
                "against_champion": tuple(map(_comparison, content["against_champion"])),
                "against_base": tuple(map(_comparison, content["against_base"])),
                "examples": tuple(ItemOutcome(**row) for row in content["examples"]),
                "policy": Policy(**content["policy"]),
                "sensitivity": tuple(Sensitivity(**row) for row in content.get("sensitivity", ())),
            }
        )

    def to_markdown(self) -> str:
        """One page for a person: the decision, its reasons, the tables, what was lost."""
        lines = [f"# {self.decision.capitalize()}: candidate {self.candidate[:12]}", ""]
        lines += [f"- {reason}" for reason in self.reasons] + [""]
        if self.floors:
            lines += ["## Floors", "", "| metric | value | floor | items | |", "|---|--:|--:|--:|---|"]
            for row in self.floors:
                value = "not measured" if row.value is None else f"{row.value:.3f}"
                lines.append(f"| {row.metric} | {value} | {row.floor:g} | {row.n} | {_mark(row.met)} |")
            lines.append("")
        for title, table in (
            (f"Against the champion {(self.champion or '')[:12]}", self.against_champion),
            (f"Against the base {self.base[:12]}", self.against_base),
        ):
            if table:
                lines += [f"## {title}", "", *_comparison_table(table, self.policy.alpha), ""]
        if self.sensitivity:
            lines += ["## Smallest drop that each metric can show", "", *_sensitivity_table(self.sensitivity), ""]
        if self.examples:
            lines += ["## Lost", "", "| metric | prompt | expected | got |", "|---|---|---|---|"]
            lines += [f"| {o.name} | {_cell(o.prompt)} | {_cell(o.expected)} | {_cell(o.got)} |" for o in self.examples]
            lines.append("")
        return "\n".join(lines)


def _comparison(row: Mapping[str, Any]) -> Comparison:
    return Comparison(**{**row, "lost_items": tuple(row["lost_items"])})


def _mark(good: bool) -> str:
    return "ok" if good else "**fails**"


def _cell(text: str, width: int = 80) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _comparison_table(comparisons: Iterable[Comparison], alpha: float) -> list[str]:
    level = f"{100 * (1 - alpha):g}%"
    lines = [
        f"| metric | candidate | reference | drop | at most ({level}) | margin | lost / gained of items "
        "| p worse | detectable drop | |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for c in comparisons:
        state = "**worse**" if c.is_inferior(alpha) else "ok" if c.is_non_inferior(alpha) else "**not shown**"
        lines.append(
            f"| {c.metric} | {c.candidate:.3f} | {c.reference:.3f} | {c.drop:+.3f} | {c.drop_bound:+.3f} "
            f"| {c.margin:g} | {c.losses} / {c.gains} of {c.n} | {c.p_inferior:.3g} | {c.detectable:.3f} | {state} |"
        )
    return lines


def _sensitivity_table(rows: Iterable[Sensitivity]) -> list[str]:
    lines = ["| metric | items | detectable drop | margin |", "|---|--:|--:|--:|"]
    for row in rows:
        margin = "none" if row.margin is None else f"{row.margin:g}"
        lines.append(f"| {row.metric} | {row.n} | {row.detectable:.3f} | {margin} |")
    return lines


def decide(policy: Policy, candidate: EvalReport, champion: EvalReport | None, base: EvalReport) -> Verdict:
    """Judge `candidate` by `policy`; `champion` is None when nothing has been promoted yet.

    Deterministic: the same reports give the same verdict. Raises `PolicyError` when the policy
    names a suite that was not evaluated, `SuiteError` when the reports cannot be compared.
    """
    _require_suites(policy.metrics, set(candidate.suites))
    floors = []
    for name, floor in policy.floors.items():
        metric = candidate.metrics.get(name)
        floors.append(
            FloorResult(metric=name, floor=floor, value=metric.value if metric else None, n=metric.n if metric else 0)
        )
    tables = _tables(policy, candidate, champion, base)
    rejected = [
        f"{f.metric} is {f.value:.3f} on {f.n} items, below its floor of {f.floor:g}" for f in floors if not f.met
    ]
    held, stopped = [], []
    for who, table in tables.items():
        for c in table.values():
            if c.is_inferior(policy.alpha):
                rejected.append(
                    f"{c.metric} drops by {c.drop:.3f} against the {who} (margin {c.margin:g}, "
                    f"{c.losses} lost and {c.gains} gained of {c.n}, p = {c.p_inferior:.2g})"
                )
                stopped.append(c)
            elif not c.is_non_inferior(policy.alpha):
                held.append(
                    f"{c.metric} may drop by up to {c.drop_bound:.3f} against the {who}, "
                    f"more than its margin of {c.margin:g}: {c.n} items do not settle it"
                )
                stopped.append(c)
    decision = Decision.REJECT if rejected else Decision.HOLD if held else Decision.PROMOTE
    unmeasured = [f"{f.metric} was not measured: no such item tonight" for f in floors if f.value is None]
    compared = sum(map(len, tables.values()))
    passed = f"{len(floors) - len(unmeasured)} floors met and {compared} comparisons within their margins"
    reasons = rejected + held or [passed]
    lost = {(c.metric, item): candidate.items(c.metric)[item] for c in stopped for item in c.lost_items}
    failed = [o for f in floors if not f.met for o in candidate.items(f.metric).values() if o.score < f.floor]
    examples = {**lost, **{(o.name, o.item_id): o for o in failed}}
    return Verdict(
        decision=decision,
        reasons=tuple(reasons + unmeasured),
        floors=tuple(floors),
        against_champion=tuple(tables["champion"].values()),
        against_base=tuple(tables["base"].values()),
        examples=tuple(examples.values())[:_EXAMPLES],
        candidate=candidate.model_digest,
        champion=champion.model_digest if champion else None,
        base=base.model_digest,
        policy=policy,
        sensitivity=tuple(_sensitivities(policy, candidate, base if champion is None else champion)),
    )


def _tables(
    policy: Policy, candidate: EvalReport, champion: EvalReport | None, base: EvalReport
) -> dict[str, dict[str, Comparison]]:
    """The comparisons against each reference, by metric; one family for Holm's adjustment."""
    references = {"champion": (champion, policy.champion_margins), "base": (base, policy.base_margins)}
    setting = {"alpha": policy.alpha, "power": policy.power}
    tests = {
        (who, metric): test
        for who, (reference, margins) in references.items()
        if reference is not None
        for metric, test in paired_tests(candidate, reference, margins, **setting, seed=policy.seed).items()
    }
    tables: dict[str, dict[str, Comparison]] = {who: {} for who in references}
    for (who, metric), comparison in adjust(tests).items():
        tables[who][metric] = comparison
    return tables


def _sensitivities(policy: Policy, candidate: EvalReport, reference: EvalReport) -> Iterator[Sensitivity]:
    for name, metric in candidate.metrics.items():
        if metric.binary:
            yield _sensitivity(policy, name, metric.n)
            continue
        ours, theirs = candidate.items(name), reference.by_metric.get(name, {})
        if ours.keys() == theirs.keys():
            yield _sensitivity(policy, name, metric.n, [theirs[item].score - ours[item].score for item in ours])
