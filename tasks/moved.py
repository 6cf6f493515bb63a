"""A home that was moved to another folder, with the embedded MLflow store in it: the store's paths follow."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tasks.errors import TasksError

SQLITE = "sqlite:///"
# Where MLflow's tables keep places of artifacts.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


class StoreError(TasksError, RuntimeError):
    """The embedded MLflow store cannot be read or written."""


def follow(tracking_uri: str, experiment: str, artifacts: Path) -> None:
    """Make the store name `artifacts`, where its files are now, wherever it names the folder they were in before.

    Only for a store that lies beside its artifacts, so that both were moved together. All of it or nothing. Raises
    `StoreError` for a store that is damaged, locked or on a full disk.
    """
    database = Path(tracking_uri.removeprefix(SQLITE))
    if not tracking_uri.startswith(SQLITE) or database.parent != artifacts.parent or not database.is_file():
        return
    try:
        _follow(database, experiment, artifacts)
    except sqlite3.Error as error:
        raise StoreError(
            f"MLflow's store {database} does not work ({error}); see that its disk has space, or put back a copy of it"
        ) from error


def _follow(database: Path, experiment: str, artifacts: Path) -> None:
    with closing(sqlite3.connect(database, timeout=60)) as store, store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:
            return
        found = store.execute("SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)).fetchone()
        before, now = ((found and found[0]) or "").rstrip("/"), str(artifacts)
        if before in ("", now) or Path(before).parts[-2:] != artifacts.parts[-2:]:
            return
        for table, column in _COLUMNS:
            if table in tables:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
                )
