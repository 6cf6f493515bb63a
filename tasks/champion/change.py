"""A change of the champion by a person: decided once, checked before it is made, in the ledger with its reason."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.errors import StateError
from editing.evals.gate import Decision
from tasks.artifacts import show_table
from tasks.champion.choose import ChoiceError, champion_as_of, made_version
from tasks.champion.moves import called, moving, point_aliases, record_move, standing
from tasks.faults import checkpoint
from tasks.ledger import RunPhase, RunRecord
from tasks.registry import CHALLENGER, CHAMPION
from tasks.workspace import Workspace, open_workspace

Kind = Literal["promote", "rollback", "compact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The champion goes from one version to another (None: the base). `resumed`: a killed run had begun it."""

    run_id: str
    kind: Kind
    start: int | None
    to: int | None
    who: str
    reason: str
    resumed: bool = False

    @property
    def sentence(self) -> str:
        """What happened, for a person."""
        if self.start == self.to:
            return f"{called(self.to)} serves already"
        done = f"{called(self.to)} serves now, {called(self.start)} no longer"
        return f"{done} (this ended an interrupted {self.kind}; run it again to go on)" if self.resumed else done

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Change:
        """The change that `to_dict` wrote."""
        return cls(**content)


@task(name="plan promotion", cache_policy=NO_CACHE)
def plan_promotion(version: int, reason: str, who: str) -> Change:
    """The change that puts `version` into service.

    Raises `ChoiceError` for a version that no night made, and for one that the gate did not let through
    when no reason says why it is to serve all the same.
    """
    space = open_workspace()
    to = made_version(space, version)
    record = space.ledger.version(version)
    if record is not None and record.verdict != Decision.PROMOTE and not reason:
        raise ChoiceError(
            f"the gate's verdict on version {version} is {record.verdict!r}; say why it is to serve with --reason"
        )
    return _begin(space, "promote", to, reason, who)


@task(name="plan rollback", cache_policy=NO_CACHE)
def plan_rollback(to: str | int | None, as_of: datetime | None, reason: str, who: str) -> Change:
    """The change that goes back: to a version or `base`, to the champion of a moment, or else to the previous one.

    A rollback that was killed before it was complete is taken up again by the next one that names no
    version. Raises `ChoiceError` where there is nothing to go back to.
    """
    space = open_workspace()
    if to is not None and as_of is not None:
        raise ChoiceError(f"--to {to} and --as-of {as_of:%Y-%m-%d} both name a version; give one of them")
    if to is not None:
        return _begin(space, "rollback", made_version(space, to), reason, who)
    if as_of is not None:
        record = champion_as_of(space, as_of)
        return _begin(space, "rollback", record.version if record else None, reason, who)
    if begun := _unfinished(space):
        return begun
    before = space.ledger.stood_before()
    if standing(space) is None or not before:
        raise ChoiceError("the base serves; there is nothing to go back to, `errata promote VERSION` goes forward")
    return _begin(space, "rollback", before[0], reason, who)


@task(name="plan compaction", cache_policy=NO_CACHE)
def plan_compaction(of: int, version: int, reason: str, who: str) -> Change:
    """The change that puts `version`, which is champion `of` compacted, in its place.

    Raises `ChoiceError` when the champion is another by now.
    """
    space = open_workspace()
    if standing(space) != of:
        raise ChoiceError(
            f"the champion became {called(standing(space))} while version {of} was compacted; nothing was moved, "
            "compact again"
        )
    return _begin(space, "compact", version, reason, who)


@task(name="move champion", cache_policy=NO_CACHE)
def move_champion(change: Change) -> None:
    """Check that the version loads from the registry, then move the alias: in the ledger, and then in MLflow.

    Raises `StateError` or `RegistryError` when it does not load; nothing is moved then.
    """
    space = open_workspace()
    try:
        require_loadable(space, change.to)
        with moving(space), space.registry.answering():
            record_move(space, CHAMPION, change.to, who=change.who, why=_why(change), report=change.run_id)
            if change.to is not None and standing(space, CHALLENGER) == change.to:
                record_move(space, CHALLENGER, None, who=change.who, why=_why(change), report=change.run_id)
            checkpoint("half carried out")
            point_aliases(space)
    except Exception:
        _record(space, change, RunPhase.FAILED)
        raise
    checkpoint("carried out")
    show_table("champion", [change.to_dict()], change.sentence)


@task(name="finish change", cache_policy=NO_CACHE)
def finish_change(change: Change, *, failed: bool = False) -> None:
    """Write down that the change is complete, or that the canary undid it."""
    _record(open_workspace(), change, RunPhase.FAILED if failed else RunPhase.FINISHED)


def user_name() -> str:
    """Who runs this process, as far as it is known."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"


def _why(change: Change) -> str:
    return f"{change.kind}: {change.reason}" if change.reason else change.kind


def _begin(space: Workspace, kind: Kind, to: int | None, reason: str, who: str) -> Change:
    change = Change(run_id=uuid4().hex, kind=kind, start=standing(space), to=to, who=who or user_name(), reason=reason)
    _record(space, change, RunPhase.STARTED)
    checkpoint("change begun")
    return change


def _record(space: Workspace, change: Change, phase: RunPhase) -> None:
    content = change.to_dict()
    space.ledger.record_run(
        RunRecord(run_id=change.run_id, kind=change.kind, phase=phase, detail=content, at=datetime.now(UTC))
    )


def _unfinished(space: Workspace) -> Change | None:
    """The last rollback, if it was not completed and nobody else moved the champion since."""
    runs = space.ledger.runs("rollback")
    if not runs or runs[-1].phase is not RunPhase.STARTED:
        return None
    begun = Change.from_dict({**runs[-1].detail, "resumed": True})
    moves = space.ledger.alias_moves(CHAMPION)
    mine = bool(moves) and moves[-1].report == begun.run_id
    return begun if mine or standing(space) == begun.start else None


def require_loadable(space: Workspace, version: int | None) -> None:
    """Raise `StateError` or `RegistryError` unless the registry gives back `version` as it was registered."""
    if version is None:
        return
    record = space.ledger.version(version)
    assert record is not None
    with space.registry.answering():
        found = space.registry.get(version)
    space.registry.forget(found)
    try:
        space.load(space.registry.fetch(found), record.state_digest)
    except StateError as error:
        raise StateError(f"version {version} cannot serve, nothing was moved: {error}") from error
    finally:
        space.registry.forget(found)
