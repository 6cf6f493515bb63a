import pytest
import torch

from editing import statistics
from editing.errors import StatisticsError
from editing.models.trace import inputs_of
from editing.statistics import SecondMoments, compute_second_moments


def test_moments_are_the_mean_outer_product_over_real_tokens(tiny_base, corpus):
    base = tiny_base("gpt2")
    result = compute_second_moments(base, corpus, [2, 1], n_background=10)
    keys = [
        inputs_of(base.model, base.down_projection(1), input_ids=base.tokenizer(text, return_tensors="pt").input_ids)[0]
        for text in corpus
    ]
    keys_NF = torch.cat(keys)
    assert result.n_tokens == len(keys_NF)
    torch.testing.assert_close(result.moments[1], keys_NF.T @ keys_NF / len(keys_NF), atol=1e-5, rtol=1e-4)
    assert result.background[2].shape == (10, 64)
    nearest = torch.cdist(result.background[1].double(), keys_NF.double()).min(1).values
    assert nearest.max() < 1e-3


def test_the_token_cap_is_exact(tiny_base, corpus):
    assert compute_second_moments(tiny_base("gpt2"), corpus, [1], max_tokens=100).n_tokens == 100


def test_a_run_cut_short_goes_on_and_ends_the_same(tiny_base, corpus, tmp_path, monkeypatch):
    base = tiny_base("gpt2")
    whole = compute_second_moments(base, corpus, [1], n_background=20)
    monkeypatch.setattr(statistics, "STEPS_PER_CHECKPOINT", 1)

    def kill(stage, done, total):
        if done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_second_moments(base, corpus, [1], n_background=20, folder=tmp_path, progress=kill)
    assert list(tmp_path.glob("partial-*"))
    seen = []
    resumed = compute_second_moments(
        base, corpus, [1], n_background=20, folder=tmp_path, progress=lambda *at: seen.append(at)
    )
    assert seen[0][1] > 200
    torch.testing.assert_close(resumed.moments[1], whole.moments[1], rtol=0, atol=0)
    torch.testing.assert_close(resumed.background[1], whole.background[1], rtol=0, atol=0)
    assert not list(tmp_path.glob("partial-*"))


def test_round_trip_and_refusals(tiny_base, corpus, tmp_path):
    base = tiny_base("gpt2")
    saved = compute_second_moments(base, corpus, [1], folder=tmp_path)
    loaded = SecondMoments.load(tmp_path)
    assert loaded.key == saved.key
    torch.testing.assert_close(loaded.moments[1], saved.moments[1], rtol=0, atol=0)
    with pytest.raises(StatisticsError, match="base fingerprint"):
        loaded.require(tiny_base("llama"), [1])
    with pytest.raises(StatisticsError, match=r"not \[3\]"):
        loaded.require(base, [1, 3])
    content = (tmp_path / "statistics.safetensors").read_bytes()
    (tmp_path / "statistics.safetensors").write_bytes(content[:-4] + b"abcd")
    with pytest.raises(StatisticsError, match="altered"):
        SecondMoments.load(tmp_path)
    (tmp_path / "statistics.safetensors").write_bytes(content[:-4])
    with pytest.raises(StatisticsError, match="damaged"):
        SecondMoments.load(tmp_path)


def test_no_tokens_is_refused(tiny_base):
    with pytest.raises(StatisticsError, match="no tokens"):
        compute_second_moments(tiny_base("gpt2"), ["", ""], [1])
