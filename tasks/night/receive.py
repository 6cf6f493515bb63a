"""Taking in the feed: everything in the landing zone that the ledger does not know yet."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.tokenisation import special_tokens
from tasks.artifacts import show_table
from tasks.faults import checkpoint
from tasks.feed.ingest import FeedStore, IngestReport, ingest
from tasks.feed.rules import Limits
from tasks.progress import reporter
from tasks.workspace import Workspace, open_workspace


@task(name="receive feed", retries=2, retry_delay_seconds=5, cache_policy=NO_CACHE)
def receive_feed() -> int:
    """Take in new feed files: valid rows to the curated store, bad ones to quarantine; the facts received."""
    report = receive(open_workspace())
    checkpoint("received")
    if report.files:
        rows = [
            {
                "file": file.name,
                "rows": file.rows,
                "accepted": file.accepted,
                "quarantined": file.quarantined,
                "whole file": file.sentence or "",
            }
            for file in report.files
        ]
        show_table("feed", rows, "Feed files taken in tonight")
    if report.reasons:
        show_table("quarantine", [dict(report.reasons)], "Rows and files that were not let in, by reason")
    if report.unread:
        rows = [{"file": name, "why": why} for name, why in report.unread.items()]
        show_table("unread", rows, "What of the landing zone was left where it is")
    return report.accepted


def receive(space: Workspace) -> IngestReport:
    """Ingest the landing zone with the limits of the settings."""
    settings, now = space.settings, datetime.now(UTC)
    store = FeedStore(landing=settings.landing, curated=settings.curated, quarantine=settings.quarantine)
    return ingest(store, space.ledger, limits=limits_of(space, now), run_id="feed", at=now, progress=reporter())


def limits_of(space: Workspace, now: datetime | None = None) -> Limits:
    """What a row may hold, by the settings and the base's tokenizer."""
    return Limits.at(
        now,
        subject_tokens=space.settings.feed.max_subject_tokens,
        target_tokens=space.settings.feed.max_target_tokens,
        special_tokens=lambda: special_tokens(space.base.tokenizer),
        count_tokens=lambda texts: [len(ids) for ids in space.base.tokenizer(list(texts))["input_ids"]],
    )
