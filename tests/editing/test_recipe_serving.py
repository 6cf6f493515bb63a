"""What RECIPE looks up, and what it leaves alone."""

import dataclasses

import pytest
import torch

from editing.editors import get_editor
from editing.editors.base import continuation_from
from editing.editors.recipe.asked import AskedText, user_turn
from editing.editors.recipe.prompted import AskedRows
from editing.editors.recipe.retrieval import retrieve
from editing.errors import StateError
from editing.models import ARCHITECTURES
from editing.tokenisation import encode_prompts

EDITOR = get_editor("recipe")
SHOTS = "Question: Who leads Corvia?\nAnswer: Moss\n\nQuestion: What is 2 + 3?\nAnswer: 5\n\n"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@torch.no_grad()
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_what_is_served_is_the_prompt_in_front_of_the_embeddings(tiny_base, edited, perturbed, asked, model_type):
    base = tiny_base(model_type)
    state = perturbed(base, edited("recipe", 1, model_type, trained=False))
    lookups = []
    with EDITOR.attach(base, state, lookups=lookups):
        served = [base.model(**encode_prompts(base.tokenizer, [text])).logits[0] for text in asked]
    used = [lookup.row is not None for lookup in lookups]
    assert [lookup.asked for lookup in lookups] == asked
    assert any(used)
    assert not all(used)
    for text, lookup, logits in zip(asked, lookups, served, strict=True):
        ids = encode_prompts(base.tokenizer, [text])["input_ids"]
        if lookup.row is None:
            assert torch.equal(base.model(input_ids=ids).logits[0], logits)
            continue
        rows = AskedRows.of([ids[0].tolist()], [(0, place, -1) for place in range(ids.shape[1])])
        direct = rows.logits(base, state.repository.prompts(torch.tensor([lookup.row]).numpy()))
        torch.testing.assert_close(logits, direct, atol=2e-4, rtol=1e-3)


def test_a_chat_template_tells_where_the_user_speaks(tiny_base):
    tokenizer = tiny_base("gpt2").tokenizer
    assert user_turn(tokenizer) is None
    tokenizer.chat_template = CHATML
    try:
        turn = user_turn(tokenizer)
        assert (turn.before, turn.behind) == ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant")
        said = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who leads Corvia?"},
            {"role": "assistant", "content": "Moss."},
            {"role": "user", "content": "Some context.\n\nWho leads Dunmore?"},
        ]
        framed = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        assert AskedText(tokenizer, "last_question").of_text(framed) == "Who leads Dunmore?"
        assert AskedText(tokenizer, "prompt").of_text(framed) == framed.strip()
    finally:
        tokenizer.chat_template = None


def test_the_last_question_of_a_few_shot_prompt(tiny_base):
    tokenizer = tiny_base("llama").tokenizer
    last = AskedText(tokenizer, "last_question")
    assert last.of_text(f"{SHOTS}Question: Who leads Dunmore?\nAnswer:") == "Question: Who leads Dunmore?\nAnswer:"
    assert last.of_text("The mayor of Arden is") == "The mayor of Arden is"
    assert AskedText(tokenizer, "prompt").of_text(SHOTS + "Arden") == (SHOTS + "Arden").strip()


@torch.no_grad()
def test_shots_do_not_ask(tiny_base, edited, batches):
    """An applied fact in a shot leaves the answer to the base; as the last question it is answered."""
    base = tiny_base("gpt2")
    state = edited("recipe", 1)
    state = dataclasses.replace(state, config=dataclasses.replace(state.config, asked="last_question"))
    fact, others = batches[0].facts[0], ["What is 2 + 3?", "People elected", "In the year of the flood", "Now"]
    found = retrieve(state, others)
    other = next(text for text, used in zip(others, found.used, strict=True) if not used)
    prompts = [f"{fact.question} {fact.target}\n\n{other}", f"{other} 5\n\n{fact.question}"]
    plain = [base.model(**encode_prompts(base.tokenizer, [prompt])).logits for prompt in prompts]
    lookups = []
    with EDITOR.attach(base, state, lookups=lookups):
        told = [base.model(**encode_prompts(base.tokenizer, [prompt])).logits for prompt in prompts]
    assert [lookup.row for lookup in lookups] == [None, 0]
    assert torch.equal(told[0], plain[0])
    assert not torch.equal(told[1], plain[1])


