"""Fault injection: where a night may be killed, so that the tests can prove that it survives.

`ERRATA_FAULT=NAME` ends the process with SIGKILL when it first reaches the checkpoint NAME,
`ERRATA_FAULT=NAME:N` when it reaches it for the N-th time. Nothing else reads it.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "ERRATA_FAULT"
_passed: Counter[str] = Counter()


def checkpoint(name: str) -> None:
    """A place between two things that a night does; only an armed fault stops here."""
    if fault := os.environ.get(VARIABLE):
        _passed[name] += 1
        wanted, _, times = fault.partition(":")
        if name == wanted and _passed[name] == int(times or 1):
            os.kill(os.getpid(), signal.SIGKILL)
