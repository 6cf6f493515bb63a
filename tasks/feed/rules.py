"""What a row of a feed must satisfy: every rule a mask over a record batch and a sentence for a person."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from editing.errors import FactError
from editing.facts import SLOT, FactChange, LocalityPrompt, Operation, PortabilityPrompt, fold
from editing.templates import fill
from tasks.feed.schema import COLUMNS, NO_RANK

TEXTS = tuple(column.name for column in COLUMNS if pa.types.is_string(column.type))
TIMES = ("effective_at", "observed_at")
_READ = ("subject", "target", "target_old", "prompt", "rephrases", "locality", "portability")  # by the model

CountTokens = Callable[[Sequence[str]], Sequence[int]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Line breaks of every form are text: line feed, carriage return, U+0085, U+2028 and U+2029. Controls of C0 and C1 and
# what overrides the direction of writing is not.
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x{80}-\x{84}\x{86}-\x{9f}\x{202a}-\x{202e}\x{2066}-\x{2069}]"
_ESCAPED = "\\\\", "||"  # two backslashes, and what stands for them while slots are counted
_YEARS_AHEAD = 50
_WRITTEN = datetime(2026, 1, 1, tzinfo=UTC)


class Reason(StrEnum):
    """Why a row, or a whole file, was not let in."""

    INVALID_UTF8 = "invalid_utf8"
    MISSING_FIELD = "missing_field"
    UNKNOWN_OPERATION = "unknown_operation"
    NO_SLOT = "no_slot"
    TOO_LONG = "too_long"
    CONTROL_CHARACTER = "control_character"
    SPECIAL_TOKEN = "special_token"
    SAME_OBJECT = "same_object"
    IMPOSSIBLE_DATE = "impossible_date"
    IMPOSSIBLE_RANK = "impossible_rank"
    BROKEN_FACT = "broken_fact"
    FACT_ID_MISMATCH = "fact_id_mismatch"
    DUPLICATE = "duplicate"
    CONTRADICTION = "contradiction"
    EMPTY_FILE = "empty_file"
    NOT_PARQUET = "not_parquet"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    WRONG_SCHEMA = "wrong_schema"
    TOO_LARGE = "too_large"
    UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on a row. Lengths are in characters, and in tokens where `count_tokens` is given.

    `count_tokens` maps texts to their numbers of tokens in the model that will be edited, `special_tokens` gives the
    texts that its tokenizer reads as special tokens; it is asked once there are rows.
    """

    subject_characters: int = 300
    target_characters: int = 300
    prompt_characters: int = 4_000
    list_items: int = 1_000
    subject_tokens: int = 32
    target_tokens: int = 32
    count_tokens: CountTokens | None = None
    special_tokens: Callable[[], Collection[str]] | None = None
    earliest: datetime = datetime(1, 1, 1, tzinfo=UTC)
    latest_effective: datetime
    latest_observed: datetime

    @classmethod
    def at(cls, now: datetime | None = None, **bounds: Any) -> Limits:
        """Bounds of a feed received at `now` (None: the present): effective and observed within 50 years.

        What is dated after now is sound, and waits in the ledger. A clock that shows a time before this code was
        written is wrong, and quarantines nothing.
        """
        latest = max(now or datetime.now(UTC), _WRITTEN) + timedelta(days=365.25 * _YEARS_AHEAD)
        return cls(**{"latest_effective": latest, "latest_observed": latest} | bounds)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that breaks a rule: its place in the batch, the reason, and what to do about it."""

    index: int
    reason: Reason
    sentence: str
    fact_id: str | None = None


@dataclass(frozen=True, slots=True)
class CheckedBatch:
    """A batch taken apart: the fact changes with their places in it, and the rows that are none."""

    changes: list[tuple[int, FactChange]]
    bad: list[BadRow]


_Scalars = Mapping[str, pa.Scalar]


@dataclass(frozen=True, slots=True)
class _Rule:
    reason: Reason
    broken: Callable[[pa.RecordBatch], pa.Array | np.ndarray]
    sentence: Callable[[_Scalars], str]


def check_batch(batch: pa.RecordBatch, limits: Limits) -> CheckedBatch:
    """Check every row of a conforming batch (`schema.conform`); a row is charged with the first rule it breaks."""
    undecodable = _undecodable(batch)
    bad = [BadRow(index, Reason.INVALID_UTF8, f"{names}: fix the encoding") for index, names in undecodable.items()]
    places = np.setdiff1d(np.arange(len(batch)), list(undecodable))
    decoded = batch.take(pa.array(places)) if undecodable else batch
    rules = list(_rules(limits))
    broken = np.full(len(decoded), len(rules))
    for number, rule in reversed(list(enumerate(rules))):
        broken[_as_mask(rule.broken(decoded))] = number
    for index in np.flatnonzero(broken < len(rules)):
        rule = rules[broken[index]]
        row = {name: decoded.column(name)[index] for name in decoded.schema.names}
        bad.append(BadRow(int(places[index]), rule.reason, rule.sentence(row)))
    changes: list[tuple[int, FactChange]] = []
    sound = np.flatnonzero(broken == len(rules))
    for place, row in zip(places[sound], _rows_of(decoded.take(pa.array(sound))), strict=True):
        outcome = _build(int(place), row)
        if isinstance(outcome, BadRow):
            bad.append(outcome)
        else:
            changes.append((int(place), outcome))
    return CheckedBatch(changes, sorted(bad, key=lambda row: row.index))


def _as_mask(found: pa.Array | np.ndarray) -> np.ndarray:
    if isinstance(found, np.ndarray):
        return found
    return pc.fill_null(found, False).to_numpy(zero_copy_only=False)


def _rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a conforming batch as keyword arguments of `FactChange`, and `fact_id`."""
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names if name not in TIMES}
    for name in TIMES:
        ticks = batch.column(name).cast(pa.int64()).to_pylist()
        columns[name] = [_EPOCH + timedelta(microseconds=tick) for tick in ticks]
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _build(index: int, row: dict[str, Any]) -> FactChange | BadRow:
    claimed = row.pop("fact_id")
    row["operation"] = Operation(row["operation"])
    row["rephrases"] = tuple(row["rephrases"] or ())
    row["locality"] = tuple(LocalityPrompt(**item) for item in row["locality"] or ())
    row["portability"] = tuple(
        PortabilityPrompt(**{**item, "aliases": tuple(item["aliases"] or ())}) for item in row["portability"] or ()
    )
    row["source_rank"] = row["source_rank"] or 0
    row["target"] = row["target"] or ""
    row["prompt"] = row["prompt"] or ""
    try:
        change = FactChange(**row)
    except FactError as error:
        return BadRow(index, Reason.BROKEN_FACT, str(error))
    if claimed is not None and claimed != change.fact_id:
        return BadRow(
            index,
            Reason.FACT_ID_MISMATCH,
            f"fact_id {claimed!r} is not the content's hash {change.fact_id}; leave fact_id out to have it computed",
        )
    return change


