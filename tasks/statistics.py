"""Second-moment statistics as an artifact of the workspace: computed once per base, layers and corpus, resumable."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from editing.almanac import corpus
from editing.almanac.world import BELIEF, load_world
from editing.editors.base import Progress
from editing.models import BaseModel
from editing.statistics import SecondMoments, compute_second_moments
from tasks.errors import TasksError
from tasks.self_text import open_self_text
from tasks.settings import ALMANAC, Settings


class CorpusError(TasksError, ValueError):
    """The text that statistics are computed over is missing or of an unknown kind."""


def open_statistics(
    settings: Settings, base: BaseModel, layers: Sequence[int], progress: Progress | None = None
) -> SecondMoments:
    """The statistics of `base` at `layers` over the configured corpus: read when they exist, else computed.

    A computation that was cut short goes on where it stopped. Raises `CorpusError` when the corpus
    cannot be read, `StatisticsError` when it holds nothing.
    """
    wanted = settings.statistics
    named = "-".join(map(str, layers))
    return compute_second_moments(
        base,
        open_corpus(settings, base, progress).texts,
        layers,
        max_tokens=wanted.max_tokens,
        max_length=wanted.max_length,
        n_background=wanted.background_keys,
        seed=wanted.seed,
        folder=settings.cache / "statistics" / f"{base.fingerprint[:16]}-{named}",
        progress=progress,
    )


@dataclass(frozen=True, slots=True)
class Corpus:
    """The texts of the statistics and, for people, where they are from."""

    texts: Sequence[str]
    origin: str


def open_corpus(settings: Settings, base: BaseModel, progress: Progress | None = None) -> Corpus:
    """The configured corpus; without one, the Almanac's own, or what another model writes by itself, written once.

    Raises `CorpusError` when it cannot be read.
    """
    path = settings.statistics.corpus
    if path is not None:
        return Corpus(read_texts(path), str(path))
    if settings.model.id == ALMANAC:
        return Corpus(_almanac_texts(), "the Almanac's own texts")
    own = open_self_text(settings, base, progress)
    told = f"written by {settings.model.id} itself: {own.tokens} tokens in {len(own.texts)} texts"
    return Corpus(own.texts, f"{told}, digest {own.digest[:16]}, {own.path}")


def read_texts(path: Path) -> list[str]:
    """The texts of a file: one a line, or the column 'text' of a Parquet file. Raises `CorpusError`."""
    try:
        if path.suffix == ".parquet":
            return [str(text) for text in pq.read_table(path, columns=["text"])["text"].to_pylist() if text]
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, KeyError, ValueError) as error:
        raise CorpusError(
            f"statistics.corpus {path} cannot be read: {error}; give a text file or a Parquet file with a column 'text'"
        ) from error


def _almanac_texts() -> list[str]:
    """What the Almanac says when nobody edits it, shuffled: any first part of it has all sorts of text."""
    world = load_world()
    texts = list(corpus.texts(world, world.facts_on(BELIEF), seed=0))
    random.Random(0).shuffle(texts)
    return texts