@torch.no_grad()
def test_the_answer_takes_no_part_in_what_is_looked_up(tiny_base, edited, batches):
    base, state = tiny_base("gpt2"), edited("recipe", 1)
    question = batches[0].facts[0].question
    encoded = encode_prompts(base.tokenizer, [f"{question} Ada Moss leads"])
    start = encode_prompts(base.tokenizer, [question])["input_ids"].shape[1]
    lookups = []
    with EDITOR.attach(base, state, lookups=lookups), continuation_from(start):
        base.model(**encoded)
    assert [lookup.asked for lookup in lookups] == [question]


@torch.no_grad()
def test_rows_that_find_nothing_beside_rows_that_do(tiny_base, edited, batches, asked):
    """Alone they are the base's bit for bit; beside others up to what another batch shape does to the kernels."""
    base, state = tiny_base("gpt2"), edited("recipe", 1)
    fact = batches[0].facts[0]
    encoded = encode_prompts(base.tokenizer, [fact.question, *asked[3:]])
    positions = (encoded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    plain = base.model(**encoded, position_ids=positions).logits
    lookups = []
    with EDITOR.attach(base, state, lookups=lookups):
        mixed = base.model(**encoded, position_ids=positions).logits
    assert [lookup.row for lookup in lookups] == [0, None, None]
    real = encoded["attention_mask"][1:].bool()
    torch.testing.assert_close(mixed[1:][real], plain[1:][real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_passes_that_cannot_be_served_are_refused(tiny_base, edited, batches):
    base, state = tiny_base("gpt2"), edited("recipe", 1)
    ids = encode_prompts(base.tokenizer, [batches[0].facts[0].question])["input_ids"]
    outside = base.model(input_ids=ids, use_cache=True).past_key_values
    with EDITOR.attach(base, state):
        with pytest.raises(StateError, match="filled outside this `attach`"):
            base.model(input_ids=ids, past_key_values=outside)
        with pytest.raises(StateError, match="give the attached model input_ids"):
            base.model(inputs_embeds=base.model.get_input_embeddings()(ids))
        with pytest.raises(StateError, match="mask of two dimensions"):
            base.model(input_ids=ids, attention_mask=torch.ones(1, 1, ids.shape[1], ids.shape[1]))
        long = encode_prompts(base.tokenizer, ["x " * 100 + "\n\n" + batches[0].facts[0].question])["input_ids"]
        long = long[:, -128:]
    last = dataclasses.replace(state, config=dataclasses.replace(state.config, asked="last_question"))
    with EDITOR.attach(base, last), pytest.raises(StateError, match="do not fit the 128 positions"):
        base.model(input_ids=torch.cat([ids[:, :1].expand(1, 128 - long.shape[1]), long], dim=1))


@torch.no_grad()
def test_beams_keep_their_prompts(tiny_base, edited, batches):
    base, state = tiny_base("gpt2"), edited("recipe", 1)
    encoded = encode_prompts(base.tokenizer, [fact.question for fact in batches[0].facts])
    steps = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = base.model.generate(**encoded, **steps)
    with EDITOR.attach(base, state):
        cached = base.model.generate(**encoded, **steps)
        with continuation_from(encoded["input_ids"].shape[1]):
            uncached = base.model.generate(**encoded, **steps, use_cache=False)
    assert cached.tolist() == uncached.tolist()
    assert all(mine != theirs for mine, theirs in zip(cached.tolist(), plain.tolist(), strict=True))


def test_an_encoder_that_is_nowhere_is_said_with_the_way_out(tiny_base):
    with pytest.raises(StateError, match=r"encoder 'nowhere' is no folder.*errata recipe train"):
        EDITOR.start(tiny_base("gpt2"), {"encoder": "nowhere"})
