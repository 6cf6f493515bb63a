"""Facts that contradict each other from the two ends of one statement."""

import pytest

from editing.errors import FactError
from editing.inverse import STANDS, Holding, InverseRelations, contradictions

MAYORS = InverseRelations({"mayor": "mayor of"})
FAMILY = InverseRelations({"father": "child", "mother": "child", "spouse": "spouse"})


@pytest.mark.parametrize(
    ("inverse", "one", "other", "clash"),
    [
        (MAYORS, ("Arden", "mayor", "Ada"), ("Ada", "mayor of", "Belmont"), True),
        (MAYORS, ("Arden", "mayor", "Ada"), ("Ben", "mayor of", "Arden"), True),
        (MAYORS, (" arden", "MAYOR", "Ada "), ("ADA", "Mayor  of", "Arden"), False),
        (MAYORS, ("Arden", "mayor", "Ada"), ("Belmont", "mayor", "Ada"), False),
        (MAYORS, ("Arden", "mayor", "Ada"), ("Ada", "born in", "Belmont"), False),
        (FAMILY, ("Cain", "father", "Adam"), ("Adam", "child", "Abel"), True),
        # A parent of Cain is his father or his mother: nothing follows for either.
        (FAMILY, ("Cain", "father", "Adam"), ("Eve", "child", "Cain"), False),
        (FAMILY, ("Ada", "spouse", "Ben"), ("Ben", "spouse", "Eve"), True),
        (FAMILY, ("Ada", "spouse", "Ben"), ("Ben", "spouse", "Ada"), False),
    ],
)
def test_what_contradicts_what(fact, inverse, one, other, clash):
    one, other = (fact(subject, target, relation, "{} is") for subject, relation, target in (one, other))
    for held, asked in ((one, other), (other, one)):
        assert Holding(inverse, [held]).contradicted(asked) == (held if clash else None)


def test_what_stands_stays_and_among_newcomers_precedence_decides(fact):
    def mayor_of(name, town, rank):
        return fact(name, town, "mayor of", "{} leads", source_rank=rank)

    stands, trusted = fact("Arden", "Ada"), fact("Corvia", "Eve", source_rank=1)
    first, second, third = mayor_of("Ada", "Belmont", 0), mayor_of("Eve", "Dunmore", 2), mayor_of("Gia", "Farholt", 3)
    found = contradictions([second, first, third, trusted], MAYORS, [stands])
    assert [(item.fact, item.rival) for item in found] == [(first, stands), (second, trusted)]
    assert [item.rule for item in found] == [STANDS, "the other goes in by more trusted source"]
    told = f"'Eve' / 'mayor of': 'Dunmore' contradicts 'Corvia' / 'mayor': 'Eve' (fact {trusted.fact_id}, row 3)"
    assert found[1].sentence("row 3").startswith(told)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"a": "b", "b": "c"}, "'b' has two inverses, 'a' and 'c'|'b' has two inverses, 'c' and 'a'"),
        ({"A": "b", "a ": "c"}, "'a' has two inverses, 'b' and 'c'"),
        ({"a": " "}, "'a' = ' ': a name is empty"),
    ],
)
def test_declarations_that_contradict_themselves_are_refused(declared, words):
    with pytest.raises(FactError, match=words):
        InverseRelations(declared)


def test_only_related_facts_need_to_be_looked_at():
    assert FAMILY.concerns({"father"}) == {"child"}
    assert FAMILY.concerns({"child"}) == {"father", "mother"}
    assert MAYORS.concerns({"mayor of"}) == {"mayor"}
    assert not MAYORS.concerns({"river"})
    assert not InverseRelations({})
