"""What a night has to do, decided from the ledger alone: which facts to apply, retract, or pass over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from editing.facts import FactChange, FactKey, Operation, Superseded, deciding_rule, fold, precedence, resolve_conflicts
from editing.inverse import STANDS, Contradiction, InverseRelations, contradictions
from tasks.ledger.records import IN_STATE, PENDING, Event, EventKind, RunPhase
from tasks.ledger.store import Ledger, Standing

INVERSE = "inverse"  # the cause of a quarantine for a contradiction


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
    lies beneath a fact that is taken back and is not to hold again either. `contradicting` stay out.
    """

    as_of: datetime
    parent: str | None
    to_apply: tuple[FactChange, ...]
    retract: tuple[Retraction, ...]
    superseded: tuple[Superseded, ...]
    nothing_to_retract: tuple[FactChange, ...]
    contradicting: tuple[Contradiction, ...] = ()


@dataclass(frozen=True, slots=True)
class _Decision:
    """What is to be done about one key: `holds` is what holds then (None: nothing), `applied` tonight or before."""

    holds: FactChange | None
    applied: bool
    retract: tuple[Retraction, ...]
    superseded: tuple[Superseded, ...]
    nothing_to_retract: tuple[FactChange, ...]


def plan_night(
    ledger: Ledger,
    as_of: datetime,
    state_digest: str | None = None,
    only: Collection[FactKey] | None = None,
    inverse: InverseRelations | None = None,
) -> NightPlan:
    """Decide about every pending fact (of the keys `only`, if given); nothing is recorded (see `record_plan`).

    Of all changes that stand for one key, tonight's and earlier nights', the one of highest
    `precedence` wins. A retract change takes back the older facts of its key, those with its target
    if it names one; what the fact that it takes back had superseded holds again. A winner that contradicts
    a fact of another key through one of the relations `inverse` stays out (`inverse.contradictions`).
    """
    groups = {
        key: list(group)
        for key, group in groupby(ledger.contenders(as_of, state_digest), key=lambda standing: standing.change.key)
        if only is None or key in only
    }
    decisions = {key: _decide(group) for key, group in groups.items()}
    out: dict[str, Contradiction] = {}
    if inverse:
        out = _keep_out(groups, decisions, inverse, _holding_elsewhere(ledger, decisions, inverse, as_of, state_digest))
    found = decisions.values()
    return NightPlan(
        as_of=as_of,
        parent=state_digest,
        to_apply=tuple(sorted(_to_apply(found), key=precedence)),
        retract=tuple(item for decision in found for item in decision.retract),
        superseded=tuple(item for decision in found for item in decision.superseded),
        nothing_to_retract=tuple(item for decision in found for item in decision.nothing_to_retract),
        contradicting=tuple(out.values()),
    )


def _to_apply(decisions: Iterable[_Decision]) -> list[FactChange]:
    return [decision.holds for decision in decisions if decision.holds is not None and decision.applied]


def _holding_elsewhere(
    ledger: Ledger,
    decisions: Mapping[FactKey, _Decision],
    inverse: InverseRelations,
    as_of: datetime,
    state_digest: str | None,
) -> list[FactChange]:
    """What holds for keys that nothing is decided about now, of the relations that tonight's could contradict."""
    relations = inverse.concerns({fact.key.relation for fact in _to_apply(decisions.values())})
    if not relations:
        return []
    standing = groupby(ledger.standing_in(relations, as_of, state_digest), key=lambda item: item.change.key)
    others = ([item for item in group if item.status not in PENDING] for key, group in standing if key not in decisions)
    return [fact for fact in map(_standing_fact, map(_decide, others)) if fact is not None]


def _standing_fact(decision: _Decision) -> FactChange | None:
    """What holds for a key without being applied now."""
    return None if decision.applied else decision.holds


