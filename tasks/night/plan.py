"""What tonight has to do: the pending facts less those the champion already answers, cut into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.errors import StateError
from editing.evals.requests import target_lengths
from editing.evals.scoring import ANSWER_SLACK, exact_match
from editing.facts import FactChange, make_batches, precedence
from editing.inverse import InverseRelations
from editing.storage import canonical_json, read_json, write_json
from tasks.faults import checkpoint
from tasks.ledger import Event, EventKind, NightPlan, evidence, plan_night, record_plan
from tasks.ledger.nights import not_learned_facts
from tasks.workspace import Workspace, open_workspace

PLAN_FILE = "plan.json"
EFFORT = 4  # times the steps of a first edit, for a fact that is tried again


@dataclass(frozen=True, slots=True)
class Step:
    """One committed step of a night: the facts it takes back, or the batch it applies, with how much `effort`."""

    fact_ids: tuple[str, ...]
    retracts: bool = False
    effort: int = 1

    @property
    def step_id(self) -> str:
        """SHA-256 (first 16 hex digits) of what is done."""
        return _key([self.retracts, self.fact_ids, *([self.effort] if self.effort > 1 else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class NightWork:
    """A night's work, by id. `key` names it: the same work on the same champion has the same key.

    A killed night that is started again finds its own batches under that key. `parent` is the
    champion's state (None: the base); `retract` pairs a retract change with the fact it takes back.
    `contradicting` pairs a fact that stays out, for what it says of another through an inverse relation,
    with the evidence. `again` are those of the batches' facts that the champion holds and does not answer: they are
    tried once more, in batches of their own behind the others. `failed` are those that it holds and does not answer
    whose keys the batches edit, `again` among them. Where the gate failed and a part of the facts stays out, `left_out`
    names them and `origin` is the key of the night as it was planned.
    """

    key: str
    as_of: str
    method: str
    parent: str | None
    batches: tuple[tuple[str, ...], ...]
    retract: tuple[tuple[str, str], ...]
    known: tuple[str, ...]
    superseded: int
    nothing_to_retract: int
    contradicting: tuple[tuple[str, str], ...] = ()
    again: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    origin: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def facts(self) -> list[str]:
        """Every fact to apply, in order."""
        return [fact_id for batch in self.batches for fact_id in batch]

    @property
    def steps(self) -> list[Step]:
        """What changes the state, in order: retractions first."""
        taken_back = tuple(fact_id for _, fact_id in self.retract)
        batches = (Step(batch, effort=EFFORT if set(batch) <= set(self.again) else 1) for batch in self.batches)
        return [*([Step(taken_back, True)] if taken_back else []), *batches]

    @property
    def considered(self) -> int:
        """Fact changes that this night decided about."""
        edited = len(self.facts) + len(self.left_out) + len(self.retract)
        return edited + len(self.known) + self.superseded + self.nothing_to_retract + len(self.contradicting)

    @property
    def time(self) -> datetime:
        """The time up to which facts are taken."""
        return datetime.fromisoformat(self.as_of)

    def only(self, fact_ids: Collection[str]) -> Self:
        """The same night with these of its facts alone, in the same order, under a key of its own."""
        chosen = frozenset(fact_ids)
        batches = tuple(tuple(fact for fact in batch if fact in chosen) for batch in self.batches)
        batches = tuple(batch for batch in batches if batch)
        left_out = (*self.left_out, *(fact for fact in self.facts if fact not in chosen))
        origin = self.origin or self.key
        return replace(self, key=_key([origin, batches]), batches=batches, origin=origin, left_out=left_out)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The work that `to_dict` wrote."""
        batches = tuple(tuple(batch) for batch in content["batches"])
        pairs = {name: tuple((a, b) for a, b in content.get(name, ())) for name in ("retract", "contradicting")}
        names = {name: tuple(content.get(name, ())) for name in ("known", "again", "failed", "left_out")}
        return cls(**{**content, **names, **pairs, "batches": batches})


def _key(identity: Any) -> str:
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


