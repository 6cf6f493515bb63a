"""Shards: an evaluation's work in batches, shared out so that several model objects answer it side by side.

Which rows form a batch is decided before the batches are shared out, and a batch is answered as a whole by one
model object: the number of shards, and whatever runs them, change no score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import torch

from editing.editors.base import Progress
from editing.models import BaseModel


@dataclass(frozen=True, slots=True)
class Work(ABC):
    """Rows in batches, with all that a model needs to be asked them: another process can carry it out."""

    batches: tuple[tuple[Any, ...], ...]

    @property
    @abstractmethod
    def protocol(self) -> str:
        """How the rows are asked, in a word."""

    @abstractmethod
    def answer(self, base: BaseModel, batch: Sequence[Any]) -> list[Any]:
        """The model's answer to each row of a batch."""

    @property
    def size(self) -> int:
        """Rows of all batches."""
        return sum(map(len, self.batches))

    def shared_out(self, count: int) -> list[Self]:
        """At most `count` parts, none empty, each with batches of every length."""
        return [replace(self, batches=self.batches[k::count]) for k in range(min(count, len(self.batches)))]


class Shards(Protocol):
    """Whatever runs parts of one piece of work side by side, `count` at once."""

    count: int

    def run(self, parts: Sequence[Work], what: str) -> Iterator[list[list[Any]]]:
        """`answers` of each part by the model that is in force, in the order of the parts; `what` is for people.

        An error of any part is raised.
        """
        ...


def batched(rows: Sequence[Any], batch_size: int) -> tuple[tuple[Any, ...], ...]:
    """`rows` in their order, `batch_size` at a time."""
    return tuple(tuple(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size))


@torch.inference_mode()
def answers(work: Work, base: BaseModel, done: Callable[[int, int], None] | None = None) -> list[list[Any]]:
    """`base`'s answers to each batch of `work`; `done` hears how many rows of how many are answered."""
    found: list[list[Any]] = []
    rows, size = 0, work.size
    for batch in work.batches:
        found.append(work.answer(base, batch))
        rows += len(batch)
        if done:
            done(rows, size)
    return found


def carry_out(
    work: Work, base: BaseModel, what: str, shards: Shards | None = None, progress: Progress | None = None
) -> list[Any]:
    """The answer to each row of `work`, in the order of its batches: by `shards` if they can share it, else by `base`.

    What is a single batch is never shared out.
    """
    parts = work.shared_out(shards.count) if shards else []
    if shards is None or len(parts) < 2:
        found = answers(work, base, partial(progress, what) if progress else None)
        return [answer for batch in found for answer in batch]
    by_batch: list[list[Any]] = [[] for _ in work.batches]
    rows = 0
    for k, part in enumerate(shards.run(parts, what)):
        by_batch[k :: len(parts)] = part
        rows += parts[k].size
        if progress:
            progress(what, rows, work.size)
    return [answer for batch in by_batch for answer in batch]