def _rules(limits: Limits) -> Iterator[_Rule]:
    yield from (_present(name, in_retractions=True) for name in ("operation", "subject", "relation", "source"))
    yield from (_dated(name) for name in TIMES)
    yield _Rule(Reason.UNKNOWN_OPERATION, _is_unknown_operation, _say_unknown_operation)
    yield from (_present(name, in_retractions=False) for name in ("target", "prompt"))
    lists = ("rephrases", "locality", "portability")
    yield from (_filled_in(name) for name in lists)
    yield from (_printable(name) for name in (*TEXTS, *lists))
    yield _Rule(Reason.NO_SLOT, _has_not_one_slot, _say_slot)
    yield _short("subject", limits.subject_characters)
    yield _short("target", limits.target_characters)
    yield _short("target_old", limits.target_characters)
    yield from (_short(name, limits.prompt_characters) for name in ("prompt", "relation", "source", *lists))
    yield from (_few_items(name, limits.list_items) for name in lists)
    if limits.special_tokens is not None:
        yield _no_special_token(limits.special_tokens)
    if limits.count_tokens is not None:
        yield _few_tokens("subject", limits.subject_tokens, limits.subject_characters, limits.count_tokens)
        yield _few_tokens("target", limits.target_tokens, limits.target_characters, limits.count_tokens)
    yield _Rule(Reason.SAME_OBJECT, _changes_nothing, _say_same_object)
    yield _within("effective_at", limits.earliest, limits.latest_effective)
    yield _within("observed_at", limits.earliest, limits.latest_observed)
    yield _Rule(Reason.IMPOSSIBLE_RANK, _has_negative_rank, _say_rank)


