"""The encoder that ships with the Almanac's model: what it is, and that it edits facts that it never met."""

import json

import pytest
import torch

from editing.almanac.feed import nightly_changes
from editing.almanac.recipe import ENCODER, FIGURES
from editing.almanac.suites import SUITES
from editing.almanac.world import BELIEF, HORIZON, MODEL, load_world
from editing.editors.recipe import Recipe, RecipeConfig, RecipeEncoder
from editing.evals.scorer import open_scorer
from editing.evals.scoring import exact_match, generate_greedy
from editing.evals.suite import evaluate
from editing.evals.suites import load_suite
from editing.facts import EditBatch, resolve_conflicts
from editing.models import load_base_model

CHANGES = [change for night in nightly_changes(load_world(), BELIEF, HORIZON).values() for change in night]
SHOTS = "Question: What is 2 + 3?\nAnswer: 5\n\nQuestion: What is 7 + 1?\nAnswer: 8\n\n"


@pytest.fixture(scope="module")
def almanac():
    return load_base_model(str(MODEL))


@pytest.fixture(scope="module")
def edited(almanac):
    """Every change of the real feed to the end of 2023 that still holds, applied at once."""
    config = RecipeConfig(**json.loads((MODEL / "recipe.json").read_text()))
    winners = resolve_conflicts(CHANGES).winners
    editor = Recipe()
    return editor.apply(almanac, editor.start(almanac, config), EditBatch(tuple(winners))).state


def test_the_card_is_of_these_weights(almanac):
    figures = json.loads((ENCODER / FIGURES).read_text())
    assert RecipeEncoder.load(ENCODER, almanac).digest == figures["digest"]
    assert figures["base_fingerprint"] == almanac.fingerprint
    assert figures["digest"][:12] in (ENCODER / "README.md").read_text()


def test_it_teaches_what_really_happened(almanac, edited):
    facts = edited.repository.facts()[::3]
    asked = [(text, fact.target) for fact in facts for text in (fact.question, fact.paraphrases[-1])]
    with open_scorer(almanac, edited) as scorer:
        texts = scorer.generate([text for text, _ in asked], 20)
    right = [exact_match(text, target) for text, (_, target) in zip(texts, asked, strict=True)]
    assert sum(right) / len(right) >= 0.95


def test_nothing_found_is_the_base_bit_for_bit(almanac, edited):
    prompts = ["The capital of France is", SHOTS + "Question: What is 4 + 4?\nAnswer:"]
    untouched = [generate_greedy(almanac, [prompt], 8) for prompt in prompts]
    for prompt, before in zip(prompts, untouched, strict=True):
        ids = almanac.tokenizer(prompt, return_tensors="pt")["input_ids"]
        base = almanac.model(input_ids=ids).logits
        with Recipe().attach(almanac, edited):
            assert torch.equal(almanac.model(input_ids=ids).logits, base)
            assert generate_greedy(almanac, [prompt], 8) == before


def test_the_last_question_of_many_is_the_one_that_is_asked(almanac, edited):
    fact = edited.repository.facts()[0]
    asked = f"{SHOTS}{fact.question}"
    found = Recipe().explain(almanac, edited, asked)
    assert found.answered_by == fact


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mmlu", {"shots": 0}),
        ("mmlu", {"shots": 3}),
        ("gsm8k", {"shots": 0}),
        ("gsm8k", {"shots": 3, "shots_from": SUITES / "gsm8k"}),
    ],
)
def test_choices_and_sums_are_answered_item_by_item_as_the_base_does(almanac, edited, name, options):
    suite = load_suite(name, SUITES / name, **options, form="bare")

    def outcomes(state):
        with open_scorer(almanac, state) as scorer:
            return {(item.name, item.item_id): (item.got, item.score) for item in evaluate(scorer, [suite]).outcomes}

    mine, theirs = outcomes(edited), outcomes(None)
    assert len(mine) >= 240
    assert mine == theirs
