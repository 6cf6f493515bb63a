import unicodedata
from collections import Counter
from datetime import date
from itertools import pairwise

import pytest

from editing.almanac.world import BELIEF, HORIZON, Fact, load_world

WORLD = load_world()


def test_enough_facts_hold_on_the_day_of_belief():
    facts = WORLD.facts_on(BELIEF)
    assert len(facts) >= 950
    assert len(WORLD.static) >= 650
    assert len({(fact.subject, fact.relation) for fact in facts}) == len(facts)


def test_one_holder_at_a_time_in_order():
    for before, after in pairwise(WORLD.tenures):
        if (before.fact.subject, before.fact.relation) == (after.fact.subject, after.fact.relation):
            assert before.end is not None, before
            assert before.start < before.end <= after.start, (before, after)
    runs = [key for key, _ in Counter((t.fact.subject, t.fact.relation) for t in WORLD.tenures).items()]
    seen = [(t.fact.subject, t.fact.relation) for t in WORLD.tenures]
    assert [key for i, key in enumerate(seen) if i == 0 or seen[i - 1] != key] == runs, "rows of a key stand together"


def test_every_dated_key_has_a_holder_at_belief():
    keys = {(tenure.fact.subject, tenure.fact.relation) for tenure in WORLD.tenures}
    held = {(fact.subject, fact.relation) for fact in WORLD.facts_on(BELIEF)}
    assert keys <= held


def test_dated_and_static_facts_do_not_mix():
    dated = {tenure.fact.relation for tenure in WORLD.tenures}
    static = WORLD.static_relations
    assert not dated & static
    assert dated | static == set(WORLD.relations)
    assert len(set(WORLD.static)) == len(WORLD.static)


def test_a_subject_is_of_one_kind():
    kinds = {
        (fact.subject, WORLD.relations[fact.relation].subject_kind)
        for fact in (*WORLD.static, *(t.fact for t in WORLD.tenures))
    }
    assert len(kinds) == len(WORLD.subjects)


def test_names_are_clean():
    names = {*WORLD.subjects, *(f.object for f in WORLD.static), *(t.fact.object for t in WORLD.tenures)}
    for name in names:
        assert name == " ".join(name.split()) == unicodedata.normalize("NFC", name)
        assert all(char.isalpha() or char in " '.-&" for char in name), name


@pytest.mark.parametrize("relation", WORLD.relations.values(), ids=lambda relation: relation.name)
def test_phrasings(relation):
    assert len(set(relation.phrasings)) == 8
    first = 0
    for phrasing in relation.phrasings:
        assert phrasing.count("{}") == 1
        assert phrasing == phrasing.strip()
        assert len(phrasing.replace("?", " ?").replace(":", " :").split()) <= 14
        if relation.subject_kind in ("country", "organisation"):
            assert not phrasing.startswith("{}"), "subjects may carry an article"
        first += phrasing.index("{}") < len(phrasing) / 2
    assert 3 <= first <= 5, "subject first and subject last"
    phrasings = [phrasing for other in WORLD.relations.values() for phrasing in other.phrasings]
    assert max(Counter(phrasings).values()) == 1


def test_changes_are_what_happened():
    changes = WORLD.changes(BELIEF, HORIZON)
    assert len(changes) >= 118
    assert changes == sorted(changes)
    assert all(change.old != change.new and BELIEF < change.date <= HORIZON for change in changes)
    (johnson,) = [change for change in changes if change.new == "Boris Johnson"]
    assert (johnson.date, johnson.subject, johnson.old) == (date(2019, 7, 24), "the United Kingdom", "Theresa May")


def test_applying_all_changes_to_belief_gives_the_horizon():
    state = {(fact.subject, fact.relation): fact.object for fact in WORLD.facts_on(BELIEF)}
    for change in WORLD.changes(BELIEF, HORIZON):
        assert state[change.subject, change.relation] == change.old
        state[change.subject, change.relation] = change.new
    assert {Fact(*key, value) for key, value in state.items()} == set(WORLD.facts_on(HORIZON))


def test_objects_cover_what_is_needed():
    persons = set(WORLD.objects("person"))
    assert {change.new for change in WORLD.changes(BELIEF, HORIZON)} <= persons | set(WORLD.objects("team"))
    assert set(WORLD.names_of("chief_executive")) < persons
    assert "Steve Jobs" not in persons
