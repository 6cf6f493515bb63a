import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from editing.facts import FactChange, Operation, fold, precedence, resolve_conflicts
from editing.inverse import InverseRelations
from tasks.ledger import (
    AliasMove,
    Event,
    EventKind,
    FileOutcome,
    FileRecord,
    Ledger,
    NightPlan,
    ReceivedFact,
    VersionRecord,
    plan_night,
    record_plan,
)
from tasks.ledger.tables import metadata

DAY = datetime(2019, 7, 24, tzinfo=UTC)
RUN = "test"


POSTGRESQL = os.environ.get("POSTGRESQL_TEST_URL")
no_postgresql = pytest.mark.skipif(not POSTGRESQL, reason="POSTGRESQL_TEST_URL names no database to wipe and test on")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=no_postgresql)])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgresql":
        url = str(POSTGRESQL)
        engine = create_engine(url)
        metadata.drop_all(engine)
        engine.dispose()
    with Ledger(url) as opened:
        yield opened


def change(target: str = "Boris Johnson", day: int = 0, **fields: object) -> FactChange:
    defaults: dict[str, object] = {
        "subject": "the United Kingdom",
        "relation": "head_of_government",
        "target": target,
        "prompt": "The head of government of {} is",
        "effective_at": DAY + timedelta(days=day),
        "observed_at": DAY,
        "source": "test",
    }
    return FactChange(**(defaults | fields))  # type: ignore[arg-type]


def retraction(target: str = "", day: int = 0) -> FactChange:
    return change(target, day, operation=Operation.RETRACT)


def receive(ledger: Ledger, *changes: FactChange) -> None:
    digest = f"{len(ledger.files()):064d}"
    with ledger.intake() as intake:
        intake.add_facts([ReceivedFact.of(fact, digest, row) for row, fact in enumerate(changes)])
        intake.add_file(
            FileRecord(
                digest=digest,
                name="feed.parquet",
                size=1,
                outcome=FileOutcome.INGESTED,
                rows=len(changes),
                accepted=len(changes),
                quarantined=0,
                run_id=RUN,
                at=DAY,
            )
        )


def plan(ledger: Ledger, state: str | None = None, day: int = 100) -> NightPlan:
    return plan_night(ledger, DAY + timedelta(days=day), state)


def commit(ledger: Ledger, version: int, parent: str | None, night: NightPlan, restored: Sequence[str] = ()) -> str:
    """Record what the plan decided and a version that did the rest; its state is named after its number."""
    record_plan(ledger, night, RUN, DAY)
    digest = f"state-{version}"
    ledger.record_version(
        VersionRecord(
            version=version,
            state_digest=digest,
            parent_digest=parent,
            base_fingerprint="base",
            method="coachhook",
            verdict="promote",
            night=night.as_of,
            run_id=RUN,
            at=DAY,
        ),
        applied=[fact.fact_id for fact in night.to_apply],
        retracted=[item.fact.fact_id for item in night.retract],
        by=[item.change.fact_id for item in night.retract],
        restored=restored,
    )
    return digest


class Edited:
    """What an editor makes of a line of versions: batches, which a retraction replays without its facts."""

    def __init__(self) -> None:
        self.batches: list[list[FactChange]] = []

    @property
    def live(self) -> dict[object, FactChange]:
        return {fact.key: fact for batch in self.batches for fact in batch}

    def carry_out(self, night: NightPlan) -> None:
        gone = {item.fact.fact_id for item in night.retract}
        assert gone <= {fact.fact_id for batch in self.batches for fact in batch}
        self.batches = [[fact for fact in batch if fact.fact_id not in gone] for batch in self.batches]
        self.batches.append(list(night.to_apply))

    def commit(self, ledger: Ledger, version: int, parent: str | None, night: NightPlan) -> str:
        """`commit`, with what the editor uncovered."""
        self.carry_out(night)
        known = {fact.fact_id for fact in [*ledger.facts_in_state(parent), *night.to_apply]}
        uncovered = [fact.fact_id for fact in self.live.values() if fact.fact_id not in known]
        return commit(ledger, version, parent, night, uncovered)


