"""What a night has to do, decided from the ledger alone: which facts to apply, retract, or pass over."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from editing.facts import FactChange, FactKey, Operation, Superseded, deciding_rule, fold, precedence, resolve_conflicts
from tasks.ledger.records import IN_STATE, PENDING, Event, EventKind
from tasks.ledger.store import Ledger, Standing


@dataclass(frozen=True, slots=True)
class Retraction:
    """A retract change and the applied fact that it takes back."""

    change: FactChange
    fact: FactChange


@dataclass(frozen=True, slots=True, kw_only=True)
class NightPlan:
    """What is to be done to the state `parent` (None: the base) for all facts effective by `as_of`.

    `to_apply` holds at most one fact per key, in precedence order. An applied fact whose key has a
    pending change in `to_apply` needs no retraction: the editor replaces it. `retract` also names what
    lies beneath a fact that is taken back and is not to hold again either.
    """

    as_of: datetime
    parent: str | None
    to_apply: tuple[FactChange, ...]
    retract: tuple[Retraction, ...]
    superseded: tuple[Superseded, ...]
    nothing_to_retract: tuple[FactChange, ...]


def plan_night(
    ledger: Ledger, as_of: datetime, state_digest: str | None = None, only: Collection[FactKey] | None = None
) -> NightPlan:
    """Decide about every pending fact (of the keys `only`, if given); nothing is recorded (see `record_plan`).

    Of all changes that stand for one key, tonight's and earlier nights', the one of highest
    `precedence` wins. A retract change takes back the older facts of its key, those with its target
    if it names one; what the fact that it takes back had superseded holds again.
    """
    to_apply: list[FactChange] = []
    retract: list[Retraction] = []
    superseded: list[Superseded] = []
    nothing: list[FactChange] = []
    for key, group in groupby(ledger.contenders(as_of, state_digest), key=lambda standing: standing.change.key):
        if only is not None and key not in only:
            continue
        _decide(list(group), to_apply, retract, superseded, nothing)
    return NightPlan(
        as_of=as_of,
        parent=state_digest,
        to_apply=tuple(sorted(to_apply, key=precedence)),
        retract=tuple(retract),
        superseded=tuple(superseded),
        nothing_to_retract=tuple(nothing),
    )


def _decide(
    standing: list[Standing],
    to_apply: list[FactChange],
    retract: list[Retraction],
    superseded: list[Superseded],
    nothing: list[FactChange],
) -> None:
    status = {item.change.fact_id: item.status for item in standing}
    beneath = {item.change.fact_id for item in standing if item.beneath}
    changes = sorted((item.change for item in standing), key=precedence)
    facts = [change for change in changes if change.operation is Operation.ASSERT]
    taken_back: dict[str, FactChange] = {}
    for retraction in (change for change in changes if change.operation is Operation.RETRACT):
        for fact in facts:
            if fact.fact_id not in taken_back and _takes_back(retraction, fact):
                taken_back[fact.fact_id] = retraction
    resolution = resolve_conflicts(fact for fact in facts if fact.fact_id not in taken_back)
    winner = resolution.winners[0] if resolution.winners else None
    replaced = winner is not None and status[winner.fact_id] in PENDING
    gone = [] if replaced else _to_retract(facts, winner, taken_back, status, beneath)
    if winner is not None and (replaced or _to_apply_again(winner, status, beneath if gone else set())):
        to_apply.append(winner)
    superseded.extend(lost for lost in resolution.superseded if status[lost.loser.fact_id] in PENDING)
    retract.extend(Retraction(taken_back[fact.fact_id], fact) for fact in gone)
    used = {taken_back[fact.fact_id].fact_id for fact in gone}
    for fact in facts:
        if (by := taken_back.get(fact.fact_id)) and status[fact.fact_id] in PENDING:
            superseded.append(Superseded(fact, by, f"retracted: {deciding_rule(fact, by)}"))
    for change in changes:
        if change.operation is Operation.RETRACT and status[change.fact_id] in PENDING and change.fact_id not in used:
            nothing.append(change)


def _to_retract(
    facts: list[FactChange],
    winner: FactChange | None,
    taken_back: dict[str, FactChange],
    status: dict[str, EventKind],
    beneath: set[str],
) -> list[FactChange]:
    """What must leave the state so that `winner`, or nothing, is on top: nothing where that is so already."""
    gone = [fact for fact in facts if fact.fact_id in taken_back]
    if not any(status[fact.fact_id] in IN_STATE for fact in gone):
        return []
    held = [fact for fact in gone if status[fact.fact_id] in IN_STATE or fact.fact_id in beneath]
    return [fact for fact in held if winner is None or precedence(fact) > precedence(winner)]


def _to_apply_again(winner: FactChange, status: dict[str, EventKind], uncovered: set[str]) -> bool:
    """Whether a superseded fact must be edited in, because no retraction uncovers it in the state."""
    return status[winner.fact_id] is EventKind.SUPERSEDED and winner.fact_id not in uncovered


def _takes_back(retraction: FactChange, fact: FactChange) -> bool:
    named = fold(retraction.target)
    return precedence(retraction) > precedence(fact) and named in ("", fold(fact.target))


def record_plan(ledger: Ledger, plan: NightPlan, run_id: str, at: datetime) -> None:
    """Append what the plan decided without any editing: superseded changes, and retractions of nothing.

    What it would apply or retract is recorded with the version that does so (`Ledger.record_version`).
    """
    ledger.record(_settled(plan, run_id, at))


def _settled(plan: NightPlan, run_id: str, at: datetime) -> Iterator[Event]:
    for lost in plan.superseded:
        yield Event(
            fact_id=lost.loser.fact_id,
            kind=EventKind.SUPERSEDED,
            at=at,
            run_id=run_id,
            detail={"by": lost.winner.fact_id, "rule": lost.rule},
        )
    for change in plan.nothing_to_retract:
        yield Event(fact_id=change.fact_id, kind=EventKind.NOTHING_TO_RETRACT, at=at, run_id=run_id)
