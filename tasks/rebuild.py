"""A lost ledger made again, as far as MLflow's versions and the files under home tell.

A version's tags say what it grew from, what it was made for, and what it added and took back; its files hold the
facts; its run has the night's figures and what every item was answered. The curated store has each feed file's rows.
Whoever reads a rebuilt ledger finds the rest missing, never guessed: `Rebuilt.lost` says what.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from editing.errors import StateError
from editing.evals.gate import Decision
from editing.evals.report import ItemOutcome
from editing.facts import FactChange
from editing.storage import read_json
from tasks.champion.answers import fact_answers, suite_answers
from tasks.champion.fresh import FINGERPRINT_TAG
from tasks.champion.moves import ALIASES, BY_NIGHT
from tasks.errors import FeedError, LedgerError, without_password
from tasks.feed.files import file_digest
from tasks.feed.reading import read_feed
from tasks.ledger import (
    AliasMove,
    Event,
    EventKind,
    FileOutcome,
    FileRecord,
    QuarantinedRow,
    ReceivedFact,
    RecordedAnswer,
    RunPhase,
    RunRecord,
    VersionRecord,
)
from tasks.night.culprits import search_of
from tasks.night.evaluate import answered_items, why_not_learned
from tasks.night.plan import PLAN_FILE, NightWork
from tasks.night.record import SETTLED
from tasks.night.summary import KIND, SCORES, NightSummary
from tasks.progress import reporter
from tasks.registry import (
    CHALLENGER,
    CHAMPION,
    NIGHT_TAG,
    RegistryError,
    RegistryUnreachableError,
    Version,
)
from tasks.suites import HEADLINES
from tasks.workspace import Workspace

REBUILD = "ledger rebuild"
LEASE = timedelta(hours=2)
NEEDED = (NIGHT_TAG, "errata.method", "errata.parent", FINGERPRINT_TAG, "errata.verdict")
NEVER = (
    "when, by whom and why an alias moved, and every move but those along the champion's lineage",
    "later sightings of a fact, feed files of which no row was let in, and names of those that left the landing zone",
    "what nights decided without a version: facts that were superseded, known or refused are decided about again",
    "releases from quarantine, approvals, checks of the canary, and the commits of a night's batches",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a rebuilt ledger holds, in numbers, who serves by it (None: the base), and what could not be made again."""

    files: int
    facts: int
    versions: tuple[int, ...]
    nights: int
    champion: int | None
    challenger: int | None
    lost: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    record: FileRecord
    facts: tuple[ReceivedFact, ...]
    rejected: tuple[QuarantinedRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A version, what its state added to its parent's and took back, and what it was found to answer."""

    version: Version
    record: VersionRecord
    applied: tuple[str, ...]
    retracted: tuple[str, ...]
    by: tuple[str, ...]
    restored: tuple[str, ...]
    plan: NightWork | None
    outcomes: tuple[ItemOutcome, ...]

    @property
    def of_night(self) -> bool:
        """Whether a night made it, rather than a compaction."""
        return "errata.work" in self.version.tags


@dataclass(slots=True)
class _Findings:
    """What is told so far: facts by id, the ids that each state holds, and what is lost."""

    facts: dict[str, FactChange] = field(default_factory=dict)
    holding: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def known(self, version: Version, fact_ids: Collection[str]) -> tuple[str, ...]:
        """Those of the facts whose content was found."""
        if missing := [fact_id for fact_id in fact_ids if fact_id not in self.facts]:
            self.lost.append(f"version {version.number}: facts {', '.join(missing)}, whose content is nowhere")
        return tuple(fact_id for fact_id in fact_ids if fact_id in self.facts)


def rebuild_ledger(space: Workspace) -> Rebuilt:
    """Fill the empty ledger with what MLflow and the files under home tell, all of it or nothing.

    The champion's facts are asked again, for the canary to compare with. Raises `LedgerError` for a ledger that is
    not empty, a registry without versions, and one whose champion's tags or files do not say enough.
    """
    ledger, registry = space.ledger, space.registry
    ledger.require_empty()
    owner = f"{REBUILD} on {socket.gethostname()}, process {os.getpid()}"
    with ledger.lease("night", owner, LEASE), ledger.lease("aliases", owner, LEASE):
        with registry.answering():
            versions = registry.versions()
            pointed = {alias: at.number for alias in ALIASES if (at := registry.aliased(alias))}
        if not versions:
            raise LedgerError(
                f"MLflow at {without_password(space.settings.tracking_uri)} has no version of {registry.name!r}; there "
                "is nothing to rebuild a ledger from"
            )
        found = _Findings()
        files = list(_curated_files(space, found))
        with registry.answering():
            steps = _steps(space, [v for v in versions if _says_enough(v, found)], pointed, found)
        files += _files_of_versions(space, steps, files, found)
        made = {step.record.version: step for step in steps}
        line = _line(made, pointed.get(CHAMPION))
        answers = _answers(space, steps, made.get(pointed.get(CHAMPION, 0)), found)
        with registry.answering():
            told = list(_told(space, steps, made, line))
        with ledger.refill() as refill:
            for file in files:
                refill.add_facts(file.facts)
                refill.add_quarantined(file.rejected)
                refill.add_file(file.record)
            for step, events, runs in told:
                refill.add_version(step.record, step.applied, step.retracted, step.by, step.restored)
                refill.add_events(events)
                refill.add_runs(runs)
            refill.add_answers(answers)
            for move in _moves(made, line, pointed):
                refill.add_move(move)
    return Rebuilt(
        files=len(files),
        facts=sum(len(file.facts) for file in files),
        versions=tuple(made),
        nights=sum(step.of_night for step in steps),
        champion=pointed.get(CHAMPION),
        challenger=pointed.get(CHALLENGER),
        lost=(*found.lost, *NEVER),
    )


def _says_enough(version: Version, found: _Findings) -> bool:
    missing = [tag for tag in NEEDED if tag not in version.tags] if version.digest else ["errata.state_digest"]
    if missing:
        found.lost.append(f"version {version.number}, which has no tag {', '.join(missing)} in MLflow")
    return not missing


# Files and facts


def _curated_files(space: Workspace, found: _Findings) -> Iterator[_File]:
    """The feed files of which rows were let in, by the curated store; a row's place by those that were not."""
    settings = space.settings
    landed = {file_digest(path): path for path in sorted(settings.landing.rglob("*")) if path.is_file()}
    for path in sorted(settings.curated.glob("ingest_date=*/*.parquet")):
        digest, partition = path.stem, f"{path.parent.name}/{path.name}"
        rejected, name = _rejected(settings.quarantine / partition, digest)
        try:
            facts = list(read_feed(path))
        except FeedError as error:
            found.lost.append(f"the facts of {path}: {error}")
            continue
        places = {row.row for row in rejected}
        free = (row for row in range(len(facts) + len(places)) if row not in places)
        received = [ReceivedFact.of(fact, digest, row) for fact, row in zip(facts, free, strict=True)]
        fresh = tuple(fact for fact in received if fact.fact_id not in found.facts)
        found.facts |= {fact.fact_id: change for fact, change in zip(received, facts, strict=True)}
        here = landed.get(digest)
        day = datetime.fromisoformat(path.parent.name.removeprefix("ingest_date=")).replace(tzinfo=UTC)
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        record = FileRecord(
            digest=digest,
            name=here.relative_to(settings.landing).as_posix() if here else name or f"{digest[:12]} (name lost)",
            size=here.stat().st_size if here else 0,
            outcome=FileOutcome.INGESTED,
            rows=len(facts) + len(places),
            accepted=len(facts),
            quarantined=len(places),
            curated=partition,
            quarantine=partition if places else None,
            run_id="feed",
            at=written if written.date() == day.date() else day,
        )
        yield _File(record=record, facts=fresh, rejected=tuple(rejected))


def _rejected(path: Path, digest: str) -> tuple[list[QuarantinedRow], str | None]:
    """The rows of a feed file that were not let in, and the file's name by them."""
    if not path.is_file():
        return [], None
    rows = pq.read_table(path, columns=["file", "row", "reason", "sentence", "fact_id"]).to_pylist()
    kept = [{name: row[name] for name in ("row", "reason", "sentence", "fact_id")} for row in rows]
    return [QuarantinedRow(file_digest=digest, **row) for row in kept], rows[0]["file"] if rows else None


def _files_of_versions(
    space: Workspace, steps: Sequence[_Step], files: Sequence[_File], found: _Findings
) -> Iterator[_File]:
    """The facts that are in versions and in no curated file: they count as read in the first version that has them."""
    told = {fact.fact_id for file in files for fact in file.facts}
    for step in steps:
        digest = hashlib.sha256(f"{REBUILD}:{step.record.state_digest}".encode()).hexdigest()
        own = [fact_id for fact_id in found.holding[step.record.state_digest] if fact_id not in told]
        if not own:
            continue
        told |= set(own)
        record = FileRecord(
            digest=digest,
            name=f"version {step.record.version} of {space.registry.name}",
            size=0,
            outcome=FileOutcome.INGESTED,
            rows=len(own),
            accepted=len(own),
            quarantined=0,
            run_id=step.record.run_id,
            at=step.record.at,
        )
        facts = tuple(ReceivedFact.of(found.facts[fact_id], digest, row) for row, fact_id in enumerate(own))
        yield _File(record=record, facts=facts)
        found.lost.append(
            f"the feed files of {len(own)} facts of version {step.record.version}, which are not in "
            f"{space.settings.curated}"
        )


# Versions


def _steps(space: Workspace, versions: Sequence[Version], pointed: Mapping[str, int], found: _Findings) -> list[_Step]:
    """Every version that says enough, oldest first. Raises `LedgerError` when the champion cannot be made again."""
    numbers = {version.number for version in versions}
    if out := [f"{alias} points at version {number}" for alias, number in pointed.items() if number not in numbers]:
        raise LedgerError(
            f"{' and '.join(out)}, whose tags do not say what it is ({'; '.join(found.lost)}); nothing was changed: "
            "point the alias at another version in MLflow, or put a copy of the ledger back"
        )
    tell = reporter()
    steps: list[_Step] = []
    for index, version in enumerate(versions):
        tell("read versions", index, len(versions))
        steps.append(_step(space, version, pointed, found))
    tell("read versions", len(versions), len(versions))
    return steps


def _step(space: Workspace, version: Version, pointed: Mapping[str, int], found: _Findings) -> _Step:
    tags = version.tags
    parent: str | None = tags["errata.parent"]
    cut = parent != "base" and parent not in found.holding
    if cut:
        found.lost.append(
            f"the lineage of version {version.number} before it: it grew from state {str(parent)[:12]}, which MLflow "
            "has no more; its facts count as applied in it"
        )
    parent = None if cut or parent == "base" else parent
    before = found.holding.get(parent, ()) if parent else ()
    plan = _plan_of(space, tags)
    applied, retracted = (_listed(tags.get(f"errata.{what}", "")) for what in ("applied", "retracted"))
    held = _held(space, version, pointed, found)
    restored: tuple[str, ...] = ()
    if held is None:
        gone, new = found.known(version, retracted or ()), found.known(version, applied or ())
        keys = {found.facts[fact_id].key for fact_id in new}
        stay = (i for i in before if i not in (*gone, *new) and found.facts[i].key not in keys)
        held = (*stay, *new)
    else:
        fresh = [fact_id for fact_id in held if fact_id not in before]
        tagged = [fact_id for fact_id in applied or () if fact_id in held]
        new = tuple(fresh if cut or applied is None else tagged)
        restored = tuple(fact_id for fact_id in fresh if fact_id not in new)
        keys = {found.facts[fact_id].key for fact_id in held}
        left = [i for i in before if i not in held and found.facts[i].key not in keys]
        gone = found.known(version, left if retracted is None else [] if cut else retracted)
    found.holding[version.digest] = held
    by = dict.fromkeys(change for change, _ in plan.retract) if plan else {}
    record = VersionRecord(
        version=version.number,
        state_digest=version.digest,
        parent_digest=parent,
        base_fingerprint=tags[FINGERPRINT_TAG],
        method=tags["errata.method"],
        verdict=tags["errata.verdict"],
        night=datetime.fromisoformat(tags[NIGHT_TAG]),
        report=tags.get("errata.work"),
        run_id=tags.get("errata.work", version.run_id),
        at=version.made,
    )
    return _Step(
        version=version,
        record=record,
        applied=new,
        retracted=gone,
        by=tuple(change for change in by if change in found.facts),
        restored=restored,
        plan=plan,
        outcomes=tuple(_outcomes(space, version, found)),
    )


def _held(space: Workspace, version: Version, pointed: Mapping[str, int], found: _Findings) -> tuple[str, ...] | None:
    """The ids of the facts that a version's state holds, which are noted; None where its files do not tell."""
    try:
        facts = space.state(version.digest).facts
    except RegistryUnreachableError:
        raise
    except (StateError, RegistryError) as error:
        if version.number == pointed.get(CHAMPION):
            raise LedgerError(
                f"the champion, version {version.number}, cannot be read ({error}); nothing was changed: point the "
                "alias at a version that can, or put its files or a copy of the ledger back"
            ) from error
        found.lost.append(f"what version {version.number} holds, but for its tags: {error}")
        return None
    for fact in facts:
        found.facts.setdefault(fact.fact_id, fact)
    return tuple(fact.fact_id for fact in facts)


def _listed(tag: str) -> list[str] | None:
    """The ids in a tag; None where there were too many for it."""
    ids = [fact_id for fact_id in tag.split(",") if fact_id]
    return None if any(" " in fact_id for fact_id in ids) else ids


def _plan_of(space: Workspace, tags: Mapping[str, str]) -> NightWork | None:
    """The plan of the night that made a version: its own, or that of the whole night where a part stayed out."""
    own = space.settings.nights / tags.get("errata.work", "-") / PLAN_FILE
    for path in (own, *sorted(space.settings.nights.glob(f"*/{PLAN_FILE}"))):
        try:
            plan = NightWork.from_dict(read_json(path, StateError))
        except (StateError, TypeError, KeyError):
            continue
        if path == own or (plan.as_of, plan.parent or "base") == (tags[NIGHT_TAG], tags["errata.parent"]):
            return plan
    return None


def _outcomes(space: Workspace, version: Version, found: _Findings) -> Iterator[ItemOutcome]:
    names = {item.name for item in fields(ItemOutcome)}
    if "errata.work" not in version.tags:
        return
    rows = space.registry.table_of(version, "items")
    if not rows:
        found.lost.append(f"what version {version.number} was found to answer: its run has no table of items")
    for row in rows:
        yield ItemOutcome(**{name: value for name, value in row.items() if name in names})


# What happened


def _told(
    space: Workspace, steps: Sequence[_Step], made: Mapping[int, _Step], line: Sequence[int]
) -> Iterator[tuple[_Step, list[Event], list[RunRecord]]]:
    """Each version with what its night found and decided, and the night's row."""
    before: dict[str, Event] = {}
    for step in steps:
        verdicts = list(_verdicts(space, step, before))
        champion = step.record.version if step.record.version in line else _version_of(made, step.record.parent_digest)
        runs = list(_runs(space, step, verdicts, champion)) if step.of_night else []
        yield step, [*verdicts, *(_decided(space, step) if step.of_night else ())], runs


def _version_of(made: Mapping[int, _Step], digest: str | None) -> int | None:
    return next((number for number, step in made.items() if step.record.state_digest == digest), None)


def _verdicts(space: Workspace, step: _Step, before: dict[str, Event]) -> Iterator[Event]:
    """Which of the facts that were asked the version answers; `before` has the last such event of each."""
    by_metric: dict[str, dict[str, ItemOutcome]] = {}
    for item in step.outcomes:
        by_metric.setdefault(item.name, {})[item.item_id] = item
    edits = {row["fact_id"]: row for row in space.registry.table_of(step.version, "facts")} if step.outcomes else {}
    for fact_id, item in answered_items(by_metric).items():
        kind = EventKind.VERIFIED if item.score == 1.0 else EventKind.FORGOTTEN
        detail: dict[str, Any] = {"version": step.record.version}
        last = before.get(fact_id)
        if kind is EventKind.FORGOTTEN and fact_id in step.applied and fact_id in edits:
            kind, detail = EventKind.NOT_LEARNED, {**detail, "why": why_not_learned(edits[fact_id], item)}
        elif kind is EventKind.FORGOTTEN and last is not None and last.kind is EventKind.NOT_LEARNED:
            kind, detail = EventKind.NOT_LEARNED, {**detail, "why": last.detail["why"]}
        before[fact_id] = Event(
            fact_id=fact_id,
            kind=kind,
            at=step.record.at,
            run_id=step.record.run_id,
            state_digest=step.record.state_digest,
            detail=detail,
        )
        yield before[fact_id]


def _decided(space: Workspace, step: _Step) -> Iterator[Event]:
    """What the night that made a version decided without editing, as far as its folder tells."""
    record = step.record

    def event(fact_id: str, kind: EventKind, state: str | None = None, **detail: Any) -> Event:
        return Event(fact_id=fact_id, kind=kind, at=record.at, run_id=record.run_id, state_digest=state, detail=detail)

    if step.plan:
        for fact_id in step.plan.known:
            yield event(fact_id, EventKind.KNOWN, record.parent_digest)
        for fact_id, why in step.plan.contradicting:
            yield event(fact_id, EventKind.QUARANTINED, why=why, cause="inverse", partners=[])
    search = search_of(space, record.run_id)
    for blamed in search.blamed if search else ():
        partners = list(blamed.partners)
        yield event(
            blamed.fact_id,
            EventKind.QUARANTINED,
            why=blamed.why,
            report=record.run_id,
            cause=blamed.cause,
            partners=partners,
        )
    for fact_id in search.postponed if search else ():
        yield event(fact_id, EventKind.POSTPONED, why="too many at once", report=record.run_id)


def _runs(space: Workspace, step: _Step, verdicts: Sequence[Event], champion: int | None) -> Iterator[RunRecord]:
    """A night's row by its MLflow run, and that what it decided about the aliases is done with."""
    record, plan = step.record, step.plan
    found = space.registry.metrics_of(step.version)

    def count(name: str) -> int:
        return int(found.get(f"night/{name}", 0))

    search = search_of(space, record.run_id)
    counts = {name: count(name) for name in ("applied", "refused", "retracted", "known", "superseded")}
    measured = {metric: found.get(f"candidate/{metric}") for metric in (*HEADLINES.values(), *SCORES.values())}
    row = {
        **counts,
        "facts": plan.considered if plan else sum(counts.values()) + count("left_out"),
        "quarantined": 0,
        "again": len(set(plan.again) & set(step.applied)) if plan else 0,
        "blamed": len(search.blamed) if search else 0,
        "postponed": len(search.postponed) if search else 0,
        "contradicting": len(plan.contradicting) if plan else 0,
        "not_learned": sum(e.kind is EventKind.NOT_LEARNED and e.fact_id in step.applied for e in verdicts),
        "suites": {name: measured[metric] for name, metric in HEADLINES.items() if measured[metric] is not None},
        **{name: measured[metric] for name, metric in SCORES.items()},
        "night": f"{record.night:%Y-%m-%d}",
        "key": record.run_id,
        "verdict": record.verdict,
        "decided": "rebuilt from MLflow",
        "version": record.version,
        "champion": champion,
    }
    summary = NightSummary.from_dict(row)
    yield RunRecord(
        run_id=record.run_id,
        kind=KIND,
        phase=RunPhase.FINISHED,
        as_of=record.night,
        detail=summary.to_dict(),
        at=record.at,
    )
    yield RunRecord(run_id=record.run_id, kind=SETTLED, phase=RunPhase.FINISHED, at=record.at)


def _answers(
    space: Workspace, steps: Sequence[_Step], champion: _Step | None, found: _Findings
) -> list[RecordedAnswer]:
    """What the versions answered to a suite's sample, by MLflow; the champion's facts, which are asked now."""
    answers: dict[str, list[RecordedAnswer]] = {}
    for step in steps:
        digest, parent = step.record.state_digest, step.record.parent_digest
        answers[digest] = suite_answers(space, digest, step.outcomes)
        if not step.of_night and parent:
            answers[digest] = [replace(row, state_digest=digest) for row in answers[parent]]
    if champion is not None:
        answers[champion.record.state_digest] += fact_answers(space, champion.record.state_digest)
        found.lost.append(
            f"what the versions answered on their facts when they were registered: those of version "
            f"{champion.record.version} were asked now, of the others the canary compares the suite's answers alone"
        )
    return [answer for group in answers.values() for answer in group]


def _line(made: Mapping[int, _Step], champion: int | None) -> list[int]:
    """The versions that the champion grew from, and itself, oldest first: each was the champion of its time."""
    numbers = {step.record.state_digest: number for number, step in made.items()}
    line: list[int] = []
    while champion is not None:
        line.append(champion)
        parent = made[champion].record.parent_digest
        champion = numbers[parent] if parent else None
    return line[::-1]


def _moves(made: Mapping[int, _Step], line: Sequence[int], pointed: Mapping[str, int]) -> Iterator[AliasMove]:
    """The champion along its lineage; then each version that passed the gate and is not in it counts as taken back.

    Whether it was is not known, and a night that makes it again must not promote it by itself.
    """
    stands: int | None = None
    for number in line:
        step = made[number]
        yield AliasMove(
            alias=CHAMPION,
            from_version=stands,
            to_version=number,
            who=BY_NIGHT if step.of_night else REBUILD,
            why=f"night {step.record.night:%Y-%m-%d}: {step.record.verdict} (rebuilt from the lineage)",
            report=step.record.report,
            at=step.record.at,
        )
        stands = number
    now = datetime.now(UTC)
    for number, step in made.items():
        if number in line or step.record.verdict != Decision.PROMOTE:
            continue
        why = "it does not serve, and whether it was taken back is not known since the ledger was rebuilt"
        for start, to in ((stands, number), (number, stands)):
            yield AliasMove(alias=CHAMPION, from_version=start, to_version=to, who=REBUILD, why=why, at=now)
    if (challenger := pointed.get(CHALLENGER)) is not None:
        why = "where MLflow's alias stood when the ledger was rebuilt"
        yield AliasMove(alias=CHALLENGER, from_version=None, to_version=challenger, who=REBUILD, why=why, at=now)
