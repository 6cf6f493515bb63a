"""The open workspace of a process: settings, ledger, registry, base model, editor and states, each opened once.

Tasks exchange paths and digests; each takes what it needs from here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from editing.almanac.world import MODEL
from editing.editors import get_editor
from editing.editors.base import EditState, Progress
from editing.errors import ConfigError, StateError
from editing.evals.canaries import CanaryLimits
from editing.evals.lanes import Lanes
from editing.evals.requests import RequestBook
from editing.evals.scorer import Scorer, open_scorer, score_folder
from editing.models import BaseModel, load_base_model
from editing.models.sources import find_source
from editing.statistics import SecondMoments
from editing.storage import read_json
from tasks.errors import without_password
from tasks.ledger import Ledger, VersionRecord, identity_of
from tasks.registry import Registry, RegistryError, Version, is_missing
from tasks.settings import ALMANAC, Settings, SettingsError, deployment, load_settings
from tasks.statistics import open_statistics


class Workspace:
    """Everything a night works with, made of `settings` when first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        for folder in (settings.landing, settings.home / "mlflow"):
            folder.mkdir(parents=True, exist_ok=True)
        self._statistics: dict[tuple[int, ...], SecondMoments] = {}
        self._requests = RequestBook()
        self._served: tuple[tuple[Path, str], EditState] | None = None

    def __reduce__(self) -> Any:
        """In another process it is the workspace that is open there with the same settings."""
        return _open, (self.settings.model_dump_json(),)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, made when missing."""
        return Ledger(self.settings.ledger)

    @cached_property
    def registry(self) -> Registry:
        """The MLflow registry."""
        return self.open_registry(self.settings.cache / "versions")

    def open_registry(self, cache: Path) -> Registry:
        """The MLflow registry with downloads of its own in `cache`."""
        return Registry(
            self.settings.tracking_uri,
            name=self.settings.registered_model,
            artifacts=self.settings.home / "mlflow" / "artifacts",
            cache=cache,
        )

    @cached_property
    def base(self) -> BaseModel:
        """The base model."""
        model = self.settings.model
        return load_base_model(
            self._model_path,
            revision=model.revision,
            dtype=model.dtype,
            device=model.device,
            device_map=model.device_map,
            form=self.settings.prompts.form,
            system=self.settings.prompts.system,
            fingerprints=self.settings.cache / "fingerprints",
        )

    @cached_property
    def lanes(self) -> Lanes:
        """More model objects over the base."""
        return Lanes(self.base)

    @cached_property
    def editor(self) -> Any:
        """The editing method that the settings name."""
        return get_editor(self.settings.editor.method)

    def start(self, progress: Progress | None = None) -> Any:
        """The state before the first batch; computes the statistics it needs when they are missing."""
        return self.editor.start(self.base, self.options, self.moments(progress))

    def moments(self, progress: Progress | None = None) -> SecondMoments | None:
        """The statistics that the method needs to edit; None for a method that needs none."""
        return self.statistics(self.layers, progress) if self.layers else None

    def statistics(self, layers: Sequence[int], progress: Progress | None = None) -> SecondMoments:
        """The base's second moments at `layers`: read once, computed when missing."""
        key = tuple(layers)
        if key not in self._statistics:
            self._statistics[key] = open_statistics(self.settings, self.base, key, progress)
        return self._statistics[key]

    @property
    def options(self) -> dict[str, Any]:
        """The method's options: what fits the base, above it what comes with a local model folder, above all the
        settings'.

        A method that is made of others takes theirs as tables under their names.
        """
        told = self.settings.editor.options
        parts = {part: {**self._given_options(part), **told.get(part, {})} for part in self.editor.parts}
        return {**self._given_options(self.settings.editor.method), **told, **parts}

    def _given_options(self, method: str) -> dict[str, Any]:
        """A method's options that the settings need not name."""
        return {**get_editor(method).defaults(self.base), **self.shipped_options(method)}

    def shipped_options(self, method: str) -> dict[str, Any]:
        """The options of a method that come with a local model folder, as `METHOD.json`."""
        beside = Path(self._model_path) / f"{method}.json"
        return read_json(beside, StateError) if beside.is_file() else {}

    @property
    def canary_limits(self) -> CanaryLimits:
        """What a batch may do to the model."""
        return CanaryLimits(**self.settings.batch_canaries.model_dump())

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose statistics the method needs under the options, possibly none.

        Raises `SettingsError` when the method needs some and the options do not say which.
        """
        try:
            return self.editor.statistics_layers(self.options)
        except ConfigError as error:
            raise SettingsError(f"{error} (under [editor.options], for {self.settings.model.id!r})") from error

    @property
    def _model_path(self) -> str:
        """What the base is loaded from. Raises `ModelError` for a place on disk that is not there."""
        model_id = self.settings.model.id
        if model_id == ALMANAC:
            return str(MODEL)
        find_source(model_id)
        return model_id

    # States

    def state_folder(self, digest: str) -> Path:
        """Where the state with this digest is kept."""
        return self.settings.states / digest

    def keep(self, state: EditState) -> str:
        """Save a state under its digest, whole or not at all; returns the digest."""
        target = self.state_folder(state.digest)
        if not target.exists():
            self.settings.states.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.settings.states, prefix=".part-") as part:
                folder = Path(part) / "state"
                folder.mkdir()
                get_editor(state.method).save(state, folder)
                folder.replace(target)
        return state.digest

    def state(self, digest: str, *, to_edit: bool = False) -> Any:
        """The state with this digest, from the kept ones or else from the registry; verified in either case.

        `to_edit` brings the statistics along. Raises `StateError` when what is found is not that state,
        `RegistryError` when nothing is found.
        """
        return self._find(digest, to_edit)[1]

    def _find(self, digest: str, to_edit: bool = False) -> tuple[Path, Any]:
        """The folder of a state, kept or fetched, and the state as it was read from there.

        A kept one that is damaged is moved aside, into `home/damaged`; any other `StateError`, as for settings that
        name another base, is raised and leaves it where it is.
        """
        folder, aside = self.state_folder(digest), ""
        if folder.exists():
            try:
                return folder, self.load(folder, digest, to_edit=to_edit)
            except StateError:
                if not self._is_damaged(folder, digest):
                    raise
                aside = f"; a damaged copy was moved to {self._move_aside(folder)}"
        version = self.registry.by_digest(digest)
        if version is None:
            raise RegistryError(f"state {digest[:12]} is neither in {self.settings.states} nor in the registry{aside}")
        folder = self.registry.fetch(version)
        return folder, self.load(folder, digest, to_edit=to_edit)

    def _is_damaged(self, folder: Path, digest: str) -> bool:
        """Whether a state that cannot be loaded is not what was written, rather than made for other settings."""
        named = [
            content["base"].get("fingerprint")
            for path in folder.rglob("state.json")
            if isinstance((content := _json_of(path)).get("base"), dict)
        ]
        if any(fingerprint != self.base.fingerprint for fingerprint in named):
            known = [record for record in self.ledger.versions() if record.state_digest == digest]
            return any(record.base_fingerprint == self.base.fingerprint for record in known)
        try:
            self.load(folder, digest)
        except StateError:
            return True
        return False  # it is sound, and what it was to be edited with is not its own

    def _move_aside(self, folder: Path) -> Path:
        place = self.settings.home / "damaged"
        place.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=f"{folder.name[:16]}-", dir=place)) / folder.name
        folder.rename(target)
        return target

    def served(self, folder: Path, digest: str) -> EditState:
        """`load`, which a process that scores one shard after another of a state does once."""
        if self._served is None or self._served[0] != (folder, digest):
            self._served = (folder, digest), self.load(folder, digest)
        return self._served[1]

    def load(self, folder: Path, digest: str, *, to_edit: bool = False) -> Any:
        """The state in `folder`, of whatever method it names. Raises `StateError` unless it has this digest and
        belongs to the base."""
        method = read_json(folder / "state.json", StateError).get("method", self.settings.editor.method)
        state = get_editor(method).load(folder, self.base, self.moments() if to_edit else None)
        if state.digest != digest:
            raise StateError(f"{folder} holds state {state.digest[:12]}, not {digest[:12]}; restore it from a backup")
        return state

    def require_options(self, state: Any) -> None:
        """Raise `SettingsError` when method or options in force are not those that `state` was made with."""
        if state.method != self.editor.method:
            raise SettingsError(
                f"editor.method is {self.editor.method!r}, the champion was edited with {state.method!r}; set it back, "
                "or begin another line of versions with a new home"
            )
        if changed := _changed(self.options, state.config.to_dict()):
            name, now, before = changed[0]
            raise SettingsError(
                f"editor option {name} is {now!r}, the champion was edited with {before!r}; set it back, or begin "
                "another line of versions with a new home"
            )

    def tidy(self, kept: Collection[str | None]) -> None:
        """Remove every kept state except these; registered ones can be fetched again.

        What is remembered of the scores of the others goes with them: they were steps and trials of a night.
        """
        registered = {record.state_digest for record in self.ledger.versions()}
        for folder in self.settings.states.glob("*"):
            if folder.name in kept:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            if folder.name not in registered:
                shutil.rmtree(score_folder(self._scores, folder.name), ignore_errors=True)

    @property
    def _scores(self) -> Path:
        """Where what models answered is remembered."""
        return self.settings.cache / "scores"

    # Versions

    @property
    def champion(self) -> VersionRecord | None:
        """The version that serves now, by the ledger; None: the base."""
        return self.ledger.champion()

    def version_named(self, reference: str | int) -> Version:
        """The version with an alias or number. Raises `RegistryError` when there is none."""
        return self.registry.get(reference)

    def night_folder(self, night: str) -> Path:
        """Where a night's plan, reports and summary are; made when missing."""
        folder = self.settings.nights / night
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def scorer(self, digest: str | None, progress: Progress | None = None) -> AbstractContextManager[Scorer]:
        """A scorer of the state with this digest (None: the base), attached inside the `with`."""
        folder, state = (None, None) if digest is None else self._find(digest)
        return self.scorer_of(state, folder, cache=self._scores, progress=progress)

    @contextmanager
    def scorer_of(
        self, state: EditState | None, folder: Path | None, *, cache: Path | None, progress: Progress | None = None
    ) -> Iterator[Scorer]:
        """A scorer of a state that was loaded from `folder` (both None: the base), which remembers in `cache`.

        What is shared out goes to one task runner, held open as long as the scorer.
        """
        with ExitStack() as stack:
            shards = None
            if self.settings.evaluation.shards > 1:
                from tasks.shards import PrefectShards  # a single shard does without Prefect

                shards = stack.enter_context(PrefectShards(self, state, folder))
            yield stack.enter_context(
                open_scorer(
                    self.base,
                    state,
                    batch_size=self.settings.evaluation.batch_size,
                    cache=cache,
                    book=self._requests,
                    lanes=self.lanes,
                    shards=shards,
                    progress=progress,
                )
            )