@task(name="plan", cache_policy=NO_CACHE)
def plan_work(as_of: datetime, *, record: bool = True, only: Sequence[str] = ()) -> NightWork:
    """Decide what the night does; `record` what is decided without editing: superseded, known, contradicting, void.

    With `only` (ids of fact changes) everything that concerns other subjects and relations waits.
    The plan is on disk before the first record, so that a night killed in between still counts all of them.
    """
    space = open_workspace()
    settings = space.settings.editor
    champion = space.champion
    parent = champion.state_digest if champion else None
    keys = {change.key for change in space.ledger.facts(only)} if only else None
    inverse = InverseRelations(space.settings.feed.inverse_relations)
    decided = plan_night(space.ledger, as_of, parent, keys, inverse)
    known = _already_answered(space, decided.to_apply, parent)
    unknown = [fact for fact in decided.to_apply if fact.fact_id not in known]
    failed = [(fact, tried) for fact, _, tried in not_learned_facts(space.ledger, parent)]
    again = [] if keys else _to_try_again(space, decided, failed, parent)
    batches = tuple(
        tuple(fact.fact_id for fact in batch.facts)
        for facts in (unknown, again)
        for batch in make_batches(facts, settings.batch_size)
    )
    retried = tuple(fact.fact_id for fact in again)
    edited = {fact.key for fact in (*unknown, *again)}
    gone = {item.fact.fact_id for item in decided.retract}  # by a step of their own, which may uncover an older fact
    retract = tuple((item.change.fact_id, item.fact.fact_id) for item in decided.retract)
    work = NightWork(
        key=_key(
            [
                parent,
                space.base.fingerprint,
                settings.method,
                settings.options,
                batches,
                retract,
                *([retried] if retried else []),
            ]
        ),
        as_of=as_of.isoformat(),
        method=settings.method,
        parent=parent,
        batches=batches,
        retract=retract,
        known=tuple(fact.fact_id for fact in decided.to_apply if fact.fact_id in known),
        superseded=len(decided.superseded),
        nothing_to_retract=len(decided.nothing_to_retract),
        contradicting=tuple((item.fact.fact_id, evidence(space.ledger, item)) for item in decided.contradicting),
        again=retried,
        failed=tuple(fact.fact_id for fact, _ in failed if fact.key in edited and fact.fact_id not in gone),
    )
    path = space.night_folder(work.key) / PLAN_FILE
    if path.exists() and (earlier := NightWork.from_dict(read_json(path, StateError))).as_of == work.as_of:
        work = earlier
    else:
        write_json(path, work.to_dict())
    checkpoint("planned")
    if record:
        at = datetime.now(UTC)
        record_plan(space.ledger, decided, work.key, at)
        space.ledger.record(
            Event(fact_id=fact_id, kind=EventKind.KNOWN, at=at, run_id=work.key, state_digest=parent)
            for fact_id in sorted(known)
        )
    return work


def _to_try_again(
    space: Workspace, decided: NightPlan, failed: Sequence[tuple[FactChange, int]], parent: str | None
) -> list[FactChange]:
    """Those of the `failed` facts, each with how often it was edited in vain, that the settings let be edited again.

    What tonight replaces or takes back is not among them.
    """
    decided_on = {fact.key for fact in decided.to_apply} | {item.fact.key for item in decided.retract}
    facts = [fact for fact, tried in failed if tried < space.settings.editor.tries and fact.key not in decided_on]
    known = _already_answered(space, facts, parent)
    return sorted((fact for fact in facts if fact.fact_id not in known), key=precedence)


def _already_answered(space: Workspace, facts: Sequence[FactChange], parent: str | None) -> set[str]:
    """Ids of the facts that the champion gives as its greedy answer to the edit prompt."""
    if not facts:
        return set()
    questions, targets = [fact.question for fact in facts], [fact.target for fact in facts]
    budgets = [length + ANSWER_SLACK for length in target_lengths(space.base, questions, targets)]
    with space.scorer(parent) as scorer:
        scorer.label = "what is known"
        answers = scorer.generate(questions, budgets)
    return {fact.fact_id for fact, answer in zip(facts, answers, strict=True) if exact_match(answer, fact.target)}
