"""Approximate indexes over a range of a repository's rows, and the search that puts ranges together.

An index is FAISS's inverted file with 8-bit codes over the principal directions of the representations: it
proposes rows, and their exact scores decide.

Shapes: N rows, R representation, B queries, K candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from editing.errors import StateError
from editing.storage import link_file, replace_file

PROPOSED = 32  # rows that an index proposes beyond those asked for; exact scores choose among them
DIRECTIONS = 128  # components of a representation that an index looks at
DIRECTION_ROWS = 20_000  # rows that the directions are found from
POINTS_PER_LIST = 40  # rows per list that the lists' centres are found from
ROUNDS = 8


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS on one thread: faster than many for a single query, and an index that is the same every time."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@dataclass(frozen=True, eq=False, slots=True)
class IndexPart:
    """An index over the rows `start` to `end`; its ids are row numbers.

    `probes` of its `lists` are searched, which found the best row for the share `recall` of the queries
    that it was measured with. `digest` is the SHA-256 of its file.
    """

    start: int
    end: int
    lists: int
    probes: int
    recall: float
    digest: str
    data: np.ndarray
    folder: Path | None = None
    _opened: list[Any] = field(default_factory=list, init=False)

    @classmethod
    def build(cls, knowledge_NR: np.ndarray, start: int, queries_BR: np.ndarray, recall: float) -> IndexPart:
        """An index over `knowledge_NR`, the rows from `start` on, that looks into as many lists as `recall` needs.

        `queries_BR` are representations of real questions; what exact search finds for them is the truth.
        """
        rows, width = knowledge_NR.shape
        lists = max(1, min(round(2 * rows**0.5), rows // 39 or 1))
        kept = min(width, DIRECTIONS)
        file = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(kept), kept, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        file.cp.niter, file.cp.max_points_per_centroid, file.cp.seed = ROUNDS, POINTS_PER_LIST, 1234
        index = faiss.IndexPreTransform(_onto_directions(knowledge_NR, kept), file)
        with one_thread():
            index.train(knowledge_NR)
            index.add_with_ids(knowledge_NR, np.arange(start, start + rows))
            _, truth_B1 = faiss.knn(queries_BR, knowledge_NR, 1, metric=faiss.METRIC_INNER_PRODUCT)
            probes, reached = 1, 0.0
            while True:
                found_BK = index.search(queries_BR, 1 + PROPOSED, params=_probing(probes))[1]
                reached = float((found_BK - start == truth_B1).any(1).mean())
                if reached >= recall or probes >= lists:
                    break
                probes = min(2 * probes, lists)
        data = faiss.serialize_index(index)
        digest = hashlib.sha256(data.data).hexdigest()
        return cls(start, start + rows, lists, probes, reached, digest, data)

    def describe(self) -> dict[str, Any]:
        """Everything but the index itself, as plain JSON types."""
        return {name: getattr(self, name) for name in ("start", "end", "lists", "probes", "recall", "digest")}

    def search(self, queries_BR: np.ndarray, k: int, live: faiss.IDSelector) -> np.ndarray:
        """Rows `[B, K]` that may score highest among the live ones; -1 where there are no more."""
        return self._index().search(queries_BR, k + PROPOSED, params=_probing(self.probes, live))[1]

    def _index(self) -> Any:
        if not self._opened:
            self._opened.append(faiss.deserialize_index(self.data))
        return self._opened[0]

    # On disk

    def save(self, folder: Path) -> None:
        """Put the index into `folder`: linked where it is already, else written."""
        target = folder / f"{self.digest}.faiss"
        if not target.exists() and not (self.folder and link_file(self.folder / target.name, target)):
            replace_file(target, lambda beside: beside.write_bytes(self.data.data))

    @classmethod
    def load(cls, folder: Path, content: dict[str, Any]) -> IndexPart:
        """The index that `content` (of `describe`) tells of; its digest is verified before FAISS reads it.

        Raises `StateError` when it is missing, altered, or holds other rows than those of its range.
        """
        path = folder / f"{content['digest']}.faiss"
        try:
            data = np.memmap(path, np.uint8, mode="r")
        except OSError as error:
            raise StateError(f"{path} is missing; restore it from where the state was registered") from error
        if hashlib.sha256(data.data).hexdigest() != content["digest"]:
            raise StateError(f"{path} was altered after it was written; restore it from where the state was registered")
        part = cls(**content, data=data, folder=folder)
        if part._index().ntotal != part.end - part.start:
            raise StateError(
                f"{path} disagrees with its table: it holds {part._index().ntotal} rows, the table "
                f"{part.end - part.start} from {part.start} on; build the state again"
            )
        return part


def _onto_directions(knowledge_NR: np.ndarray, kept: int) -> Any:
    """FAISS's transform onto the `kept` directions in which the rows differ most.

    The part of an inner product that it leaves out differs little from row to row.
    """
    sampled_NR = knowledge_NR[:: -(-len(knowledge_NR) // DIRECTION_ROWS)].astype(np.float64)
    _, axes_RR = np.linalg.eigh(np.cov(sampled_NR, rowvar=False).reshape(knowledge_NR.shape[1], -1))
    transform = faiss.LinearTransform(knowledge_NR.shape[1], kept, False)
    faiss.copy_array_to_vector(axes_RR[:, -kept:].T.astype(np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def _probing(probes: int, live: Any = None) -> Any:
    """FAISS's settings of one search: how many lists, and which ids count."""
    settings = {"nprobe": probes} if live is None else {"nprobe": probes, "sel": live}
    within = faiss.SearchParametersIVF(**settings)
    return faiss.SearchParametersPreTransform(index_params=within)  # type: ignore[call-arg]