def _present(name: str, *, in_retractions: bool) -> _Rule:
    def broken(batch: pa.RecordBatch) -> pa.Array:
        blank = _is_blank(batch.column(name))
        return blank if in_retractions else pc.and_(_asserts(batch), blank)

    needs = "every row" if in_retractions else "every assertion"
    return _Rule(Reason.MISSING_FIELD, broken, lambda row: f"{name} is missing or empty; {needs} needs it")


def _dated(name: str) -> _Rule:
    return _Rule(
        Reason.MISSING_FIELD,
        lambda batch: batch.column(name).is_null(),
        lambda row: f"{name} is missing; every row needs a time in UTC",
    )


def _is_unknown_operation(batch: pa.RecordBatch) -> pa.Array:
    return pc.invert(pc.is_in(batch.column("operation"), value_set=pa.array([*Operation], pa.string())))


def _say_unknown_operation(row: _Scalars) -> str:
    return f"operation {_show(row['operation'])} is unknown; write {' or '.join(Operation)}"


def _filled_in(name: str) -> _Rule:
    return _Rule(
        Reason.MISSING_FIELD,
        lambda batch: _any_leaf(batch.column(name), _is_blank),
        lambda row: f"{name} holds an empty entry: {_show(row[name])}; fill it in or remove it",
    )


def _printable(name: str) -> _Rule:
    return _Rule(
        Reason.CONTROL_CHARACTER,
        lambda batch: _any_leaf(batch.column(name), lambda texts: pc.match_substring_regex(texts, _CONTROL)),
        lambda row: f"{name} {_show(row[name])} holds a control character or one that turns text round; remove it",
    )


def _has_not_one_slot(batch: pa.RecordBatch) -> pa.Array:
    """As `templates.count_slots` counts: a `{}` behind an odd number of backslashes is text."""
    prompts = pc.replace_substring(batch.column("prompt"), *_ESCAPED)
    slots = pc.subtract(pc.count_substring(prompts, SLOT), pc.count_substring(prompts, "\\" + SLOT))
    return pc.and_(_asserts(batch), pc.not_equal(slots, 1))


def _say_slot(row: _Scalars) -> str:
    return (
        f"prompt {_show(row['prompt'])} must hold {SLOT} exactly once, where the subject goes; write \\{SLOT} for text"
    )


def _short(name: str, most: int) -> _Rule:
    return _Rule(
        Reason.TOO_LONG,
        lambda batch: _any_leaf(batch.column(name), lambda texts: pc.greater(pc.utf8_length(texts), most)),
        lambda row: f"{name} {_show(row[name])} has more than {most} characters; shorten it",
    )


def _few_items(name: str, most: int) -> _Rule:
    return _Rule(
        Reason.TOO_LONG,
        lambda batch: pc.greater(pc.list_value_length(batch.column(name)), most),
        lambda row: f"{name} has {len(row[name])} entries, more than {most}; leave some out",
    )


