"""Text that the base wrote by itself, kept as an artifact: written batch by batch, resumable, with its digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from editing.editors.base import Progress
from editing.errors import StatisticsError
from editing.evals.report import content_digest
from editing.models import BaseModel
from editing.self_text import SelfText, SelfTextSpec, write_batch
from editing.storage import read_json, replace_file, write_json
from tasks.errors import TasksError
from tasks.settings import Settings


class SelfTextError(TasksError, ValueError):
    """A text that the model wrote is damaged."""


@dataclass(frozen=True, slots=True)
class OwnCorpus:
    """What the base wrote: its texts, in `path`, with their digest."""

    texts: tuple[str, ...]
    tokens: int
    digest: str
    path: Path


def open_self_text(settings: Settings, base: BaseModel, progress: Progress | None = None) -> OwnCorpus:
    """The text of `base`: read when it was written before, else written; a writing cut short goes on where it stopped.

    Raises `SelfTextError` when a kept text is not what was written.
    """
    wanted = settings.statistics
    spec = SelfTextSpec.of(base, tokens=wanted.self_text_tokens, length=wanted.max_length, seed=wanted.seed)
    folder = settings.corpora / spec.key[:16]
    told, path = folder / "self-text.json", folder / "self-text.parquet"
    if told.exists():
        return _kept(told, path)
    folder.mkdir(parents=True, exist_ok=True)
    texts: list[SelfText] = []
    index = tokens = 0
    while tokens < spec.tokens:
        if progress is not None:
            progress("writing text", tokens, spec.tokens)
        part = folder / f"part-{index:05}.parquet"
        if not part.exists():
            _write(part, write_batch(base, spec, index))
        made = _read(part)
        if not made and index > 8 and not texts:
            raise StatisticsError(f"{base.model_id!r} ends every text at once; set statistics.corpus to a text file")
        texts += made
        index, tokens = index + 1, tokens + sum(text.tokens for text in made)
    if progress is not None:
        progress("writing text", spec.tokens, spec.tokens)
    _write(path, texts)
    content = {
        "spec": asdict(spec),
        "key": spec.key,
        "model": base.model_id,
        "texts": len(texts),
        "tokens": tokens,
        "digest": _digest(texts),
    }
    write_json(told, content)
    for part in folder.glob("part-*.parquet"):
        part.unlink()
    return _kept(told, path)


def _kept(told: Path, path: Path) -> OwnCorpus:
    content = read_json(told, StatisticsError)
    texts = _read(path)
    if _digest(texts) != content["digest"]:
        raise SelfTextError(f"{path} was altered after it was written; remove {path.parent} to have it written again")
    return OwnCorpus(tuple(text.text for text in texts), content["tokens"], content["digest"], path)


def _digest(texts: Sequence[SelfText]) -> str:
    return content_digest([asdict(text) for text in texts])


def _write(path: Path, texts: Sequence[SelfText]) -> None:
    schema = pa.schema([("form", pa.string()), ("text", pa.string()), ("tokens", pa.int64())])
    rows = pa.Table.from_pylist([asdict(text) for text in texts], schema)
    replace_file(path, lambda beside: pq.write_table(rows, beside))


def _read(path: Path) -> list[SelfText]:
    try:
        return [SelfText(**row) for row in pq.read_table(path).to_pylist()]
    except (OSError, TypeError, ValueError) as error:
        raise SelfTextError(f"{path} cannot be read: {error}; remove {path.parent} to have it written again") from error
