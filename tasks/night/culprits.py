"""A failed gate's search: which facts are to blame, with evidence, and what the night is without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.errors import SuiteError
from editing.evals.culprit import Cause, Culprit, Ending, Search, find_culprits
from editing.evals.gate import Decision, Verdict
from editing.evals.policy import TABLES
from editing.storage import read_json, write_json
from tasks.faults import checkpoint
from tasks.night.evaluate import VERDICT_FILE, verdict_of
from tasks.night.plan import NightWork
from tasks.night.trials import Trial, try_facts
from tasks.workspace import Workspace, open_workspace

CULPRITS_FILE = "culprits.json"
_LOST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One metric that failed: its value without the fact (None: nothing to ask) and with it, and its limit.

    `against` is `floor`, `champion` or `base`; `limit` the floor, or the largest acceptable drop.
    """

    metric: str
    against: str
    limit: float
    without: float | None
    with_it: float

    def __str__(self) -> str:
        limit = f"floor {self.limit:g}" if self.against == "floor" else f"margin {self.limit:g} to the {self.against}"
        before = "" if self.without is None else f" from {self.without:.3f}"
        return f"{self.metric} goes{before} to {self.with_it:.3f} ({limit})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LostItem:
    """A question that was answered without the fact, and what is said with it."""

    metric: str
    prompt: str
    expected: str
    without: str
    with_it: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blamed:
    """A fact that stays out, and why: `partners` are facts of the night that it cannot be together with."""

    fact_id: str
    cause: Cause
    partners: tuple[str, ...]
    measures: tuple[Measure, ...]
    lost: tuple[LostItem, ...]

    @property
    def why(self) -> str:
        """The evidence in one sentence."""
        company = "alone" if self.cause is Cause.HARMFUL else f"only together with {', '.join(self.partners)}"
        return f"when it goes in, {'; '.join(map(str, self.measures))}; it fails {company}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CulpritSearch:
    """A night's search: how it ended, what it cost, who is to blame and who waits.

    `failed` names what the gate had against the whole night, `reasons` says it; `trials` are the sizes
    of the parts that were evaluated, in all rounds, and whether they passed, of `budget` at most.
    """

    ending: Ending
    reasons: tuple[str, ...]
    failed: Mapping[str, tuple[str, ...]]
    trials: tuple[tuple[int, bool], ...]
    budget: int
    kept: tuple[str, ...]
    blamed: tuple[Blamed, ...]
    postponed: tuple[str, ...]

    @property
    def tests(self) -> int:
        """Evaluations of all rounds."""
        return len(self.trials)

    @property
    def sentence(self) -> str:
        """How it ended, for a person."""
        cost = f"{self.tests} of {self.budget} evaluations"
        if self.ending is Ending.FAILS_WITHOUT:
            return f"the night's facts are not to blame: the gate fails without any of them ({cost})"
        if self.ending is Ending.OUT_OF_BUDGET:
            return (
                f"the search for the facts to blame ended after {cost} with {len(self.blamed)} found: nothing goes in"
            )
        said = f"{counted(len(self.blamed), 'fact')} to blame"
        if self.postponed:
            said += f", {counted(len(self.postponed), 'fact')} to wait, being too many at once"
        return f"{said}; {counted(len(self.kept), 'fact')} would pass ({cost})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The search that `to_dict` wrote."""
        names = {name: tuple(content[name]) for name in ("reasons", "kept", "postponed")}
        failed = {table: tuple(metrics) for table, metrics in content["failed"].items()}
        names["trials"] = tuple((size, passes) for size, passes in content["trials"])
        blamed = tuple(_blamed(row) for row in content["blamed"])
        return cls(**{**content, **names, "ending": Ending(content["ending"]), "failed": failed, "blamed": blamed})


def _blamed(row: Mapping[str, Any]) -> Blamed:
    return Blamed(
        fact_id=row["fact_id"],
        cause=Cause(row["cause"]),
        partners=tuple(row["partners"]),
        measures=tuple(Measure(**measure) for measure in row["measures"]),
        lost=tuple(LostItem(**item) for item in row["lost"]),
    )