def _json_of(path: Path) -> dict[str, Any]:
    """A JSON file's content; empty when it cannot be read."""
    try:
        return dict(read_json(path, StateError))
    except StateError:
        return {}


def _changed(now: Mapping[str, Any], before: Mapping[str, Any], within: str = "") -> list[tuple[str, Any, Any]]:
    """Options that differ, sorted, with their values; those in tables by their dotted names."""
    found: list[tuple[str, Any, Any]] = []
    for name, value in sorted(now.items()):
        was = before.get(name)
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            found += _changed(value, was, f"{within}{name}.")
        elif value != was:
            found.append((within + name, value, was))
    return found


_changes: ContextVar[dict[str, Any] | None] = ContextVar("changes of settings", default=None)


@contextmanager
def changed_settings(**sections: Any) -> Iterator[None]:
    """Inside it `open_workspace` takes these sections of the settings in place of those of file and environment."""
    token = _changes.set({**(_changes.get() or {}), **sections})
    try:
        yield
    finally:
        _changes.reset(token)


@contextmanager
def method_in_force(method: str | None) -> Iterator[None]:
    """Inside it the workspace edits with `method` (None: as before).

    Options in the settings are those of the method that the settings name, and count for it alone.
    """
    if method is None or method == _settings_in_force().editor.method:
        yield
        return
    editor = load_settings().editor
    if method != editor.method:
        editor = editor.model_copy(update={"method": method, "options": {}})
    with changed_settings(editor=editor.model_dump()):
        yield


