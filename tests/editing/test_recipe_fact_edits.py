import random

import pytest

from editing.editors.recipe.fact_edits import FactEdits, is_held_out
from editing.errors import FactError
from editing.facts import LocalityPrompt, Operation

PLACES = [f"{a}{b}" for a in ("Ar", "Bel", "Cor", "Dun", "Eas") for b in ("den", "mont", "via", "more", "vale", "holt")]


@pytest.fixture
def facts(fact):
    return [
        made
        for place in PLACES
        for made in (
            fact(place, "Ada Moss", rephrases=("Who leads {}? It is",)),
            fact(place, "Blue", relation="river", prompt="The river in {} is the"),
        )
    ]


def test_training_and_validation_share_no_subject(facts):
    source = FactEdits(facts, held_out=0.3)
    training, validation = source.draw(random.Random(0), 1000), source.validation()
    kept = {place for place in PLACES if is_held_out(place.casefold(), 0.3)}
    assert 0 < len(kept) < len(PLACES)
    for edits, others in ((training, kept), (validation, set(PLACES) - kept)):
        texts = [text for edit in edits for text in (edit.statement, *edit.queries, *edit.locality)]
        assert texts
        assert not any(place in text for place in others for text in texts)


def test_a_part_does_not_depend_on_what_else_there_is(facts):
    few = FactEdits(facts[:40], held_out=0.3)
    assert set(few.held_out.subjects) <= set(FactEdits(facts, held_out=0.3).held_out.subjects)


def test_subjects_that_are_asked_later_are_in_no_part(facts):
    source = FactEdits(facts, held_out=0.3, without=frozenset({"arden", "belmont"}))
    assert not {"arden", "belmont"} & {*source.training.subjects, *source.held_out.subjects}


def test_what_is_taught_is_not_to_be_left_alone(facts):
    source = FactEdits(facts, held_out=0.3)
    for n in (1, 2, 5, 20):
        edits = source.draw(random.Random(n), n)
        assert len(edits) == n
        taught = {text for edit in edits for text in edit.queries}
        assert all(edit.locality and not set(edit.locality) & taught for edit in edits)


def test_locality_prompts_come_with_the_facts(fact):
    local = LocalityPrompt(prompt="The sky is", answer="blue")
    source = FactEdits([fact(place, "Ada Moss", locality=(local,)) for place in PLACES], held_out=0.3)
    assert all("The sky is" in edit.locality for edit in source.draw(random.Random(0), 5))


def test_retractions_teach_nothing_and_too_few_subjects_are_refused(facts, fact):
    gone = [fact(place, "", operation=Operation.RETRACT) for place in PLACES]
    with pytest.raises(FactError, match="subjects for training"):
        FactEdits(gone)
    with pytest.raises(FactError, match="subjects for validation"):
        FactEdits(facts, held_out=1e-9)
