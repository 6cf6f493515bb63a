import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editing.evals.culprit import Cause, Ending, find_culprits

STEADY = settings(max_examples=150, deadline=None)  # a busy machine is no failure


def halve(groups, passes, budget=10_000):
    """The search, with every subset that was asked."""
    asked = []

    def oracle(units):
        asked.append(frozenset(units))
        return passes(set(units))

    return find_culprits(groups, oracle, budget=budget), asked


def batches(n, size):
    return [tuple(range(start, min(start + size, n))) for start in range(0, n, size)]


worlds = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.integers(1, 12),
        st.sets(st.integers(0, n - 1), max_size=4),
        st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] < p[1]), max_size=3),
    )
)


@STEADY
@given(worlds)
def test_what_is_kept_passes_and_everything_left_out_fails_with_it(world):
    n, size, harmful, pairs = world

    def passes(units):
        return not units & harmful and not any(set(pair) <= units for pair in pairs)

    if passes(set(range(n))):
        return
    found, asked = halve(batches(n, size), passes)
    kept, out = set(found.kept), {culprit.unit for culprit in found.culprits}
    assert found.ending is Ending.FOUND
    assert passes(kept)
    assert frozenset(kept) in asked
    assert kept | out == set(range(n))
    assert not kept & out
    assert all(not passes(kept | {unit}) for unit in out)
    assert harmful <= out
    for culprit in found.culprits:
        assert passes(set(culprit.without))
        assert not passes({*culprit.without, culprit.unit})
        assert (culprit.cause is Cause.HARMFUL) == (culprit.unit in harmful)
        assert all(not passes({partner, culprit.unit}) for partner in culprit.partners)
    assert len(asked) == len(set(asked)) == found.tests
    assert frozenset(range(n)) not in asked


@STEADY
@given(st.integers(2, 200), st.integers(1, 20), st.data())
def test_one_harmful_fact_costs_a_logarithm(n, size, data):
    culprit = data.draw(st.integers(0, n - 1))
    found, asked = halve(batches(n, size), lambda units: culprit not in units)
    assert [(c.unit, c.cause) for c in found.culprits] == [(culprit, Cause.HARMFUL)]
    assert len(asked) <= 4 + 2 + n.bit_length() + len(batches(n, size)).bit_length()


@STEADY
@given(st.integers(2, 40), st.integers(1, 8), st.data())
def test_too_many_at_once_are_split_and_nobody_is_blamed(n, size, data):
    most = data.draw(st.integers(1, n - 1))
    found, _ = halve(batches(n, size), lambda units: len(units) <= most)
    if most == 1:  # any two fail together: a conflict, as far as anybody can tell
        assert found.ending is Ending.FOUND
        return
    assert found.ending is Ending.TOO_MANY
    assert found.culprits == ()
    assert found.kept == tuple(range(most))
    assert found.postponed == tuple(range(most, n))


@pytest.mark.parametrize("place", range(6))
def test_of_two_in_conflict_the_later_gives_way_and_one_against_all_is_the_culprit(place):
    pair, _ = halve([range(6)], lambda units: not {1, 4} <= units)
    assert [(c.unit, c.partners) for c in pair.culprits] == [(4, (1,))]
    bully, _ = halve([range(6)], lambda units: place not in units or len(units) == 1)
    assert [c.unit for c in bully.culprits] == [place]
    assert set(bully.kept) == set(range(6)) - {place}


@STEADY
@given(worlds, st.integers(0, 30))
def test_a_spent_budget_is_said_and_never_passed(world, budget):
    n, size, harmful, pairs = world

    def passes(units):
        return not units & harmful and not any(set(pair) <= units for pair in pairs)

    if passes(set(range(n))):
        return
    whole, _ = halve(batches(n, size), passes)
    found, asked = halve(batches(n, size), passes, budget)
    assert len(asked) <= budget
    assert (found.ending is Ending.OUT_OF_BUDGET) == (whole.tests > budget)
    assert passes(set(found.kept))
    assert all(not passes({*c.without, c.unit}) for c in found.culprits)
    assert {*found.kept, *found.postponed, *(c.unit for c in found.culprits)} == set(range(n))


def test_when_nothing_passes_no_unit_is_blamed():
    found, asked = halve([range(8)], lambda units: False)
    assert (found.ending, found.culprits, asked) == (Ending.FAILS_WITHOUT, (), [frozenset()])


@STEADY
@given(st.integers(1, 9), st.integers(1, 4), st.randoms(use_true_random=False))
def test_whatever_the_oracle_says_what_is_kept_has_passed(n, size, random):
    answers = {frozenset(): True, frozenset(range(n)): False}

    def passes(units):
        return answers.setdefault(frozenset(units), random.random() < 0.5)

    found, _ = halve(batches(n, size), passes)
    assert answers[frozenset(found.kept)]
    for culprit in found.culprits:
        assert answers[frozenset(culprit.without)]
        assert not answers[frozenset({*culprit.without, culprit.unit})]