@contextmanager
def options_in_force(options: Mapping[str, Any]) -> Iterator[None]:
    """Inside it the workspace's method has these options beside those in force."""
    editor = _settings_in_force().editor
    changed = editor.model_copy(update={"options": {**editor.options, **options}})
    with changed_settings(editor=changed.model_dump()):
        yield


def _settings_in_force() -> Settings:
    return load_settings(**(_changes.get() or {}))


def open_workspace() -> Workspace:
    """The workspace of the settings in force, opened once per process for as long as they stay the same."""
    return _open(_settings_in_force().model_dump_json())


@lru_cache(maxsize=1)
def _open(settings: str) -> Workspace:
    space = Workspace(Settings.restored(json.loads(settings)))
    if given := deployment():
        _require_stores(space, given["ledger"], given["registry"])
    return space


def _require_stores(space: Workspace, ledger: str, registry: str) -> None:
    """Raise `SettingsError` unless ledger and registry have these ids; none is made here.

    The same URL can be another database: a path on another machine, a name that another network resolves otherwise.
    """
    settings = space.settings
    for what, url, find, wanted in (
        ("ledger", settings.ledger, lambda: identity_of(settings.ledger), ledger),
        ("registry", settings.tracking_uri, lambda: _registry_identity(space), registry),
    ):
        if (found := find()) != wanted:
            why = "there is none here" if found is None else "it is another one"
            raise SettingsError(
                f"the {what} at {without_password(url)} is not the one that this run was deployed with ({why}), so "
                f"nothing was begun; start the worker where that {what} can be reached, or run `errata deploy` again"
            )


def _registry_identity(space: Workspace) -> str | None:
    if is_missing(space.settings.tracking_uri):
        return None
    with space.registry.answering():
        return space.registry.found_identity()
