"""The rows whose subject a text may name: every run of its words is looked up among the subjects of all rows.

Shapes: N rows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from editing.facts import fold

LONGEST = 12  # words of a name; of a script that does not part words, characters
_PARTS = re.compile(r"\w+")


class Names:
    """The subjects of rows, by a hash of what stands from their first word to their last."""

    def __init__(self, subjects: Iterable[str], rows_N: np.ndarray) -> None:
        hashes_N = np.fromiter((hash(_core(subject)) for subject in subjects), np.int64, len(rows_N))
        order_N = np.argsort(hashes_N, kind="stable")
        self._hashes_N, self._rows_N = hashes_N[order_N], rows_N[order_N]

    def rows(self, text: str) -> np.ndarray:
        """The rows, ascending, of which the subject's words stand in `text` one behind the other, in any case; their
        punctuation outside and what a hash confuses is left to the caller."""
        wanted = np.unique(np.fromiter((hash(run) for run in _runs(fold(text))), np.int64))
        first, last = (np.searchsorted(self._hashes_N, wanted, side) for side in ("left", "right"))
        found = [self._rows_N[begin:end] for begin, end in zip(first, last, strict=True) if begin < end]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def _core(subject: str) -> str:
    """`subject` from its first word to its last; all of one that has none."""
    words = list(_words(subject))
    return subject[words[0][0] : words[min(len(words), LONGEST) - 1][1]] if words else subject


def _runs(text: str) -> Iterator[str]:
    words = list(_words(text))
    for index, (start, _) in enumerate(words):
        for _, end in words[index : index + LONGEST]:
            yield text[start:end]


def _words(text: str) -> Iterator[tuple[int, int]]:
    """Where the words of `text` begin and end; each letter of a script that does not part words is one."""
    for part in _PARTS.finditer(text):
        start = part.start()
        for at in range(part.start(), part.end()):
            if unicodedata.category(text[at]) == "Lo":
                if start < at:
                    yield start, at
                yield at, at + 1
                start = at + 1
        if start < part.end():
            yield start, part.end()
