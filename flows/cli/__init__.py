"""The command line: `errata`. Commands are thin; what they do is in `tasks` and `flows`."""

from __future__ import annotations

import sys

ANYWHERE = ("-q", "--quiet", "-v", "--verbose")  # options of `errata` itself that may also follow a command's name


def main() -> None:
    """Run a command. Exit code 0 only on success; what the outside caused is one sentence on stderr and exit code 1.

    A command that a signal ends says what is kept, with 128 and the signal's number; a bug says where its log is.
    """
    from flows.cli.app import app
    from flows.cli.console import complain
    from flows.cli.faults import Stopped, sentence_of, stopped, stopping, told_of_bug
    from tasks.log import log

    arguments = _ordered(sys.argv[1:])
    code = 1
    try:
        with stopping():
            app(arguments)
    except Stopped as signal:
        complain(stopped(signal, arguments), heading="stopped")
        code = signal.code
    except SystemExit as end:
        log.info("ended with code %s", end.code or 0)
        raise
    except BaseException as error:
        if behind := Stopped.seen_in(error):
            complain(stopped(behind, arguments), heading="stopped")
            code = behind.code
        else:
            complain(sentence_of(error) or told_of_bug(error), error)
    log.info("ended with code %s", code)
    sys.exit(code)


def _ordered(arguments: list[str]) -> list[str]:
    """The arguments with those of `errata` itself in front, wherever they were written before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    first = [argument for argument in arguments[:end] if argument in ANYWHERE]
    return first + [argument for argument in arguments[:end] if argument not in ANYWHERE] + arguments[end:]
