"""From the landing zone to the curated store and the ledger, each file wholly or not at all.

The ledger's commit decides: rows are first written beside, under the name of the file's digest, and
are part of the store once the ledger names them. A run killed anywhere is repaired by the next one.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import FeedError
from tasks.feed.files import file_digest, replacing, scratch_of
from tasks.feed.reading import BrokenFileError, read_batches, row_count
from tasks.feed.rules import BadRow, Limits, Reason, check_batch, raw_json
from tasks.feed.schema import SCHEMA, parquet_writer
from tasks.ledger import FileOutcome, FileRecord, Intake, Ledger, QuarantinedRow, ReceivedFact

Progress = Callable[[str, int, int], None]
_MOST_TRIES = 2

QUARANTINE_SCHEMA = pa.schema(
    [
        ("raw", pa.string()),
        ("reason", pa.string()),
        ("sentence", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("fact_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedStore:
    """Where feeds live: `landing` is only read; `curated` and `quarantine` are written here alone."""

    landing: Path
    curated: Path
    quarantine: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """What one ingestion did. `files` were new; `known` were taken in before; `unread` wait for the next time."""

    files: tuple[FileRecord, ...] = ()
    known: int = 0
    unread: dict[str, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Rows read from new files."""
        return sum(file.rows for file in self.files)

    @property
    def accepted(self) -> int:
        """Facts that are new to the ledger."""
        return sum(file.accepted for file in self.files)

    @property
    def quarantined(self) -> int:
        """Rows that were not let in (rows of files that were quarantined whole are not counted)."""
        return sum(file.quarantined for file in self.files)


def ingest(
    store: FeedStore, ledger: Ledger, *, limits: Limits, run_id: str, at: datetime, progress: Progress | None = None
) -> IngestReport:
    """Take in every file of the landing zone that the ledger does not know, in order of name.

    A file whose bytes were taken in before changes nothing, under whatever name. Broken files are
    quarantined whole, and so is one that ended the process twice before it was taken in; a file that
    cannot be opened, leads out of the landing zone or is still being written is left for the next time.
    Names with a leading dot are passed over. Progress is in bytes of the landing zone.
    Raises `FeedError` when there is no landing zone.
    """
    if not store.landing.is_dir():
        raise FeedError(f"the landing zone {store.landing} is no folder; make it, or correct the setting")
    run = _Ingestion(store, ledger, limits, run_id, at)
    files: list[FileRecord] = []
    unread: dict[str, str] = {}
    landed = sorted(_landed(store.landing, unread))
    done, total = 0, sum(size for _, size in landed)
    for path, size in landed:

        def tick(part: float, done: int = done, size: int = size) -> None:
            if progress:
                progress("ingest", done + int(size * part), total)

        name = _name(path, store.landing)
        try:
            record = run.take(path, name, tick)
        except _StillChangingError:
            unread[name] = f"{name} changed while it was read; it is taken in next time"
        except OSError as error:
            if error.filename is None or Path(error.filename) != path:
                raise
            unread[name] = f"{name} cannot be read ({error.strerror}); make it readable"
        else:
            if record is not None:
                files.append(record)
        tick(1.0)
        done += size
    known = (
        len(landed) - len(files) - sum(name in unread for name in (_name(path, store.landing) for path, _ in landed))
    )
    return IngestReport(files=tuple(files), known=known, unread=unread, reasons=run.reasons)


def left_lying(landing: Path) -> dict[str, str]:
    """What of the landing zone an ingestion leaves where it is, by name, and why; nothing without a landing zone."""
    found: dict[str, str] = {}
    for path, _ in _landed(landing, found) if landing.is_dir() else ():
        if not os.access(path, os.R_OK):
            name = _name(path, landing)
            found[name] = f"{name} cannot be read; make it readable"
    return found


class _StillChangingError(Exception):
    """The landed file is not the one whose digest was taken."""


