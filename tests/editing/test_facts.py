from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editing.errors import FactError
from editing.facts import EditBatch, FactChange, Operation, make_batches, precedence, resolve_conflicts

DAY = datetime(2019, 7, 24, tzinfo=UTC)


def change(**fields: object) -> FactChange:
    defaults: dict[str, object] = {
        "subject": "the United Kingdom",
        "relation": "head_of_government",
        "target": "Boris Johnson",
        "prompt": "The head of government of {} is",
        "effective_at": DAY,
        "observed_at": DAY,
        "source": "test",
    }
    return FactChange(**(defaults | fields))  # type: ignore[arg-type]


changes = st.builds(
    change,
    subject=st.sampled_from(["Ghana", "  ghana ", "Togo", "Peru"]),
    relation=st.sampled_from(["capital", "currency"]),
    target=st.sampled_from(["A", "B", "C"]),
    effective_at=st.integers(0, 5).map(lambda days: DAY + timedelta(days=days)),
    observed_at=st.integers(0, 5).map(lambda days: DAY + timedelta(days=days)),
    source_rank=st.integers(0, 3),
)


def test_the_id_is_the_content_and_survives_a_round_trip() -> None:
    first = change()
    assert FactChange.from_dict(first.to_dict()) == first
    assert FactChange.from_dict(first.to_dict()).fact_id == first.fact_id
    assert change(observed_at=DAY + timedelta(days=1)).fact_id == first.fact_id
    assert change(target="Theresa May").fact_id != first.fact_id


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"subject": " "}, "subject"),
        ({"target": ""}, "target"),
        ({"prompt": "The head of government is"}, "0 subject slots"),
        ({"prompt": "{} and {}"}, "2 subject slots"),
        ({"effective_at": datetime(2019, 7, 24)}, "time zone"),
    ],
)
def test_a_broken_change_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    with pytest.raises(FactError, match=named):
        change(**fields)


@given(st.lists(changes, max_size=30))
def test_conflicts_leave_one_winner_per_key_whatever_the_order(received: list[FactChange]) -> None:
    resolution = resolve_conflicts(received)
    assert len({fact.key for fact in resolution.winners}) == len(resolution.winners)
    assert len(resolution.winners) + len(resolution.superseded) == len(received)
    backwards = resolve_conflicts(reversed(received))
    assert [fact.fact_id for fact in backwards.winners] == [fact.fact_id for fact in resolution.winners]
    for lost in resolution.superseded:
        assert precedence(lost.winner) >= precedence(lost.loser)


@given(st.lists(changes, max_size=30), st.integers(1, 7))
def test_batches_hold_every_fact_once_and_respect_the_size(received: list[FactChange], size: int) -> None:
    winners = resolve_conflicts(received).winners
    batches = make_batches(winners, size)
    assert sorted(fact.fact_id for batch in batches for fact in batch.facts) == sorted(f.fact_id for f in winners)
    assert all(len(batch) <= size for batch in batches)


def test_a_batch_refuses_two_facts_of_one_key_and_retractions() -> None:
    with pytest.raises(FactError, match="share the key"):
        EditBatch((change(), change(target="Theresa May")))
    with pytest.raises(FactError, match="retract"):
        EditBatch((change(operation=Operation.RETRACT, target=""),))
    with pytest.raises(FactError, match="no facts"):
        EditBatch(())
