import random
import re
from itertools import chain

import pytest

from editing.almanac.feed import nightly_changes
from editing.almanac.filler import filling_facts
from editing.almanac.invention import near_name
from editing.almanac.meta_edits import AlmanacEdits
from editing.almanac.recipe import happened
from editing.almanac.world import BELIEF, HORIZON, load_world

WORLD = load_world()
SOURCE = AlmanacEdits(WORLD)
CHANGES = list(chain.from_iterable(nightly_changes(WORLD, BELIEF, HORIZON).values()))


@pytest.fixture(scope="module")
def drawn():
    rng = random.Random(7)
    return [edit for _ in range(60) for edit in SOURCE.draw(rng, 64)]


def texts_of(edits):
    return {text for edit in edits for text in (edit.statement_prompt, *edit.queries, *edit.locality)}


def test_the_real_subjects_are_split_in_two():
    assert {change.subject for change in CHANGES} == SOURCE.edited
    assert SOURCE.held_out
    assert not SOURCE.held_out & SOURCE.edited
    assert not SOURCE.evaluation & set(SOURCE.training)
    assert SOURCE.evaluation | set(SOURCE.training) == set(WORLD.subjects)


def test_no_text_of_the_training_asks_about_a_subject_of_the_evaluation(drawn):
    asked = {
        prompt
        for subject in SOURCE.evaluation
        for relation in WORLD.relations.values()
        for prompt in relation.prompts(subject)
    }
    texts = texts_of(drawn)
    assert len(texts) > 10_000
    assert not texts & asked
    # Their names occur as nothing but options: a city or a language may bear the name of a country.
    names = re.compile(r"\b(?:" + "|".join(map(re.escape, SOURCE.evaluation)) + r")\b")
    for text in texts:
        assert all(re.match(r"[A-D]\. ", line) for line in text.split("\n") if names.search(line)), text


def test_no_change_of_a_night_is_trained_on(drawn):
    feed = {prompt for change in CHANGES for prompt in (change.question, *change.paraphrases)}
    assert not texts_of(drawn) & feed
    assert texts_of(happened(WORLD)) & feed  # what evaluation asks is there to be found


def test_validation_is_on_held_out_subjects(drawn):
    edits = SOURCE.validation()
    assert edits == AlmanacEdits(WORLD).validation()
    real = [subject for subject in SOURCE.held_out if any(subject in edit.statement_prompt for edit in edits)]
    assert len(real) > 5
    for edit in edits:
        assert not any(re.search(rf"\b{re.escape(subject)}\b", edit.statement_prompt) for subject in SOURCE.training)
    assert not {edit.statement_prompt for edit in edits} & {edit.statement_prompt for edit in drawn}


def test_edits_are_counterfactual_and_hard_to_tell_apart(drawn):
    true = {
        (prompt, fact.object)
        for fact in WORLD.facts_on(BELIEF)
        for prompt in WORLD.relations[fact.relation].prompts(fact.subject)
    }
    assert not {(edit.statement_prompt, edit.target) for edit in drawn} & true
    batch = SOURCE.draw(random.Random(1), 64)
    assert len({edit.statement_prompt for edit in batch}) == len(batch) == 64
    taught = {text for edit in batch for text in edit.queries}
    for edit in batch:
        assert edit.statement_prompt == edit.queries[0]
        assert len(set(edit.queries)) == 8
        assert not set(edit.locality) & taught
    assert any("A. " in text for edit in batch for text in edit.locality)


def test_draws_follow_the_random_numbers():
    assert SOURCE.draw(random.Random(3), 20) == AlmanacEdits(WORLD).draw(random.Random(3), 20)
    assert SOURCE.draw(random.Random(3), 20) != SOURCE.draw(random.Random(4), 20)


def test_near_names_are_near():
    rng = random.Random(0)
    for name, kind in (("the United Kingdom", "country"), ("Lionel Messi", "athlete"), ("BMW", "company")):
        for _ in range(50):
            near = near_name(name, kind, rng, WORLD.subjects.keys())
            assert near != name
            assert near not in WORLD.subjects
            assert near.startswith("the ") == name.startswith("the ")


def test_filling_facts_are_about_no_subject_of_the_training():
    facts = filling_facts(WORLD, 3000)
    assert facts[:100] == filling_facts(WORLD, 100)
    assert len({fact.key for fact in facts}) == 3000
    assert not {fact.subject for fact in facts} & set(SOURCE.training)
    assert {fact.subject for fact in facts} > SOURCE.evaluation
