"""Compacting the champion when asked: same facts, same answers, fewer bytes; a version like any other."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from prefect import flow

from flows.promotion import Reason, Who, carry_out
from tasks.champion.change import plan_compaction
from tasks.champion.compaction import Compaction, compact_champion
from tasks.night.record import settle_aliases
from tasks.workspace import open_workspace

LEASE = timedelta(hours=2)


@flow(name="compact", description=__doc__)
def compact(reason: Reason = "", who: Who = "") -> Compaction:
    """Register the champion compacted and put that version in its place, with the canary behind it.

    No night runs meanwhile. Killed anywhere, the next one completes it; `rollback` goes back as ever.
    """
    owner = f"compaction on {socket.gethostname()}, process {os.getpid()}"
    with open_workspace().ledger.lease("night", owner, LEASE):
        settle_aliases()
        found = compact_champion()
        if found.version is not None:
            why = f"{reason}; {found.sentence}" if reason else found.sentence
            carry_out(plan_compaction(found.of, found.version, why, who))
    return found
