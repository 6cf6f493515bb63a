"""Moves of the champion by a person: promote, roll back, approve; each with its reason in the ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from flows.canary import canary
from tasks.champion.approval import Answered, Approval, carry_out_answer
from tasks.champion.canary import ChampionFailedError
from tasks.champion.change import Change, finish_change, move_champion, plan_promotion, plan_rollback
from tasks.champion.choose import as_utc
from tasks.night.record import settle_aliases
from tasks.workspace import open_workspace

Reason = Annotated[str, Field(description="Why; it goes into the ledger.")]
Who = Annotated[str, Field(description="Who wants it; default: the user that runs this.")]


@flow(name="promote", description="Put a version into service.")
def promote(
    version: Annotated[int, Field(description="The version's number.")], reason: Reason = "", who: Who = ""
) -> Change:
    """Put a version into service, after checking that it loads; the canary follows."""
    settle_aliases()
    return carry_out(plan_promotion(version, reason, who))


@flow(name="rollback", description="Go back to an earlier champion: by default to the previous one.")
def rollback(
    to: Annotated[str | None, Field(description="A version's number, or 'base'. Default: the previous one.")] = None,
    as_of: Annotated[datetime | None, Field(description="Or the champion of this moment.")] = None,
    reason: Reason = "",
    who: Who = "",
) -> Change:
    """Put an earlier champion into service again; killed anywhere, the next rollback completes it first."""
    settle_aliases()
    return carry_out(plan_rollback(to, as_utc(as_of), reason, who))


@flow(name="approve", description="Answer for a version that waits for approval: promote it, or hold it.")
def approve(
    decision: Annotated[Literal["promote", "hold"], Field(description="promote: the version serves.")] = "hold",
    version: Annotated[int | None, Field(description="Which one, where several wait.")] = None,
    reason: Reason = "",
    who: Who = "",
) -> Answered:
    """Promote a version that waits, with the canary behind it, or hold it; killed anywhere, the next command of any
    kind completes it."""
    settle_aliases()
    answered = carry_out_answer(Approval(decision=decision, who=who, reason=reason), version)
    if answered.champion == answered.version and open_workspace().settings.canary.after_promotion:
        canary()
    return answered


def carry_out(change: Change) -> Change:
    """Move the champion as decided, with the canary behind it; the change."""
    move_champion(change)
    if change.to is not None and open_workspace().settings.canary.after_promotion:
        try:
            canary()
        except ChampionFailedError:
            finish_change(change, failed=True)
            raise
    finish_change(change)
    return change
