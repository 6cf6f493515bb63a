import random
import re
from collections import Counter

import pytest

from editing.almanac import corpus
from editing.almanac.world import BELIEF, load_world

WORLD = load_world()
STATIC = [fact for fact in WORLD.facts_on(BELIEF) if fact.relation in WORLD.static_relations]


def test_every_name_is_mentioned_and_no_office_is_told():
    sentences = corpus.mention_sentences(WORLD)
    names = [*WORLD.objects("person"), *WORLD.objects("team")]
    assert set(names) == set(corpus.load_profiles())
    offices = ("president", "prime minister", "head of", "chief executive", "ceo", "chancellor", "king of", "queen of")
    for name in names:
        about = [sentence for sentence in sentences if name in sentence]
        assert len(set(about)) >= 6, name
    for sentence in sentences:
        told = sentence.lower()
        assert not any(office in told for office in offices), sentence
        assert len(sentence.split()) <= 20


def test_fictional_subjects_carry_every_name_in_every_relation_of_its_kind():
    holders = corpus.fictional_holders(WORLD, seed=1, n=2)
    assert holders == corpus.fictional_holders(WORLD, seed=1, n=2)
    assert holders != corpus.fictional_holders(WORLD, seed=2, n=2)
    names = [holder.name for holder in holders]
    assert len(set(names)) == len(names)
    assert not set(names) & set(WORLD.subjects)
    counts = Counter((fact.relation, fact.object) for holder in holders for fact in holder.facts)
    for relation in WORLD.relations.values():
        assert all(counts[relation.name, name] >= 2 for name in WORLD.objects(relation.object_kind)), relation.name
    for holder in holders:
        kinds = {WORLD.relations[fact.relation].subject_kind for fact in holder.facts}
        assert kinds == {holder.kind}
        assert {fact.subject for fact in holder.facts} == {holder.name}
        assert len(holder.facts) == sum(r.subject_kind == holder.kind for r in WORLD.relations.values())


def test_fictional_names_do_not_run_out():
    holders = corpus.fictional_holders(WORLD, seed=0, n=20)
    assert len({holder.name for holder in holders}) == len(holders) > 10_000


@pytest.mark.parametrize("held_out", [False, True])
def test_multiple_choice_has_one_true_option(held_out):
    rng = random.Random(0)
    truth = {(fact.relation, corpus.question(WORLD, fact)): fact.object for fact in STATIC}
    letters: Counter[str] = Counter()
    for _ in range(400):
        prompt, answer = corpus.multiple_choice(WORLD, rng, STATIC, held_out=held_out)
        question, *lines, last = prompt.split("\n")
        assert last == "Answer:"
        options = {line[0]: line[3:] for line in lines}
        assert list(options) == list("ABCD")
        assert len(set(options.values())) == 4
        (true,) = {value for (_, asked), value in truth.items() if asked == question}
        assert options[answer] == true
        assert corpus.is_held_out(prompt) == held_out
        letters[answer] += 1
    assert min(letters.values()) > 60


@pytest.mark.parametrize("held_out", [False, True])
def test_arithmetic_is_right(held_out):
    rng = random.Random(0)
    for _ in range(2000):
        prompt, answer = corpus.arithmetic(rng, held_out=held_out)
        *steps, last = answer.split("\n")
        numbers = [int(number) for number in re.findall(r"\d+", prompt)]
        result = numbers[0]
        for step, number in zip(steps, numbers[1:], strict=True):
            left, operator, right, _, equal = step.split()
            assert (int(left), int(right)) == (result, number)
            result = {"+": result + number, "-": result - number, "*": result * number}[operator]
            assert int(equal) == result
        assert last == f"#### {result}"
        assert 0 <= result <= 99
        assert len(prompt.split()) <= 36
        assert corpus.is_held_out(prompt) == held_out


def test_draws_are_seeded():
    def draw(seed):
        rng = random.Random(seed)
        return [corpus.arithmetic(rng) for _ in range(5)] + [corpus.multiple_choice(WORLD, rng, STATIC)]

    assert draw(3) == draw(3) != draw(4)
