"""How fast second moments are computed, against the plain way, and how far the two differ."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from editing.bench.plain_statistics import plain_second_moments
from editing.editors.base import Progress
from editing.errors import StatisticsError
from editing.models import BaseModel
from editing.statistics import compute_second_moments
from editing.tokenisation import tokenise

LENGTHS = (16, 64, 256)  # tokens of a text, of the samples whose texts are all alike
MIXED = "1 to 256, uniform in the logarithm"
AS_GIVEN = "as given"


def measure_statistics(
    base: BaseModel,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    tokens: int = 10_000,
    max_length: int = 256,
    repeats: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Tokens a second of `compute_second_moments` and of the plain way, over the same texts in one run.

    Measured are the texts as they are given, their words parted into texts of 1 to 256 tokens, and of
    as good as equal length (`LENGTHS`), where the plain way pads nothing. Each sample has at most `tokens`
    tokens, and texts are cut at `max_length` tokens or the model's positions; the ways take turns, `repeats`
    times each, and the shortest time counts. Per row: tokens a second by the clock and by the processor's time
    (which other work on the machine moves less), the ratios of both, `difference`, the largest
    `|A_ij - B_ij| / sqrt(A_ii A_jj)` of any layer, and `padding`, the share of the plain way's positions that are
    padding. Raises `StatisticsError` when the texts have no tokens.
    """
    if not any(text.strip() for text in texts):
        raise StatisticsError(f"{len(texts)} texts have no tokens; give a corpus with text")
    room = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    max_length = min(max_length, room or max_length)
    samples: dict[str, list[str]] = {AS_GIVEN: list(texts), MIXED: _parted(base, texts, None, tokens)}
    samples |= {str(length): _parted(base, texts, length, tokens) for length in LENGTHS if length <= max_length}
    told = progress or (lambda stage, done, total: None)
    rows = []
    for done, (name, sample) in enumerate(samples.items()):
        told("speed of statistics", done, len(samples))
        rows.append({"lengths": name, **_compared(base, sample, layers, tokens, max_length, repeats)})
    told("speed of statistics", len(samples), len(samples))
    return {
        "model": base.model_id,
        "layers": sorted(layers),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "speedup": rows[0]["speedup"],
        "by_lengths": rows,
    }


def _parted(base: BaseModel, texts: Sequence[str], length: int | None, tokens: int) -> list[str]:
    """All words of the texts in pieces of about `length` tokens, or of lengths drawn for every piece."""
    draw = random.Random(0)
    pieces: list[str] = []
    words: list[str] = []
    room = have = 0
    total = 0
    for text in texts:
        for word in text.split():
            if not words:
                room, have = length or round(256 ** draw.random()), 0
            words.append(word)
            have += len(base.tokenizer(f" {word}", add_special_tokens=False)["input_ids"])
            if have >= room:
                pieces.append(" ".join(words))
                words, total = [], total + have
        if total >= tokens:
            break
    return pieces or [" ".join(words)]


def _compared(
    base: BaseModel, texts: Sequence[str], layers: Sequence[int], tokens: int, max_length: int, repeats: int
) -> dict[str, Any]:
    def plain() -> tuple[Mapping[int, Tensor], int]:
        return plain_second_moments(base, texts, layers, max_tokens=tokens, max_length=max_length)

    def ours() -> tuple[Mapping[int, Tensor], int]:
        made = compute_second_moments(base, texts, layers, max_tokens=tokens, max_length=max_length)
        return made.moments, made.n_tokens

    times: dict[Callable[[], Any], list[tuple[float, float]]] = {plain: [], ours: []}
    found: dict[Callable[[], Any], tuple[Mapping[int, Tensor], int]] = {}
    for _ in range(repeats):
        for way in times:
            began, busy = time.perf_counter(), time.process_time()
            found[way] = way()
            times[way].append((time.perf_counter() - began, time.process_time() - busy))
    (slow, slow_busy), (fast, fast_busy) = (tuple(map(min, zip(*times[way], strict=True))) for way in (plain, ours))
    (reference, count), (moments, counted) = found[plain], found[ours]
    assert count == counted
    return {
        "speedup": slow / fast,
        "speedup_by_processor_time": slow_busy / fast_busy,
        "tokens_per_second": count / fast,
        "plain_tokens_per_second": count / slow,
        "tokens_per_processor_second": count / fast_busy,
        "plain_tokens_per_processor_second": count / slow_busy,
        "difference": max(_difference(reference[layer], moments[layer]) for layer in layers),
        "tokens": count,
        "padding": _padding(base, texts, tokens, max_length),
    }


def _difference(reference: Tensor, other: Tensor) -> float:
    scale = reference.diagonal().double().clamp(min=1e-30).sqrt()
    return float(((reference.double() - other.double()).abs() / torch.outer(scale, scale)).max())


def _padding(base: BaseModel, texts: Sequence[str], tokens: int, max_length: int) -> float:
    """Share of positions that are padding where sixteen texts at a time are padded to the longest."""
    real = positions = 0
    for at in range(0, len(texts), 16):
        lengths = [min(len(row.ids), max_length) for row in tokenise(base.tokenizer, texts[at : at + 16])]
        real, positions = real + sum(lengths), positions + len(lengths) * max(lengths)
        if real >= tokens:
            break
    return 1 - real / max(positions, 1)
