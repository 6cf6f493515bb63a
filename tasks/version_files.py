"""The files of versions in MLflow's artifact store, where a file that two versions have is kept once.

A version's folder has a list, `files.json`: each of its files by name, with size, SHA-256 and the run
whose folder has it. What the parent version has already is not written again. In a store on this
machine it becomes a hard link, and the folder stays whole whatever happens to other versions; in any
other store it stays where the run that wrote it put it, that run is marked (`KEEP_TAG`), and whoever
fetches the version gathers it from there. What is fetched is checked against the list, every byte of every file, and
the list against its own SHA-256, which the version's tag `LIST_TAG` has.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from editing.errors import StateError
from editing.storage import link_file, read_json, replace_file, write_json
from tasks.feed.files import file_digest

STATE_FOLDER = "state"
LIST = "files.json"
LIST_TAG = "errata.files"
KEEP_TAG = "errata.keep"
KEEP = "later versions take files from this run: delete it only together with them"
_RESTORE = "restore it there, or run the night again that made this version"


@dataclass(frozen=True, slots=True)
class Held:
    """A file of a version: its size in bytes, its SHA-256, and the run whose folder has it."""

    bytes: int
    sha256: str
    run: str


class VersionFiles:
    """Puts folders of files into runs and gets them back; `tracking_uri` is the client's."""

    def __init__(self, client: MlflowClient, tracking_uri: str) -> None:
        self._client = client
        self._tracking_uri = tracking_uri

    def put(self, run_id: str, folder: Path, *, parent_run: str | None = None) -> str:
        """Make the files of `folder` those of the run's version, in place of any that are there; the list's SHA-256.

        Those that the version of `parent_run` has too are shared with it. The list is written last.
        """
        held = {name: Held(path.stat().st_size, file_digest(path), run_id) for name, path in _files(folder).items()}
        parents = self._listed(parent_run) if parent_run and parent_run != run_id else {}
        for name, mine in held.items():
            known = parents.get(name)
            if known and replace(known, run=run_id) == mine and (shared := self._shared(name, known, run_id)):
                held[name] = shared
            else:
                self._client.log_artifact(run_id, str(folder / name), str(PurePosixPath(STATE_FOLDER, name).parent))
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / LIST
            write_json(path, {name: asdict(entry) for name, entry in held.items()})
            self._client.log_artifact(run_id, str(path), STATE_FOLDER)
            return file_digest(path)

    def get(self, source: str, into: Path, listed: str | None = None) -> Path:
        """The version whose folder is at the URI `source`, whole, in a folder under `into`.

        `listed` is the SHA-256 of its list (None: a version of before it was kept). On this machine its files are
        links. Raises `OSError` or `MlflowException` for what is not there, `StateError` for a list or a file that is
        not what was written.
        """
        if (place := _on_this_machine(source)) is None:
            folder = Path(download_artifacts(source, dst_path=str(into), tracking_uri=self._tracking_uri))
        else:
            folder = into / STATE_FOLDER
            folder.mkdir()
            for name, path in _files(place).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                link_file(path, folder / name)
        if listed is not None and file_digest(folder / LIST) != listed:
            raise StateError(f"{LIST} was altered after it was written; {_RESTORE}")
        if (folder / LIST).is_file():
            entries = _read_list(folder / LIST)
            (folder / LIST).unlink()
            for name, held in entries.items():
                if not (folder / name).exists():
                    self._gather(name, held, folder / name)
                if file_digest(folder / name) != held.sha256:
                    raise StateError(f"{name} was altered after it was written; {_RESTORE}")
            if strange := sorted(_files(folder).keys() - entries.keys()):
                raise StateError(f"{strange[0]} was added after the version was written; take it away")
        return folder

    def _listed(self, run_id: str) -> Mapping[str, Held]:
        """The list of a run's version; empty where there is none."""
        try:
            with tempfile.TemporaryDirectory() as scratch:
                return _read_list(Path(self._client.download_artifacts(run_id, f"{STATE_FOLDER}/{LIST}", scratch)))
        except (MlflowException, OSError, StateError):
            return {}

    def _shared(self, name: str, known: Held, run_id: str) -> Held | None:
        """A file of the parent's as this run's: linked into its folder, or else where it is; None when it is gone."""
        theirs, mine = (self._folder(run) for run in (known.run, run_id))
        if theirs is None or mine is None:
            self._client.set_tag(known.run, KEEP_TAG, KEEP)
            return known
        source, target = theirs / name, mine / name
        if not source.is_file() or source.stat().st_size != known.bytes:
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, lambda beside: link_file(source, beside))
        return replace(known, run=run_id)

    def _gather(self, name: str, held: Held, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as scratch:
            found = self._client.download_artifacts(held.run, f"{STATE_FOLDER}/{name}", scratch)
            if file_digest(Path(found)) != held.sha256:
                raise StateError(
                    f"{name}, which is kept in run {held.run}, was altered after it was written; {_RESTORE}"
                )
            shutil.move(found, target)

    def _folder(self, run_id: str) -> Path | None:
        """Where the files of a run's version are on this machine, if they are."""
        root = _on_this_machine(self._client.get_run(run_id).info.artifact_uri)
        return root and root / STATE_FOLDER


def _on_this_machine(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _files(folder: Path) -> dict[str, Path]:
    """The files below `folder` by their relative names, sorted. Raises `FileNotFoundError` without the folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing")
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))


def _read_list(path: Path) -> dict[str, Held]:
    try:
        return {name: Held(**entry) for name, entry in read_json(path, StateError).items()}
    except TypeError as error:
        raise StateError(f"{path} garbles {error}; register the version again") from error
