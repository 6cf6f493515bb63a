"""Approximate indexes over a range of a repository's rows, and the search that puts ranges together.

An index is FAISS's inverted file with 8-bit codes over the directions in which scores differ most: it
proposes rows, and their exact scores decide.

Shapes: N rows, R representation, D directions, B queries, K candidates.
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
DIRECTIONS = 64  # components of a representation that an index looks at
QUERY_RIDGE = 0.1  # of the questions' mean variance, in every direction: a sample says little of most of them
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

        `queries_BR` are representations of real questions: half of them tell which directions matter, and what exact
        search finds for the other half is the truth that recall is measured against.
        """
        rows, width = knowledge_NR.shape
        heard_BR, checked_BR = queries_BR[::2], queries_BR[1::2] if len(queries_BR) > 1 else queries_BR
        lists = max(1, min(round(2 * rows**0.5), rows // 39 or 1))
        rows_RD, queries_RD = score_directions(knowledge_NR, heard_BR, min(width, DIRECTIONS))
        reduced_ND = knowledge_NR @ rows_RD
        reduced_ND -= reduced_ND.mean(0)  # the same for every row's score
        nearest = faiss.IndexFlatL2(reduced_ND.shape[1])
        file = faiss.IndexIVFScalarQuantizer(
            nearest, nearest.d, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        file.cp.niter, file.cp.max_points_per_centroid, file.cp.seed = ROUNDS, POINTS_PER_LIST, 1234
        file.cp.spherical = False
        with one_thread():
            file.train(reduced_ND)
            file.add_with_ids(reduced_ND, np.arange(start, start + rows))
            highest = faiss.IndexFlatIP(nearest.d)  # rows are in the list of the nearest centre, and queries ask for
            highest.add(nearest.reconstruct_n(0, lists))  # the lists whose centres score highest
            file.quantizer = highest
            index = faiss.IndexPreTransform(_linear(queries_RD), file)
            _, truth_B1 = faiss.knn(checked_BR, knowledge_NR, 1, metric=faiss.METRIC_INNER_PRODUCT)
            probes, reached = 1, 0.0
            while True:
                found_BK = index.search(checked_BR, 1 + PROPOSED, params=_probing(probes))[1]
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


def score_directions(knowledge_NR: np.ndarray, queries_BR: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """`[R, D]` for rows and `[R, D]` for queries: their products are the scores' best approximation of rank `kept`.

    It is best in the mean square over rows and queries, less a constant per query: with S the queries' covariance
    and C the rows', those are `S^(1/2) W` and `S^(-1/2) W`, W the first eigenvectors of `S^(1/2) C S^(1/2)`. Distances
    of rows `S^(1/2) W` are how differently the queries score them, which is what lists are made by.
    """
    sampled_NR = knowledge_NR[:: -(-len(knowledge_NR) // DIRECTION_ROWS)].astype(np.float64)
    width = knowledge_NR.shape[1]
    rows_RR = np.cov(sampled_NR, rowvar=False, bias=True).reshape(width, width)
    queries_RR = np.cov(queries_BR.astype(np.float64), rowvar=False, bias=True).reshape(width, width)
    spread = float(np.trace(queries_RR)) / width
    values_R, axes_RR = np.linalg.eigh(queries_RR + QUERY_RIDGE * (spread or 1.0) * np.eye(width))
    root_RR = (axes_RR * values_R**0.5) @ axes_RR.T
    inverse_RR = (axes_RR * values_R**-0.5) @ axes_RR.T
    first_RD = np.linalg.eigh(root_RR @ rows_RR @ root_RR)[1][:, -kept:]
    return (root_RR @ first_RD).astype(np.float32), (inverse_RR @ first_RD).astype(np.float32)


def _linear(onto_RD: np.ndarray) -> Any:
    """FAISS's transform of a vector to its products with the columns of `onto_RD`."""
    width, kept = onto_RD.shape
    transform = faiss.LinearTransform(width, kept, False)
    faiss.copy_array_to_vector(onto_RD.T.ravel(), transform.A)
    transform.is_trained = True
    return transform


def _probing(probes: int, live: Any = None) -> Any:
    """FAISS's settings of one search: how many lists, and which ids count."""
    settings = {"nprobe": probes} if live is None else {"nprobe": probes, "sel": live}
    within = faiss.SearchParametersIVF(**settings)
    return faiss.SearchParametersPreTransform(index_params=within)  # type: ignore[call-arg]
