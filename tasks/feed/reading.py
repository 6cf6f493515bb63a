"""Reading feed files: in bounded memory, with every way a file can be broken told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from editing.facts import FactChange, Operation, resolve_conflicts
from editing.inverse import InverseRelations, contradictions
from tasks.errors import FeedError
from tasks.feed.rules import Limits, Reason, check_batch, plain_rows
from tasks.feed.schema import BATCH_ROWS, SCHEMA_VERSION, VERSION_KEY, conform, is_index, schema_differences

_MAGIC = b"PAR1"
_BUFFER = 1 << 20
_SHORTEN = "split the file, or shorten what is in it"
# What a row group may hold, decoded, altogether and for each of its rows on average.
MOST_BYTES = 4 << 30
MOST_BYTES_A_ROW = 4 << 20
MOST_VALUES_A_ROW = 10_000
# What a batch may decode to, and a file for each byte of it beyond `MOST_BYTES`: a value that is repeated takes next
# to nothing in a file.
MOST_BYTES_A_BATCH = 1 << 30
MOST_BYTES_A_BYTE = 100
_LEAST_BYTES_A_ROW = 64


class BrokenFileError(FeedError):
    """A file cannot be taken in at all; `reason` says in which way."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@contextmanager
def _open(path: Path, by_value: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """The file; the leaves `by_value` are read as dictionaries, each of their values once."""
    with path.open("rb") as stream:
        begins = stream.read(len(_MAGIC))
        if not begins:
            raise BrokenFileError(Reason.EMPTY_FILE, "the file has no bytes; send it again")
        try:
            file = pq.ParquetFile(
                stream, buffer_size=_BUFFER, page_checksum_verification=True, read_dictionary=list(by_value)
            )
        except (pa.ArrowException, OSError) as error:
            if begins == _MAGIC:
                sentence = f"the Parquet file ends too soon or its footer is damaged ({error}); send it again"
                raise BrokenFileError(Reason.TRUNCATED, sentence) from error
            sentence = "the file is not Parquet; `errata feed convert` makes feeds of other formats"
            raise BrokenFileError(Reason.NOT_PARQUET, sentence) from error
        yield file


def _too_large(metadata: pq.FileMetaData, most: int) -> str | None:
    """What of a file would not fit in memory, by its footer, before anything of it is decoded; `most` bytes in all."""
    if metadata.num_rows * _LEAST_BYTES_A_ROW > most:
        return f"{metadata.num_rows:,} rows decode to more than {most:,} bytes"
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = sum(group.column(place).total_uncompressed_size for place in range(group.num_columns))
        if size > MOST_BYTES:
            return f"row group {number} has {size:,} bytes, more than {MOST_BYTES:,}"
        for column in map(group.column, range(group.num_columns)):
            rows = max(group.num_rows, 1)
            if column.num_values > MOST_VALUES_A_ROW * rows:
                return f"column {column.path_in_schema} has {column.num_values:,} values in {rows:,} rows"
            if column.total_uncompressed_size > MOST_BYTES_A_ROW * rows:
                return f"column {column.path_in_schema} has {column.total_uncompressed_size:,} bytes in {rows:,} rows"
    return None


def _repeated(metadata: pq.FileMetaData) -> list[str]:
    """The leaves of text whose values are kept once each and could decode to more than a batch may."""
    columns = (
        metadata.row_group(number).column(place)
        for number in range(metadata.num_row_groups)
        for place in range(metadata.num_columns)
    )
    found = (
        column.path_in_schema
        for column in columns
        if column.physical_type == "BYTE_ARRAY"
        and any("DICTIONARY" in encoding for encoding in column.encodings)
        and column.total_uncompressed_size * column.num_values > MOST_BYTES_A_BATCH
    )
    return sorted(set(found))


def _decoded_bytes(values: pa.Array) -> int:
    """Bytes of an array once its dictionaries are decoded."""
    if pa.types.is_dictionary(values.type):
        lengths = pc.binary_length(values.dictionary).cast(pa.int64())
        return values.indices.nbytes + (pc.sum(lengths.take(values.indices)).as_py() or 0)
    if pa.types.is_list(values.type):
        return _decoded_bytes(pc.list_flatten(values))
    if pa.types.is_struct(values.type):
        return sum(_decoded_bytes(pc.struct_field(values, [place])) for place in range(values.type.num_fields))
    return int(values.nbytes)


def row_count(path: Path) -> int:
    """The file's number of rows, from its footer. Raises `BrokenFileError` when there is none."""
    with _open(path) as file:
        return file.metadata.num_rows


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The file's rows in conforming batches. Raises `BrokenFileError` at the point where it is broken."""
    with _open(path) as file:
        if differences := schema_differences(file.schema_arrow):
            raise BrokenFileError(
                Reason.WRONG_SCHEMA, f"the file is no feed of schema {SCHEMA_VERSION}: {'; '.join(differences)}"
            )
        if file.metadata.num_rows == 0:
            raise BrokenFileError(Reason.EMPTY_FILE, "the file has no rows; there is nothing to take in")
        most = MOST_BYTES + MOST_BYTES_A_BYTE * path.stat().st_size
        if told := _too_large(file.metadata, most):
            raise BrokenFileError(Reason.TOO_LARGE, f"{told}; {_SHORTEN}")
        by_value = _repeated(file.metadata)
    decoded = 0
    with _open(path, by_value) as file:
        batches = file.iter_batches(batch_size=BATCH_ROWS)
        while True:
            try:
                raw = next(batches)
                size = sum(map(_decoded_bytes, raw.columns))
                decoded += size
                if size > MOST_BYTES_A_BATCH or decoded > most:
                    told = f"{len(raw):,} rows decode to {size:,} bytes, all so far to {decoded:,}"
                    raise BrokenFileError(Reason.TOO_LARGE, f"{told}; {_SHORTEN}")
                batch = conform(raw)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise BrokenFileError(
                    Reason.DAMAGED, f"the file's pages are damaged ({error}); send it again"
                ) from error
            yield batch


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FeedError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; name a Parquet feed")


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row of a feed file that ingestion would quarantine; `row` counts from 0."""

    row: int
    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Validation:
    """What would become of a file: rows read, rows that are sound, the others one by one, and columns passed over."""

    rows: int
    accepted: int
    problems: tuple[RowProblem, ...]
    ignored: tuple[str, ...] = ()


def validate_feed(
    path: Path | str, limits: Limits | None = None, inverse: InverseRelations | None = None
) -> Validation:
    """Check a feed file as ingestion will, and its facts against each other as a night will that takes them all.

    Nothing is written, and nothing but the file is looked at. Raises `BrokenFileError` (a `FeedError`)
    when it would be quarantined whole,
    `FeedError` when there is no such file.
    """
    _require_file(Path(path))
    limits = limits or Limits.at()
    seen: dict[str, int] = {}
    two_ended: list[FactChange] = []
    problems: list[RowProblem] = []
    rows = 0
    for batch in read_batches(Path(path)):
        checked = check_batch(batch, limits)
        problems += [RowProblem(rows + bad.index, bad.reason, bad.sentence) for bad in checked.bad]
        for index, change in checked.changes:
            first = seen.setdefault(change.fact_id, rows + index)
            if first != rows + index:
                sentence = f"the same fact stands in row {first}; remove one of them"
                problems.append(RowProblem(rows + index, Reason.DUPLICATE, sentence))
            elif inverse and inverse.concerns([change.key.relation]):
                two_ended.append(change)
        rows += len(batch)
    contradicting = list(_contradicting(two_ended, inverse, seen)) if inverse else []
    problems = sorted([*problems, *contradicting], key=lambda problem: problem.row)
    with _open(Path(path)) as file:
        ignored = tuple(name for name in file.schema_arrow.names if is_index(name))
    return Validation(rows, len(seen) - len(contradicting), tuple(problems), ignored)


def _contradicting(changes: list[FactChange], inverse: InverseRelations, rows: dict[str, int]) -> Iterator[RowProblem]:
    """The facts that hold for their keys and contradict one another through an inverse relation."""
    holding = [change for change in resolve_conflicts(changes).winners if change.operation is Operation.ASSERT]
    for item in contradictions(holding, inverse):
        place = f"row {rows[item.rival.fact_id]}"
        sentence = f"{item.sentence(place)}; correct one of them, or take the pair out of [feed.inverse_relations]"
        yield RowProblem(rows[item.fact.fact_id], Reason.CONTRADICTION, sentence)


def read_feed(path: Path | str, limits: Limits | None = None) -> Iterator[FactChange]:
    """The fact changes of a feed file, which must all be sound.

    Raises `BrokenFileError` for a broken file and `FeedError` naming the first row that is not sound.
    """
    limits = limits or Limits.at()
    rows = 0
    for batch in read_batches(Path(path)):
        checked = check_batch(batch, limits)
        if checked.bad:
            raise FeedError(f"{path}, row {rows + checked.bad[0].index}: {checked.bad[0].sentence}")
        yield from (change for _, change in checked.changes)
        rows += len(batch)


@dataclass(frozen=True, slots=True)
class FeedSummary:
    """What a feed file holds at a glance: its stamp, size and first rows as plain JSON types."""

    schema_version: str
    rows: int
    row_groups: int
    first: tuple[dict[str, Any], ...]


def show_feed(path: Path | str, most: int = 10) -> FeedSummary:
    """Describe a feed file, sound or not. Raises `BrokenFileError` when it cannot be read."""
    path = Path(path)
    _require_file(path)
    first: list[dict[str, Any]] = []
    for batch in read_batches(path):
        first += plain_rows(batch.slice(0, most - len(first)))
        if len(first) >= most:
            break
    with _open(path) as file:
        stamp = (file.schema_arrow.metadata or {}).get(VERSION_KEY, b"unstamped").decode(errors="replace")
        return FeedSummary(stamp, file.metadata.num_rows, file.metadata.num_row_groups, tuple(first))
