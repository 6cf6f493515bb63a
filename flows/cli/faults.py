"""What the outside can cause, in one sentence with the way out; a signal, with what is kept; a bug, with its log."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from editing.errors import EditingError
from tasks.errors import TasksError, without_password
from tasks.log import log, log_in_use

AGAIN = "what was committed is kept; run the same command again to go on"
FULL = f"the disk is full; free some space ({AGAIN})"
# What is kept of commands that were stopped, where it is not `AGAIN`.
KEPT = {
    "retract": "what was committed is kept, and the next `errata night` carries out a retraction that was begun",
    "promote": "the move is made or not begun, `errata status` says which; the next command completes half a one",
    "rollback": "the move is made or not begun, `errata status` says which; `errata rollback` completes half a one",
    "init": "no file is left half written",
    "convert": "the output was not written; run the same command again",
    "validate": "nothing was changed",
    "show": "nothing was changed",
    "ui": "Prefect's and MLflow's servers are ended with it, nothing is lost; `errata ui` starts them again",
    **dict.fromkeys(("ask", "audit", "explain", "history", "plan", "report", "status"), "nothing was changed"),
}


class Stopped(BaseException):
    """SIGINT or SIGTERM: unwinds everything that is open; no `except Exception` takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number

    @classmethod
    def seen_in(cls, error: BaseException) -> Stopped | None:
        """The signal behind an error, where a library met it with a `BaseException` of its own."""
        if isinstance(error, KeyboardInterrupt):
            return cls(signal.SIGINT)
        if type(error).__name__ == "TerminationSignal":  # Prefect's, while it runs a flow
            return cls(signal.SIGTERM)
        behind = error.__cause__ or error.__context__
        return behind if isinstance(behind, Stopped) else None


@contextmanager
def stopping() -> Iterator[None]:
    """Inside it SIGINT and SIGTERM raise `Stopped`, once; the second one ends the process as it would without us."""

    def stop(number: int, _: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        raise Stopped(number)

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def stopped(by: Stopped, arguments: Sequence[str]) -> str:
    """What a command that a signal ended leaves, and how to go on."""
    words = [word for word in arguments if not word.startswith("-")][:2]
    kept = next((KEPT[word] for word in words if word in KEPT), AGAIN)
    return f"by {by}; {kept}"


def told_of_bug(error: BaseException) -> str:
    """An error of the program itself: its traceback is in the log, and the sentence says where."""
    if path := log_in_use():
        log.error("a mistake of the program", exc_info=error)
    else:
        with tempfile.NamedTemporaryFile(
            "w", prefix="errata-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(without_password("".join(traceback.format_exception(error))))
        path = Path(file.name)
    return (
        f"this is a mistake of the program ({type(error).__name__}: {_first_line(error)}), not of what it was given; "
        f"{AGAIN}, and report it with the traceback in {path}"
    )


def sentence_of(error: BaseException) -> str | None:
    """The sentence for an error that this program raises on purpose or that files, disks, databases and servers cause.

    None for any other.
    """
    if isinstance(error, EditingError | TasksError):
        return FULL if _disk_is_full(str(error)) and "free some space" not in str(error) else str(error)
    if isinstance(error, OSError) and (sentence := _of_system(error)):
        return sentence
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return f"there are bytes that are no UTF-8 text ({error.reason}); give the text in UTF-8"
    if isinstance(error, MemoryError):
        return f"the memory is full; make evaluation.batch_size or editor.batch_size smaller ({AGAIN})"
    return _of_library(error)


def _of_system(error: OSError) -> str | None:
    what = error.strerror or _first_line(error)
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}{FULL}"
    if error.filename is None and error.errno is None:
        return None
    if error.errno == errno.EROFS or isinstance(error, PermissionError):
        return f"{place}{what}; give this user the right to it, or name another place (ERRATA_HOME)"
    return f"{place}{what}; correct the path, or what is there"


def _of_library(error: BaseException) -> str | None:
    """Of libraries that this process has loaded; none is loaded to find out."""
    if _is_a(error, "sqlalchemy.exc", "DBAPIError"):
        said = _first_line(getattr(error, "orig", None) or error)
        if _disk_is_full(said):
            return FULL
        return (
            f"a database, of the ledger or of MLflow, does not work ({said}); see that it runs and is whole, put back "
            "a copy of it, or set ledger_url"
        )
    if _is_a(error, "mlflow.exceptions", "MlflowException"):
        if _disk_is_full(str(error)):
            return FULL
        return f"MLflow does not work ({_first_line(error)}); see that its store runs and is whole"
    if _is_a(error, "torch", "OutOfMemoryError"):
        return f"the device's memory is full; make evaluation.batch_size or editor.batch_size smaller ({AGAIN})"
    if _of_prefect(error):
        if _disk_is_full(str(error)):
            return FULL
        where = os.environ.get("PREFECT_API_URL") or f"the one of its own, under {os.environ.get('PREFECT_HOME')}"
        return (
            f"Prefect's server ({where}) does not work ({_first_line(error)}); see that it runs, that its disk has "
            f"space and its database is whole ({AGAIN})"
        )
    behind = error.__cause__ or error.__context__
    return sentence_of(behind) if isinstance(behind, OSError) and behind.errno == errno.ENOSPC else None


def _of_prefect(error: BaseException) -> bool:
    """Whether Prefect's server is why: nobody answers, it answers that it failed, or it cannot be started."""
    if _is_a(error, "prefect.exceptions", "PrefectHTTPStatusError"):
        return bool(getattr(getattr(error, "response", None), "is_server_error", True))
    if _is_a(error, "httpx", "TransportError"):
        return True
    raised = traceback.extract_tb(error.__traceback__)
    inside = bool(raised) and f"{os.sep}prefect{os.sep}" in raised[-1].filename
    return inside and isinstance(error, RuntimeError) and "API" in str(error)


def _is_a(error: BaseException, module: str, *names: str) -> bool:
    loaded = sys.modules.get(module)
    return any(isinstance(error, kind) for name in names if (kind := getattr(loaded, name, None)))


def _disk_is_full(text: str) -> bool:
    return "disk is full" in text or os.strerror(errno.ENOSPC) in text


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