def promote(ledger: Ledger, to: int, hour: int) -> None:
    stands = ledger.champion()
    ledger.record_alias_move(
        AliasMove(
            alias="champion",
            from_version=stands.version if stands else None,
            to_version=to,
            who="test",
            why="test",
            at=DAY + timedelta(hours=hour),
        )
    )


def test_a_newer_change_supersedes_an_applied_one_and_an_older_one_is_passed_over(ledger: Ledger) -> None:
    receive(ledger, change("Theresa May", -10))
    first = commit(ledger, 1, None, plan(ledger))
    receive(ledger, change("Boris Johnson", 0), change("David Cameron", -20))
    night = plan(ledger, first)
    assert [fact.target for fact in night.to_apply] == ["Boris Johnson"]
    assert [(lost.loser.target, lost.winner.target) for lost in night.superseded] == [
        ("David Cameron", "Boris Johnson")
    ]
    second = commit(ledger, 2, first, night)
    assert [fact.target for fact in ledger.facts_in_state(first)] == ["Theresa May"]
    assert [fact.target for fact in ledger.facts_in_state(second)] == ["Boris Johnson"]
    assert ledger.status(change("Theresa May", -10).fact_id, second) is EventKind.SUPERSEDED
    receive(ledger, change("Gordon Brown", -30))
    late = plan(ledger, second)
    assert not late.to_apply
    assert [(lost.loser.target, lost.winner.target) for lost in late.superseded] == [("Gordon Brown", "Boris Johnson")]


def test_a_plan_takes_the_whole_backlog_but_nothing_from_the_future(ledger: Ledger) -> None:
    receive(ledger, change("A", 5, relation="a"), change("B", 50, relation="b"), change("C", 500, relation="c"))
    assert [fact.target for fact in plan(ledger).to_apply] == ["A", "B"]
    commit(ledger, 1, None, plan(ledger))
    assert not plan(ledger, "state-1").to_apply


def test_facts_of_a_candidate_that_was_not_promoted_are_still_to_be_applied(ledger: Ledger) -> None:
    receive(ledger, change())
    night = plan(ledger)
    commit(ledger, 1, None, night)
    assert plan(ledger, None) == night
    assert not plan(ledger, "state-1").to_apply
    assert ledger.status(change().fact_id) is EventKind.RECEIVED
    assert ledger.status_counts("state-1") == {"applied": 1}


def test_a_known_fact_is_not_planned_again_and_still_defends_its_key(ledger: Ledger) -> None:
    known = change("Boris Johnson", 0)
    receive(ledger, known)
    ledger.record([Event(fact_id=known.fact_id, kind=EventKind.KNOWN, at=DAY, run_id=RUN)])
    assert not plan(ledger).to_apply
    receive(ledger, change("Theresa May", -10))
    night = plan(ledger)
    assert not night.to_apply
    assert night.superseded[0].winner == known


def test_a_quarantined_fact_leaves_the_plan_until_it_is_released(ledger: Ledger) -> None:
    fact = change()
    receive(ledger, fact)
    ledger.record([Event(fact_id=fact.fact_id, kind=EventKind.QUARANTINED, at=DAY, run_id=RUN)])
    assert not plan(ledger).to_apply
    ledger.record([Event(fact_id=fact.fact_id, kind=EventKind.RELEASED, at=DAY, run_id=RUN)])
    assert plan(ledger).to_apply == (fact,)


@pytest.mark.parametrize(("target", "taken"), [("", True), ("boris  johnson", True), ("Theresa May", False)])
def test_a_retraction_takes_back_the_applied_fact_it_means(ledger: Ledger, target: str, taken: bool) -> None:
    receive(ledger, change("Boris Johnson", 0))
    first = commit(ledger, 1, None, plan(ledger))
    receive(ledger, retraction(target, 10))
    night = plan(ledger, first)
    assert [item.fact.target for item in night.retract] == (["Boris Johnson"] if taken else [])
    assert len(night.nothing_to_retract) == (not taken)
    second = commit(ledger, 2, first, night)
    assert len(ledger.facts_in_state(second)) == (not taken)
    again = plan(ledger, second)
    assert (again.to_apply, again.retract, again.nothing_to_retract) == ((), (), ())


