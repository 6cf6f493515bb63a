"""The Parquet schema of a feed: its columns, its version, what is accepted for it, and how to write it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from editing.facts import FactChange
from tasks.feed.files import replacing

SCHEMA_VERSION = 1
VERSION_KEY = b"errata.schema_version"
BATCH_ROWS = 16_384

_TIME = pa.timestamp("us", tz="UTC")
_PER_MICROSECOND = {"s": 1_000_000, "ms": 1_000, "us": 1}
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+|")
NO_RANK = -(2**63)  # stands for a rank that is no whole number of 64 bits


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the feed: its Arrow type, whether a file must have it, and what it says."""

    name: str
    type: pa.DataType
    required: bool
    meaning: str


COLUMNS = (
    Column("fact_id", pa.string(), False, "hash of the content; checked when given, computed when not"),
    Column("operation", pa.string(), True, "assert: the target holds from effective_at on; retract: it no longer does"),
    Column("subject", pa.string(), True, "what the fact is about"),
    Column("relation", pa.string(), True, "what is said of the subject; with it the key that changes compete for"),
    Column("target", pa.string(), True, "the new object; may be empty for retract, which then means any object"),
    Column("target_old", pa.string(), False, "the object that held before"),
    Column("prompt", pa.string(), True, "a sentence with one {} for the subject that ends where the target begins"),
    Column("rephrases", pa.list_(pa.string()), False, "the prompt in other words, with or without a {}"),
    Column(
        "locality",
        pa.list_(pa.struct([("prompt", pa.string()), ("answer", pa.string())])),
        False,
        "prompts whose answers must not change",
    ),
    Column("effective_at", _TIME, True, "when the change takes effect in the world"),
    Column("observed_at", _TIME, True, "when the source saw it"),
    Column("source", pa.string(), True, "who says so"),
    Column("source_rank", pa.int64(), False, "trust in the source: 0 is the highest, and the default"),
    Column(
        "portability",
        pa.list_(
            pa.struct([("prompt", pa.string()), ("answer", pa.string()), pa.field("aliases", pa.list_(pa.string()))])
        ),
        False,
        "prompts whose answers follow from the fact; aliases, which may be left out, are right as well",
    ),
)
SCHEMA = pa.schema(
    [pa.field(column.name, column.type) for column in COLUMNS],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)


def is_index(name: str) -> bool:
    """Whether a column is the index that pandas adds to a file, which says nothing of a fact."""
    return _INDEX.fullmatch(name) is not None


def _is_text(found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    return (
        pa.types.is_string(found)
        or pa.types.is_large_string(found)
        or pa.types.is_string_view(found)
        or pa.types.is_binary(found)
        or pa.types.is_large_binary(found)
    )


def _is_list(found: pa.DataType) -> bool:
    return pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)


def _accepts(wanted: pa.DataType, found: pa.DataType) -> bool:
    if pa.types.is_null(found):  # what Arrow infers where every value is missing or every list empty
        return True
    if pa.types.is_string(wanted):
        return _is_text(found)
    if pa.types.is_timestamp(wanted):
        return pa.types.is_timestamp(found) or pa.types.is_date(found)
    if pa.types.is_int64(wanted):
        return pa.types.is_integer(found) or pa.types.is_floating(found)
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(found) and _accepts_fields(wanted, found)
    return _is_list(found) and _accepts(wanted.value_type, found.value_type)


def _accepts_fields(wanted: pa.StructType, found: pa.StructType) -> bool:
    """Whether each field is a known one, stands there once, and is there unless it is a list."""
    names = [field.name for field in found]
    return (
        len(set(names)) == len(names)
        and {field.name for field in wanted if not _is_list(field.type)} <= set(names)
        and all(name in wanted.names and _accepts(wanted.field(name).type, found.field(name).type) for name in names)
    )