def _keep_out(
    groups: Mapping[FactKey, list[Standing]],
    decisions: dict[FactKey, _Decision],
    inverse: InverseRelations,
    elsewhere: Sequence[FactChange],
) -> dict[str, Contradiction]:
    """The facts that stay out for a contradiction, by id; `decisions` become those without them.

    A key whose winner stays out is decided again. What lost to a fact that turns out to contradict
    one that stands comes back.
    """
    out: dict[str, Contradiction] = {}
    while True:
        held = [fact for fact in map(_standing_fact, decisions.values()) if fact is not None]
        found = contradictions(_to_apply(decisions.values()), inverse, [*elsewhere, *held])
        if not found:
            return out
        settled = [item for item in found if item.rule == STANDS]
        gone = {item.fact.fact_id for item in settled}
        back = [item for item in out.values() if item.rival.fact_id in gone]
        for item in back:
            del out[item.fact.fact_id]
        out |= {item.fact.fact_id: item for item in settled or found}
        for key in {item.fact.key for item in (*(settled or found), *back)}:
            decisions[key] = _decide([item for item in groups[key] if item.change.fact_id not in out])


def _decide(standing: list[Standing]) -> _Decision:
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
    superseded = [lost for lost in resolution.superseded if status[lost.loser.fact_id] in PENDING]
    used = {taken_back[fact.fact_id].fact_id for fact in gone}
    for fact in facts:
        if (by := taken_back.get(fact.fact_id)) and status[fact.fact_id] in PENDING:
            superseded.append(Superseded(fact, by, f"retracted: {deciding_rule(fact, by)}"))
    pending_retractions = (
        change for change in changes if change.operation is Operation.RETRACT and status[change.fact_id] in PENDING
    )
    return _Decision(
        holds=winner,
        applied=winner is not None and (replaced or _to_apply_again(winner, status, beneath if gone else set())),
        retract=tuple(Retraction(taken_back[fact.fact_id], fact) for fact in gone),
        superseded=tuple(superseded),
        nothing_to_retract=tuple(change for change in pending_retractions if change.fact_id not in used),
    )


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
    """Append what the plan decided without any editing: superseded and contradicting changes, retractions of nothing.

    What it would apply or retract is recorded with the version that does so (`Ledger.record_version`).
    """
    ledger.record(_settled(ledger, plan, run_id, at))


def _settled(ledger: Ledger, plan: NightPlan, run_id: str, at: datetime) -> Iterator[Event]:
    for lost in plan.superseded:
        yield Event(
            fact_id=lost.loser.fact_id,
            kind=EventKind.SUPERSEDED,
            at=at,
            run_id=run_id,
            detail={"by": lost.winner.fact_id, "rule": lost.rule},
        )
    for item in plan.contradicting:
        rival = item.rival.fact_id
        yield Event(
            fact_id=item.fact.fact_id,
            kind=EventKind.QUARANTINED,
            at=at,
            run_id=run_id,
            detail={"why": evidence(ledger, item), "cause": INVERSE, "partners": [rival], "by": rival},
        )
    for change in plan.nothing_to_retract:
        yield Event(fact_id=change.fact_id, kind=EventKind.NOTHING_TO_RETRACT, at=at, run_id=run_id)


def evidence(ledger: Ledger, item: Contradiction) -> str:
    """Why a fact stays out for a contradiction, where the other was read, and the way out."""
    seen = ledger.sightings(item.rival.fact_id)[0]
    ours, theirs = item.fact.fact_id, item.rival.fact_id
    return (
        f"{item.sentence(f'row {seen.row} of {seen.file}')}. If the other is wrong or over, `errata retract "
        f"{theirs[:12]}`, then `errata release {ours}`; if both hold, take the pair out of [feed.inverse_relations]"
    )


def not_learned_facts(ledger: Ledger, head: str | None) -> Iterator[tuple[FactChange, str, int]]:
    """The facts that the state `head` holds and does not answer, each with why, and how often it was edited in vain.

    Every state counts that an ended night made with the fact edited anew, and asked, whether it came to serve or not.
    """
    if head is None:
        return
    ended = {run.run_id for run in ledger.runs() if run.phase is RunPhase.FINISHED}
    for events in ledger.events_by_fact({EventKind.APPLIED, EventKind.NOT_LEARNED}):
        last = events[-1]
        if last.kind is EventKind.NOT_LEARNED and ledger.status(last.fact_id, head) is EventKind.NOT_LEARNED:
            counting = [event for event in events if event.run_id in ended]
            edited, in_vain = (
                {event.state_digest for event in counting if event.kind is kind}
                for kind in (EventKind.APPLIED, EventKind.NOT_LEARNED)
            )
            (fact,) = ledger.facts([last.fact_id])
            yield fact, last.detail["why"], len(edited & in_vain)