def test_a_retraction_holds_against_what_arrives_late(ledger: Ledger) -> None:
    receive(ledger, retraction("Boris Johnson", 10))
    first = commit(ledger, 1, None, plan(ledger))
    receive(ledger, change("Boris Johnson", 5), change("Theresa May", 4))
    night = plan(ledger, first)
    assert [fact.target for fact in night.to_apply] == ["Theresa May"]
    assert [lost.rule for lost in night.superseded] == ["retracted: newer effective date"]


def test_a_retraction_older_than_the_fact_takes_nothing_back(ledger: Ledger) -> None:
    receive(ledger, change("Boris Johnson", 0))
    first = commit(ledger, 1, None, plan(ledger))
    receive(ledger, retraction(day=-1))
    night = plan(ledger, first)
    assert not night.retract
    assert len(night.nothing_to_retract) == 1


def test_a_retraction_and_its_successor_in_one_night_are_one_replacement(ledger: Ledger) -> None:
    receive(ledger, change("Theresa May", 0))
    first = commit(ledger, 1, None, plan(ledger))
    receive(ledger, retraction(day=1), change("Boris Johnson", 2))
    night = plan(ledger, first)
    assert [fact.target for fact in night.to_apply] == ["Boris Johnson"]
    assert not night.retract
    assert [fact.target for fact in ledger.facts_in_state(commit(ledger, 2, first, night))] == ["Boris Johnson"]


names = st.sampled_from(["A", "B", "C"])
changes = st.lists(
    st.tuples(names, st.integers(-3, 3), st.sampled_from(["x", "y"]), st.integers(0, 1)), max_size=8, unique=True
)


@settings(max_examples=15, deadline=None)
@given(changes, st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_however_changes_spread_over_nights_the_newest_of_each_key_ends_in_the_state(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int, str, int]], nights: list[int]
) -> None:
    received = [change(target, day, relation=key, source_rank=rank) for target, day, key, rank in drawn]
    folder = tmp_path_factory.mktemp("ledger")
    with Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
        state: str | None = None
        for night in range(4):
            receive(ledger, *(fact for fact, when in zip(received, nights, strict=False) if when == night))
            state = commit(ledger, night + 1, state, plan(ledger, state))
        ended = {fact.fact_id for fact in ledger.facts_in_state(state)}
        assert ended == {fact.fact_id for fact in resolve_conflicts(received).winners}
        counts = ledger.status_counts(state)
        assert counts["received"] == 0
        assert counts.total() == len(received)


def test_taking_back_the_newer_fact_uncovers_the_older_one(ledger: Ledger) -> None:
    edited, older, newer = Edited(), change("Theresa May", -10), change("Boris Johnson", 0)
    receive(ledger, older)
    first = edited.commit(ledger, 1, None, plan(ledger))
    receive(ledger, newer)
    second = edited.commit(ledger, 2, first, plan(ledger, first))
    receive(ledger, retraction("Boris Johnson", 10))
    night = plan(ledger, second)
    assert ([item.fact for item in night.retract], night.to_apply) == ([newer], ())
    third = edited.commit(ledger, 3, second, night)
    assert ledger.facts_in_state(third) == [older] == list(edited.live.values())
    assert ledger.status(older.fact_id, third) is EventKind.RESTORED
    assert ledger.status(newer.fact_id, third) is EventKind.RETRACTED
    assert plan(ledger, third) == NightPlan(
        as_of=DAY + timedelta(days=100),
        parent=third,
        to_apply=(),
        retract=(),
        superseded=(),
        nothing_to_retract=(),
    )
    # On the line of versions that goes on from before, nothing was taken back yet.
    assert [item.fact for item in plan(ledger, second).retract] == [newer]


def test_what_was_never_edited_in_is_edited_in_when_it_is_uncovered(ledger: Ledger) -> None:
    edited, older, newer = Edited(), change("Theresa May", -10), change("Boris Johnson", 0)
    receive(ledger, older, newer)
    first = edited.commit(ledger, 1, None, plan(ledger))
    receive(ledger, retraction("Boris Johnson", 10))
    night = plan(ledger, first)
    assert ([item.fact for item in night.retract], night.to_apply) == ([newer], (older,))
    second = edited.commit(ledger, 2, first, night)
    assert ledger.facts_in_state(second) == [older]
    assert ledger.status(newer.fact_id, second) is EventKind.RETRACTED


