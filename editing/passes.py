"""Rows in passes through a model: of like length together, and on a CPU of several threads side by side.

Matrices of a few hundred tokens and the small work between them keep one core busy and two half idle, so a pass
gets one core to itself instead of all cores together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from editing.tokenisation import pad

ROWS_PER_PASS = 32  # few enough that one long row pads few others

Result = TypeVar("Result")


def in_passes(
    rows: Sequence[list[int]], padding: int, device: torch.device, work: Callable[[Tensor, Tensor], Tensor]
) -> Tensor | None:
    """`work` of token ids and mask, both `[n, T]`, on all rows: of like length together, side by side.

    The results `[n, ...]` are put together in the order of `rows`; None where there are none.
    """
    chunks = passes_by_length(rows)

    def of_chunk(index: int) -> Tensor:
        ids, mask = pad([rows[row] for row in chunks[index]], padding, side="right")
        return work(ids.to(device), mask.to(device))

    parts = side_by_side(of_chunk, len(chunks), device)
    if not parts:
        return None
    order = torch.tensor([row for chunk in chunks for row in chunk])
    return torch.cat(parts)[order.argsort().to(device)]


def passes_by_length(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the rows, at most `ROWS_PER_PASS` together; the longest rows come first."""
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    return [order[begin : begin + ROWS_PER_PASS] for begin in range(0, len(order), ROWS_PER_PASS)]


def side_by_side(work: Callable[[int], Result], count: int, device: torch.device) -> list[Result]:
    """`work` of 0 to `count` - 1, in that order.

    Without gradients and on a CPU, torch's threads take one piece each; else one piece follows the other.
    """
    whole, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    threads = min(whole, count)
    if threads < 2 or device.type != "cpu" or torch.is_grad_enabled():
        return [work(index) for index in range(count)]

    def alone(index: int) -> Result:
        with torch.inference_mode(inference), torch.no_grad():  # in this order: the first would turn gradients on
            return work(index)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(alone, range(count)))
    finally:
        torch.set_num_threads(whole)  # what the pool's threads said holds for every thread that begins later
