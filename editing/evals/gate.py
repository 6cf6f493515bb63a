"""The gate: floors, and no drop against champion and base that matters. Promote, hold or reject.

- reject: a floor is missed, or a drop is shown to be beyond its margin (Holm-adjusted over all comparisons,
  against champion and base).
- hold: nothing is shown to be worse, but some metric is not shown to be within its margin either, or a floor could not
  be measured although there was something to ask.
- promote: every floor is met and every metric is non-inferior.

A policy says beforehand whether its suites can decide it (`Policy.check`): a margin that so few
items cannot detect is an error, not a verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self, get_args

from editing.evals.compare import Comparison, adjust, design_effect, paired_tests
from editing.evals.edits import Moment
from editing.evals.policy import Policy, Sensitivity, require_suites, sensitivity_of
from editing.evals.report import EvalReport, ItemOutcome
from editing.shown import in_markdown

_EXAMPLES = 10


class Decision(StrEnum):
    """What becomes of the candidate."""

    PROMOTE = "promote"
    HOLD = "hold"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorResult:
    """A floor and what was measured: `value` is None where the suite had no such item, which misses no floor."""

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
    flat = " ".join(text.split())
    return in_markdown(flat if len(flat) <= width else flat[: width - 1] + "…")


def _comparison_table(comparisons: Iterable[Comparison], alpha: float) -> list[str]:
    level = f"{100 * (1 - alpha):g}%"
    lines = [
        f"| metric | candidate | reference | drop | at most ({level}) | margin | lost / gained of items "
        "| p beyond margin | detectable drop | |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for c in comparisons:
        state = "**worse**" if c.is_inferior(alpha) else "ok" if c.is_non_inferior(alpha) else "**not shown**"
        lines.append(
            f"| {c.metric} | {c.candidate:.3f} | {c.reference:.3f} | {c.drop:+.3f} | {c.drop_bound:+.3f} "
            f"| {c.margin:g} | {c.losses} / {c.gains} of {c.n} | {_p_drop(c):.3g} | {c.detectable:.3f} | {state} |"
        )
    return lines


def _sensitivity_table(rows: Iterable[Sensitivity]) -> list[str]:
    lines = ["| metric | items | detectable drop | margin |", "|---|--:|--:|--:|"]
    for row in rows:
        margin = "none" if row.margin is None else f"{row.margin:g}"
        lines.append(f"| {row.metric} | {row.n} | {row.detectable:.3f} | {margin} |")
    return lines


def decide(
    policy: Policy,
    candidate: EvalReport,
    champion: EvalReport | None,
    base: EvalReport,
    *,
    required: Collection[str] | None = None,
) -> Verdict:
    """Judge `candidate` by `policy`; `champion` is None when nothing has been promoted yet.

    A floor among those `required` (None: every one) that could not be measured holds, unless its suite is one of
    edits and has no items: no fact was there to ask. Of the others it says nothing. Deterministic: the same reports
    give the same verdict. Raises `PolicyError` when the policy names a suite that was not evaluated, `SuiteError` when
    the reports cannot be compared.
    """
    require_suites(policy.metrics, set(candidate.suites))
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
    unmeasured = [f.metric for f in floors if f.value is None]
    held = [
        f"{metric} has a floor and could not be measured, although there was something to ask; give facts what it is "
        f'measured by, or take the floor away: floors = {{ "{metric}" = false }}'
        for metric in unmeasured
        if (required is None or metric in required) and _could_ask(candidate, metric.split(".", 1)[0])
    ]
    stopped = []
    for who, table in tables.items():
        for c in table.values():
            if c.is_inferior(policy.alpha):
                rejected.append(
                    f"{c.metric} drops by {c.drop:.3f} against the {who} (margin {c.margin:g}, "
                    f"{c.losses} lost and {c.gains} gained of {c.n}, p = {_p_drop(c):.2g})"
                )
                stopped.append(c)
            elif not c.is_non_inferior(policy.alpha):
                held.append(
                    f"{c.metric} may drop by up to {c.drop_bound:.3f} against the {who}, "
                    f"more than its margin of {c.margin:g}: {c.n} items do not settle it"
                )
                stopped.append(c)
    decision = Decision.REJECT if rejected else Decision.HOLD if held else Decision.PROMOTE
    compared = sum(map(len, tables.values()))
    passed = f"{len(floors) - len(unmeasured)} floors met and {compared} comparisons within their margins"
    reasons = rejected + held or [passed]
    said = [f"{metric} was not measured: no such item tonight" for metric in unmeasured]
    lost = {(c.metric, item): candidate.items(c.metric)[item] for c in stopped for item in c.lost_items}
    failed = [o for f in floors if not f.met for o in candidate.items(f.metric).values() if o.score < f.floor]
    examples = {**lost, **{(o.name, o.item_id): o for o in failed}}
    return Verdict(
        decision=decision,
        reasons=tuple(reasons + said),
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


def _could_ask(candidate: EvalReport, suite: str) -> bool:
    """Whether a suite had something to ask; one of edits without items had no fact that holds."""
    return suite not in get_args(Moment) or candidate.suites[suite].items > 0


def _p_drop(comparison: Comparison) -> float:
    """The p-value that the verdict rests on."""
    return comparison.p_inferior if comparison.p_beyond is None else comparison.p_beyond


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
        ours, theirs = candidate.items(name), reference.by_metric.get(name, {})
        if ours.keys() == theirs.keys():
            drops = [theirs[item].score - ours[item].score for item in ours]
            deff = design_effect(drops, [ours[item].record or item for item in ours])
            yield sensitivity_of(policy, name, metric.n, None if metric.binary else drops, deff=deff)
        elif metric.binary:
            yield sensitivity_of(policy, name, metric.n)