def _few_tokens(name: str, most: int, characters: int, count: CountTokens) -> _Rule:
    """Tokens are counted once for every distinct text that has more bytes than tokens allowed.

    A text of more than `characters` is too long whatever its tokens, and is not counted.
    """

    def broken(batch: pa.RecordBatch) -> np.ndarray:
        texts = batch.column(name)
        countable = pc.less_equal(pc.utf8_length(texts), characters)
        mask = _as_mask(pc.and_(pc.greater(pc.binary_length(texts), most), countable)).copy()
        if mask.any():
            encoded = texts.filter(pa.array(mask)).dictionary_encode()
            counts = np.asarray(count(encoded.dictionary.to_pylist()))
            mask[mask] = counts[encoded.indices.to_numpy()] > most
        return mask

    return _Rule(
        Reason.TOO_LONG, broken, lambda row: f"{name} {_show(row[name])} has more than {most} tokens; shorten it"
    )


def _no_special_token(special: Callable[[], Collection[str]]) -> _Rule:
    """Text is data: what the tokenizer would read as a token of its own, as the end of a turn, is no text of a feed.

    The texts are looked at as the model reads them, joined, as a token may begin in one and end in the next.
    """

    def broken(batch: pa.RecordBatch) -> np.ndarray:
        mask = np.zeros(len(batch), dtype=bool)
        tokens = [token for token in special() if token]
        if not tokens:
            return mask
        begins = "|".join(sorted({re.escape(token[0]) for token in tokens}))
        for name in _READ:
            mask |= _any_leaf(batch.column(name), lambda texts: pc.match_substring_regex(texts, begins))
        for place in np.flatnonzero(mask):
            row = {name: batch.column(name)[int(place)].as_py() for name in _READ}
            mask[place] = _found(tokens, row) is not None
        return mask

    def sentence(row: _Scalars) -> str:
        name, token = _found(special(), {name: row[name].as_py() for name in _READ}) or ("", "")
        return f"{name} holds {token!r}, a special token of the model, which text cannot be; take it out, or space it"

    return _Rule(Reason.SPECIAL_TOKEN, broken, sentence)