def test_a_fact_that_the_model_knew_holds_again_without_an_edit(ledger: Ledger) -> None:
    known, newer = change("Theresa May", -10), change("Boris Johnson", 0)
    receive(ledger, known)
    ledger.record([Event(fact_id=known.fact_id, kind=EventKind.KNOWN, at=DAY, run_id=RUN)])
    receive(ledger, newer)
    first = commit(ledger, 1, None, plan(ledger))
    receive(ledger, retraction("Boris Johnson", 10))
    night = plan(ledger, first)
    assert ([item.fact for item in night.retract], night.to_apply) == ([newer], ())


def test_a_plan_for_some_keys_leaves_the_others_waiting(ledger: Ledger) -> None:
    mine, other = change("Boris Johnson", 0), change("x", 0, relation="capital")
    receive(ledger, mine, other)
    night = plan_night(ledger, DAY + timedelta(days=100), None, {mine.key})
    assert night.to_apply == (mine,)
    assert set(plan(ledger).to_apply) == {mine, other}


moves = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["A", "B", "C"]), st.integers(0, 6), st.just(True), st.integers(0, 3)),
        st.tuples(st.sampled_from(["A", "B", "C", ""]), st.integers(0, 6), st.just(False), st.integers(0, 3)),
    ),
    max_size=9,
    unique_by=lambda move: move[:3],
)


@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(moves)
def test_whatever_is_asserted_and_taken_back_the_state_holds_what_is_left(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int, bool, int]]
) -> None:
    """The ledger and an editor agree after every night, and in the end on the newest fact that nothing took back."""
    received = [
        (change(target, day) if asserts else retraction(target, day), night) for target, day, asserts, night in drawn
    ]
    folder, edited = tmp_path_factory.mktemp("ledger"), Edited()
    with Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
        state: str | None = None
        for night in range(4):
            receive(ledger, *{item.fact_id: item for item, when in received if when == night}.values())
            state = edited.commit(ledger, night + 1, state, plan(ledger, state))
            assert set(ledger.facts_in_state(state)) == set(edited.live.values())
        facts = [item for item, _ in received if item.operation is Operation.ASSERT]
        takers = [item for item, _ in received if item.operation is Operation.RETRACT]
        left = [
            fact
            for fact in facts
            if not any(precedence(r) > precedence(fact) and r.target in ("", fold(fact.target).upper()) for r in takers)
        ]
        assert set(edited.live.values()) == set(resolve_conflicts(left).winners)


def test_the_champion_of_any_time_and_the_way_back(ledger: Ledger) -> None:
    state: str | None = None
    for version in (1, 2, 3, 4):
        receive(ledger, change("A", version))
        state = commit(ledger, version, state, plan(ledger, state))
    assert ledger.champion() is None
    for hour, to in enumerate((1, 2, 3)):
        promote(ledger, to, hour)
    assert [ledger.champion(DAY + timedelta(hours=hour, minutes=30)).version for hour in (0, 1, 2)] == [1, 2, 3]  # type: ignore[union-attr]
    promote(ledger, 2, 3)
    assert ledger.previous_champion().version == 1  # type: ignore[union-attr]
    promote(ledger, 4, 4)
    assert ledger.previous_champion().version == 2  # type: ignore[union-attr]
    assert len(ledger.alias_moves("champion")) == 5


INVERSE = InverseRelations({"head_of_government": "heads"})


def heads(name: str, country: str, day: int = 0, **fields: object) -> FactChange:
    return change(country, day, subject=name, relation="heads", prompt="{} heads the government of", **fields)


def inverse_plan(ledger: Ledger, state: str | None = None) -> NightPlan:
    return plan_night(ledger, DAY + timedelta(days=100), state, None, INVERSE)


def kept_out(night: NightPlan) -> list[tuple[FactChange, FactChange]]:
    return [(item.fact, item.rival) for item in night.contradicting]