def _landed(landing: Path, unread: dict[str, str]) -> Iterator[tuple[Path, int]]:
    """The files of the landing zone with their sizes in bytes; `unread` is told of what is not looked into."""

    def cannot_open(error: OSError) -> None:
        name = _name(Path(error.filename), landing)
        unread[name] = f"folder {name} cannot be read ({error.strerror}); make it readable"

    within = landing.resolve()
    for folder, subfolders, names in os.walk(landing, onerror=cannot_open):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (Path(folder, name) for name in [*names, *subfolders] if not name.startswith(".")):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(within):
                name = _name(path, landing)
                unread[name] = f"{name} is a link that leads out of the landing zone; put the file itself there"
            elif path.is_file():
                yield path, path.stat().st_size


def _name(path: Path, landing: Path) -> str:
    """The file's name under the landing zone; bytes that are no UTF-8 are escaped."""
    return os.fsencode(path.relative_to(landing).as_posix()).decode("utf-8", "backslashreplace")


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


class _Table:
    """A Parquet file under way: there is none unless a row is written, and none after an exception."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._outputs = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._outputs.__exit__(*error)

    def write(self, batch: pa.RecordBatch) -> None:
        if not len(batch):
            return
        if self._writer is None:
            scratch = self._outputs.enter_context(replacing(self._path))
            self._writer = self._outputs.enter_context(parquet_writer(scratch, self._schema))
        self._writer.write_batch(batch)


@dataclass(frozen=True, slots=True)
class _Ingestion:
    store: FeedStore
    ledger: Ledger
    limits: Limits
    run_id: str
    at: datetime
    reasons: Counter[str] = field(default_factory=Counter)

    def take(self, path: Path, name: str, tick: Callable[[float], None]) -> FileRecord | None:
        """Take in one file, telling `tick` what part is done; None when its bytes were taken in before."""
        stamp = _stamp(path)
        digest = file_digest(path)
        if self.ledger.file(digest) is not None:
            return None
        begun = self.store.quarantine / "begun" / digest
        try:
            _begin(begun)
            record, reasons = self._take_rows(path, name, digest, stamp, tick)
        except BrokenFileError as error:
            if _stamp(path) != stamp:
                raise _StillChangingError from error
            record, reasons = self._keep_aside(path, name, digest, error), Counter([str(error.reason)])
        finally:
            begun.unlink(missing_ok=True)
        self.reasons.update(reasons)
        return record

    def _take_rows(
        self, path: Path, name: str, digest: str, stamp: tuple[int, int], tick: Callable[[float], None]
    ) -> tuple[FileRecord, Counter[str]]:
        partition = f"ingest_date={self.at:%Y-%m-%d}/{digest}.parquet"
        rows = accepted = 0
        total = row_count(path)
        reasons: Counter[str] = Counter()
        with self.ledger.intake() as intake:
            _discard(digest, self.store.curated, self.store.quarantine)
            with (
                _Table(self.store.curated / partition, SCHEMA) as good,
                _Table(self.store.quarantine / partition, QUARANTINE_SCHEMA) as bad,
            ):
                for batch in read_batches(path):
                    fresh, rejected = self._sort_out(batch, intake, digest, rows)
                    good.write(_curated(batch, fresh, rows))
                    bad.write(_quarantined(batch, rejected, name, rows))
                    rows += len(batch)
                    accepted += len(fresh)
                    reasons.update(str(row.reason) for row in rejected)
                    tick(rows / total)
                if _stamp(path) != stamp:
                    raise _StillChangingError
            record = FileRecord(
                digest=digest,
                name=name,
                size=stamp[0],
                outcome=FileOutcome.INGESTED,
                rows=rows,
                accepted=accepted,
                quarantined=reasons.total(),
                curated=partition if accepted else None,
                quarantine=partition if reasons else None,
                run_id=self.run_id,
                at=self.at,
            )
            intake.add_file(record)
        return record, reasons

    def _sort_out(
        self, batch: pa.RecordBatch, intake: Intake, digest: str, offset: int
    ) -> tuple[list[ReceivedFact], list[BadRow]]:
        """Give the ledger the batch's new facts and the rows that are none; `offset` rows came before."""
        checked = check_batch(batch, self.limits)
        received = [ReceivedFact.of(change, digest, offset + index) for index, change in checked.changes]
        fresh, repeated = _split_known(received, intake, digest, offset)
        rejected = sorted(checked.bad + repeated, key=lambda row: row.index)
        intake.add_facts(fresh)
        intake.add_quarantined(
            [
                QuarantinedRow(
                    file_digest=digest,
                    row=offset + row.index,
                    reason=row.reason,
                    sentence=row.sentence,
                    fact_id=row.fact_id,
                )
                for row in rejected
            ]
        )
        return fresh, rejected

    def _keep_aside(self, path: Path, name: str, digest: str, error: BrokenFileError) -> FileRecord:
        """Quarantine a whole file: a copy of its bytes, and the ledger's record of why."""
        kept = f"files/{digest}/{Path(name).name}"
        with replacing(self.store.quarantine / kept) as scratch:
            shutil.copyfile(path, scratch)
        record = FileRecord(
            digest=digest,
            name=name,
            size=path.stat().st_size,
            outcome=FileOutcome.QUARANTINED,
            rows=0,
            accepted=0,
            quarantined=0,
            reason=error.reason,
            sentence=str(error),
            quarantine=kept,
            run_id=self.run_id,
            at=self.at,
        )
        with self.ledger.intake() as intake:
            intake.add_file(record)
        return record


