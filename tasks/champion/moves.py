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
from tasks.registry import CHALLENGER, CHAMPION, RegistryError, is_missing
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
    """Raise unless ledger and registry know of each other's versions; one of them would be lost, or of another line.

    `LedgerError` when an alias of MLflow's is at a version that the ledger does not know, and nobody moved it there by
    hand; `RegistryError` when MLflow has none of the ledger's versions.
    """
    known = {record.version for record in space.ledger.versions()}
    store, ledger = (without_password(url) for url in (space.settings.tracking_uri, space.settings.ledger))
    missing = is_missing(space.settings.tracking_uri)
    if missing and not known:
        return
    pointed: dict[str, int] = {}
    if not missing:
        with space.registry.answering():
            pointed = {alias: found.number for alias in ALIASES if (found := space.registry.aliased(alias))}
            missing = bool(known) and not pointed and not space.registry.versions()
    if missing:
        raise RegistryError(
            f"MLflow at {store} has no version of {space.registry.name!r}, and the ledger at {ledger} knows "
            f"{len(known)}; nothing was changed. MLflow's database was lost, or the settings name another: put a copy "
            "of it back, or set mlflow_tracking_uri and registered_model to those of these versions; without a copy, "
            "begin another line of versions with a new home"
        )
    strange = {alias: number for alias, number in pointed.items() if number not in known}
    if known:
        strange = {alias: number for alias, number in strange.items() if not space.registry.moved_by_hand(alias)[0]}
    if strange:
        held = ", ".join(f"{alias} at version {number}" for alias, number in strange.items())
        knows = f"knows {len(known)} others alone" if known else "knows no version"
        way = "or move it aside and run `errata ledger rebuild`" if known else "or run `errata ledger rebuild`"
        raise LedgerError(
            f"MLflow at {store} has {held} of {space.registry.name!r}, and the ledger at {ledger} {knows}; nothing was "
            f"changed. Set ledger_url to the ledger of these versions, or put a newer copy of it back, {way}, which "
            "makes it again as far as MLflow tells; for a line of versions of its own, set another registered_model"
        )


def require_known_champion(space: Workspace) -> None:
    """`require_ledger_of_registry` for who only reads: where the ledger knows of versions, MLflow is not asked."""
    if not space.ledger.versions():
        require_ledger_of_registry(space)


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
