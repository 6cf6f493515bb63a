"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST_NAME = 255  # bytes, on every file system in common use


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def scratch_of(path: Path) -> Path:
    """Where `path` is written before it is whole; feed readers pass over names with a leading dot.

    A name that is too long for more characters is put by its hash.
    """
    name = f".{path.name}.part"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.part"
    return path.with_name(name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch path that takes the place of `path`, on disk for good, or vanishes after an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_of(path)
    try:
        yield scratch
        with scratch.open("rb") as stream:
            os.fsync(stream.fileno())
        scratch.replace(path)
        _sync_folder(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