def schema_differences(found: pa.Schema) -> list[str]:
    """What keeps a file with this schema from being a feed, one sentence part each; empty when nothing does."""
    stamped = (found.metadata or {}).get(VERSION_KEY)
    if stamped is not None and stamped != str(SCHEMA_VERSION).encode():
        return [f"it is of schema version {stamped.decode(errors='replace')}, this Errata reads {SCHEMA_VERSION}"]
    known = {column.name: column for column in COLUMNS}
    differences = [
        f"column {column.name!r} ({column.type}) is missing"
        for column in COLUMNS
        if column.required and column.name not in found.names
    ]
    for name in dict.fromkeys(found.names):
        if is_index(name):
            continue
        if name not in known:
            differences.append(f"column {name!r} is unknown")
        elif found.names.count(name) > 1:
            differences.append(f"column {name!r} stands there {found.names.count(name)} times")
        elif not _accepts(known[name].type, found.field(name).type):
            differences.append(f"column {name!r} is {found.field(name).type}, must be {known[name].type}")
    return differences


def conform(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch`, whose schema has no `schema_differences`, in exactly the feed's columns and types.

    Bytes that are no UTF-8 stay as they are; times beyond microseconds of 64 bits go to the nearest end. A time
    without a zone is UTC, a date its midnight; a rank that is no whole number of 64 bits becomes `NO_RANK`. The index
    of pandas is left out.
    """
    columns = []
    for column in COLUMNS:
        if column.name not in batch.schema.names:
            columns.append(pa.nulls(len(batch), column.type))
        elif pa.types.is_timestamp(column.type):
            columns.append(_microseconds(batch.column(column.name)))
        elif pa.types.is_integer(column.type):
            columns.append(_whole(batch.column(column.name)))
        else:
            columns.append(_cast(batch.column(column.name), column.type))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _cast(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    """`values` in the `wanted` type; bytes become text unlooked at, as the rules look at them."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _cast(values.dictionary_decode(), wanted)
    if pa.types.is_string(wanted) and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raw = values.cast(pa.binary())
        return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count, raw.offset)
    return values.cast(wanted)


def _whole(ranks: pa.Array) -> pa.Array:
    if not pa.types.is_floating(ranks.type) and not pa.types.is_uint64(ranks.type):
        return ranks.cast(pa.int64())
    values = [
        rank if rank is None else int(rank) if float(rank).is_integer() and abs(rank) < 2**63 else NO_RANK
        for rank in ranks.to_pylist()
    ]
    return pa.array(values, pa.int64())


def _microseconds(times: pa.Array) -> pa.Array:
    if pa.types.is_null(times.type):
        return times.cast(_TIME)
    if pa.types.is_date(times.type):
        times = times.cast(pa.timestamp("s" if pa.types.is_date32(times.type) else "ms"))
    ticks = times.cast(pa.int64())
    if times.type.unit == "ns":
        return pc.divide(ticks, 1_000).cast(_TIME)
    factor = _PER_MICROSECOND[times.type.unit]
    end = (2**63 - 1) // factor
    clamped = pc.max_element_wise(pc.min_element_wise(ticks, end, skip_nulls=False), -end, skip_nulls=False)
    return pc.multiply(clamped, factor).cast(_TIME)


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer whose pages carry checksums, so that a reader notices damage."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def _row(change: FactChange) -> dict[str, Any]:
    row = change.to_dict()
    row["effective_at"], row["observed_at"] = change.effective_at, change.observed_at
    row["fact_id"] = change.fact_id
    return row


def feed_batches(changes: Iterable[FactChange]) -> Iterator[pa.RecordBatch]:
    """`changes` as record batches of the feed's schema, in bounded memory."""
    remaining = iter(changes)
    while chunk := [_row(change) for change in islice(remaining, BATCH_ROWS)]:
        yield pa.RecordBatch.from_pylist(chunk, schema=SCHEMA)


def write_feed(changes: Iterable[FactChange], path: Path | str) -> int:
    """Write a feed file, all of it or nothing, and answer its number of rows.

    Raises `FactError` when a change holds text that is no Unicode.
    """
    rows = 0
    with replacing(Path(path)) as scratch, parquet_writer(scratch, SCHEMA) as writer:
        for batch in feed_batches(changes):
            writer.write_batch(batch)
            rows += len(batch)
    return rows
