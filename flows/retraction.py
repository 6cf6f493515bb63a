"""Taking facts back now, through a night of their own: same edit, same gate, same approval, same canary."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.night import NightConfig, night
from flows.promotion import Reason, Who
from tasks.champion.change import user_name
from tasks.champion.choose import as_utc
from tasks.facts.retract import request_retraction
from tasks.night.summary import NightSummary


@flow(name="retract", description="Take applied facts back now; other changes wait for the next night.")
def retract(
    facts: Annotated[list[str], Field(description="Ids of facts, or their beginnings.", min_length=1)],
    reason: Reason = "",
    who: Who = "",
    as_of: Annotated[datetime | None, Field(description="When they ceased to hold; default: now.")] = None,
) -> NightSummary:
    """Put retract changes into the landing zone and run a night that deals with nothing else.

    Killed in between, the next night carries them out.
    """
    moment = as_utc(as_of) or datetime.now(UTC)
    changes = request_retraction(facts, reason, who or user_name(), moment)
    return night(NightConfig(as_of=moment, only=tuple(changes)))
