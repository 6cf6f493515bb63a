"""Taking facts back now, through a night of their own: same edit, same gate, same approval, same canary."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.night import NightConfig, night
from flows.promotion import Reason, Who
from tasks.artifacts import ended_as
from tasks.champion.change import user_name
from tasks.champion.choose import as_utc
from tasks.errors import LeaseHeldError
from tasks.facts.retract import request_retraction
from tasks.night.summary import WAITING, NightSummary


@flow(name="retract", description="Take applied facts back now; other changes wait for the next night.")
def retract(
    facts: Annotated[list[str], Field(description="Ids of facts, or their beginnings.", min_length=1)],
    reason: Reason = "",
    who: Who = "",
    as_of: Annotated[datetime | None, Field(description="When they ceased to hold; default: now.")] = None,
) -> NightSummary | None:
    """Put retract changes into the landing zone and run a night that deals with nothing else; its row.

    Killed in between, the next night carries them out. So it does where a night runs at this moment: the run then ends
    as `Recorded`, with None.
    """
    moment = as_utc(as_of) or datetime.now(UTC)
    changes = request_retraction(facts, reason, who or user_name(), moment)
    try:
        summary = night(NightConfig(as_of=moment, only=tuple(changes)))
    except LeaseHeldError as error:
        return ended_as("Recorded", f"the next night takes {len(changes)} facts back: now {error}", None)
    if summary.verdict == WAITING:
        return ended_as("Waiting", f"version {summary.version} {summary.decided}", summary)
    return summary
