"""Which version is meant: by number or alias, as the champion of a moment, or as the one before the present one."""

from __future__ import annotations

from datetime import UTC, datetime

from tasks.champion.moves import BY_NIGHT, require_known_champion, require_ledger_of_registry
from tasks.errors import TasksError
from tasks.ledger import AliasMove, VersionRecord
from tasks.registry import CHAMPION, RegistryError
from tasks.workspace import Workspace

BASE = "base"


class ChoiceError(TasksError, ValueError):
    """No version is meant, or none that could serve."""


def champion_as_of(space: Workspace, moment: datetime) -> VersionRecord | None:
    """The champion of a moment, by the ledger; None: the base.

    A promotion counts from the time up to which its night took facts, so that a replayed history
    answers by its own dates; a move by a person or the canary counts from when it was made.
    """
    nights = {record.version: record.night for record in space.ledger.versions()}

    def since(move: AliasMove) -> datetime:
        if move.who == BY_NIGHT and move.to_version is not None:
            return min(move.at, nights[move.to_version])
        return move.at

    made = [move for move in space.ledger.alias_moves(CHAMPION) if since(move) <= moment]
    number = made[-1].to_version if made else None
    return None if number is None else space.ledger.version(number)


def digest_of(space: Workspace, version: str | int = CHAMPION, as_of: datetime | None = None) -> str | None:
    """The digest of the state that is meant; None for the base.

    `version` is an alias, a number or `base`; with `as_of` it is the champion of that moment. Raises
    `RegistryError` when there is no such version, and as `require_ledger_of_registry` does.
    """
    if version == BASE and as_of is None:
        return None
    require_known_champion(space)
    if as_of is not None:
        record = champion_as_of(space, as_of)
        return record.state_digest if record else None
    if version == CHAMPION and space.champion is None:
        return None
    try:
        return space.registry.get(version).digest
    except RegistryError:
        require_ledger_of_registry(space)
        raise


def made_version(space: Workspace, version: str | int) -> int | None:
    """The number of a version that a night made, or None for `base`. Raises `ChoiceError` otherwise.

    A number is answered with numbers: who may name the base gives its name.
    """
    if version == BASE:
        return None
    if not str(version).isdecimal() or space.ledger.version(int(version)) is None:
        made = ", ".join(str(record.version) for record in space.ledger.versions()) or "none yet"
        base = "" if isinstance(version, int) else "'base' or "
        raise ChoiceError(f"no night made version {version!r}; give {base}one of: {made}")
    return int(version)


def as_utc(moment: datetime | None) -> datetime | None:
    """A moment of the command line: UTC where it names no zone."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
