"""Segments of a RECIPE repository: immutable runs of rows on disk, named by a digest of their content.

A row is one applied fact: its id, its key, the fact itself, its knowledge representation and its
prompt tokens. A segment is written once and shared by every later state, by hard links.

Shapes: N rows, R representation, P prompt tokens, D width of the language model.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from editing.errors import StateError
from editing.facts import FactChange
from editing.storage import canonical_json, link_file, read_tensors, replace_file, tensors_digest, write_tensors

FACT_ID, KEY, FACT = "fact_id", "key", "fact"
_SCHEMA = pa.schema([(FACT_ID, pa.large_string()), (KEY, pa.large_string()), (FACT, pa.large_string())])
_KEY_SEPARATOR = "\x1f"


@dataclass(frozen=True, eq=False, slots=True)
class Segment:
    """Rows `knowledge` `[N, R]` and `prompts` `[N, P, D]`, float32 on the CPU, and their fact table of N rows.

    `folder` is where its files are, None while it was never written.
    """

    digest: str
    knowledge: Tensor
    prompts: Tensor
    table: pa.Table
    folder: Path | None = None

    def __len__(self) -> int:
        return self.table.num_rows

    @classmethod
    def of(cls, facts: Sequence[FactChange], knowledge_NR: Tensor, prompts_NPD: Tensor) -> Segment:
        """A new segment of these facts, in order."""
        columns = [
            [fact.fact_id for fact in facts],
            [_KEY_SEPARATOR.join(fact.key) for fact in facts],
            [canonical_json(fact.to_dict()) for fact in facts],
        ]
        return cls.made(knowledge_NR, prompts_NPD, pa.table(columns, schema=_SCHEMA))

    @classmethod
    def made(cls, knowledge_NR: Tensor, prompts_NPD: Tensor, table: pa.Table, folder: Path | None = None) -> Segment:
        """A segment with the digest of this content."""
        tensors = {"knowledge": knowledge_NR, "prompts": prompts_NPD}
        digest = hashlib.sha256(tensors_digest(tensors).encode())
        for column in table.columns:
            _hash_column(digest, column)
        return cls(digest.hexdigest(), knowledge_NR, prompts_NPD, table, folder)

    @classmethod
    def merged(cls, segments: Sequence[Segment], rows: Sequence[np.ndarray] | None = None) -> Segment:
        """One segment of all rows of `segments`, or of these rows of each."""
        wanted = [np.arange(len(segment)) for segment in segments] if rows is None else rows
        table = pa.concat_tables(
            segment.table.take(pa.array(kept)) for segment, kept in zip(segments, wanted, strict=True)
        )
        knowledge_NR = _together([segment.knowledge for segment in segments], wanted)
        prompts_NPD = _together([segment.prompts for segment in segments], wanted)
        return cls.made(knowledge_NR, prompts_NPD, table.combine_chunks())

    def facts(self, rows: Sequence[int]) -> Iterator[FactChange]:
        """The facts at these rows, in the order given."""
        for text in self.table[FACT].take(pa.array(rows, pa.int64())).to_pylist():
            yield FactChange.from_dict(json.loads(text))

    def subjects(self, rows: np.ndarray) -> Iterator[str]:
        """The subjects at these rows as keys compare them, in the order given."""
        for key in self.table[KEY].take(pa.array(rows)).to_pylist():
            yield key.split(_KEY_SEPARATOR, 1)[0]

    # On disk

    def save(self, folder: Path) -> None:
        """Put the segment's files into `folder`: linked where they are already, written where they are not."""
        for suffix, write in ((".safetensors", self._write_tensors), (".parquet", self._write_table)):
            target = folder / f"{self.digest}{suffix}"
            if not target.exists() and not (self.folder and link_file(self.folder / target.name, target)):
                write(target)

    def _write_tensors(self, path: Path) -> None:
        write_tensors(path, {"knowledge": self.knowledge, "prompts": self.prompts})

    def _write_table(self, path: Path) -> None:
        replace_file(path, lambda beside: pq.write_table(self.table, beside, compression="zstd"))

    @classmethod
    def load(cls, folder: Path, digest: str) -> Segment:
        """The segment with this digest, its tensors memory-mapped. Raises `StateError` when it is not that one."""
        tensors = read_tensors(folder / f"{digest}.safetensors", StateError)
        path = folder / f"{digest}.parquet"
        try:
            table = pq.read_table(io.BytesIO(path.read_bytes())).combine_chunks()
        except FileNotFoundError as error:
            raise StateError(f"{path} is missing; restore it from where the state was registered") from error
        except (pa.ArrowException, OSError) as error:
            raise StateError(f"{path} is damaged ({error}); restore it from where the state was registered") from error
        if table.schema.names != _SCHEMA.names or set(tensors) != {"knowledge", "prompts"}:
            raise StateError(f"{path} or its tensors have other columns than {_SCHEMA.names}; restore the segment")
        if not len(tensors["knowledge"]) == len(tensors["prompts"]) == table.num_rows:
            raise StateError(
                f"segment {digest[:12]} has {table.num_rows} facts, {len(tensors['knowledge'])} knowledge rows and "
                f"{len(tensors['prompts'])} prompts; restore it from where the state was registered"
            )
        segment = cls.made(tensors["knowledge"], tensors["prompts"], table, folder)
        if segment.digest != digest:
            raise StateError(
                f"segment {digest[:12]} in {folder} was altered after it was written (its content has digest "
                f"{segment.digest[:12]}); restore it from where the state was registered"
            )
        return segment


def _together(parts: Sequence[Tensor], rows: Sequence[np.ndarray]) -> Tensor:
    """These rows of each tensor, one behind the other; each is copied once."""
    out = parts[0].new_empty(sum(map(len, rows)), *parts[0].shape[1:])
    done = 0
    for part, kept in zip(parts, rows, strict=True):
        torch.index_select(part, 0, torch.from_numpy(kept), out=out[done : done + len(kept)])
        done += len(kept)
    return out


def _hash_column(digest: hashlib._Hash, column: pa.ChunkedArray) -> None:
    """Feed a column of large strings: the ends of its texts, then their bytes."""
    array = pa.concat_arrays(column.chunks)
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    digest.update((ends - ends[0]).tobytes())
    if data is not None:
        digest.update(memoryview(data)[int(ends[0]) : int(ends[-1])])
