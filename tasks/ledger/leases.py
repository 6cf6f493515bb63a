"""One holder at a time, kept as appended rows: the last row of a name says who holds it, and until when."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select
from sqlalchemy.exc import IntegrityError

from tasks.errors import LeaseHeldError
from tasks.ledger import tables


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that this process holds; `renew` before it expires."""

    name: str
    owner: str
    token: str
    duration: timedelta
    _engine: Engine

    def renew(self) -> None:
        """Hold for another `duration` from now. Raises `LeaseHeldError` when it was lost to another."""
        self._append(self.duration)

    def release(self) -> None:
        """Let others take it; a lease that was lost stays with its new holder."""
        try:
            self._append(timedelta(0))
        except LeaseHeldError:
            return

    def _append(self, duration: timedelta) -> None:
        with self._engine.begin() as connection:
            last = _last(connection, self.name)
            if last is None or last.token != self.token:
                raise _held(self.name, last)
            _write(connection, self, last.position + 1, duration)


def _last(connection: Connection, name: str) -> Row[Any] | None:
    query = select(tables.leases).where(tables.leases.c.name == name).order_by(tables.leases.c.position.desc()).limit(1)
    return connection.execute(query).one_or_none()


def _write(connection: Connection, lease: Lease, position: int, duration: timedelta) -> None:
    now = datetime.now(UTC)
    row = {
        "name": lease.name,
        "position": position,
        "token": lease.token,
        "owner": lease.owner,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "at": now,
        "expires_at": now + duration,
    }
    connection.execute(insert(tables.leases), [row])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _free(last: Row[Any] | None) -> bool:
    if last is None or last.expires_at <= datetime.now(UTC):
        return True
    return last.host == socket.gethostname() and not _alive(last.pid)


def _held(name: str, last: Row[Any] | None) -> LeaseHeldError:
    if last is None:
        return LeaseHeldError(f"the lease {name!r} was taken by another process at this moment; try again later")
    return LeaseHeldError(
        f"the lease {name!r} is held by {last.owner} (process {last.pid} on {last.host}) "
        f"until {last.expires_at:%Y-%m-%d %H:%M:%S} UTC; wait for it, or end that process"
    )


@contextmanager
def hold_lease(engine: Engine, name: str, owner: str, duration: timedelta) -> Iterator[Lease]:
    """Take the lease, release it with the block. The unique position decides between two that race."""
    lease = Lease(name, owner, uuid.uuid4().hex, duration, engine)
    try:
        with engine.begin() as connection:
            last = _last(connection, name)
            if not _free(last):
                raise _held(name, last)
            _write(connection, lease, 1 if last is None else last.position + 1, duration)
    except IntegrityError as error:
        raise _held(name, None) from error
    try:
        yield lease
    finally:
        lease.release()
