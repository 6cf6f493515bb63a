"""The errors of the tasks floor: one base class, each also a builtin that callers may expect."""

import re

_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^@]*(?=@)")


def without_password(url: str) -> str:
    """A URL as it may be shown: `***` in place of the password of its user."""
    return _PASSWORD.sub(r"\1:***", url)


class TasksError(Exception):
    """Base class of every error that `tasks` raises on purpose."""


class FeedError(TasksError, ValueError):
    """A feed file, or a published data set to convert into one, cannot be read or written."""


class LedgerError(TasksError, ValueError):
    """The ledger is of another format, or is asked to record what contradicts it."""


class LeaseHeldError(TasksError, RuntimeError):
    """Another process holds the lease."""
