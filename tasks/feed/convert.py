"""Published edit data sets, and rows of our own columns, as the fact changes of a feed."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from editing.errors import FactError
from editing.facts import SLOT, FactChange
from editing.model_ids import looks_like_path
from editing.published import text_lines
from editing.templates import count_slots
from tasks.errors import FeedError
from tasks.feed.files import replacing
from tasks.feed.formats import FORMATS, Format, dyknow_records
from tasks.feed.records import Context, ConversionReport, Record, Skipped, SkipRecordError
from tasks.feed.schema import write_feed
from tasks.waiting import HUB, waiting_for

_BROKEN = "broken record"
_SEPARATORS = ",;\t|"
_TRIPLE = ("subject", "relation", "object")


def convert_feed(source: str | Path, target: str | Path, *, force: bool = False, **options: Any) -> ConversionReport:
    """Write what `Conversion(source, **options)` gives as the feed file `target`, all of it or nothing.

    Raises `FeedError` as `Conversion` does, when no record could be converted, when `target` is not named as a Parquet
    file is, and when it is there already without `force`.
    """
    if Path(target).suffix.lower() != ".parquet":
        raise FeedError(f"{target} would be a Parquet file; give it a name that ends in .parquet")
    if Path(target).exists() and not force:
        raise FeedError(f"{target} exists; give another name, or replace it with --force")
    conversion = Conversion(source, **options)
    with replacing(Path(target)) as scratch:
        write_feed(conversion, scratch)
        if not conversion.report.converted:
            (reason, count), *_ = conversion.report.skipped_reasons.most_common(1)
            raise FeedError(f"no record of {source} gives a fact change; {count} times because: {reason}")
    return conversion.report


class Conversion(Iterable[FactChange]):
    """The fact changes of a data set, one after the other; `report` fills while they are read.

    `source` is a file (JSON, JSON lines, CSV, Parquet), or a folder or hub id that `datasets` loads.
    `format` is a key of `formats.FORMATS`, recognised by the first record's fields when None. `at`
    dates changes that carry no date, and is when all were observed (default: the day's beginning in
    UTC, so that a conversion repeated on one day gives the same facts); `name` and `rank` say who
    the source is and how far it is trusted; `templates` are prompts by relation, for triples. Raises
    `FeedError` when the source cannot be read, its format is unknown or has prompts of its own beside `templates`.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        format: str | None = None,
        at: datetime | None = None,
        name: str | None = None,
        rank: int = 0,
        split: str = "train",
        data_files: str | None = None,
        templates: Mapping[str, str] | None = None,
    ) -> None:
        if format is not None and format not in FORMATS:
            raise FeedError(f"format {format!r} is unknown; known are {', '.join(FORMATS)}")
        self.report = ConversionReport()
        records = _records(source, split, data_files, FORMATS[format] if format else None)
        first = list(_until_sound(records))
        if not first:
            raise FeedError(f"{source} holds no records")
        self.format: Format = FORMATS[format] if format else _recognise(first[-1], source)
        if templates and self.format.name != "triples":
            raise FeedError(f"{source} is {self.format.name}, whose records have prompts; templates are for triples")
        self._records = chain(first, records)
        self._context = Context(
            at=at or datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0),
            source=name or self.format.source,
            source_rank=rank,
            report=self.report,
            templates=templates or {},
        )

    def __iter__(self) -> Iterator[FactChange]:
        for number, record in enumerate(self._records):
            self.report.read += 1
            repaired, left_out = self.report.repaired.copy(), self.report.left_out.copy()
            try:
                if _BROKEN in record:
                    raise SkipRecordError(record[_BROKEN])
                changes = self.format.changes(record, self._context)
                if not changes:
                    raise SkipRecordError("the record holds no change")
            except (SkipRecordError, FactError) as error:
                reason = str(error)
            except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
                reason = f"not a {self.format.name} record ({type(error).__name__}: {error})"
            else:
                self.report.converted += len(changes)
                yield from changes
                continue
            self.report.repaired, self.report.left_out = repaired, left_out
            self.report.skipped.append(Skipped(number, reason))


def _until_sound(records: Iterator[Record]) -> Iterator[Record]:
    """The records up to the first that is not broken, by which the format is recognised."""
    for record in records:
        yield record
        if _BROKEN not in record:
            return