def counted(n: int, noun: str) -> str:
    """A number with its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


@task(name="find culprits", cache_policy=NO_CACHE)
def without_culprits(work: NightWork, renew: Callable[[], None]) -> NightWork | None:
    """After a failed gate: the night without the facts to blame, to be edited and judged in full.

    None when nothing failed that a fact could be blamed for, and when nothing better is to be had: the budget is
    spent (the verdict becomes hold), the gate fails without any fact, or no fact is left. Every
    trial is kept, so that a killed search goes on where it was. `renew` is called again and again.
    """
    space = open_workspace()
    path = space.night_folder(work.key) / CULPRITS_FILE
    if work.origin is None:
        path.unlink(missing_ok=True)
    verdict, budget = verdict_of(space, work.key), space.settings.gate.culprit_budget
    if not any(verdict.failed.values()) or not work.batches or not budget:
        return None
    earlier = search_of(space, work.key)
    search = _search(space, work, verdict, earlier, budget, renew)
    write_json(path, search.to_dict())
    rest = work.only(search.kept)
    goes_on = search.ending in (Ending.FOUND, Ending.TOO_MANY) and bool(rest.steps)
    if goes_on:
        write_json(space.night_folder(rest.key) / CULPRITS_FILE, search.to_dict())
    else:
        decision = Decision.HOLD if search.ending is Ending.OUT_OF_BUDGET else verdict.decision
        stands = replace(verdict, decision=decision, reasons=(search.sentence, *verdict.reasons))
        write_json(space.night_folder(work.key) / VERDICT_FILE, stands.to_dict())
    checkpoint("searched")
    return rest if goes_on else None


def search_of(space: Workspace, night: str) -> CulpritSearch | None:
    """A night's search for culprits, if its gate failed."""
    path = space.night_folder(night) / CULPRITS_FILE
    return CulpritSearch.from_dict(read_json(path, SuiteError)) if path.exists() else None


def _search(
    space: Workspace,
    work: NightWork,
    verdict: Verdict,
    earlier: CulpritSearch | None,
    budget: int,
    renew: Callable[[], None],
) -> CulpritSearch:
    """Search among the facts of `work`; what an earlier round failed by, found and spent counts as well."""
    before = earlier.failed if earlier else {}
    failed = {table: tuple(dict.fromkeys((*before.get(table, ()), *verdict.failed[table]))) for table in TABLES}
    policy = verdict.policy.part(failed)
    trials = list(earlier.trials if earlier else ())

    def attempt(fact_ids: tuple[str, ...]) -> Trial:
        return try_facts(space, work, fact_ids, policy, renew)

    def passes(fact_ids: tuple[str, ...]) -> bool:
        answer = attempt(fact_ids).passes
        trials.append((len(fact_ids), answer))
        return answer

    # Facts of higher precedence come later in a night: what fails only together goes by the rule for conflicts.
    groups = [batch[::-1] for batch in reversed(work.batches)]
    found: Search[str] = find_culprits(groups, passes, budget=budget - len(trials))
    blamed = [_evidence(culprit, attempt) for culprit in found.culprits]
    postponed = found.postponed if found.ending is Ending.TOO_MANY else ()
    return CulpritSearch(
        ending=found.ending,
        reasons=earlier.reasons if earlier else verdict.reasons,
        failed=failed,
        trials=tuple(trials),
        budget=budget,
        kept=found.kept,
        blamed=(*(earlier.blamed if earlier else ()), *blamed),
        postponed=(*(earlier.postponed if earlier else ()), *postponed),
    )


def _evidence(culprit: Culprit[str], attempt: Callable[[tuple[str, ...]], Trial]) -> Blamed:
    """What the two trials that found the culprit measured; both are remembered."""
    without, with_it = attempt(culprit.without), attempt((*culprit.without, culprit.unit))
    before = {(against, metric): value for against, metric, _, value, _ in _rows(without.verdict)}
    measures = [
        Measure(metric=metric, against=against, limit=limit, without=before.get((against, metric)), with_it=value)
        for against, metric, limit, value, fails in _rows(with_it.verdict)
        if fails and value is not None
    ]
    metrics = dict.fromkeys(measure.metric for measure in measures)
    lost = [item for metric in metrics for item in _lost(metric, without, with_it)]
    return Blamed(
        fact_id=culprit.unit,
        cause=culprit.cause,
        partners=culprit.partners,
        measures=tuple(measures),
        lost=tuple(lost[:_LOST]),
    )


def _rows(verdict: Verdict) -> Iterator[tuple[str, str, float, float | None, bool]]:
    """Everything that was judged: against what, which metric, the limit, the value, and whether it fails."""
    for row in verdict.floors:
        yield "floor", row.metric, row.floor, row.value, not row.met
    for who, table in (("champion", verdict.against_champion), ("base", verdict.against_base)):
        for c in table:
            yield who, c.metric, c.margin, c.candidate, not c.is_non_inferior(verdict.policy.alpha)


def _lost(metric: str, without: Trial, with_it: Trial) -> Iterator[LostItem]:
    """Items that score less with the fact than without it, and its own that fail, the worst first."""
    before = without.report.by_metric.get(metric, {})
    after = with_it.report.by_metric.get(metric, {})
    drops = {key: (before[key].score if key in before else 1.0) - item.score for key, item in after.items()}
    for key in sorted((key for key, drop in drops.items() if drop > 0), key=lambda key: (-drops[key], key)):
        yield LostItem(
            metric=metric,
            prompt=after[key].prompt,
            expected=after[key].expected,
            without=before[key].got if key in before else "",
            with_it=after[key].got,
        )
