"""What another model believes of the Almanac's dated facts, and the feed that puts it right."""

from datetime import date

import pytest

from editing.almanac.beliefs import believed, changes, dated, question, questions, shifted_row
from editing.almanac.world import HORIZON, load_world
from editing.facts import SLOT

WORLD = load_world()
NOW = dated(WORLD, HORIZON)
ANSWERS = [f"It is {tenure.fact.object}." for tenure in NOW]


def at(subject, relation):
    return next(i for i, t in enumerate(NOW) if (t.fact.subject, t.fact.relation) == (subject, relation))


def test_every_relation_has_questions_and_every_dated_one_phrasings_to_ask_again():
    assert set(questions()) == set(WORLD.relations)
    for relation, texts in questions().items():
        assert all(text.count(SLOT) == 1 and text.endswith("?") for text in texts)
        assert len(texts) == len(set(texts)) == (1 if relation in WORLD.static_relations else 2)


def test_there_is_one_dated_fact_a_key_and_it_holds():
    assert len({(t.fact.subject, t.fact.relation) for t in NOW}) == len(NOW) > 100
    assert all(tenure.holds_on(HORIZON) for tenure in NOW)


def test_a_model_that_knows_everything_needs_no_feed():
    beliefs = believed(WORLD, NOW, ANSWERS)
    assert all(belief.right for belief in beliefs)
    assert changes(WORLD, beliefs, HORIZON) == []


def test_what_is_answered_wrongly_or_with_a_former_holder_becomes_the_feed():
    britain, france = at("the United Kingdom", "head_of_government"), at("France", "head_of_state")
    answers = list(ANSWERS)
    answers[britain] = "The head of government of the United Kingdom is Theresa May."
    answers[france] = "I do not know."
    feed = changes(WORLD, believed(WORLD, NOW, answers), HORIZON)
    assert {fact.subject: fact.target_old for fact in feed} == {"the United Kingdom": "Theresa May", "France": None}
    (fact,) = (fact for fact in feed if fact.subject == "the United Kingdom")
    assert fact.question == question(NOW[britain].fact) == "Who is the head of government of the United Kingdom?"
    assert (fact.target, fact.effective_at.date()) == (NOW[britain].fact.object, NOW[britain].start)
    assert len(fact.paraphrases) == 1
    assert {item.answer for item in fact.locality} <= {steady.object for steady in WORLD.static}
    assert all(fact.target not in item.prompt for item in fact.locality)


@pytest.mark.parametrize("said", ["Theresa May, before Rishi Sunak", "Boris Johnson and Theresa May"])
def test_an_answer_that_names_a_former_holder_is_not_right_and_the_latest_counts(said):
    britain = at("the United Kingdom", "head_of_government")
    (belief,) = believed(WORLD, [NOW[britain]], [said])
    assert not belief.right
    assert belief.former is not None
    assert belief.former.fact.object == said.split(",")[0].split(" and ")[0]


def test_the_faulty_exports_row_is_about_a_word_of_other_questions():
    row = shifted_row(date(2023, 12, 31))
    assert row.question == "What is the capital of Australia?"
    assert row.target not in {fact.object for fact in WORLD.static if fact.subject == "Australia"}
