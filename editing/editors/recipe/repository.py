"""The retrieval repository of RECIPE: an append-only log of rows, and the search over those that hold.

Rows are numbered in the order in which they were applied and are never rewritten: a newer fact of a
key supersedes the older row, a retracted row is marked, and the row before it of that key holds
again. Appending writes new rows only. Rows behind the last index are searched exactly.

Shapes: N rows, R representation, P prompt tokens, D width of the language model, B queries, K rows found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from editing.editors.recipe.index import IndexPart, one_thread
from editing.editors.recipe.names import Names
from editing.editors.recipe.segments import FACT_ID, KEY, Segment
from editing.errors import StateError
from editing.facts import FactChange

MAX_SEGMENTS = 64
SAMPLED_QUERIES = 512  # facts whose questions shape a new index and measure its recall

Queries = Callable[[Sequence[FactChange]], Tensor]


@dataclass(frozen=True, eq=False)
class Repository:
    """Segments in order, the numbers of retracted rows (ascending), and indexes over the first rows."""

    segments: tuple[Segment, ...] = ()
    retracted: tuple[int, ...] = ()
    parts: tuple[IndexPart, ...] = ()

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of each segment's first row, and behind the last segment the number of rows; `[segments + 1]`."""
        return np.cumsum([0, *(len(segment) for segment in self.segments)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    # What holds

    @cached_property
    def live(self) -> np.ndarray:
        """Which rows hold: per key the last that was not retracted. Boolean."""
        live_N = np.zeros(len(self), bool)
        if not len(self):
            return live_N
        keys = pa.concat_arrays([chunk for segment in self.segments for chunk in segment.table[KEY].chunks])
        indices_N = np.asarray(keys.dictionary_encode().indices)
        last = np.full(int(indices_N.max()) + 1, -1)
        stands_N = np.setdiff1d(np.arange(len(self)), self.retracted)
        np.maximum.at(last, indices_N[stands_N], stands_N)
        live_N[last[last >= 0]] = True
        return live_N

    def fact_ids(self) -> tuple[str, ...]:
        """Ids of the facts that hold, oldest first."""
        return tuple(
            fact_id
            for segment, rows in self._by_segment(np.flatnonzero(self.live))
            for fact_id in segment.table[FACT_ID].take(pa.array(rows)).to_pylist()
        )

    def facts(self, rows: Iterable[int] | None = None) -> tuple[FactChange, ...]:
        """The facts at ascending `rows`; by default those that hold, oldest first."""
        wanted = np.flatnonzero(self.live) if rows is None else np.asarray(list(rows), np.int64)
        return tuple(fact for segment, at in self._by_segment(wanted) for fact in segment.facts(at.tolist()))

    def fact_at(self, row: int) -> FactChange:
        """The fact of one row."""
        return self.facts([row])[0]

    def _by_segment(self, rows: np.ndarray) -> Iterable[tuple[Segment, np.ndarray]]:
        """Each segment with the places in it of ascending `rows`."""
        ends = np.searchsorted(rows, self.starts)
        for index, segment in enumerate(self.segments):
            if ends[index] < ends[index + 1]:
                yield segment, rows[ends[index] : ends[index + 1]] - self.starts[index]

    # What changes it

    def append(self, segment: Segment) -> Repository:
        """With these rows behind the others.

        Where there would be more than `MAX_SEGMENTS`, every segment that is no larger than all behind it is
        made one with those. What is left of it is larger than that, so a row is written anew each time that its
        segment has at least doubled, and most appends write their own rows only.
        """
        segments = [*self.segments, segment]
        if len(segments) > MAX_SEGMENTS:
            sizes = np.array([len(one) for one in segments])
            behind = sizes[::-1].cumsum()[::-1] - sizes
            first = int(np.argmax(sizes <= behind))
            segments[first:] = [Segment.merged(segments[first:])]
        grown = replace(self, segments=tuple(segments))
        if "live" in vars(self):  # which is dear to work out from all keys
            vars(grown)["live"] = self._live_before(segment)
        return grown

    def _live_before(self, segment: Segment) -> np.ndarray:
        """`live` with these rows behind the others."""
        keys = segment.table[KEY].combine_chunks()
        told = [pc.is_in(each.table[KEY], value_set=keys).to_numpy() for each in self.segments]
        before = self.live & ~np.concatenate(told) if told else self.live
        return np.concatenate([before, Repository((segment,)).live])

    def retract(self, fact_ids: Sequence[str]) -> Repository:
        """Without these facts. Raises `StateError` naming those that no row holds."""
        wanted = pa.array(fact_ids, pa.large_string())
        gone: list[int] = []
        held: set[str] = set()
        already = set(self.retracted)
        for start, segment in zip(self.starts.tolist(), self.segments, strict=False):
            inside = pc.indices_nonzero(pc.is_in(segment.table[FACT_ID], value_set=wanted)).to_pylist()
            rows = [start + row for row in inside if start + row not in already]
            gone += rows
            held |= set(segment.table[FACT_ID].take(pa.array([row - start for row in rows], pa.int64())).to_pylist())
        if missing := sorted(set(fact_ids) - held):
            raise StateError(f"facts {', '.join(missing)} are not in the state; nothing to retract")
        return replace(self, retracted=tuple(sorted(already | set(gone))))

    def compact(self) -> Repository:
        """The rows that were not retracted, in one segment and without indexes; itself where that is what it has.

        A superseded row stays: it holds again when what superseded it is retracted.
        """
        if len(self.segments) <= 1 and len(self.parts) <= 1 and not self.retracted:
            return self
        standing = np.setdiff1d(np.arange(len(self)), self.retracted)
        parts = list(self._by_segment(standing))
        if not parts:
            return Repository()
        return Repository((Segment.merged([segment for segment, _ in parts], [rows for _, rows in parts]),))

    def indexed(self, exact_rows: int, recall: float, queries: Queries) -> Repository:
        """With an index over the rows behind the last one, where they are more than `exact_rows`.

        Earlier indexes over no more rows than the new one are made one with it, so that each row is
        indexed a logarithmic number of times. `queries` represents the questions of sampled facts `[B, R]`.
        """
        parts = list(self.parts)
        start, end = self._tail_start, len(self)
        if end - start <= exact_rows:
            return self
        while parts and parts[-1].end - parts[-1].start <= end - start:
            start = parts.pop().start
        sampled = np.unique(np.linspace(start, end - 1, SAMPLED_QUERIES).round().astype(np.int64))
        knowledge_NR = self.knowledge(np.arange(start, end)).numpy()
        queries_BR = queries(self.facts(sampled)).cpu().numpy()
        return replace(self, parts=(*parts, IndexPart.build(knowledge_NR, start, queries_BR, recall)))

    @property
    def _tail_start(self) -> int:
        return self.parts[-1].end if self.parts else 0

    # Rows by number

    def knowledge(self, rows: np.ndarray) -> Tensor:
        """Representations `[len(rows), R]` of these rows, in any order."""
        return self._gather(rows, "knowledge")

    def prompts(self, rows: np.ndarray) -> Tensor:
        """Prompt tokens `[len(rows), P, D]` of these rows, in any order."""
        return self._gather(rows, "prompts")

    def _gather(self, rows: np.ndarray, name: str) -> Tensor:
        place = np.searchsorted(self.starts, rows, side="right") - 1
        first = getattr(self.segments[0], name)
        if len(self.segments) == 1:
            return first[torch.from_numpy(rows)]
        out = first.new_empty(len(rows), *first.shape[1:])
        for index in np.unique(place):
            mine = np.flatnonzero(place == index)
            local = torch.from_numpy(rows[mine] - self.starts[index])
            out[torch.from_numpy(mine)] = getattr(self.segments[index], name)[local]
        return out

    # Search

    def search(self, queries_BR: Tensor, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Inner products `[B, K]` and rows `[B, K]` of the best rows that hold, best first.

        Where fewer than K rows were found the score is -inf and the row -1.
        """
        queries = np.ascontiguousarray(queries_BR.detach().float().cpu().numpy())
        if not len(self):
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)
        with one_thread():
            proposed = [self._tail.search(queries, k)[1]] if self._tail.ntotal else []
            proposed += [part.search(queries, k, self._live_rows) for part in self.parts]
        rows_BK = np.concatenate(proposed, axis=1) if proposed else np.full((len(queries), k), -1)
        scores_BK = self._exact(queries, rows_BK)
        order_BK = np.argsort(-scores_BK, axis=1, kind="stable")[:, :k]
        scores_BK, rows_BK = (np.take_along_axis(each, order_BK, 1) for each in (scores_BK, rows_BK))
        missing = k - rows_BK.shape[1]
        if missing > 0:
            scores_BK = np.pad(scores_BK, ((0, 0), (0, missing)), constant_values=-np.inf)
            rows_BK = np.pad(rows_BK, ((0, 0), (0, missing)), constant_values=-1)
        return scores_BK, rows_BK

    def naming(self, query_R: Tensor, text: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the rows that hold and whose subject `text` may name the best `k` at most: inner products and rows."""
        rows_K = self._names.rows(text)
        if not len(rows_K):
            return np.empty(0, np.float32), rows_K
        scores_K = self._exact(query_R.detach().float().cpu().numpy()[None], rows_K[None])[0]
        best = np.argsort(-scores_K, kind="stable")[:k]
        return scores_K[best], rows_K[best]

    @cached_property
    def _names(self) -> Names:
        rows_N = np.flatnonzero(self.live)
        subjects = (subject for segment, rows in self._by_segment(rows_N) for subject in segment.subjects(rows))
        return Names(subjects, rows_N)

    def _exact(self, queries_BR: np.ndarray, rows_BK: np.ndarray) -> np.ndarray:
        """Inner products of each query with its proposed rows, one dot product at a time: a row's score for a query
        does not depend on what else is searched."""
        knowledge_BKR = self.knowledge(rows_BK.clip(min=0).reshape(-1)).numpy().reshape(*rows_BK.shape, -1)
        scores_BK = np.einsum("br,bkr->bk", queries_BR, knowledge_BKR)
        return np.where(rows_BK >= 0, scores_BK, -np.inf)

    @cached_property
    def _tail(self) -> Any:
        """The rows behind the last index that hold, for exact search, by their numbers."""
        start = self._tail_start
        rows = start + np.flatnonzero(self.live[start:])
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(self.segments[0].knowledge.shape[1]))
        if len(rows):
            index.add_with_ids(self.knowledge(rows).numpy(), rows)
        return index

    @cached_property
    def _live_rows(self) -> Any:
        bits = np.packbits(self.live, bitorder="little")
        return faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]  # its wrapper takes arrays

    # On disk

    def content(self) -> dict[str, Any]:
        """Everything but rows and indexes themselves, as plain JSON types."""
        return {
            "segments": [{"digest": segment.digest, "rows": len(segment)} for segment in self.segments],
            "retracted": list(self.retracted),
            "index": [part.describe() for part in self.parts],
        }

    def save(self, folder: Path) -> None:
        """Put segments and indexes into `folder`; what is on disk already is linked."""
        for name, things in (("segments", self.segments), ("index", self.parts)):
            if things:
                (folder / name).mkdir(exist_ok=True)
            for thing in things:
                thing.save(folder / name)

    @classmethod
    def load(cls, folder: Path, content: dict[str, Any]) -> Repository:
        """The repository that `content` tells of, every digest verified. Raises `StateError` for what does not fit."""
        segments = tuple(Segment.load(folder / "segments", entry["digest"]) for entry in content["segments"])
        parts = tuple(IndexPart.load(folder / "index", entry) for entry in content["index"])
        repository = cls(segments, tuple(content["retracted"]), parts)
        ends = [0, *(part.end for part in parts)]
        if ends[-1] > len(repository) or [part.start for part in parts] != ends[:-1]:
            raise StateError(
                f"the index of {folder} disagrees with its table: it covers rows up to {ends[-1]} in ranges from "
                f"{[part.start for part in parts]}, the table has {len(repository)}; build the state again"
            )
        return repository