def _begin(mark: Path) -> None:
    """Note that a file is begun; the note goes when the file is done with, however, and outlives a killed process.

    Raises `BrokenFileError` when it was begun twice and neither run lived to the end.
    """
    times = len(mark.read_bytes()) if mark.exists() else 0
    if times >= _MOST_TRIES:
        raise BrokenFileError(
            Reason.UNFINISHED,
            f"the file was begun {times} times and ended the process each time; split it, and see why",
        )
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_bytes(b"." * (times + 1))


def _discard(digest: str, *roots: Path) -> None:
    """Remove what a killed run left of this file, which the ledger does not know."""
    for root in roots:
        for folder in root.glob("ingest_date=*"):
            left = folder / f"{digest}.parquet"
            left.unlink(missing_ok=True)
            scratch_of(left).unlink(missing_ok=True)


def _split_known(
    received: list[ReceivedFact], intake: Intake, digest: str, offset: int
) -> tuple[list[ReceivedFact], list[BadRow]]:
    seen = intake.known([fact.fact_id for fact in received])
    fresh: list[ReceivedFact] = []
    repeated: list[BadRow] = []
    again: dict[str, datetime] = {}
    for fact in received:
        newest = seen.get(fact.fact_id)
        if newest is None:
            fresh.append(fact)
            seen[fact.fact_id] = fact.observed_at
            continue
        sentence = f"fact {fact.fact_id} was received before; nothing needs to be done, its history shows when"
        repeated.append(BadRow(fact.row - offset, Reason.DUPLICATE, sentence, fact.fact_id))
        if fact.observed_at > newest:
            seen[fact.fact_id] = again[fact.fact_id] = fact.observed_at
    intake.add_observations(again, digest)
    return fresh, repeated


def _curated(batch: pa.RecordBatch, facts: list[ReceivedFact], offset: int) -> pa.RecordBatch:
    chosen = batch.take(pa.array([fact.row - offset for fact in facts], pa.int64()))
    return chosen.set_column(0, SCHEMA.field("fact_id"), pa.array([fact.fact_id for fact in facts], pa.string()))


def _quarantined(batch: pa.RecordBatch, rows: list[BadRow], name: str, offset: int) -> pa.RecordBatch:
    places = [row.index for row in rows]
    return pa.RecordBatch.from_pydict(
        {
            "raw": raw_json(batch.take(pa.array(places, pa.int64()))),
            "reason": [str(row.reason) for row in rows],
            "sentence": [row.sentence for row in rows],
            "file": [name] * len(rows),
            "row": [offset + place for place in places],
            "fact_id": [row.fact_id for row in rows],
        },
        schema=QUARANTINE_SCHEMA,
    )
