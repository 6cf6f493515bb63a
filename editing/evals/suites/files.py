"""Reads the files that suites are published in; every complaint names the file and the record."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from editing.errors import SuiteError
from editing.published import asked_of, is_empty, text_lines, text_of, texts_of

Record = Mapping[str, Any]

SUFFIXES = (".json", ".jsonl", ".parquet")
EVALUATED = ("test", "val", "validation", "train")  # the first that is there is evaluated
SHOWN = ("dev", "train")  # the first that is there gives the shots
_SPLITS = "|".join(dict.fromkeys((*SHOWN, *EVALUATED)))


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON list, a JSON-lines or a Parquet file.

    Raises `SuiteError` when the file is missing, of another kind, or holds anything but objects.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            records = pq.read_table(path).to_pylist()
        elif suffix == ".jsonl":
            records = [json.loads(line) for line in text_lines(path)]
        elif suffix == ".json":
            records = json.loads(path.read_text(encoding="utf-8-sig"))
        else:
            raise SuiteError(f"{path} is no .json, .jsonl or .parquet file")
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        if isinstance(error, SuiteError):
            raise
        raise SuiteError(f"{path} cannot be read: {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise SuiteError(f"{path} does not hold a list of records")
    if not records:
        raise SuiteError(f"{path} holds no records")
    return records


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """The rows of a headerless CSV file. Raises `SuiteError` for a row that has not `columns` fields."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SuiteError(f"{path} cannot be read: {error}") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise SuiteError(f"row {number} of {path} has {len(row)} fields, not {columns}: {row[0][:60]!r}")
    return rows


def split_of(path: Path) -> str | None:
    """The split that a file belongs to: `SUBJECT_test.csv`, `test-00000-of-00001.parquet`, `test.jsonl`."""
    found = re.search(rf"_({_SPLITS})$", path.stem) or re.match(rf"({_SPLITS})(?:-|$)", path.stem)
    return found[1] if found else None


def visible_files(folder: Path) -> list[Path]:
    """The files under a folder, by name; those with a leading dot, as of macOS and of editors, are passed over."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def data_files(path: Path, split: str | None = None) -> list[Path]:
    """`path`, or in a folder the only data file, or those of one split: `split`, else the first of `EVALUATED`.

    Raises `SuiteError` when the folder has no such file, or several that name no split.
    """
    if not path.is_dir():
        return [path]
    found = [file for file in visible_files(path) if file.suffix.lower() in SUFFIXES]
    if split is None and len(found) == 1:
        return found
    for name in (split,) if split else EVALUATED:
        if files := [file for file in found if split_of(file) == name]:
            return files
    names = ", ".join(str(file.relative_to(path)) for file in found) or "none"
    wanted = f"of split {split!r}" if split else f"({', '.join(SUFFIXES)})"
    raise SuiteError(f"{path} should hold one data file {wanted} and has {names}; name the file")


def numbered_records(path: Path, split: str | None = None) -> Iterator[tuple[dict[str, Any], Path, int]]:
    """Every record of `data_files`, with its file and its place in it. Raises `SuiteError` as they do."""
    for file in data_files(path, split):
        for place, record in enumerate(read_records(file)):
            yield record, file, place


def need(record: Record, name: str, path: Path, place: int) -> Any:
    """A field that a record must have. Raises `SuiteError` when it is missing or empty."""
    value = record.get(name)
    if is_empty(value):
        what = "an empty" if name in record else "no"
        raise SuiteError(f"record {place} of {path} has {what} {name!r}; its fields are {', '.join(sorted(record))}")
    return value


def object_field(record: Record, name: str, path: Path, place: int) -> Record:
    """A field that holds fields of its own. Raises `SuiteError` when it is missing, empty or holds anything else."""
    value = need(record, name, path, place)
    if not isinstance(value, dict):
        raise _misshapen(value, "no object", name, path, place)
    return value


def text_field(record: Record, name: str, path: Path, place: int) -> str:
    """A text or number, stripped; empty where the field is. Raises `SuiteError` when it is missing or anything else."""
    if name not in record:
        need(record, name, path, place)
    return optional_text(record, name, path, place)


def optional_text(record: Record, name: str, path: Path, place: int) -> str:
    """As `text_field`, of a field that may be missing."""
    value = record.get(name)
    text = text_of(value)
    if not text and not is_empty(value):
        raise _misshapen(value, "no text", name, path, place)
    return text.strip()


def texts_field(record: Record, names: Sequence[str], path: Path, place: int) -> tuple[str, ...]:
    """The texts of fields that hold a text, a list of them or a list of lists of names: stripped, each once.

    Missing and empty ones give none. Raises `SuiteError` for anything else.
    """
    found: dict[str, None] = {}
    for name in names:
        for value in _flat(record.get(name)):
            if not is_empty(value) and not text_of(value):
                raise _misshapen(value, "no text", name, path, place)
            if text := text_of(value).strip():
                found[text] = None
    return tuple(found)


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def asked_field(record: Record, name: str, path: Path, place: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The prompts with answers of a field, in every published shape; those that lack either are left out.

    Raises `SuiteError` for an entry that is none.
    """
    asked = asked_of(record.get(name))
    if asked.unread:
        raise _misshapen(asked.unread[0], "no prompt with an answer", name, path, place)
    for prompt, answers in asked.pairs:
        named = tuple(dict.fromkeys(text.strip() for text in texts_of(answers) if text.strip()))
        if named and (text := text_of(prompt).strip()):
            yield text, named


def _misshapen(value: object, what: str, name: str, path: Path, place: int) -> SuiteError:
    return SuiteError(f"{name!r} in record {place} of {path} is {what}: {value!r:.80}; correct it or take it out")


def load_spec(module_file: str) -> dict[str, Any]:
    """The `suite.toml` beside a suite's module: its version, defaults and prompt forms."""
    return tomllib.loads(Path(module_file).with_name("suite.toml").read_text(encoding="utf-8"))


def chosen_form(spec: Record, form: str | Record) -> dict[str, Any]:
    """A prompt form: a mapping as it is, or one that `spec` names. Raises `SuiteError` for an unknown name."""
    if not isinstance(form, str):
        return dict(form)
    if form not in spec["forms"]:
        raise SuiteError(f"no prompt form {form!r} in {spec['name']}; it has {', '.join(sorted(spec['forms']))}")
    return spec["forms"][form]
