"""Reads the files that suites are published in; every complaint names the file and the record."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from editing.errors import SuiteError

Record = Mapping[str, Any]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON list, a JSON-lines or a Parquet file.

    Raises `SuiteError` when the file is missing, of another kind, or holds anything but objects.
    """
    try:
        if path.suffix == ".parquet":
            records = pq.read_table(path).to_pylist()
        elif path.suffix == ".jsonl":
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif path.suffix == ".json":
            records = json.loads(path.read_text(encoding="utf-8"))
        else:
            raise SuiteError(f"{path} is no .json, .jsonl or .parquet file")
    except (OSError, UnicodeDecodeError, ValueError, pa.ArrowException) as error:
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


def single_file(path: Path, suffixes: Sequence[str] = (".json", ".jsonl", ".parquet")) -> Path:
    """`path`, or the only data file in it when it is a folder. Raises `SuiteError` when there is no such one."""
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise SuiteError(f"{path} should hold one of {', '.join(suffixes)} and has {names}; name the file")
    return found[0]


def need(record: Record, name: str, path: Path, place: int) -> Any:
    """A field that a record must have. Raises `SuiteError` when it is missing or empty."""
    value = record.get(name)
    if value is None or value in ("", [], {}):
        raise SuiteError(f"record {place} of {path} has no {name!r}; its fields are {', '.join(sorted(record))}")
    return value


def load_form(module_file: str, form: str | Record) -> dict[str, Any]:
    """A prompt form: a mapping as it is, or one named in the `suite.toml` beside `module_file`."""
    if not isinstance(form, str):
        return dict(form)
    path = Path(module_file).with_name("suite.toml")
    forms = tomllib.loads(path.read_text(encoding="utf-8"))["forms"]
    if form not in forms:
        raise SuiteError(f"no prompt form {form!r} in {path.parent.name}; it has {', '.join(sorted(forms))}")
    return forms[form]
