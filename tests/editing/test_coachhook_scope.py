import math

import pytest
import torch

from editing.editors.coachhook import CoachHookConfig
from editing.editors.coachhook.scope import background_scale, calibrated_threshold, sequence_scores
from editing.editors.coachhook.solve import condition_estimate, solve_update
from editing.errors import EditRefusedError


def scores(values, **more):
    change = torch.tensor([values])
    return sequence_scores(change, torch.ones_like(change, dtype=torch.bool), **more)


def test_prompt_tokens_are_judged_by_the_whole_prompts_sample_deviation():
    values = [1.0, 2.0, 4.0, 9.0]
    change = torch.tensor(values)
    got, _ = scores(values)
    torch.testing.assert_close(got[0], ((change - change.mean()) / change.std()).double())


@pytest.mark.parametrize("count", [2, 3, 6, 7, 20])
def test_the_highest_score_that_a_prompt_of_n_tokens_can_have(count):
    got, _ = scores([0.0] * (count - 1) + [1.0])
    assert float(got.max()) == pytest.approx((count - 1) / math.sqrt(count))


def test_what_has_no_deviation_scores_zero_and_never_nan():
    assert scores([3.0])[0].tolist() == [[0.0]]
    assert scores([2.0, 2.0, 2.0])[0].tolist() == [[0.0, 0.0, 0.0]]
    assert scores([0.0, 0.0])[0].tolist() == [[0.0, 0.0]]


def test_answers_extend_the_prompts_mean_and_deviation_with_and_without_a_cache():
    values = [1.0, 2.0, 4.0, 9.0, 3.0, 30.0]
    whole, _ = scores(values, column=4)
    prompt, running = scores(values[:4])
    torch.testing.assert_close(whole[:, :4], prompt)
    for at in (4, 5):
        one, running = scores([values[at]], before=running)
        seen = torch.tensor(values[: at + 1], dtype=torch.float64)
        assert float(one) == pytest.approx(float((seen[-1] - seen.mean()) / seen.std()))
        assert float(one) == pytest.approx(float(whole[0, at]))


def test_padding_counts_for_nothing_on_either_side():
    values = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    alone, _ = sequence_scores(values, torch.ones(1, 4, dtype=torch.bool))
    for left in (0, 3):
        padded = torch.full((1, 7), 50.0)
        real = torch.zeros(1, 7, dtype=torch.bool)
        padded[:, left : left + 4], real[:, left : left + 4] = values, True
        got, _ = sequence_scores(padded, real)
        torch.testing.assert_close(got[:, left : left + 4], alone)
        assert not got[~real].any()


def test_the_calibrated_threshold_lies_between_background_and_edits():
    change = torch.eye(2)
    background = torch.tensor([[float(i), 0.0] for i in range(11)])
    edited = torch.tensor([[0.0, 40.0], [30.0, 0.0]])

    def threshold(edited=edited, **more):
        config = CoachHookConfig(layers=(1,), **{"alpha_weight": 0.0, **more})
        return calibrated_threshold(change, background, edited, 2.0, config)

    assert threshold(background_quantile=0.8) == pytest.approx(4.0)
    assert threshold(background_quantile=0.8, alpha_weight=1.0) == pytest.approx(15.0 * 0.999)
    assert threshold(background_quantile=0.8, alpha_weight=0.5) == pytest.approx(math.sqrt(60))
    weak = torch.tensor([[1.0, 0.0]])
    assert threshold(weak, background_quantile=0.8) == pytest.approx(0.5 * 0.999)
    assert threshold(edited[:0]) == math.inf


def test_the_background_scale_is_the_root_mean_square_change():
    generator = torch.Generator().manual_seed(0)
    change, keys = torch.randn(3, 5, generator=generator), torch.randn(400, 5, generator=generator)
    direct = (keys @ change.T).square().sum(1).mean().sqrt()
    assert background_scale(change, keys.T @ keys / 400) == pytest.approx(float(direct), rel=1e-5)


def test_the_update_is_memits_closed_form():
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    moment, keys = sample.T @ sample, torch.randn(3, 6, generator=generator, dtype=torch.float64)
    residual = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    update = solve_update(moment, keys, residual, layer=1, max_condition=1e12)
    torch.testing.assert_close(update, residual.T @ keys @ torch.linalg.inv(moment + keys.T @ keys))


def test_the_condition_estimate_and_its_refusals():
    matrix = torch.diag(torch.tensor([100.0, 10.0, 1.0], dtype=torch.float64))
    assert condition_estimate(matrix, torch.linalg.cholesky(matrix)) == pytest.approx(100, rel=0.05)
    keys, residual = torch.ones(1, 3), torch.ones(1, 2)
    with pytest.raises(EditRefusedError, match=r"layer 4: condition estimate .* exceeds max_condition 50"):
        solve_update(matrix, keys, residual, layer=4, max_condition=50.0)
    with pytest.raises(EditRefusedError, match="not positive definite"):
        solve_update(-matrix, keys, residual, layer=4, max_condition=1e12)
    with pytest.raises(EditRefusedError, match="not finite"):
        solve_update(matrix, keys, residual * float("nan"), layer=4, max_condition=1e12)
