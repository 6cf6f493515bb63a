"""The command line: `errata`. Commands are thin; what they do is in `tasks` and `flows`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command. Exit code 0 only on success; an expected error is one sentence on stderr."""
    from editing.errors import EditingError
    from flows.cli.app import app
    from flows.cli.console import complain
    from tasks.errors import TasksError

    try:
        app()
    except (EditingError, TasksError, FileNotFoundError, PermissionError) as error:
        complain(str(error))
        sys.exit(1)
