"""The errors of the tasks floor: one base class, each also a builtin that callers may expect."""

import re

_PASSWORD = re.compile(r"(?<=://)([^\s/@:]*):\S*(?=@)|(?<=[?&])(\w*password)=[^\s&]*")


def without_password(text: str) -> str:
    """A URL, or a text with URLs, as it may be shown: `***` in place of every password, of a user or among options."""
    return _PASSWORD.sub(lambda found: f"{found[2]}=***" if found[2] else f"{found[1]}:***", text)


class TasksError(Exception):
    """Base class of every error that `tasks` raises on purpose."""


class FeedError(TasksError, ValueError):
    """A feed file, or a published data set to convert into one, cannot be read or written."""


class LedgerError(TasksError, ValueError):
    """The ledger is of another format, or is asked to record what contradicts it."""


class LeaseHeldError(TasksError, RuntimeError):
    """Another process holds the lease."""
