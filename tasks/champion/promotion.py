"""Whether a version that passed the gate goes into service: the last word on a night."""

from __future__ import annotations

from dataclasses import dataclass

from editing.evals.gate import Decision
from tasks.champion.moves import BY_NIGHT, called, standing
from tasks.night.evaluate import verdict_of
from tasks.night.plan import NightWork
from tasks.registry import CHAMPION
from tasks.workspace import Workspace, open_workspace


@dataclass(frozen=True, slots=True)
class Promotion:
    """What becomes of a version that the gate let through. `why` is None where the gate alone decided.

    One that `waits` is held until a person decides.
    """

    decision: Decision
    why: str | None = None
    waits: bool = False


def decide_promotion(work: NightWork, version: int) -> Promotion:
    """Promote or hold `version`, by the policy of the settings, or let it wait for a person.

    Held is what the gate did not let through, a version that a person or the canary took back before,
    and one whose night began from a champion that is no longer in force. With `approval = "manual"` the
    rest waits, and a person has the last word (`tasks.champion.approval`).
    """
    space = open_workspace()
    verdict = verdict_of(space, work.key)
    if verdict.decision is not Decision.PROMOTE:
        return Promotion(verdict.decision)
    if why := taken_back(space, version) or moved_meanwhile(space, version):
        return Promotion(Decision.HOLD, why)
    if space.settings.gate.approval == "auto":
        return Promotion(Decision.PROMOTE)
    return Promotion(Decision.HOLD, waits=True)


def moved_meanwhile(space: Workspace, version: int | None, when: str = "while the night ran") -> str | None:
    """What happened to the champion since the night of `version` began, if it is not what that grew from.

    `when` says in words what lasted meanwhile.
    """
    record = space.ledger.version(version) if version else None
    champion = space.champion
    serving = champion.state_digest if champion else None
    if record is None or record.parent_digest == serving or record.state_digest == serving:
        return None
    moves = space.ledger.alias_moves(CHAMPION)
    why = f" ({moves[-1].who}: {moves[-1].why})" if moves else ""
    return f"the champion became {called(standing(space))} {when}{why}"


def taken_back(space: Workspace, version: int) -> str | None:
    """Why `version` was last taken out of service by a person or the canary; None when it was not."""
    away = [move for move in space.ledger.alias_moves(CHAMPION) if version in (move.from_version, move.to_version)]
    if not away or away[-1].to_version == version or away[-1].who == BY_NIGHT:
        return None
    last = away[-1]
    return f"version {version} was taken back on {last.at:%Y-%m-%d} ({last.who}: {last.why}); promote it by hand"