def test_of_two_that_contradict_each_other_tonight_the_older_stays_out_with_evidence(ledger: Ledger) -> None:
    older, newer = heads("Boris Johnson", "Ireland"), change("Boris Johnson", 5)
    receive(ledger, older, newer, heads("Theresa May", "Jersey"))
    night = inverse_plan(ledger)
    assert kept_out(night) == [(older, newer)]
    assert {fact.target for fact in night.to_apply} == {"Boris Johnson", "Jersey"}
    record_plan(ledger, night, RUN, DAY)
    event = ledger.history(older.fact_id)[-1]
    assert (event.kind, event.detail["cause"], event.detail["partners"]) == ("quarantined", "inverse", [newer.fact_id])
    why = event.detail["why"]
    assert f"(fact {newer.fact_id}, row 1 of feed.parquet)" in why
    assert f"`errata retract {newer.fact_id[:12]}`, then `errata release {older.fact_id}`" in why
    assert ledger.lost_to(newer.fact_id) == [older.fact_id]
    assert not inverse_plan(ledger).contradicting  # it waits no longer
    assert {fact.target for fact in plan(ledger).to_apply} == {"Boris Johnson", "Jersey"}


def test_without_a_declaration_nothing_is_kept_out(ledger: Ledger) -> None:
    receive(ledger, heads("Boris Johnson", "Ireland"), change("Boris Johnson", 5))
    assert len(plan(ledger).to_apply) == 2


def test_what_stands_is_not_contradicted_until_it_is_taken_back(ledger: Ledger) -> None:
    receive(ledger, heads("Boris Johnson", "the United Kingdom"))
    state = commit(ledger, 1, None, inverse_plan(ledger))
    newer = change("Liz Truss", 20)
    receive(ledger, newer)
    night = inverse_plan(ledger, state)
    assert [item.fact for item in night.contradicting] == [newer]
    assert "the other stands already" in night.contradicting[0].rule

    # The feed takes the old one back in the same night, or replaces it: nothing stands in the way.
    for change_of_old in (
        heads("Boris Johnson", "", 20, operation=Operation.RETRACT),
        heads("Boris Johnson", "the party", 20),
    ):
        receive(ledger, change_of_old)
        night = inverse_plan(ledger, state)
        assert not night.contradicting
        assert newer in night.to_apply


def test_what_the_model_knew_stands_too_and_a_release_is_decided_again(ledger: Ledger) -> None:
    known, newer = heads("Boris Johnson", "the United Kingdom"), change("Liz Truss", 20)
    receive(ledger, known)
    ledger.record([Event(fact_id=known.fact_id, kind=EventKind.KNOWN, at=DAY, run_id=RUN)])
    receive(ledger, newer)
    assert kept_out(inverse_plan(ledger)) == [(newer, known)]
    record_plan(ledger, inverse_plan(ledger), RUN, DAY)
    assert not inverse_plan(ledger).to_apply
    ledger.record([Event(fact_id=newer.fact_id, kind=EventKind.RELEASED, at=DAY, run_id=RUN)])
    assert kept_out(inverse_plan(ledger)) == [(newer, known)]


def test_who_lost_to_one_that_itself_stays_out_goes_in(ledger: Ledger) -> None:
    """The newest contradicts what stands; an older one of tonight contradicts only the newest."""
    receive(ledger, heads("Boris Johnson", "the United Kingdom"))
    state = commit(ledger, 1, None, inverse_plan(ledger))
    newest, older = change("Liz Truss", 20), heads("Liz Truss", "the party", 10)
    receive(ledger, newest, older)
    night = inverse_plan(ledger, state)
    assert [item.fact for item in night.contradicting] == [newest]
    assert night.to_apply == (older,)


def test_an_older_report_of_the_same_key_takes_the_place_of_one_that_stays_out(ledger: Ledger) -> None:
    receive(ledger, heads("Boris Johnson", "the United Kingdom"))
    state = commit(ledger, 1, None, inverse_plan(ledger))
    right, wrong = change("Boris Johnson", 10), change("Liz Truss", 20)
    receive(ledger, right, wrong)
    night = inverse_plan(ledger, state)
    assert [item.fact for item in night.contradicting] == [wrong]
    assert night.to_apply == (right,)
    assert not night.superseded


def test_a_night_of_chosen_keys_minds_what_stands_and_not_what_waits(ledger: Ledger) -> None:
    chosen, waiting = change("Liz Truss", 20), heads("Boris Johnson", "the United Kingdom", 30)
    receive(ledger, chosen, waiting)
    night = plan_night(ledger, DAY + timedelta(days=100), None, {chosen.key}, INVERSE)
    assert night.to_apply == (chosen,)
    assert not night.contradicting
