"""How commands talk: tables and sentences on stdout, bars and complaints on stderr, JSON when asked."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from editing.shown import printable
from tasks.errors import without_password
from tasks.log import WithoutPasswords, log
from tasks.waiting import waiting

WIDTH_OF_FILES = 120  # where output goes to a file or a pipe
out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDTH_OF_FILES)
errors = Console(stderr=True, highlight=False, width=err.width)  # which -q does not silence
SECONDS_BEFORE_A_BAR = 0.5
# The groups of commands in `errata --help`.
PANELS = EVERY_DAY, UNDO, SET_UP, RESEARCH = "Every day", "Undo", "Set up", "Research"


def speak(*, quiet: bool, verbose: bool) -> None:
    """How much goes to stderr beside errors: with `quiet` nothing, with `verbose` the log and errors' tracebacks."""
    err.quiet = quiet
    for logger in (log, waiting):
        for old in [handler for handler in logger.handlers if isinstance(handler, _OnStderr)]:
            logger.removeHandler(old)
    (log if verbose else waiting).addHandler(_OnStderr())


def complain(sentence: str, error: BaseException | None = None, *, heading: str = "error") -> None:
    """An error, in one sentence, on stderr; its traceback goes to the log of those who want to see everything."""
    sentence = without_password(sentence)
    errors.print(f"[red]{heading}:[/red] {shown(sentence)}", soft_wrap=True)
    log.warning("%s: %s", heading, sentence, extra={"shown": True})
    log.debug("its traceback", exc_info=error)


class _OnStderr(logging.Handler):
    """Through the console, so that bars stay whole."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(WithoutPasswords("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "shown", False):
            return
        err.print(f"[dim]{shown(self.format(record))}[/dim]", soft_wrap=True)


def shown(text: object) -> str:
    """Text from a feed or a model inside a line with markup: all of it as it is."""
    return escape(printable(str(text)))


def require_text(prompt: str) -> None:
    """Raise `UnicodeEncodeError` for an argument of bytes that are no text, before anything slow starts."""
    prompt.encode()


def print_json(content: Any) -> None:
    """One JSON value on stdout, for scripts."""
    print(json.dumps(content, ensure_ascii=False, indent=2, default=str))


def table(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | Sequence[str] | None = None
) -> Table:
    """A table of `rows`; shares print as percentages, numbers to the right. `columns` may map names to headings."""
    names = list(columns or (rows[0] if rows else ()))
    headings = columns if isinstance(columns, Mapping) else {}
    made = Table(
        title=Text(printable(title)),
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
    )
    for name in names:
        numeric = all(_is_number(row.get(name)) for row in rows)
        heading = headings.get(name, name.replace("_", " "))
        made.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        made.add_row(*(_cell(row.get(name)) for name in names))
    return made


def _is_number(value: Any) -> bool:
    """Whether a cell is a number, also one that was formatted before."""
    if isinstance(value, str):
        return value.replace(".", "", 1).isdecimal()
    return value is None or isinstance(value, int | float)


def _cell(value: Any) -> Text:
    """A value as it is: nothing in it is markup, and what would steer the terminal is written out."""
    if value is None:
        return Text("-")
    return Text(f"{value:.0%}" if isinstance(value, float) else printable(str(value)))


@contextmanager
def bars() -> Iterator[None]:
    """Show the progress of everything inside that takes longer than `SECONDS_BEFORE_A_BAR`, on a terminal only."""
    from tasks.progress import listening

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        shown: dict[str, TaskID] = {}
        began: dict[str, float] = {}

        def listen(stage: str, done: int, total: int) -> None:
            start = began.setdefault(stage, time.monotonic())
            if done >= total:
                began.pop(stage)
                if stage in shown:
                    progress.remove_task(shown.pop(stage))
            elif stage in shown:
                progress.update(shown[stage], completed=done, total=total)
            elif time.monotonic() - start >= SECONDS_BEFORE_A_BAR:
                shown[stage] = progress.add_task(stage, completed=done, total=total)

        with listening(listen):
            yield