def _recognise(record: Record, source: str | Path) -> Format:
    if _BROKEN in record:
        raise FeedError(f"no record of {source} can be read; {record[_BROKEN]}")
    matching = [item for item in FORMATS.values() if item.fits(record)]
    if not matching:
        hint = "; three columns without a heading are read with the format triples" if len(record) == 3 else ""
        raise FeedError(
            f"the fields of {source} ({', '.join(map(str, record))}) are those of no known format; "
            f"name one of {', '.join(FORMATS)}{hint}"
        )
    return max(matching, key=lambda item: len(item.fields))


def read_templates(path: Path) -> dict[str, str]:
    """Prompts by relation out of a TOML or JSON file. Raises `FeedError` for what is no prompt with one slot."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise FeedError(f"the templates {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise FeedError(
            f'the templates {path} are no table; write one line for each relation: capital = "... {SLOT} is"'
        )
    for relation, template in content.items():
        if not isinstance(template, str) or count_slots(template) != 1:
            raise FeedError(
                f"the template of {relation!r} in {path} is {template!r}; it needs one {SLOT}, where the subject goes"
            )
    return content


def _records(source: str | Path, split: str, data_files: str | None, format: Format | None) -> Iterator[Record]:
    path = Path(source)
    table = partial(_csv, unnamed=format if format is not None and format.name == "triples" else None)
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".json": _json,
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".csv": table,
        ".tsv": table,
        ".parquet": _parquet,
    }
    if not path.is_file():
        if not path.is_dir() and (looks_like_path(str(source)) or path.suffix.lower() in readers):
            raise FeedError(f"there is no file {path} (working directory {Path.cwd()}); correct the path")
        return _data_set(str(source), split, data_files)
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise FeedError(f"{path} is no {', '.join(readers)} file; rename or convert it first")
    if suffix != ".parquet" and _is_parquet(path):
        raise FeedError(f"{path} is a Parquet file, whatever its name says; rename it")
    return _guarded(readers[suffix], path)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _guarded(read: Callable[[Path], Iterator[Record]], path: Path) -> Iterator[Record]:
    try:
        yield from read(path)
    except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, FeedError):
            raise
        raise FeedError(f"{path} cannot be read: {error}") from error


def _json(path: Path) -> Iterator[Record]:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict):
        return dyknow_records(content) if _is_dyknow(content) else iter([content])
    if not isinstance(content, list):
        raise FeedError(f"{path} holds a single {type(content).__name__}; a list of records is needed")
    return map(_object, content)


def _object(record: Any) -> Record:
    if isinstance(record, list) and len(record) == len(_TRIPLE):
        return dict(zip(_TRIPLE, record, strict=True))
    return record if isinstance(record, dict) else {_BROKEN: f"the record is no JSON object: {record!r:.60}"}


def _is_dyknow(content: dict[str, Any]) -> bool:
    inner = next(iter(content.values()), None)
    return all(isinstance(domain, dict) for domain in content.values()) and '"questions"' in json.dumps(inner)


def _json_lines(path: Path) -> Iterator[Record]:
    for line in text_lines(path):
        try:
            yield _object(json.loads(line))
        except (ValueError, RecursionError) as error:
            yield {_BROKEN: f"the line is no JSON ({error})"}


def _csv(path: Path, unnamed: Format | None = None) -> Iterator[Record]:
    """Rows by the header's names; the separator is the one of `_SEPARATORS` that parts the header into most cells.

    Where the first line names no fields of `unnamed`, a format of triples, it is a row already.
    """
    with path.open(encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
        separator = max(_SEPARATORS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
        cells = next(csv.reader([header], delimiter=separator), [])
        names = None if unnamed is None or unnamed.fits(dict.fromkeys(cells)) else _TRIPLE
        lines.seek(0)
        for row in csv.DictReader(lines, names, delimiter=separator):
            if None in row or None in row.values():
                yield {_BROKEN: "the line has more or fewer cells than the header"}
            else:
                yield row


def _parquet(path: Path) -> Iterator[Record]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _data_set(name: str, split: str, data_files: str | None) -> Iterator[Record]:
    import datasets

    try:
        with waiting_for(HUB):
            found = datasets.load_dataset(name, data_files=data_files, split=split, streaming=True)
        yield from found
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise FeedError(f"{name} is neither a file nor a data set that can be loaded: {error}") from error
