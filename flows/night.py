"""The night: a batch of fact changes goes in, a tested, versioned, reversible edit comes out."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows.canary import check_champion
from tasks.artifacts import ended_as
from tasks.champion.promotion import decide_promotion
from tasks.ledger import Lease
from tasks.night.culprits import without_culprits
from tasks.night.edit import edit_step, edited, resume
from tasks.night.evaluate import check_policy, evaluate_model, judge
from tasks.night.plan import NightWork, plan_work
from tasks.night.publish import publish
from tasks.night.receive import receive_feed
from tasks.night.record import close_night, settle_aliases
from tasks.night.report import write_report
from tasks.night.summary import WAITING, NightSummary
from tasks.workspace import open_workspace

LEASE = timedelta(hours=6)


class NightConfig(BaseModel):
    """What one night may differ in; everything else comes from `errata.toml`."""

    model_config = ConfigDict(extra="forbid")

    as_of: datetime | None = Field(None, description="Take facts effective by this time; default: now.")
    dry_run: bool = Field(False, description="Do everything except registering, promoting and recording decisions.")
    only: tuple[str, ...] = Field((), description="Ids of fact changes: what concerns other facts waits. Default: all.")


@flow(name="night", description=__doc__, validate_parameters=True)
def night(config: NightConfig | None = None) -> NightSummary:
    """Receive, plan, edit, evaluate, judge, leave out what fails, publish, settle.

    One at a time; killed anywhere, the next run goes on. Where a person has the last word the run ends as `Waiting`.
    """
    config = config or NightConfig()
    as_of = config.as_of or datetime.now(UTC)
    ledger = open_workspace().ledger
    with ledger.lease("night", f"night on {socket.gethostname()}, process {os.getpid()}", LEASE) as lease:
        check_policy()
        receive_feed()
        settle_aliases()
        work = plan_work(as_of, record=not config.dry_run, only=config.only)
        candidate = carry_out(work, lease)
        while candidate is not None and (rest := without_culprits(work, lease.renew)) is not None:
            work, candidate = rest, carry_out(rest, lease)
        if candidate is not None:
            write_report(work)
        version = None if config.dry_run or candidate is None else publish(work, candidate)
        promotion = None if version is None else decide_promotion(work, version)
        lease.renew()
        summary = close_night(work, version, promotion, dry_run=config.dry_run)
        serving = settle_aliases()
    if summary.verdict == WAITING:
        return ended_as("Waiting", f"version {version} {summary.decided}", summary)
    return check_champion(summary) if version is not None and serving == version else summary


def carry_out(work: NightWork, lease: Lease) -> str | None:
    """Edit, evaluate and judge; the candidate's state, or None when nothing was changed."""
    first, candidate = resume(work)
    for position in range(first, len(work.steps)):
        lease.renew()
        candidate = edit_step(work, position, candidate)
    if candidate is None or not edited(work):
        return None
    evaluate_model(work, "base", None)
    if work.parent is not None:
        evaluate_model(work, "champion", work.parent)
    evaluate_model(work, "candidate", candidate)
    lease.renew()
    judge(work)
    return candidate
