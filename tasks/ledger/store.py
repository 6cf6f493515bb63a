"""The ledger itself: appends, and the questions that nights, commands and pages ask of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar
from uuid import uuid4

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    Subquery,
    Table,
    and_,
    case,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    not_,
    null,
    or_,
    select,
    tuple_,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from editing.facts import FactChange
from tasks.errors import LedgerError, without_password
from tasks.ledger import tables
from tasks.ledger.leases import Lease, hold_lease
from tasks.ledger.records import (
    CONTENDING,
    IN_STATE,
    PENDING,
    AliasMove,
    BatchCommit,
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
from tasks.waiting import waiting_for

_LOOKUP = 10_000
_BUSY_SECONDS = 120
_CONNECT_SECONDS = 10
OBSERVED_AHEAD = timedelta(days=1)  # what a source's clock may be ahead


class _Record(Protocol):
    __slots__: Any


R = TypeVar("R")

_FORMAT = select(func.max(tables.formats.c.format))
_OWN = "ledger"  # the run whose id is the ledger's own
_IDENTITY = select(tables.runs.c.run_id).where(tables.runs.c.kind == _OWN).order_by(tables.runs.c.id).limit(1)
_ENUMS: dict[type, dict[str, type]] = {
    Event: {"kind": EventKind},
    FileRecord: {"outcome": FileOutcome},
    RunRecord: {"phase": RunPhase},
}


class Standing(NamedTuple):
    """A fact that competes for its key, and its status in the lineage that was asked about.

    `beneath`: it was in the state when another superseded it, and is there again when that one goes.
    """

    change: FactChange
    status: EventKind
    beneath: bool


class Sighting(NamedTuple):
    """A place where a fact was read: the file, its row (None: a repetition), and when it was observed and taken in."""

    file_digest: str
    file: str
    row: int | None
    observed_at: datetime
    at: datetime


def _values(record: _Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def _record(kind: type[R], row: Row[Any]) -> R:
    values = {name: row._mapping[name] for name in kind.__slots__}  # type: ignore[attr-defined]
    enums = {name: enum(values[name]) for name, enum in _ENUMS.get(kind, {}).items()}
    return kind(**values | enums)


def _due(as_of: datetime) -> ColumnElement[bool]:
    """Whether a fact takes effect by `as_of` and was observed by then, or by now."""
    observed = max(as_of, datetime.now(UTC) + OBSERVED_AHEAD)
    return and_(tables.facts.c.effective_at <= as_of, tables.facts.c.observed_at <= observed)


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise LedgerError(
            f"ledger url {without_password(url)!r} cannot be used ({error}); write sqlite:///PATH, or "
            "postgresql+psycopg://USER@HOST/NAME with `pip install errata[postgresql]`"
        ) from error
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite:
        if parsed.database in (None, "", ":memory:"):
            raise LedgerError(
                f"ledger url {without_password(url)!r} names no file; write sqlite:///PATH, or a PostgreSQL url"
            )
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
    limits = {"sqlite": {"timeout": _BUSY_SECONDS}, "postgresql": {"connect_timeout": _CONNECT_SECONDS}}
    engine = create_engine(parsed, connect_args=limits.get(parsed.get_backend_name(), {}))
    if sqlite:
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-131072"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("ledger_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def identity_of(url: str) -> str | None:
    """The id of the ledger at `url`; None where there is no ledger, or one without. Nothing is made."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
        return None
    engine = _engine(url)
    try:
        with engine.begin() as connection:
            return connection.scalar(_IDENTITY) if inspect(connection).has_table(tables.runs.name) else None
    finally:
        engine.dispose()


