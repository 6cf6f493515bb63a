import errno
import io
import signal

import pytest
from mlflow.exceptions import MlflowException
from prefect.exceptions import TerminationSignal
from rich.console import Console
from sqlalchemy.exc import OperationalError

from flows.cli.console import shown, table
from flows.cli.faults import Stopped, sentence_of, stopped, stopping, told_of_bug
from tasks.errors import FeedError, without_password
from tasks.feed.reading import show_feed, validate_feed
from tasks.log import open_log


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


def test_a_full_disk_is_told_whoever_meets_it():
    for cause in (
        OperationalError("INSERT", {}, Exception("database or disk is full")),
        MlflowException("(sqlite3.OperationalError) database or disk is full"),
        FeedError("[Errno 28] No space left on device"),
    ):
        assert "free some space (what was committed is kept" in sentence_of(cause)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_says_what_is_kept(number, code):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as ended, stopping():
        signal.raise_signal(number)
    assert ended.value.code == code
    assert signal.getsignal(number) is before  # a second one ends the process
    assert stopped(ended.value, ["-q", "night"]) == (
        f"by {number.name}; what was committed is kept; run the same command again to go on"
    )
    assert "nothing was changed" in stopped(ended.value, ["ask", "the night is"])


def test_a_signal_in_a_flow_is_seen_behind_what_prefect_makes_of_it():
    assert Stopped.seen_in(TerminationSignal(signal.SIGTERM)).code == 143
    assert Stopped.seen_in(KeyError("x")) is None


def test_a_bug_says_where_its_log_is(tmp_path):
    open_log(tmp_path)
    try:
        raise KeyError("postgresql://ada:secret@host/db")
    except KeyError as error:
        sentence = told_of_bug(error)
    log_file = tmp_path / "logs" / "errata.log"
    assert str(log_file) in sentence
    assert "KeyError" in log_file.read_text()
    assert "secret" not in log_file.read_text()


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
    assert without_password("see http://ada:p@ss@host/x now") == "see http://ada:***@host/x now"
    assert (
        without_password("postgresql://host/db?user=a&password=b&x=1") == "postgresql://host/db?user=a&password=***&x=1"
    )
    assert without_password("sqlite:////var/ledger.db") == "sqlite:////var/ledger.db"


def test_text_from_a_feed_is_no_markup():
    console = Console(width=80, file=io.StringIO())
    console.print(table("[/b] facts", [{"subject": "[/red]Ghana\x1b[31m", "items": 3}]))
    console.print(f"[bold]{shown('[/red]Togo')}[/bold]")
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert all(text in told for text in ("[/b] facts", "[/red]Ghana\\x1b[31m", "[/red]Togo"))