def _found(tokens: Collection[str], row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first column of a row whose text, as the model reads it, holds one of `tokens`, and which."""
    for name, text in _as_read(row):
        for token in tokens:
            if token in text:
                return name, token
    return None


def _as_read(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    subject, target, old = (row[name] or "" for name in ("subject", "target", "target_old"))
    yield from (("subject", subject), ("target", target), ("target_old", old))
    question = fill(row["prompt"] or "", subject)
    yield from (("prompt", question + answer) for answer in (target, old))
    yield from (("rephrases", fill(text or "", subject) + target) for text in row["rephrases"] or ())
    for name in ("locality", "portability"):
        for item in row[name] or ():
            for answer in (item["answer"], *(item.get("aliases") or ())):
                yield name, (item["prompt"] or "") + (answer or "")


def _changes_nothing(batch: pa.RecordBatch) -> np.ndarray:
    """Compared as the ledger compares keys, `fold`: one notion of what is the same text."""
    given = pc.and_(batch.column("target").is_valid(), batch.column("target_old").is_valid())
    mask = _as_mask(pc.and_(_asserts(batch), given)).copy()
    pairs = (batch.column(name).filter(pa.array(mask)).to_pylist() for name in ("target", "target_old"))
    mask[mask] = [fold(target) == fold(old) for target, old in zip(*pairs, strict=True)]
    return mask


def _say_same_object(row: _Scalars) -> str:
    return f"target {_show(row['target'])} equals target_old, so nothing would change; correct one of them"


def _within(name: str, first: datetime, last: datetime) -> _Rule:
    bounds = [(bound - _EPOCH) // timedelta(microseconds=1) for bound in (first, last)]

    def broken(batch: pa.RecordBatch) -> pa.Array:
        ticks = batch.column(name).cast(pa.int64())
        return pc.or_(pc.less(ticks, bounds[0]), pc.greater(ticks, bounds[1]))

    def sentence(row: _Scalars) -> str:
        return f"{name} {row[name].cast(pa.string())} is not between {first.date()} and {last.date()}; correct the date"

    return _Rule(Reason.IMPOSSIBLE_DATE, broken, sentence)


def _has_negative_rank(batch: pa.RecordBatch) -> pa.Array:
    return pc.less(batch.column("source_rank"), 0)


def _say_rank(row: _Scalars) -> str:
    rank = row["source_rank"].as_py()
    said = "is no whole number of 64 bits" if rank == NO_RANK else f"{rank} is negative"
    return f"source_rank {said}; 0 is the most trusted"


def _show(value: pa.Scalar, most: int = 80) -> str:
    """The beginning of a value; no more of it is decoded than is shown."""
    if isinstance(value, pa.ListScalar) and value.is_valid:
        value = value.values.slice(0, most)
        text = f"[{', '.join(_show(item, most) for item in value)}]"
    elif isinstance(value, pa.StructScalar) and value.is_valid:
        text = f"{{{', '.join(f'{name!r}: {_show(item, most)}' for name, item in value.items())}}}"
    elif isinstance(value, pa.StringScalar) and value.is_valid:
        text = repr(pc.utf8_slice_codeunits(value, 0, most + 1).as_py())
    else:
        text = repr(value.as_py())
    return text if len(text) <= most else f"{text[:most]}..."


def _asserts(batch: pa.RecordBatch) -> pa.Array:
    return pc.not_equal(batch.column("operation"), Operation.RETRACT.value)


def _is_blank(texts: pa.Array) -> pa.Array:
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)


def _leaves(column: pa.Array, rows: np.ndarray | None = None) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """The arrays of values under a column, each with the row that every value belongs to."""
    rows = np.arange(len(column)) if rows is None else rows
    if pa.types.is_list(column.type):
        yield from _leaves(pc.list_flatten(column), rows[pc.list_parent_indices(column).to_numpy()])
    elif pa.types.is_struct(column.type):
        for position in range(column.type.num_fields):
            yield from _leaves(pc.struct_field(column, [position]), rows)
    else:
        yield column, rows


def _any_leaf(column: pa.Array, test: Callable[[pa.Array], pa.Array]) -> np.ndarray:
    mask = np.zeros(len(column), dtype=bool)
    for values, rows in _leaves(column):
        mask[rows[_as_mask(test(values))]] = True
    return mask


def _undecodable(batch: pa.RecordBatch) -> dict[int, str]:
    """Rows with bytes that are no UTF-8, and which columns hold them."""
    found: dict[int, str] = {}
    for name in batch.schema.names:
        for values, rows in _leaves(batch.column(name)):
            if not pa.types.is_string(values.type):
                continue
            raw = values.cast(pa.binary())
            try:
                raw.cast(pa.string())
            except pa.ArrowInvalid:
                for row, text in zip(rows, raw.to_pylist(), strict=True):
                    if text is not None and not _decodes(text):
                        shown = f"{name} {text[:80]!r} is not UTF-8"
                        found[int(row)] = f"{found[int(row)]}, {shown}" if int(row) in found else shown
    return found


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def raw_json(batch: pa.RecordBatch) -> list[str]:
    """Every row as one line of ASCII JSON, nothing lost.

    Bytes that are no UTF-8 stand as lone surrogates (Python's `surrogateescape`), times as text.
    """
    return [json.dumps(row) for row in plain_rows(batch, "surrogateescape")]


def plain_rows(batch: pa.RecordBatch, errors: str = "backslashreplace") -> Iterator[dict[str, Any]]:
    """The rows of a conforming batch, sound or not, as plain JSON types; `errors` as in `bytes.decode`."""
    columns = {}
    for name in batch.schema.names:
        column = batch.column(name).cast(pa.string()) if name in TIMES else batch.column(name)
        columns[name] = column.cast(_as_bytes(column.type)).to_pylist()
    for values in zip(*columns.values(), strict=True):
        yield {name: _decoded(value, errors) for name, value in zip(columns, values, strict=True)}


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_bytes(field.type)) for field in kind])
    return kind


def _decoded(value: Any, errors: str) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors)
    if isinstance(value, list):
        return [_decoded(item, errors) for item in value]
    if isinstance(value, dict):
        return {name: _decoded(item, errors) for name, item in value.items()}
    return value
