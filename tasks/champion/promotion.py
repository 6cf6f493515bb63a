"""Whether a version that passed the gate goes into service: the last word on a night."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from editing.errors import StateError
from editing.evals.gate import Decision
from editing.storage import read_json, write_json
from tasks.champion.approval import ask_for_approval
from tasks.champion.moves import BY_NIGHT, called, standing
from tasks.faults import checkpoint
from tasks.ledger import RunPhase
from tasks.night.evaluate import verdict_of
from tasks.night.plan import NightWork
from tasks.night.summary import KIND
from tasks.registry import CHAMPION
from tasks.workspace import Workspace, open_workspace

PROMOTION_FILE = "promotion.json"


@dataclass(frozen=True, slots=True)
class Promotion:
    """What becomes of a version that the gate let through. `why` is None where the gate alone decided."""

    decision: Decision
    why: str | None = None


def decide_promotion(work: NightWork, version: int, *, while_waiting: Callable[[], object] = lambda: None) -> Promotion:
    """Promote or hold `version`, by the policy of the settings; to be called from within a flow run.

    Held is what the gate did not let through, a version that a person or the canary took back before,
    and one whose night began from a champion that is no longer in force. With `approval = "manual"` a
    person has the last word; `while_waiting` is called from time to time until then. A killed night that
    goes on with the same facts on the same champion finds the answer that was given, whatever the time up to
    which it takes facts now; one that ended asks again.
    """
    space = open_workspace()
    verdict = verdict_of(space, work.key)
    if verdict.decision is not Decision.PROMOTE:
        return Promotion(verdict.decision)
    if why := taken_back(space, version) or moved_meanwhile(space, version):
        return Promotion(Decision.HOLD, why)
    if space.settings.gate.approval == "auto":
        return Promotion(Decision.PROMOTE)
    path = space.night_folder(work.key) / PROMOTION_FILE
    if path.exists() and not _ended_since(space, work.key, (earlier := read_json(path, StateError)).get("at")):
        return Promotion(Decision(earlier["decision"]), earlier["why"])
    answer = ask_for_approval(version, verdict.to_markdown(), space.settings.gate.approval_hours, while_waiting)
    found = Promotion(Decision(answer.decision), answer.sentence)
    write_json(path, {**asdict(found), "at": datetime.now(UTC).isoformat()})
    checkpoint("approved")
    return found


def _ended_since(space: Workspace, night: str, answered: str | None) -> bool:
    """Whether the night of this key ended after a person's answer, which then has done its part."""
    if answered is None:
        return True
    since = datetime.fromisoformat(answered)
    return any(
        run.run_id == night and run.phase is RunPhase.FINISHED and run.at >= since for run in space.ledger.runs(KIND)
    )


def moved_meanwhile(space: Workspace, version: int | None) -> str | None:
    """What happened to the champion since the night of `version` began, if it is not what that grew from."""
    record = space.ledger.version(version) if version else None
    champion = space.champion
    serving = champion.state_digest if champion else None
    if record is None or record.parent_digest == serving or record.state_digest == serving:
        return None
    moves = space.ledger.alias_moves(CHAMPION)
    why = f" ({moves[-1].who}: {moves[-1].why})" if moves else ""
    return f"the champion became {called(standing(space))} while the night ran{why}"


def taken_back(space: Workspace, version: int) -> str | None:
    """Why `version` was last taken out of service by a person or the canary; None when it was not."""
    away = [move for move in space.ledger.alias_moves(CHAMPION) if version in (move.from_version, move.to_version)]
    if not away or away[-1].to_version == version or away[-1].who == BY_NIGHT:
        return None
    last = away[-1]
    return f"version {version} was taken back on {last.at:%Y-%m-%d} ({last.who}: {last.why}); promote it by hand"
