"""The command line: `errata`. Commands are thin; what they do is in `tasks` and `flows`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command. Exit code 0 only on success; an expected error is one sentence on stderr."""
    from flows.cli.app import app
    from flows.cli.console import complain
    from flows.cli.faults import sentence_of

    try:
        app()
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        complain(sentence)
        sys.exit(1)
