import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from editing.bench.self_text import compare_corpora
from editing.errors import StatisticsError
from editing.models import wrap_model
from editing.self_text import SelfTextSpec, _draw, forms_of, write_batch

TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def talker(tiny_base):
    """A base whose tokenizer has a chat template; in float64, so that batch mates cannot move a draw."""
    base = tiny_base("gpt2")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.tokenizer.backend_tokenizer, bos_token="<|begin|>", eos_token="<|end|>"
    )
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_config(base.model.config)
    model.load_state_dict(base.model.state_dict())
    return wrap_model(model.double(), tokenizer, model_id="tiny-talker")


def spec_of(base, **changes):
    spec = SelfTextSpec.of(base, tokens=100, length=40, seed=3)
    return dataclasses.replace(spec, batch=6, **changes)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_batch_depends_on_seed_and_index_alone(tiny_base, model_type):
    base = tiny_base(model_type)
    spec = spec_of(base)
    made = write_batch(base, spec, 1)
    assert made == write_batch(base, spec, 1)
    assert made != write_batch(base, spec, 2)
    assert made != write_batch(base, dataclasses.replace(spec, seed=4), 1)
    assert all(text.form == "plain" and 0 < text.tokens <= 40 and text.text for text in made)


def test_tokens_are_drawn_as_often_as_the_model_thinks_they_are_likely():
    logits = torch.tensor([float("-inf"), 0.0, 1.0, float("-inf"), 3.0])
    drawn = _draw(logits.expand(20_000, 5), torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    shares = torch.bincount(drawn, minlength=5) / 20_000
    torch.testing.assert_close(shares, logits.softmax(-1), atol=0.02, rtol=0)
    assert _draw(logits[None], torch.zeros(1)).tolist() == [1]


def test_talks_have_the_form_of_the_template(talker):
    assert forms_of(talker) == ("plain", "chat")
    spec = spec_of(talker)
    assert {text.form for text in write_batch(talker, spec, 0)} == {"plain"}
    talks = write_batch(talker, spec, 1)
    assert len(talks) == spec.batch
    for talk in talks:
        assert talk.form == "chat"
        assert talk.text.startswith("<|begin|>user\n")
        assert talk.text.count("<|end|>\n<|begin|>assistant\n") == 1
        assert talk.tokens <= spec.length
    assert len({talk.text for talk in talks}) == len(talks)


def test_rows_that_end_early_leave_the_others_as_they_are(talker, monkeypatch):
    """Every token is about as likely as any other, the end among them: some rows end, and not all at once."""
    flat = torch.nn.Parameter(talker.head.weight * 0.01, requires_grad=False)
    monkeypatch.setattr(talker.head, "weight", flat)
    spec = spec_of(talker, length=120)
    made = write_batch(talker, spec, 0)
    monkeypatch.setattr("editing.self_text.KEPT_ABOVE", 0.0)  # nothing makes room
    assert write_batch(talker, spec, 0) == made
    assert len({text.tokens for text in made}) > 1


def test_a_spec_names_the_template_and_refuses_what_cannot_be_written(talker, tiny_base):
    assert (
        SelfTextSpec.of(talker, tokens=1, length=1, seed=0).key
        != SelfTextSpec.of(tiny_base("gpt2"), tokens=1, length=1, seed=0).key
    )
    assert SelfTextSpec.of(talker, tokens=1, length=10_000, seed=0).length == 128  # its positions
    with pytest.raises(StatisticsError, match="0 tokens"):
        SelfTextSpec.of(talker, tokens=0, length=1, seed=0)


def test_what_differs_from_real_text_is_measured(tiny_base, corpus):
    base = tiny_base("gpt2")
    (row,) = compare_corpora(base, ["Zz xx qq." * 5] * 20, corpus, [1], tokens=400, ridge=1e-3)
    assert row["own"]["frobenius"] > 2 * row["real"]["frobenius"]
    assert row["own"]["leverage"] > 2 * row["real"]["leverage"]
    (same,) = compare_corpora(base, corpus, corpus, [1], tokens=2000, ridge=1e-3)
    assert same["own"]["leverage"] < row["own"]["leverage"] / 2
    with pytest.raises(StatisticsError, match="cannot be halved"):
        compare_corpora(base, corpus, ["one"], [1], tokens=10)