class Intake:
    """One open transaction that takes in one feed file; made by `Ledger.intake`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def known(self, fact_ids: Sequence[str]) -> dict[str, datetime]:
        """Those of `fact_ids` that were received before (in this file too), with their newest observation."""
        found: dict[str, datetime] = {}
        for start in range(0, len(fact_ids), _LOOKUP):
            chosen = tables.facts.c.fact_id.in_(fact_ids[start : start + _LOOKUP])
            query = select(tables.facts.c.fact_id, tables.facts.c.observed_at, _newest_observation()).where(chosen)
            for fact_id, first, newest in self._connection.execute(query):
                found[fact_id] = max(first, newest or first)
        return found

    def add_facts(self, facts: Sequence[ReceivedFact]) -> None:
        """Append facts that were not known."""
        _append(self._connection, tables.facts, facts)

    def add_observations(self, observed: Mapping[str, datetime], file_digest: str) -> None:
        """Known facts were observed again, later."""
        rows = [{"fact_id": fact_id, "observed_at": at, "file_digest": file_digest} for fact_id, at in observed.items()]
        if rows:
            self._connection.execute(insert(tables.observations), rows)

    def add_quarantined(self, rows: Sequence[QuarantinedRow]) -> None:
        """Append rows that were not let in."""
        _append(self._connection, tables.quarantined_rows, rows)

    def add_file(self, record: FileRecord) -> None:
        """Append the file; from the commit on its digest is not taken in again."""
        _append(self._connection, tables.files, [record])


class Refill(Intake):
    """One open transaction that fills an empty ledger; made by `Ledger.refill`."""

    def add_version(
        self,
        version: VersionRecord,
        applied: Sequence[str] = (),
        retracted: Sequence[str] = (),
        by: Sequence[str] = (),
        restored: Sequence[str] = (),
    ) -> None:
        """Append a version with its events, as `Ledger.record_version` does."""
        _append_version(self._connection, version, applied, retracted, by, restored)

    def add_events(self, events: Sequence[Event]) -> None:
        """Append events."""
        _append(self._connection, tables.events, events)

    def add_move(self, move: AliasMove) -> None:
        """Append an alias move, as `Ledger.record_alias_move` does."""
        _append_move(self._connection, move)

    def add_answers(self, answers: Sequence[RecordedAnswer]) -> None:
        """Append what a state answers."""
        _append(self._connection, tables.answers, answers)

    def add_runs(self, runs: Sequence[RunRecord]) -> None:
        """Append moments of runs."""
        _append(self._connection, tables.runs, runs)


def _append(connection: Connection, table: Table, records: Sequence[Any]) -> None:
    if records:
        connection.execute(insert(table), [_values(record) for record in records])


def _append_version(
    connection: Connection,
    version: VersionRecord,
    applied: Sequence[str],
    retracted: Sequence[str],
    by: Sequence[str],
    restored: Sequence[str],
) -> bool:
    digest = version.state_digest
    stands = connection.scalar(
        select(tables.versions.c.state_digest).where(tables.versions.c.version == version.version)
    )
    if stands is not None and stands != digest:
        raise LedgerError(
            f"version {version.version} is state {stands[:12]}, not {digest[:12]}; register a new version"
        )
    if stands is not None:
        return False
    parent = version.parent_digest
    if parent is not None and not connection.scalar(
        select(func.count()).where(tables.versions.c.state_digest == parent)
    ):
        raise LedgerError(f"parent state {parent[:12]} is no recorded version; record the parent first")

    def event_of(fact_id: str, kind: EventKind, **detail: str) -> Event:
        return Event(
            fact_id=fact_id,
            kind=kind,
            at=version.at,
            run_id=version.run_id,
            state_digest=digest,
            detail=detail | {"version": version.version},
        )

    events = [event_of(fact_id, EventKind.RETRACTED) for fact_id in retracted]
    events += [event_of(fact_id, EventKind.CARRIED_OUT) for fact_id in by]
    events += [event_of(fact_id, EventKind.RESTORED) for fact_id in restored]
    replaced = _same_key_in_state(connection, parent, applied)
    gone = set(retracted)
    events += [event_of(old, EventKind.SUPERSEDED, by=new) for old, new in replaced if old not in gone]
    events += [event_of(fact_id, EventKind.APPLIED) for fact_id in applied]
    _append(connection, tables.versions, [version])
    _append(connection, tables.events, events)
    return True


def _append_move(connection: Connection, move: AliasMove) -> None:
    if move.to_version is not None and not connection.scalar(
        select(func.count()).where(tables.versions.c.version == move.to_version)
    ):
        raise LedgerError(f"alias {move.alias!r} cannot move to {move.to_version}: no such version is recorded")
    moves = _moves(connection, move.alias, None)
    stands = moves[-1].to_version if moves else None
    if stands != move.from_version:
        raise LedgerError(
            f"alias {move.alias!r} stands at {stands}, not at {move.from_version}; read it again and retry"
        )
    _append(connection, tables.alias_moves, [move])


def _newest_observation() -> Any:
    seen = tables.observations.c
    return (
        select(func.max(seen.observed_at))
        .where(seen.fact_id == tables.facts.c.fact_id)
        .correlate(tables.facts)
        .scalar_subquery()
        .label("observed_again")
    )


def _change(row: Row[Any]) -> FactChange:
    fact = _record(ReceivedFact, row)
    change = fact.change()
    newest = row._mapping["observed_again"]
    if newest is None or newest <= fact.observed_at:
        return change
    return FactChange.from_dict(change.to_dict() | {"observed_at": newest.isoformat()})


def _lineage(head: str) -> Select[Any]:
    """The digests of `head` and of every version it grew from."""
    table = tables.versions
    start = select(table.c.state_digest, table.c.parent_digest).where(table.c.state_digest == head)
    chain = start.cte("lineage", recursive=True)
    above = table.alias("above")
    step = select(above.c.state_digest, above.c.parent_digest).join(
        chain, above.c.state_digest == chain.c.parent_digest
    )
    return select(chain.union(step).c.state_digest)


def _latest(head: str | None, *, state_only: bool = False) -> Subquery:
    """The last event of every fact that counts where the present state is `head` (None: the base)."""
    table = tables.events
    of_state = table.c.state_digest.in_(_lineage(head)) if head is not None else table.c.state_digest.in_([])
    counting = of_state if state_only else or_(table.c.state_digest.is_(None), of_state)
    last = select(func.max(table.c.id).label("id")).where(counting).group_by(table.c.fact_id).subquery()
    return select(table.c.fact_id, table.c.kind, table.c.state_digest).join(last, table.c.id == last.c.id).subquery()


def _facts_with_status(head: str | None) -> tuple[Select[Any], Any]:
    latest = _latest(head)
    status = func.coalesce(latest.c.kind, EventKind.RECEIVED.value).label("status")
    joined = tables.facts.outerjoin(latest, tables.facts.c.fact_id == latest.c.fact_id)
    in_state = latest.c.state_digest.is_not(None).label("of_state")
    return select(tables.facts, _newest_observation(), status, in_state).select_from(joined), status


class Ledger:
    """The history of facts, versions and aliases in a database. Nothing in it is ever changed or deleted.

    `url` is SQLAlchemy's: `sqlite:///PATH` (made with its folder when missing) or PostgreSQL's. Every
    method is one transaction and may be called from any thread; readers never wait for a writer.
    Raises `LedgerError` for a ledger of another format.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._reader = _engine(url)
        self._writer = self._reader.execution_options(ledger_writes=True)
        with waiting_for(f"the ledger at {url}"):
            found = self._format(self._reader)
        if found is None or not self._complete(self._reader):
            with self._writer.begin() as connection:
                tables.metadata.create_all(connection)
                if connection.scalar(_FORMAT) is None:
                    connection.execute(insert(tables.formats), [{"format": tables.FORMAT}])
            found = self._format(self._reader)
        if found != tables.FORMAT:
            self.close()
            raise LedgerError(f"the ledger has format {found}, this Errata reads {tables.FORMAT}; use the matching one")

    @staticmethod
    def _complete(engine: Engine) -> bool:
        with engine.begin() as connection:
            return inspect(connection).has_table(tables.answers.name)

    @staticmethod
    def _format(engine: Engine) -> int | None:
        with engine.begin() as connection:
            if not inspect(connection).has_table(tables.formats.name):
                return None
            return connection.scalar(_FORMAT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._reader.dispose()

    def identity(self) -> str:
        """An id that is this ledger's own wherever it is kept, made when first asked for: a copy has it too."""
        with self._writer.begin() as connection:
            if connection.scalar(_IDENTITY) is None:
                own = RunRecord(run_id=uuid4().hex, kind=_OWN, phase=RunPhase.FINISHED, at=datetime.now(UTC))
                _append(connection, tables.runs, [own])
        with self._reader.begin() as connection:
            return str(connection.scalar(_IDENTITY))

    # Writing

    @contextmanager
    def intake(self) -> Iterator[Intake]:
        """A transaction that takes in one file: all of it at the end, or after an exception nothing."""
        with self._writer.begin() as connection:
            yield Intake(connection)

    @contextmanager
    def refill(self) -> Iterator[Refill]:
        """A transaction that fills a ledger which holds nothing: all of it at the end, or after an exception nothing.

        Raises `LedgerError` for a ledger that holds anything but leases.
        """
        with self._writer.begin() as connection:
            self._require_empty(connection)
            yield Refill(connection)

    def require_empty(self) -> None:
        """Raise `LedgerError` for a ledger that holds anything but leases."""
        with self._reader.begin() as connection:
            self._require_empty(connection)

    def _require_empty(self, connection: Connection) -> None:
        counts = {
            table.name: connection.scalar(select(func.count()).select_from(table))
            for table in tables.metadata.sorted_tables
            if table not in (tables.formats, tables.leases)
        }
        if held := ", ".join(f"{count} {name}" for name, count in counts.items() if count):
            raise LedgerError(
                f"the ledger at {without_password(self.url)} is not empty ({held}), nothing was changed; only an "
                "empty ledger is rebuilt: put a copy of it back, or move it out of the way first"
            )

    def record(self, events: Iterable[Event]) -> None:
        """Append events."""
        with self._writer.begin() as connection:
            _append(connection, tables.events, list(events))

    def record_version(
        self,
        version: VersionRecord,
        applied: Sequence[str] = (),
        retracted: Sequence[str] = (),
        by: Sequence[str] = (),
        restored: Sequence[str] = (),
    ) -> bool:
        """Append a version with what its state added to its parent's, as events that count in its lineage.

        `applied` and `retracted` are fact ids; `by` those of the retract changes that were carried out;
        `restored` those of facts that hold again because what superseded them was retracted.
        Facts of the parent that share a key with an applied one become superseded. Recording the same
        version again changes nothing and answers False. Raises `LedgerError` when its number already
        stands for another state, or its parent is no version.
        """
        with self._writer.begin() as connection:
            return _append_version(connection, version, applied, retracted, by, restored)

    def record_alias_move(self, move: AliasMove) -> None:
        """Append an alias move. Raises `LedgerError` when the target is no version or the start is not where it is."""
        with self._writer.begin() as connection:
            _append_move(connection, move)

    def record_answers(self, answers: Sequence[RecordedAnswer]) -> None:
        """Append what a state answered; a state that has answers keeps those."""
        with self._writer.begin() as connection:
            if answers and not _answers(connection, answers[0].state_digest):
                _append(connection, tables.answers, answers)

    def record_commit(self, commit: BatchCommit) -> bool:
        """Append a batch commit; the same again changes nothing and answers False.

        Raises `LedgerError` when that place of the night holds another batch or state.
        """
        places = tables.batch_commits.c
        with self._writer.begin() as connection:
            stands = connection.execute(
                select(tables.batch_commits).where(places.night == commit.night, places.position == commit.position)
            ).one_or_none()
            if stands is None:
                _append(connection, tables.batch_commits, [commit])
                return True
            if (stands.batch_id, stands.state_digest) != (commit.batch_id, commit.state_digest):
                raise LedgerError(
                    f"place {commit.position} of night {commit.night} holds batch {stands.batch_id} with state "
                    f"{stands.state_digest[:12]}, not {commit.batch_id} with {commit.state_digest[:12]}; "
                    "the batch is not reproducible: start the night under another name"
                )
            return False

    def record_run(self, run: RunRecord, events: Iterable[Event] = ()) -> None:
        """Append a moment of a run, and with it, all or nothing, the events that it decided."""
        with self._writer.begin() as connection:
            _append(connection, tables.events, list(events))
            _append(connection, tables.runs, [run])

    @contextmanager
    def lease(self, name: str, owner: str, duration: timedelta = timedelta(minutes=15)) -> Iterator[Lease]:
        """Hold the lease `name`, renewing with `Lease.renew`; raises `LeaseHeldError` when another holds it.

        A lease ends with the block, at its expiry, or with its process where that ran on this host.
        """
        with hold_lease(self._writer, name, owner, duration) as lease:
            yield lease

    # Files and counts

    def file(self, digest: str) -> FileRecord | None:
        """The record of the file with these bytes, if it was taken in."""
        with self._reader.begin() as connection:
            row = connection.execute(select(tables.files).where(tables.files.c.digest == digest)).one_or_none()
        return None if row is None else _record(FileRecord, row)

    def files(self, run_id: str | None = None) -> list[FileRecord]:
        """Every file taken in, oldest first; those of one run if named."""
        query = select(tables.files).order_by(tables.files.c.at, tables.files.c.name)
        if run_id is not None:
            query = query.where(tables.files.c.run_id == run_id)
        with self._reader.begin() as connection:
            return [_record(FileRecord, row) for row in connection.execute(query)]

    def quarantined_rows(self, file_digest: str | None = None) -> Iterator[QuarantinedRow]:
        """Rows that were not let in, in file and row order; those of one file if named."""
        columns = tables.quarantined_rows.c
        query = select(tables.quarantined_rows).order_by(columns.file_digest, columns.row)
        if file_digest is not None:
            query = query.where(columns.file_digest == file_digest)
        with self._reader.begin() as connection:
            for row in connection.execute(query.execution_options(yield_per=_LOOKUP)):
                yield _record(QuarantinedRow, row)

    def quarantine_counts(self) -> Counter[str]:
        """How many rows were not let in, by reason."""
        return self._counts(select(tables.quarantined_rows.c.reason, func.count()).group_by("reason"))

    def status_counts(self, state_digest: str | None = None) -> Counter[str]:
        """How many facts stand at each status where the present state is `state_digest` (None: the base)."""
        rows = _facts_with_status(state_digest)[0].subquery()
        return self._counts(select(rows.c.status, func.count()).group_by(rows.c.status))

    def _counts(self, query: Select[Any]) -> Counter[str]:
        with self._reader.begin() as connection:
            return Counter({str(name): int(count) for name, count in connection.execute(query)})

    # Facts

    def fact(self, fact_id: str) -> FactChange | None:
        """The fact change with this id."""
        found = self.facts([fact_id])
        return found[0] if found else None

    def facts(self, fact_ids: Sequence[str]) -> list[FactChange]:
        """The fact changes with these ids, in their order; unknown ids are left out."""
        found: dict[str, FactChange] = {}
        with self._reader.begin() as connection:
            for start in range(0, len(fact_ids), _LOOKUP):
                chosen = tables.facts.c.fact_id.in_(fact_ids[start : start + _LOOKUP])
                for row in connection.execute(select(tables.facts, _newest_observation()).where(chosen)):
                    found[row.fact_id] = _change(row)
        return [found[fact_id] for fact_id in fact_ids if fact_id in found]

    def matching(self, prefix: str) -> list[FactChange]:
        """The fact changes whose ids begin with `prefix`, in order of id."""
        query = select(tables.facts, _newest_observation()).where(tables.facts.c.fact_id.startswith(prefix))
        with self._reader.begin() as connection:
            return [_change(row) for row in connection.execute(query.order_by(tables.facts.c.fact_id))]

    def sightings(self, fact_id: str) -> list[Sighting]:
        """Where a fact was read, the first time and again, oldest first; empty for an unknown id."""
        facts, again, files = tables.facts, tables.observations, tables.files
        first = (
            select(files.c.digest, files.c.name, facts.c.row, facts.c.observed_at, files.c.at)
            .join(files, facts.c.file_digest == files.c.digest)
            .where(facts.c.fact_id == fact_id)
        )
        later = (
            select(files.c.digest, files.c.name, null().label("row"), again.c.observed_at, files.c.at)
            .join(files, again.c.file_digest == files.c.digest)
            .where(again.c.fact_id == fact_id)
            .order_by(again.c.id)
        )
        with self._reader.begin() as connection:
            return [Sighting(*row) for query in (first, later) for row in connection.execute(query)]

    def facts_of_subject(self, subject_key: str) -> list[FactChange]:
        """Every fact change about a subject (folded as in `FactKey`), oldest first."""
        query = select(tables.facts, _newest_observation()).where(tables.facts.c.subject_key == subject_key)
        with self._reader.begin() as connection:
            return [_change(row) for row in connection.execute(query.order_by(tables.facts.c.effective_at))]

    def pending(self, as_of: datetime, state_digest: str | None = None) -> Iterator[FactChange]:
        """Facts effective by `as_of` that nothing has been decided about in the lineage of `state_digest`.

        One that was observed after now, by a clock that is ahead of ours, waits until then.
        """
        query, status = _facts_with_status(state_digest)
        query = query.where(_due(as_of), status.in_(PENDING))
        with self._reader.begin() as connection:
            for row in connection.execute(query.execution_options(yield_per=_LOOKUP)):
                yield _change(row)

    def waiting(self, as_of: datetime, state_digest: str | None = None) -> tuple[int, datetime | None]:
        """How many facts nothing is decided about because they are dated after `as_of` or after now, and the first
        of those dates."""
        query, status = _facts_with_status(state_digest)
        rows = query.where(not_(_due(as_of)), status.in_(PENDING)).subquery()
        comes = case((rows.c.effective_at > rows.c.observed_at, rows.c.effective_at), else_=rows.c.observed_at)
        with self._reader.begin() as connection:
            count, first = connection.execute(select(func.count(), func.min(comes))).one()
        return int(count), first

    def contenders(self, as_of: datetime, state_digest: str | None = None) -> Iterator[Standing]:
        """Facts effective by `as_of` that could hold for a key for which one is pending, ordered by key."""
        query, status = _facts_with_status(state_digest)
        due = _due(as_of)
        key = (tables.facts.c.subject_key, tables.facts.c.relation_key)
        waiting = query.where(due, status.in_(PENDING)).with_only_columns(*key)
        yield from self._standing(query.where(due, status.in_(CONTENDING), tuple_(*key).in_(waiting)).order_by(*key))

    def standing_in(
        self, relations: Collection[str], as_of: datetime, state_digest: str | None = None
    ) -> Iterator[Standing]:
        """Facts effective by `as_of` that compete for a key of these (folded) relations, ordered by key."""
        query, status = _facts_with_status(state_digest)
        facts = tables.facts.c
        query = query.where(_due(as_of), status.in_(CONTENDING), facts.relation_key.in_(relations))
        yield from self._standing(query.order_by(facts.subject_key, facts.relation_key))

    def _standing(self, query: Select[Any]) -> Iterator[Standing]:
        with self._reader.begin() as connection:
            for row in connection.execute(query.execution_options(yield_per=_LOOKUP)):
                kind = EventKind(row.status)
                yield Standing(_change(row), kind, kind is EventKind.SUPERSEDED and bool(row.of_state))

    def status(self, fact_id: str, state_digest: str | None = None) -> EventKind | None:
        """The last event of a fact that counts in the lineage of `state_digest`; None for an unknown id."""
        query, _ = _facts_with_status(state_digest)
        with self._reader.begin() as connection:
            row = connection.execute(query.where(tables.facts.c.fact_id == fact_id)).one_or_none()
        return None if row is None else EventKind(row.status)

    def lost_to(self, fact_id: str) -> list[str]:
        """Ids of the pending facts that stayed out for this one before anything was edited.

        They lost their key to it, or contradicted it through an inverse relation.
        """
        winner = self.fact(fact_id)
        if winner is None:
            return []
        of_key = (other.fact_id for other in self.facts_of_subject(winner.key.subject) if other.key == winner.key)
        contradicting = (events[-1].fact_id for events in self.events_by_fact({EventKind.QUARANTINED}))
        last = {loser: self.history(loser)[-1] for loser in (*of_key, *contradicting)}
        return [
            loser
            for loser, event in last.items()
            if event.kind in (EventKind.SUPERSEDED, EventKind.QUARANTINED)
            and event.state_digest is None
            and event.detail.get("by") == fact_id
        ]

    def facts_in_state(self, state_digest: str | None) -> list[FactChange]:
        """The facts that are part of a version's state, oldest effective date first."""
        if state_digest is None:
            return []
        latest = _latest(state_digest, state_only=True)
        query = (
            select(tables.facts, _newest_observation())
            .join(latest, tables.facts.c.fact_id == latest.c.fact_id)
            .where(latest.c.kind.in_(IN_STATE))
            .order_by(tables.facts.c.effective_at, tables.facts.c.fact_id)
        )
        with self._reader.begin() as connection:
            return [_change(row) for row in connection.execute(query)]

    def history(self, fact_id: str) -> list[Event]:
        """Everything that happened to a fact, from its receipt on; empty for an unknown id."""
        origin = tables.facts.join(tables.files, tables.facts.c.file_digest == tables.files.c.digest)
        receipt = select(tables.files, tables.facts.c.row).select_from(origin).where(tables.facts.c.fact_id == fact_id)
        with self._reader.begin() as connection:
            came = connection.execute(receipt).one_or_none()
            events = connection.execute(
                select(tables.events).where(tables.events.c.fact_id == fact_id).order_by(tables.events.c.id)
            ).all()
        if came is None:
            return []
        received = Event(
            fact_id=fact_id,
            kind=EventKind.RECEIVED,
            at=came.at,
            run_id=came.run_id,
            detail={"file": came.name, "row": came.row},
        )
        return [received, *(_record(Event, row) for row in events)]

    def events_by_fact(self, kinds: Collection[EventKind]) -> Iterator[list[Event]]:
        """The events of these kinds, a list for each fact that has any, in the order in which they happened."""
        events = tables.events
        query = select(events).where(events.c.kind.in_(kinds)).order_by(events.c.fact_id, events.c.id)
        with self._reader.begin() as connection:
            rows = connection.execute(query.execution_options(yield_per=_LOOKUP))
            for _, found in groupby(rows, key=lambda row: row.fact_id):
                yield [_record(Event, row) for row in found]

    def overruled(self, state_digest: str) -> Event | None:
        """The first time that a fact which this state brought in was superseded or quarantined after that; else None.

        What a later state did about it does not count.
        """
        brought, later = tables.events.alias(), tables.events.alias()
        query = (
            select(later)
            .join(brought, later.c.fact_id == brought.c.fact_id)
            .where(brought.c.state_digest == state_digest, brought.c.kind.in_({EventKind.APPLIED, EventKind.RESTORED}))
            .where(later.c.state_digest.is_(None), later.c.kind.in_({EventKind.SUPERSEDED, EventKind.QUARANTINED}))
            .where(later.c.id > brought.c.id)
            .order_by(later.c.id)
            .limit(1)
        )
        with self._reader.begin() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _record(Event, row)

    # Versions and aliases

    def versions(self) -> list[VersionRecord]:
        """Every version, oldest first."""
        with self._reader.begin() as connection:
            rows = connection.execute(select(tables.versions).order_by(tables.versions.c.version))
            return [_record(VersionRecord, row) for row in rows]

    def version(self, version: int) -> VersionRecord | None:
        """The version with this number."""
        return next((record for record in self.versions() if record.version == version), None)

    def version_of_state(self, state_digest: str) -> VersionRecord | None:
        """The newest version that holds this state."""
        return next((record for record in reversed(self.versions()) if record.state_digest == state_digest), None)

    def answers(self, state_digest: str) -> list[RecordedAnswer]:
        """What a state answered when it was registered."""
        with self._reader.begin() as connection:
            return _answers(connection, state_digest)

    def alias_moves(self, alias: str | None = None, until: datetime | None = None) -> list[AliasMove]:
        """Every move of an alias (of all when None), in order; up to and including `until` if given."""
        with self._reader.begin() as connection:
            return _moves(connection, alias, until)

    def champion(self, at: datetime | None = None, alias: str = "champion") -> VersionRecord | None:
        """The version that the alias named at a time (None: now); None where it named nothing."""
        moves = self.alias_moves(alias, at)
        return self._version_named(moves[-1].to_version if moves else None)

    def stood_before(self, alias: str = "champion") -> list[int | None]:
        """Where a rollback can go, the nearest first; None is the base, where every line of versions began.

        A move back to a version that stood before undoes the moves since, so that two rollbacks go
        back two versions.
        """
        stood: list[int | None] = [None]
        for move in self.alias_moves(alias):
            if move.to_version in stood:
                del stood[stood.index(move.to_version) + 1 :]
            else:
                stood.append(move.to_version)
        return stood[-2::-1]

    def previous_champion(self, alias: str = "champion") -> VersionRecord | None:
        """The version that stood before the present one was first promoted; None: the base."""
        before = self.stood_before(alias)
        return self._version_named(before[0] if before else None)

    def _version_named(self, version: int | None) -> VersionRecord | None:
        return None if version is None else self.version(version)

    # Nights

    def commits(self, night: str) -> list[BatchCommit]:
        """The batches of a night whose states are on disk, in order."""
        query = select(tables.batch_commits).where(tables.batch_commits.c.night == night)
        with self._reader.begin() as connection:
            rows = connection.execute(query.order_by(tables.batch_commits.c.position))
            return [_record(BatchCommit, row) for row in rows]

    def runs(self, *kinds: str) -> list[RunRecord]:
        """Every moment of every run (of these kinds if named), in order."""
        query = select(tables.runs).order_by(tables.runs.c.id)
        if kinds:
            query = query.where(tables.runs.c.kind.in_(kinds))
        with self._reader.begin() as connection:
            rows = connection.execute(query).all()
        return [_record(RunRecord, row) for row in rows]


def _answers(connection: Connection, state_digest: str) -> list[RecordedAnswer]:
    query = select(tables.answers).where(tables.answers.c.state_digest == state_digest)
    return [_record(RecordedAnswer, row) for row in connection.execute(query.order_by("suite", "item_id"))]


def _moves(connection: Connection, alias: str | None, until: datetime | None) -> list[AliasMove]:
    query = select(tables.alias_moves).order_by(tables.alias_moves.c.id)
    if alias is not None:
        query = query.where(tables.alias_moves.c.alias == alias)
    if until is not None:
        query = query.where(tables.alias_moves.c.at <= until)
    return [_record(AliasMove, row) for row in connection.execute(query)]


def _same_key_in_state(connection: Connection, head: str | None, fact_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (fact in the state `head`, one of `fact_ids` with the same key)."""
    if head is None or not fact_ids:
        return []
    old, new, latest = tables.facts.alias("old"), tables.facts.alias("new"), _latest(head, state_only=True)
    same_key = (old.c.subject_key == new.c.subject_key) & (old.c.relation_key == new.c.relation_key)
    pairs: list[tuple[str, str]] = []
    for start in range(0, len(fact_ids), _LOOKUP):
        query = (
            select(old.c.fact_id, new.c.fact_id)
            .select_from(new.join(old, same_key).join(latest, latest.c.fact_id == old.c.fact_id))
            .where(new.c.fact_id.in_(fact_ids[start : start + _LOOKUP]), latest.c.kind.in_(IN_STATE))
            .where(old.c.fact_id != new.c.fact_id)
        )
        pairs.extend((row[0], row[1]) for row in connection.execute(query))
    return pairs
