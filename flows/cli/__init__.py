"""The command line: `errata`. Commands are thin; what they do is in `tasks` and `flows`."""

from __future__ import annotations

import sys

import click


def main() -> None:
    """Run a command. Exit code 0 only on success; an expected error is one sentence on stderr."""
    from editing.errors import EditingError
    from flows.cli.app import app
    from flows.cli.console import complain
    from tasks.errors import TasksError

    try:
        code = app(standalone_mode=False)
    except click.exceptions.Abort:
        complain("stopped")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (EditingError, TasksError, FileNotFoundError, PermissionError) as error:
        complain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        complain("stopped; run the same command again and it goes on where it was")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
