"""Which report is meant: by a night's date, its key, or the last one."""

from __future__ import annotations

from pathlib import Path

from editing.errors import SuiteError
from tasks.night.summary import finished_nights
from tasks.report.content import report_path
from tasks.workspace import Workspace

SHORTEST = 4  # digits of a key's beginning


def _begins(key: str, beginning: str) -> bool:
    return len(beginning) >= SHORTEST and key.startswith(beginning)


def find_report(space: Workspace, night: str = "last") -> Path:
    """The page of the newest night with this date (`YYYY-MM-DD`), key or key's beginning, or of the last one.

    Raises `SuiteError` when there is none.
    """
    rows = finished_nights(space.ledger)
    wanted = [row.key for row in rows if night in ("last", row.night) or _begins(row.key, night)]
    if (space.settings.nights / night).is_dir():
        wanted.append(night)  # a night that did not end, or a dry run
    for key in reversed(wanted):
        if (path := report_path(space, key)).is_file():
            return path
    known = ", ".join(dict.fromkeys(row.night for row in rows)) or "none yet"
    raise SuiteError(f"no report of night {night!r}; finished nights: {known}")
