import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, StatementError

from tasks.errors import LeaseHeldError, LedgerError
from tasks.ledger import AliasMove, BatchCommit, Event, EventKind, Ledger, RunPhase, RunRecord, VersionRecord
from tasks.ledger.tables import metadata

DAY = datetime(2019, 7, 24, tzinfo=UTC)


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/deep/ledger.db"


def version(number: int, digest: str, parent: str | None = None) -> VersionRecord:
    return VersionRecord(
        version=number,
        state_digest=digest,
        parent_digest=parent,
        base_fingerprint="base",
        method="coachhook",
        verdict="promote",
        night=DAY,
        run_id="run",
        at=DAY,
    )


def batch(digest: str) -> BatchCommit:
    return BatchCommit(
        night="n", position=0, batch_id="b", parent_digest=None, state_digest=digest, path="p", run_id="r", at=DAY
    )


def test_rows_come_back_as_they_went_in_also_from_another_process(tmp_path: Path) -> None:
    run = RunRecord(run_id="r", kind="night", phase=RunPhase.STARTED, as_of=DAY, detail={"n": 1}, at=DAY)
    with Ledger(url(tmp_path)) as ledger:
        ledger.record_run(run)
        ledger.record_version(version(1, "a"))
    with Ledger(url(tmp_path)) as ledger:
        assert ledger.runs("night") == [run]
        assert ledger.versions() == [version(1, "a")]
        assert ledger.version_of_state("a") == version(1, "a")


def test_a_run_and_what_it_decided_are_recorded_together_or_not_at_all(tmp_path: Path) -> None:
    run = RunRecord(run_id="r", kind="night", phase=RunPhase.FINISHED, at=DAY)
    torn = RunRecord(run_id="t", kind="night", phase=RunPhase.FINISHED, detail={"no": object()}, at=DAY)
    event = Event(fact_id="f", kind=EventKind.QUARANTINED, at=DAY, run_id="r", detail={"why": "it fails"})
    with Ledger(url(tmp_path)) as ledger:
        with pytest.raises(StatementError):
            ledger.record_run(torn, [event])
        ledger.record_run(run, [event])
        assert ledger.runs("night") == [run]
    with create_engine(url(tmp_path)).begin() as connection:
        assert connection.execute(text("SELECT fact_id, run_id FROM events")).all() == [("f", "r")]


def test_nothing_is_ever_changed_or_deleted(tmp_path: Path) -> None:
    with Ledger(url(tmp_path)) as ledger:
        ledger.record_version(version(1, "a"))
    engine = create_engine(url(tmp_path))
    for statement in ("UPDATE versions SET verdict = 'reject'", "DELETE FROM versions"):
        with pytest.raises(IntegrityError, match="append-only"), engine.begin() as connection:
            connection.execute(text(statement))
    with engine.begin() as connection:
        triggers = connection.scalar(text("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'"))
    assert triggers == 2 * len(metadata.tables)


def test_recording_twice_changes_nothing_and_contradictions_are_refused(tmp_path: Path) -> None:
    with Ledger(url(tmp_path)) as ledger:
        assert ledger.record_version(version(1, "a"))
        assert not ledger.record_version(version(1, "a"))
        with pytest.raises(LedgerError, match="version 1 is state a"):
            ledger.record_version(version(1, "b"))
        with pytest.raises(LedgerError, match="record the parent first"):
            ledger.record_version(version(2, "b", "unknown"))
        assert ledger.record_commit(batch("s"))
        assert not ledger.record_commit(batch("s"))
        with pytest.raises(LedgerError, match="not reproducible"):
            ledger.record_commit(batch("t"))
        assert ledger.commits("n") == [batch("s")]


def test_an_alias_moves_only_from_where_it_stands_to_what_exists(tmp_path: Path) -> None:
    def move(start: int | None, to: int) -> AliasMove:
        return AliasMove(alias="champion", from_version=start, to_version=to, who="me", why="better", at=DAY)

    with Ledger(url(tmp_path)) as ledger:
        ledger.record_version(version(1, "a"))
        with pytest.raises(LedgerError, match="no such version"):
            ledger.record_alias_move(move(None, 7))
        ledger.record_alias_move(move(None, 1))
        with pytest.raises(LedgerError, match="stands at 1"):
            ledger.record_alias_move(move(None, 1))
        assert ledger.champion() == version(1, "a")
        assert ledger.previous_champion() is None


def test_a_ledger_of_another_format_or_in_memory_is_refused(tmp_path: Path) -> None:
    for bad, said in (
        ("sqlite://", "names no file"),
        ("ledger.db", "write sqlite:///PATH"),
        ("oracle+none://x", r"errata\[postgresql\]"),
    ):
        with pytest.raises(LedgerError, match=said):
            Ledger(bad)
    Ledger(url(tmp_path)).close()
    with create_engine(url(tmp_path)).begin() as connection:
        connection.execute(text("INSERT INTO formats VALUES (99)"))
    with pytest.raises(LedgerError, match="format 99"):
        Ledger(url(tmp_path))


def test_readers_do_not_wait_for_an_intake_and_see_none_of_it(tmp_path: Path) -> None:
    with Ledger(url(tmp_path)) as ledger, ledger.intake(), Ledger(url(tmp_path)) as reader:
        assert reader.files() == []


def test_only_one_of_many_threads_gets_a_lease(tmp_path: Path) -> None:
    took: list[bool] = []
    done, tried = threading.Event(), threading.Barrier(5)

    def take(ledger: Ledger) -> None:
        try:
            with ledger.lease("night", "thread"):
                took.append(True)
                tried.wait(30)
                done.wait(30)
        except LeaseHeldError:
            took.append(False)
            tried.wait(30)

    with Ledger(url(tmp_path)) as ledger:
        threads = [threading.Thread(target=take, args=(ledger,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        tried.wait(30)
        done.set()
        for thread in threads:
            thread.join()
        assert sorted(took) == [False, False, False, True]
        with ledger.lease("night", "after") as lease:
            lease.renew()


def test_a_lease_ends_at_its_expiry_and_its_old_holder_cannot_renew(tmp_path: Path) -> None:
    with (
        Ledger(url(tmp_path)) as ledger,
        ledger.lease("night", "slow", timedelta(0)) as slow,
        ledger.lease("night", "next"),
        pytest.raises(LeaseHeldError, match="held by next"),
    ):
        slow.renew()


def test_a_lease_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    holder = (
        "import os, signal, sys; from tasks.ledger import Ledger\n"
        "with Ledger(sys.argv[1]).lease('night', 'killed'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", holder, url(tmp_path)], check=False, env=dict(os.environ))
    with Ledger(url(tmp_path)) as ledger, ledger.lease("night", "next"):
        assert ledger.files() == []
