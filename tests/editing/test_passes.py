"""Passes side by side: the same results in the same order, and torch's threads as they were."""

import itertools
import threading

import pytest
import torch

from editing.passes import ROWS_PER_PASS, passes_by_length, side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_row_is_in_one_pass_beside_rows_of_like_length():
    rows = [[0] * (7 * row % 50) for row in range(3 * ROWS_PER_PASS + 1)]
    passes = passes_by_length(rows)
    assert sorted(itertools.chain(*passes)) == list(range(len(rows)))
    assert [len(each) for each in passes] == [ROWS_PER_PASS] * 3 + [1]
    lengths = [[len(rows[row]) for row in each] for each in passes]
    assert all(min(earlier) >= max(later) for earlier, later in itertools.pairwise(lengths))


@torch.no_grad()
def test_two_pieces_run_at_once_on_one_core_each(two_threads):
    both = threading.Barrier(2, timeout=30)

    def work(index):
        both.wait()  # neither goes on before the other has begun
        return index, torch.get_num_threads(), torch.is_grad_enabled()

    assert side_by_side(work, 4, CPU) == [(index, 1, False) for index in range(4)]
    assert torch.get_num_threads() == 2


def test_with_gradients_one_piece_follows_the_other(two_threads):
    seen = side_by_side(lambda index: (index, threading.current_thread()), 3, CPU)
    assert seen == [(index, threading.current_thread()) for index in range(3)]


@torch.inference_mode()
def test_an_error_of_a_piece_is_raised_and_threads_are_as_before(two_threads):
    def work(index):
        if index == 1:
            raise ValueError("piece 1")
        return torch.ones(2) * index

    with pytest.raises(ValueError, match="piece 1"):
        side_by_side(work, 3, CPU)
    assert torch.get_num_threads() == 2
    assert side_by_side(lambda index: torch.ones(1) + index, 2, CPU)[1].is_inference()
