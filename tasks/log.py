"""The log of commands: `errata.log` under home, which outlives the terminal, and never shows a password."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

from tasks.errors import without_password

LOG_NAME = "errata.log"
BYTES, KEPT = 2_000_000, 3  # of a file, and how many older ones stay
log = logging.getLogger("errata")
log.addHandler(logging.NullHandler())


def log_path(home: Path) -> Path:
    """Where the log of a home is."""
    return home / "logs" / LOG_NAME


def open_log(home: Path) -> None:
    """Send what `log` is told to the home's file from now on; a home that cannot be written to has none."""
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for old in [handler for handler in log.handlers if isinstance(handler, _File)]:
        log.removeHandler(old)
        old.close()
    try:
        log_path(home).parent.mkdir(parents=True, exist_ok=True)
        handler = _File(log_path(home), maxBytes=BYTES, backupCount=KEPT, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return
    handler.setLevel(logging.INFO)
    handler.setFormatter(WithoutPasswords("%(asctime)s %(process)d %(levelname)s %(message)s"))
    log.addHandler(handler)


def log_in_use() -> Path | None:
    """The file that `log` writes to, if there is one."""
    return next((Path(handler.baseFilename) for handler in log.handlers if isinstance(handler, _File)), None)


class WithoutPasswords(logging.Formatter):
    """A formatter that takes the passwords out of URLs, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as it may be shown."""
        return without_password(super().format(record))


class _File(RotatingFileHandler):
    """A full disk costs a line of the log, never the command."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        return
