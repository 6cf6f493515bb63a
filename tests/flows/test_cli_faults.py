import errno
import io

import pytest
from rich.console import Console
from sqlalchemy.exc import OperationalError

from flows.cli.console import shown, table
from flows.cli.faults import sentence_of
from tasks.errors import FeedError, without_password
from tasks.feed.reading import show_feed, validate_feed


def test_what_the_outside_causes_is_one_sentence(tmp_path):
    for cause, said in (
        (lambda: (tmp_path / "missing" / "x").read_bytes(), "No such file or directory"),
        (lambda: tmp_path.read_bytes(), "Is a directory"),
        (lambda: "\ud800".encode(), "no UTF-8 text"),
        (lambda: b"\xff".decode(), "no UTF-8 text"),
    ):
        with pytest.raises((OSError, UnicodeError)) as caught:
            cause()
        assert said in sentence_of(caught.value)
    full = OSError(errno.ENOSPC, "No space left on device", "/var/x")
    assert sentence_of(full).startswith("/var/x: the disk is full")
    broken = OperationalError("SELECT 1", {}, Exception("file is not a database\nmore"))
    assert "(file is not a database)" in sentence_of(broken)


def test_a_bug_is_no_sentence():
    for bug in (KeyError("x"), ValueError("x"), AssertionError(), OSError("x")):
        assert sentence_of(bug) is None


def test_a_folder_is_no_feed(tmp_path):
    for read in (show_feed, validate_feed):
        with pytest.raises(FeedError, match="is a folder; name a Parquet feed"):
            read(tmp_path)
        with pytest.raises(FeedError, match="is not there"):
            read(tmp_path / "x.parquet")


def test_a_password_is_not_shown():
    assert without_password("postgresql+psycopg://ada:s3:c@host/db") == "postgresql+psycopg://ada:***@host/db"
    assert without_password("sqlite:////var/ledger.db") == "sqlite:////var/ledger.db"


def test_text_from_a_feed_is_no_markup():
    console = Console(width=80, file=io.StringIO())
    console.print(table("[/b] facts", [{"subject": "[/red]Ghana\x1b[31m", "items": 3}]))
    console.print(f"[bold]{shown('[/red]Togo')}[/bold]")
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert all(text in told for text in ("[/b] facts", "[/red]Ghana\\x1b[31m", "[/red]Togo"))
