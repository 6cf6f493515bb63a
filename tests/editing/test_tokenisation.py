import pytest
import torch

from editing.errors import TokenisationError
from editing.tokenisation import (
    encode_prompts,
    encode_with_targets,
    find_subject,
    lookup_index,
    special_tokens,
    tokenise,
)


@pytest.fixture(params=["gpt2", "llama"], ids=["no bos", "bos"])
def tokenizer(request, tiny_base):
    return tiny_base(request.param).tokenizer


@pytest.mark.parametrize("prompt", ["The mayor of Arden is", "The mayor of Arden is ", "Who leads Arden?"])
@pytest.mark.parametrize("target", ["Ada Moss", " Ada Moss ", "Zürich 北京"])
def test_exactly_one_space_and_the_target_is_all_of_the_target(tokenizer, prompt, target):
    encoded = encode_with_targets(tokenizer, [prompt, "x"], [target, "y"])
    ids = encoded.input_ids[0][encoded.attention_mask[0].bool()]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert whole == f"{prompt.rstrip()} {target.strip()}"
    assert tokenizer.decode(encoded.input_ids[0][encoded.target_mask[0]]) in (f" {target.strip()}", target.strip())
    before = encoded.target_mask[0].int().argmax()
    assert tokenizer.decode(encoded.input_ids[0][:before], skip_special_tokens=True).rstrip() == prompt.rstrip()


def test_targets_are_right_padded_and_prompts_left(tokenizer):
    pairs = ["The mayor of Arden is", "Belmont:"]
    right = encode_with_targets(tokenizer, pairs, ["Ada Moss", "Ben Hale"])
    assert right.attention_mask[1].diff().max() <= 0
    assert not (right.target_mask & ~right.attention_mask.bool()).any()
    left = encode_prompts(tokenizer, pairs)
    assert left["attention_mask"][1].diff().min() >= 0
    assert left["attention_mask"].sum(1).tolist() == [len(t.ids) for t in tokenise(tokenizer, pairs)]
    assert tokenizer.pad_token is None


@pytest.mark.parametrize(
    ("template", "subject", "last"),
    [
        ("The mayor of {} is", "Arden", "Arden"),
        ("{} is led by", "Corvia", "Corvia"),
        ("Corvia trades with {}", "Corvia", "Corvia"),
        ("{}'s mayor is", "São Tomé", "Tomé"),
    ],
)
def test_lookup_is_the_last_token_of_the_subject_in_its_slot(tokenizer, template, subject, last):
    text = template.replace("{}", subject)
    index = lookup_index(tokenizer, template, subject)
    tokens = tokenise(tokenizer, [text])[0]
    end = template.index("{}") + len(subject)
    assert tokens.spans[index][0] < end <= tokens.spans[index][1]
    assert text[:end].endswith(last)


def test_what_cannot_be_located_is_refused(tokenizer):
    with pytest.raises(TokenisationError, match="no tokens"):
        encode_with_targets(tokenizer, ["The mayor is"], ["  "])
    with pytest.raises(TokenisationError, match="slot"):
        lookup_index(tokenizer, "The mayor is", "Arden")
    with pytest.raises(TokenisationError, match="no tokens"):
        lookup_index(tokenizer, "The mayor of {} is", "")


def test_padding_side_does_not_change_the_tokens(tokenizer):
    prompts = ["The mayor of Arden is", "Belmont"]
    left, right = (encode_prompts(tokenizer, prompts, padding_side=side) for side in ("left", "right"))
    for row in range(2):
        torch.testing.assert_close(
            left["input_ids"][row][left["attention_mask"][row].bool()],
            right["input_ids"][row][right["attention_mask"][row].bool()],
        )


@pytest.mark.parametrize(
    ("text", "subject", "at"),
    [
        ("Nigeria and Niger share a border", "Niger", 12),
        ("Nigeria is large", "Niger", -1),
        ("guinea-bissau", "Guinea", 0),
        ("the UK's mayor", "uk", 4),
        ("日本の首都は", "日本", 0),
        ("İstanbul", "stanbul", -1),
    ],
)
def test_a_subject_is_found_as_words_of_its_own(text, subject, at):
    assert find_subject(text, subject) == at


def test_special_tokens_are_what_the_tokenizer_reads_as_one_token_in_any_text(tokenizer):
    found = special_tokens(tokenizer)
    assert set(tokenizer.all_special_tokens) <= found
    for token in found:
        assert tokenizer.convert_tokens_to_ids(token) in tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"]
