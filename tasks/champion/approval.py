"""A person's approval: the night has ended, its version waits in the ledger, and an answer promotes or holds it.

No process waits: neither a lease nor a place among Prefect's concurrent runs is taken, and what comes meanwhile runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from editing.evals.gate import Decision
from tasks.champion.change import require_loadable, user_name
from tasks.champion.moves import BY_NIGHT, adopt_moves_by_hand, called, moving, point_aliases, record_move, standing
from tasks.champion.promotion import moved_meanwhile, taken_back
from tasks.errors import TasksError
from tasks.faults import checkpoint
from tasks.ledger import Ledger, RunPhase, RunRecord
from tasks.night.summary import ANSWER, KIND
from tasks.registry import CHALLENGER, CHAMPION
from tasks.workspace import Workspace, open_workspace

NOBODY = "nobody"


class ApprovalError(TasksError, RuntimeError):
    """No version waits for an answer, or more than one could be meant."""


class Approval(BaseModel):
    """An answer. Left as it is, it holds."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["promote", "hold"] = Field("hold", description="promote: the version serves from now on.")
    who: str = Field("", description="Your name; it goes into the ledger.")
    reason: str = Field("", description="Why; it goes into the ledger.")

    @property
    def sentence(self) -> str:
        """The answer in words."""
        done = "approved" if self.decision == "promote" else "held"
        return f"{done} by {self.who or 'somebody'}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A version that waits: of which night (its key and its date), and until when (UTC)."""

    version: int
    key: str
    night: str
    until: datetime

    @property
    def sentence(self) -> str:
        """What it waits for, in words."""
        return f"version {self.version} waits for approval until {self.until:%Y-%m-%d %H:%M} UTC"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "until": self.until.isoformat(timespec="seconds")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What an answer did: `decision` about `version`, in words, and who serves after it (None: the base)."""

    version: int
    decision: str
    decided: str
    champion: int | None

    @property
    def sentence(self) -> str:
        """What happened, for a person."""
        return f"version {self.version}: {self.decided}; {called(self.champion)} serves"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def open_requests(ledger: Ledger) -> list[Request]:
    """The versions that nights left waiting and that nothing in the ledger has settled, oldest first."""
    found: dict[int, Request] = {}
    for run in ledger.runs(KIND, ANSWER):
        version = run.detail.get("version")
        if version is None or run.phase is not RunPhase.FINISHED:
            continue
        found.pop(version, None)
        if run.kind == KIND and (until := run.detail.get("waits_until")):
            night = run.detail["night"]
            found[version] = Request(version=version, key=run.run_id, night=night, until=datetime.fromisoformat(until))
    return list(found.values())


def waiting(space: Workspace) -> list[Request]:
    """The versions that an answer would be taken for now, oldest first. Nothing is written."""
    return [request for request in open_requests(space.ledger) if _lapse(space, request) is None]


def close_requests(space: Workspace) -> None:
    """Write down how requests ended that nobody can answer any more; to be called inside `moves.moving`."""
    for request in open_requests(space.ledger):
        if lapse := _lapse(space, request):
            _settle(space, request, *lapse)


@task(name="carry out answer", cache_policy=NO_CACHE)
def carry_out_answer(approval: Approval, version: int | None = None) -> Answered:
    """Promote or hold the version that waits (`version`, where several do).

    The champion's move is the first thing written; killed after it, the next command of any kind completes the rest
    and nobody is asked again. Raises `ApprovalError` when none waits, when more than one could be meant, and, with the
    reason, for one that waited and cannot be answered any more; `StateError` or `RegistryError`, with nothing moved,
    for a version that does not load.
    """
    space = open_workspace()
    approval = approval.model_copy(update={"who": approval.who or user_name()})
    if approval.decision == Decision.PROMOTE:
        require_loadable(space, _chosen(space, version).version)
    with moving(space), space.registry.answering():
        adopt_moves_by_hand(space)
        request = _chosen(space, version)
        if approval.decision == Decision.PROMOTE:
            why = f"night {request.night}: {Decision.PROMOTE}, {approval.sentence}"
            record_move(space, CHAMPION, request.version, who=BY_NIGHT, why=why, report=request.key)
            checkpoint("approved")
        _settle(space, request, approval.decision, approval.sentence)
        point_aliases(space)
        return Answered(
            version=request.version,
            decision=approval.decision,
            decided=approval.sentence,
            champion=standing(space),
        )


def _chosen(space: Workspace, version: int | None) -> Request:
    """The request that is meant. Raises `ApprovalError` where that is none, or not clear."""
    requests = {request.version: request for request in waiting(space)}
    numbers = ", ".join(map(str, requests))
    if version is None and len(requests) > 1:
        raise ApprovalError(f"versions {numbers} wait for approval; say which with --version")
    chosen = next(iter(requests), None) if version is None else version
    if chosen in requests:
        return requests[chosen]
    ended = _ended(space)
    if version is None:
        last = next(reversed(ended), None)
        told = "" if last is None else f"; the last that did is version {last}, {ended[last]}"
        raise ApprovalError(f"no version waits for approval{told}")
    now = f" any more: {ended[version]}" if version in ended else ""
    others = f"; version {numbers} waits" if requests else ""
    raise ApprovalError(f"version {version} does not wait for approval{now}{others}")


def _ended(space: Workspace) -> dict[int, str]:
    """How requests ended, by version, the last one last."""
    ended = {run.detail["version"]: run.detail["decided"] for run in space.ledger.runs(ANSWER)}
    for request in open_requests(space.ledger):
        if lapse := _lapse(space, request):
            ended.pop(request.version, None)
            ended[request.version] = lapse[1]
    return ended


def _lapse(space: Workspace, request: Request) -> tuple[str, str] | None:
    """What was decided about a request without an answer, and why; None while it waits.

    It serves already; or the champion that it grew from has gone, somebody took it back, one of its facts was decided
    otherwise since, or its time is over.
    """
    if standing(space) == request.version:
        return Decision.PROMOTE, space.ledger.alias_moves(CHAMPION)[-1].why.removeprefix(
            f"night {request.night}: {Decision.PROMOTE}, "
        )
    why = taken_back(space, request.version) or moved_meanwhile(space, request.version, "while it waited")
    why = why or _decided_otherwise(space, request.version)
    if why is None and datetime.now(UTC) >= request.until:
        why = f"no answer until {request.until:%Y-%m-%d %H:%M} UTC"
    return None if why is None else (Decision.HOLD, Approval(who=NOBODY, reason=why).sentence)


def _decided_otherwise(space: Workspace, version: int) -> str | None:
    """Which fact of a version was superseded or quarantined after the version was made; None: none was."""
    record = space.ledger.version(version)
    event = space.ledger.overruled(record.state_digest) if record else None
    if event is None:
        return None
    (fact,) = space.ledger.facts([event.fact_id])
    return f"its fact {fact.fact_id} ({fact.subject} / {fact.relation}: {fact.target}) was {event.kind} meanwhile"


def _settle(space: Workspace, request: Request, decision: str, decided: str) -> None:
    """Write the end of a request into the ledger; what serves is no challenger."""
    if decision == Decision.PROMOTE and standing(space, CHALLENGER) == request.version:
        why = f"night {request.night}: {decision}, {decided}"
        record_move(space, CHALLENGER, None, who=BY_NIGHT, why=why, report=request.key)
    detail = {"version": request.version, "decision": decision, "decided": decided}
    space.ledger.record_run(
        RunRecord(run_id=request.key, kind=ANSWER, phase=RunPhase.FINISHED, detail=detail, at=datetime.now(UTC))
    )
