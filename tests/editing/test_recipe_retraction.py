"""Retraction from a repository against one that never had the fact: the same rows hold, and the same texts come out."""

import pytest
import torch

from editing.editors import get_editor
from editing.facts import EditBatch
from editing.tokenisation import encode_prompts

EDITOR = get_editor("recipe")
PLACES = {
    "the first": (0, 1),
    "beneath another": (0, 0),
    "a middle": (1, 0),
    "above another": (2, 0),
    "the last": (2, 1),
}


def apply_all(base, state, nights):
    for facts in nights:
        state = EDITOR.apply(base, state, EditBatch(tuple(facts))).state
    return state


@torch.no_grad()
def served(base, state, texts):
    encoded = encode_prompts(base.tokenizer, texts)
    with EDITOR.attach(base, state):
        return base.model(**encoded).logits


@pytest.mark.parametrize("place", PLACES)
def test_retract_equals_never_applied_at_the_first_a_middle_and_the_last_edit(tiny_base, edited, batches, asked, place):
    base, state = tiny_base("gpt2"), edited("recipe", 3)
    night, position = PLACES[place]
    gone = batches[night].facts[position]
    nights = [[fact for fact in batch.facts if fact is not gone] for batch in batches]
    never = apply_all(base, edited("recipe", 0), nights)
    retracted = EDITOR.retract(base, state, [gone.fact_id])
    assert set(retracted.fact_ids) == set(never.fact_ids)
    texts = [*asked, *(fact.question for batch in batches for fact in batch.facts)]
    mine, theirs = served(base, retracted, texts), served(base, never, texts)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    if place != "beneath another":  # which has no say any more, whether it was ever there or not
        assert float((served(base, state, texts) - theirs).abs().max()) > 1e-2
