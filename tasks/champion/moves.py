"""Moves of the aliases: in the ledger first, then in MLflow; what a killed move still owes is made good by the next."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from tasks.errors import LedgerError, without_password
from tasks.faults import checkpoint
from tasks.ledger import AliasMove
from tasks.registry import CHALLENGER, CHAMPION, RegistryError
from tasks.workspace import Workspace

ALIASES = (CHAMPION, CHALLENGER)
BY_NIGHT, BY_HAND = "night", "MLflow"  # who moved it, where it was no command
LEASE = timedelta(minutes=15)


def standing(space: Workspace, alias: str = CHAMPION) -> int | None:
    """The version that `alias` names by the ledger; None: none, so that the base serves."""
    record = space.ledger.champion(alias=alias)
    return record.version if record else None


def called(version: int | None) -> str:
    """A version in words."""
    return "the base" if version is None else f"version {version}"


def require_ledger_of_registry(space: Workspace) -> None:
    """Raise `LedgerError` when MLflow has versions with an alias and the ledger knows none of them.

    That is a lost ledger, or settings that name another one; whatever was decided by it would be wrong.
    """
    if space.ledger.versions():
        return
    with space.registry.answering():
        pointed = {alias: found.number for alias in ALIASES if (found := space.registry.aliased(alias))}
    if pointed:
        held = ", ".join(f"{alias} at version {number}" for alias, number in pointed.items())
        raise LedgerError(
            f"MLflow at {without_password(space.settings.tracking_uri)} has {held} of {space.registry.name!r}, and the "
            f"ledger at {without_password(space.settings.ledger)} knows no version; nothing was changed. Set "
            "ledger_url to the ledger of these versions, or put a copy of it back; for a line of versions of its own, "
            "set another registered_model"
        )


@contextmanager
def moving(space: Workspace) -> Iterator[None]:
    """Inside it no other process moves an alias. Raises `LeaseHeldError` when one is at it, and as
    `require_ledger_of_registry` does."""
    require_ledger_of_registry(space)
    with space.ledger.lease("aliases", f"{socket.gethostname()}, process {os.getpid()}", LEASE):
        yield


def record_move(
    space: Workspace, alias: str, to: int | None, *, who: str, why: str, report: str | None = None
) -> AliasMove | None:
    """Write into the ledger that `alias` goes to `to` (None: to nothing); None when it stands there already."""
    stands = standing(space, alias)
    if stands == to:
        return None
    move = AliasMove(
        alias=alias, from_version=stands, to_version=to, who=who, why=why, report=report, at=datetime.now(UTC)
    )
    space.ledger.record_alias_move(move)
    checkpoint("move recorded")
    return move


def adopt_moves_by_hand(space: Workspace) -> None:
    """Take moves that somebody made in MLflow over into the ledger.

    Raises `RegistryError` when an alias points at a version that no night made.
    """
    for alias in ALIASES:
        moved, to = space.registry.moved_by_hand(alias)
        if not moved or to == standing(space, alias):
            continue
        if to is not None and space.ledger.version(to) is None:
            raise RegistryError(
                f"alias {alias!r} was moved in MLflow to version {to}, which no night made; point it at one of "
                f"{[record.version for record in space.ledger.versions()]}"
            )
        record_move(space, alias, to, who=BY_HAND, why="moved by hand in MLflow")


def point_aliases(space: Workspace) -> None:
    """Point MLflow's aliases where the ledger says."""
    for alias in ALIASES:
        space.registry.point(alias, standing(space, alias))
