import dataclasses

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from editing.editors import get_editor
from editing.errors import ConfigError, StateError, TokenisationError
from editing.prompts import RAW, PromptForm, find_form, is_cloze
from editing.tokenisation import encode_prompts, tokenise_prompts, tokenise_with_target

LOOP = "{% for m in messages %}"
END = "{% endfor %}"
ASK = "{% if add_generation_prompt %}"
TEMPLATES = {
    "chatml": (
        LOOP
        + "{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
        + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        + END
        + ASK
        + "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}"
        + LOOP
        + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}"
        + END
        + ASK
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}"
        + LOOP
        + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        + "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
        + END
    ),
    "gemma": (
        "{{ bos_token }}"
        + LOOP
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content "
        + "+ '<end_of_turn>\n' }}"
        + END
        + ASK
        + "{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
}
MARKS = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>"),
)


def tokenizer_of(template: str | None = None, *, bos: bool = False, digits: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with every template's marks, that adds a BOS or splits digits where asked to."""
    tokenizer = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>", "<|begin|>", *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Who is the mayor of Arden? Ada Moss was born in 1580"] * 20, trainer)
    steps: list[processors.PostProcessor] = [processors.ByteLevel(trim_offsets=False)]
    if bos:
        steps.append(processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]))
    tokenizer.post_processor = processors.Sequence(steps)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")
    fast.chat_template = template
    return fast


GOLDEN = {
    "chatml": (
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
        "Ada Moss<|im_end|>",
    ),
    "llama3": (
        "<|begin|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Ada Moss<|eot_id|>",
    ),
    "mistral": ("<|begin|>[INST] Who? [/INST]", " Ada Moss<|end|>"),
    "gemma": ("<|begin|><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n", "Ada Moss<end_of_turn>"),
}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("bos", [False, True])
def test_a_chat_templates_form_is_the_template_with_special_tokens_once(name, bos):
    tokenizer = tokenizer_of(TEMPLATES[name], bos=bos)
    form = find_form(tokenizer)
    prompt, answer = GOLDEN[name]
    ((tokens, inside),) = tokenise_with_target(tokenizer, [("Who? ", " Ada Moss ")], form)
    assert form.name == "chat"
    assert tokenizer.decode(tokens.ids[: inside[0]]) == prompt
    assert tokenizer.decode([tokens.ids[index] for index in inside]) == answer
    messages = [{"role": "user", "content": "Who?"}]
    by_template = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode_prompts(tokenizer, ["Who?"], form=form)["input_ids"][0].tolist() == by_template
    assert form.asked(prompt) == "Who?"


def test_system_text_takes_the_place_of_the_templates_own():
    tokenizer = tokenizer_of(TEMPLATES["chatml"])
    rendered = find_form(tokenizer, "chat", system="Answer briefly").render("Who?")[0]
    assert rendered.startswith("<|im_start|>system\nAnswer briefly<|im_end|>")
    assert "Be kind" not in rendered


def test_a_plain_model_is_asked_raw_and_its_bos_comes_once():
    tokenizer = tokenizer_of(bos=True)
    form = find_form(tokenizer)
    assert form == RAW
    ((tokens, inside),) = tokenise_with_target(tokenizer, [("The mayor of Arden is", "Ada Moss")], form)
    assert tokenizer.decode(tokens.ids) == "<|begin|>The mayor of Arden is Ada Moss"
    assert tokenizer.decode([tokens.ids[index] for index in inside]) == " Ada Moss"


def test_the_form_of_a_question_leaves_a_cloze_prompt_alone():
    form = find_form(tokenizer_of(), "question")
    assert form.render("Who? ")[0] == "Question: Who?\nAnswer:"
    assert form.render("The mayor of Arden is ")[0] == "The mayor of Arden is"
    assert form.answer("Who?", "Ada") == " Ada<|end|>"
    assert [is_cloze(text) for text in ("Who?", "Tell me.", "The mayor is", "首都は？", "首都は")] == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_with_a_tokenizer_that_splits_digits_the_space_before_them_is_the_answers():
    tokenizer = tokenizer_of(digits=True)
    ((tokens, inside),) = tokenise_with_target(tokenizer, [("Ada Moss was born in", "1580")])
    served = tokenise_prompts(tokenizer, ["Ada Moss was born in"])[0].ids
    assert tokens.ids[: inside[0]] == served
    assert [tokenizer.decode([tokens.ids[index]]) for index in inside] == [" ", "1", "5", "8", "0"]


@pytest.mark.parametrize(
    ("prompt", "target", "answer"),
    [
        ("The price is $", "15", "15"),
        ('He said "', "yes", "yes"),
        ("日本の首都は", "東京", "東京"),
        ("The players'", "union", " union"),
        ("The capital is", "東京", " 東京"),
    ],
)
def test_a_space_stands_before_an_answer_where_the_script_has_one(prompt, target, answer):
    assert RAW.answer(prompt, target) == answer


def test_what_cannot_be_asked_is_refused_by_name():
    with pytest.raises(ConfigError, match="use one of auto, raw, question, chat"):
        find_form(tokenizer_of(), "talk")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no chat template"):
        find_form(tokenizer_of(), "chat")
    with pytest.raises(ConfigError, match="does not render a user's turn"):
        find_form(tokenizer_of("{{ raise_exception('no') }}"), "chat")
    with pytest.raises(TokenisationError, match="give a target"):
        tokenise_with_target(tokenizer_of(), [("Who?", "  ")], PromptForm(name="chat", behind="x", end="<|end|>"))


def test_a_state_is_refused_by_a_base_that_is_asked_in_another_form(edited, tiny_base):
    state = edited("coachhook", 1)
    other = dataclasses.replace(tiny_base("gpt2"), form=PromptForm(name="question", before="Q: ", behind=" A:"))
    with pytest.raises(StateError, match="prompt form differs"):
        get_editor("coachhook").attach(other, state).__enter__()
