import pytest
import torch

from editing import statistics
from editing.bench.plain_statistics import plain_second_moments
from editing.bench.statistics_speed import MIXED, measure_statistics
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


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_texts_of_all_lengths_together_give_what_they_give_the_plain_way(tiny_base, corpus, monkeypatch, model_type):
    monkeypatch.setattr(statistics, "TOKENS_PER_WINDOW", 500)
    monkeypatch.setattr(statistics, "TOKENS_PER_PASS", 120)
    monkeypatch.setattr(statistics, "ROWS_PER_PRODUCT", 24)
    base = tiny_base(model_type)
    texts = ["", *(" ".join(corpus[at : at + 1 + at % 7]) for at in range(40)), " ", *corpus]
    cuts = {"max_tokens": 1500, "max_length": 60}
    plain, count = plain_second_moments(base, texts, [1, 2], **cuts)
    result = compute_second_moments(base, texts, [1, 2], **cuts)
    assert result.n_tokens == count == 1500
    for layer in (1, 2):
        scale = plain[layer].diagonal().sqrt()
        assert ((result.moments[layer] - plain[layer]).abs() / torch.outer(scale, scale)).max() < 1e-5


def test_the_background_depends_on_the_seed_and_the_place_in_the_corpus_alone(tiny_base, corpus, monkeypatch):
    base = tiny_base("gpt2")
    whole = compute_second_moments(base, corpus, [1], n_background=30)
    monkeypatch.setattr(statistics, "TOKENS_PER_WINDOW", 200)
    monkeypatch.setattr(statistics, "TOKENS_PER_PASS", 50)
    parted = compute_second_moments(base, corpus, [1], n_background=30)
    torch.testing.assert_close(parted.background[1], whole.background[1], atol=1e-5, rtol=1e-5)
    other = compute_second_moments(base, corpus, [1], n_background=30, seed=1)
    assert not torch.allclose(other.background[1], whole.background[1], atol=1e-3)


def test_a_bench_times_both_ways_over_the_same_tokens(tiny_base, corpus):
    found = measure_statistics(tiny_base("gpt2"), corpus, [1, 2], tokens=300, repeats=1)
    assert [row["lengths"] for row in found["by_lengths"]] == ["as given", MIXED, "16", "64"]  # of 128 positions
    for row in found["by_lengths"]:
        assert row["difference"] < 1e-5
        assert row["tokens"] <= 300
        assert row["speedup"] == pytest.approx(row["tokens_per_second"] / row["plain_tokens_per_second"])
    with pytest.raises(StatisticsError, match="no tokens"):
        measure_statistics(tiny_base("gpt2"), [" "], [1])


def test_a_run_cut_short_goes_on_and_ends_the_same(tiny_base, corpus, tmp_path, monkeypatch):
    base = tiny_base("gpt2")
    monkeypatch.setattr(statistics, "TOKENS_PER_WINDOW", 100)
    whole = compute_second_moments(base, corpus, [1], n_background=20)
    monkeypatch.setattr(statistics, "WINDOWS_PER_CHECKPOINT", 1)

    def kill(stage, done, total):
        if done > 400:
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
