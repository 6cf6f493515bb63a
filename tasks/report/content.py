"""What a night's report says, gathered from the night's folder and the ledger: plain values, no layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from editing.errors import SuiteError
from editing.evals.gate import Decision, Verdict
from editing.evals.report import EvalReport, ItemOutcome
from editing.facts import FactChange
from tasks.night.culprits import Blamed, CulpritSearch, counted, search_of
from tasks.night.edit import applied_facts, refusals
from tasks.night.evaluate import answered_facts, report_of, verdict_of
from tasks.night.plan import NightWork
from tasks.workspace import Workspace

LOST = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One judged metric: what each model scores (None: not asked), and what it had to reach.

    `whole` is the candidate with every fact of the night, where a part of them stayed out. `floor` is the
    least acceptable value, `bounds` the least that each margin allows, by reference; `failed` what the
    candidate misses, in words.
    """

    metric: str
    n: int
    candidate: float | None
    whole: float | None
    champion: float | None
    base: float | None
    floor: float | None
    bounds: dict[str, float]
    failed: tuple[str, ...]
    failed_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FactRow:
    """A fact of the night and what the models say to its edit prompt."""

    fact: FactChange
    before: str
    after: str
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Accused:
    """A fact in quarantine, its evidence, and the facts that it cannot be together with."""

    fact: FactChange
    evidence: Blamed
    partners: tuple[FactChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A question that the reference answers and the candidate does not."""

    metric: str
    prompt: str
    expected: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Everything on the page."""

    work: NightWork
    verdict: Verdict
    search: CulpritSearch | None
    reports: dict[str, EvalReport]
    scores: tuple[Scores, ...]
    applied: tuple[FactRow, ...]
    accused: tuple[Accused, ...]
    postponed: tuple[FactChange, ...]
    refused: tuple[tuple[FactChange, str], ...]
    contradicting: tuple[tuple[FactChange, str], ...]
    lost: tuple[Lost, ...]

    @property
    def headline(self) -> str:
        """The night in one sentence."""
        stays = "nothing changes, the champion goes on serving" if self.work.parent else "the base goes on serving"
        if self.verdict.decision is not Decision.PROMOTE:
            return f"{self._out()}The gate does not let this night in: {stays}."
        retracted = f" and {counted(len(self.work.retract), 'retraction')}" if self.work.retract else ""
        missed = sum(not row.right for row in self.applied)
        told = f" {counted(missed, 'fact')} of them did not take." if missed else ""
        return f"{self._out()}{counted(len(self.applied), 'fact')}{retracted} may go in.{told}"

    def _out(self) -> str:
        parts = [counted(len(self.accused), "harmful fact") + " quarantined"] if self.accused else []
        if self.contradicting:
            parts.append(counted(len(self.contradicting), "contradicting fact") + " quarantined")
        parts += [counted(len(self.postponed), "fact") + " postponed"] if self.postponed else []
        return f"{', '.join(parts)}. " if parts else ""


def gather(space: Workspace, work: NightWork) -> Content:
    """The report's content. Raises `SuiteError` when the night has no verdict."""
    verdict, search = verdict_of(space, work.key), search_of(space, work.key)
    names = ("candidate", "base", *(["champion"] if work.parent else []))
    reports = {name: report_of(space, work.key, name) for name in names}  # type: ignore[arg-type]
    whole = _whole(space, work)
    applied = space.ledger.facts(applied_facts(space, work))
    refused, contradicting = refusals(space, work), dict(work.contradicting)
    return Content(
        work=work,
        verdict=verdict,
        search=search,
        reports=reports,
        scores=tuple(_scores(verdict, reports, whole)),
        applied=tuple(_fact_rows(applied, reports)),
        accused=tuple(_accused(space, search)),
        postponed=tuple(space.ledger.facts(search.postponed if search else ())),
        refused=tuple((fact, refused[fact.fact_id]) for fact in space.ledger.facts(list(refused))),
        contradicting=tuple((f, contradicting[f.fact_id]) for f in space.ledger.facts(list(contradicting))),
        lost=tuple(_lost(verdict, reports))[:LOST],
    )


def _whole(space: Workspace, work: NightWork) -> tuple[EvalReport, Verdict] | None:
    """Report and verdict of the night with every fact, where this one is without some."""
    if work.origin is None:
        return None
    try:
        return report_of(space, work.origin, "candidate"), verdict_of(space, work.origin)
    except SuiteError:
        return None


def _scores(
    verdict: Verdict, reports: dict[str, EvalReport], whole: tuple[EvalReport, Verdict] | None
) -> Iterator[Scores]:
    def value(report: EvalReport | None, metric: str) -> float | None:
        return report.metrics[metric].value if report and metric in report.metrics else None

    tables = {"champion": verdict.against_champion, "base": verdict.against_base}
    alpha = verdict.policy.alpha
    for metric in verdict.policy.metrics:
        floor = next((row for row in verdict.floors if row.metric == metric), None)
        rows = {who: c for who, table in tables.items() for c in table if c.metric == metric}
        failed = [f"below its floor of {floor.floor:g}"] if floor and not floor.met else []
        failed += [
            f"a drop of more than {c.margin:g} against the {who} "
            + ("is shown" if c.is_inferior(alpha) else "is not ruled out")
            for who, c in rows.items()
            if not c.is_non_inferior(alpha)
        ]
        if floor is None and not rows:
            continue  # a margin to a champion that there is not
        candidate = reports["candidate"]
        yield Scores(
            metric=metric,
            n=candidate.metrics[metric].n if metric in candidate.metrics else 0,
            candidate=value(candidate, metric),
            whole=value(whole[0] if whole else None, metric),
            champion=value(reports.get("champion"), metric),
            base=value(reports["base"], metric),
            floor=floor.floor if floor else None,
            bounds={who: c.reference - c.margin for who, c in rows.items()},
            failed=tuple(failed),
            failed_whole=whole is not None and any(metric in names for names in whole[1].failed.values()),
        )


def _fact_rows(facts: list[FactChange], reports: dict[str, EvalReport]) -> Iterator[FactRow]:
    after = answered_facts(reports["candidate"])
    before = answered_facts(reports["champion" if "champion" in reports else "base"])
    for fact in facts:
        if (said := after.get(fact.fact_id)) is not None:
            yield FactRow(fact=fact, before=before[fact.fact_id].got, after=said.got, right=said.score == 1.0)


def _accused(space: Workspace, search: CulpritSearch | None) -> Iterator[Accused]:
    for blamed in search.blamed if search else ():
        (fact,) = space.ledger.facts([blamed.fact_id])
        yield Accused(fact=fact, evidence=blamed, partners=tuple(space.ledger.facts(blamed.partners)))


def _lost(verdict: Verdict, reports: dict[str, EvalReport]) -> Iterator[Lost]:
    """The verdict's examples, beside what was said before."""
    reference = reports["champion" if "champion" in reports else "base"]
    for item in verdict.examples:
        before = reference.by_metric.get(item.name, {}).get(item.item_id)
        yield _lost_item(item, before)


def _lost_item(item: ItemOutcome, before: ItemOutcome | None) -> Lost:
    return Lost(
        metric=item.name,
        prompt=item.prompt,
        expected=item.expected,
        before=before.got if before else "",
        after=item.got,
    )


def report_path(space: Workspace, night: str) -> Path:
    """Where a night's page is."""
    return space.night_folder(night) / "report.html"
