"""What the outside can cause, in one sentence with the way out; anything else is a bug and keeps its traceback."""

from __future__ import annotations

import errno
import sys

from editing.errors import EditingError
from tasks.errors import TasksError

AGAIN = "what was committed is kept; run the same command again to go on"


def sentence_of(error: BaseException) -> str | None:
    """The sentence for an error that this program raises on purpose or that files, disks, databases and MLflow cause.

    None for any other.
    """
    if isinstance(error, EditingError | TasksError):
        return str(error)
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return f"there are bytes that are no UTF-8 text ({error.reason}); give the text in UTF-8"
    return _of_library(error)


def _of_system(error: OSError) -> str | None:
    what = error.strerror or _first_line(error)
    place = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{place}the disk is full; free some space ({AGAIN})"
    if error.filename is None and error.errno is None:
        return None
    return f"{place}{what}; correct the path, or what is there"


def _of_library(error: BaseException) -> str | None:
    """Of libraries that this process has loaded; none is loaded to find out."""
    if (alchemy := sys.modules.get("sqlalchemy.exc")) and isinstance(error, alchemy.DBAPIError):
        said = _first_line(error.orig or error)
        return f"the ledger's database does not work ({said}); see that it runs and is whole, or set ledger_url"
    if (mlflow := sys.modules.get("mlflow.exceptions")) and isinstance(error, mlflow.MlflowException):
        return f"MLflow does not work ({_first_line(error)}); see that its store runs and is whole"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
