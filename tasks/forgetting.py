"""What the ledger remembers of facts that were asked again, night after night."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editing.evals.retention import AgePoint, Asked, forgetting_curve
from tasks.ledger import EventKind
from tasks.workspace import Workspace

_ASKED = (EventKind.VERIFIED, EventKind.FORGOTTEN, EventKind.NOT_LEARNED)
_KINDS = (EventKind.APPLIED, EventKind.RETRACTED, *_ASKED)


@dataclass(frozen=True, slots=True)
class Observations:
    """Every time that an applied fact was asked, at its age then."""

    asked: Sequence[Asked]

    def curve(self) -> list[AgePoint]:
        """The forgetting curve; empty when nothing was asked yet."""
        return forgetting_curve(self.asked)

    def rows(self) -> list[dict[str, Any]]:
        """The curve as plain rows."""
        return [asdict(point) for point in self.curve()]


def observations(space: Workspace) -> Observations:
    """What every version that was promoted answered: of its own night's facts (age 0) and of earlier ones."""
    ledger = space.ledger
    promoted = {move.to_version for move in ledger.alias_moves("champion")}
    nights = {record.state_digest: record.night.date() for record in ledger.versions() if record.version in promoted}
    asked: list[Asked] = []
    for events in ledger.events_by_fact(_KINDS):
        applied = None
        for event in events:
            if event.state_digest not in nights:
                continue
            night = nights[event.state_digest]
            if event.kind is EventKind.APPLIED:
                applied = night
            elif event.kind is EventKind.RETRACTED:
                applied = None
            elif applied is not None:
                asked.append(Asked((night - applied).days, event.kind is EventKind.VERIFIED))
    return Observations(asked)
