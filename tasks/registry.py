"""The registry: one MLflow run per night, and versions that are plain files under the aliases champion and challenger.

MLflow aliases keep no history: every move is written to the ledger first, by whoever moves them.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy import make_url

from tasks.errors import TasksError, without_password
from tasks.moved import follow
from tasks.settings import MLFLOW_PORT
from tasks.version_files import LIST_TAG, STATE_FOLDER, VersionFiles
from tasks.waiting import Patient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHAMPION = "champion"
CHALLENGER = "challenger"
NIGHT_TAG = "errata.night"
DIGEST_TAG = "errata.state_digest"
POINTED_TAG = "errata.pointed"
TABLES = "tables"
IDENTITY_TAG = "errata.registry"
TABLES_TAG = "mlflow.loggedArtifacts"
PARAM_LIMIT = 6000
_USER = re.compile(r"(?<=://)[^/]*@")
PARAMS_A_CALL = 100


class RegistryError(TasksError, RuntimeError):
    """A version or alias does not exist, or what the registry gives back is not what was put in."""


class RegistryUnreachableError(RegistryError):
    """MLflow or its artifact store does not answer, which says nothing about any version."""


class ArtifactMissingError(RegistryError):
    """The registry answers, and the files of a version are not there."""


@dataclass(frozen=True, slots=True)
class Version:
    """A registered state: its number, content digest, tags, the MLflow run of the night that made it, and when."""

    number: int
    digest: str
    run_id: str
    tags: Mapping[str, str]
    made: datetime


class Registry:
    """Runs and versions of one registered model. Every method may be called again after a crash with the same effect.

    `tracking_uri` is any MLflow tracking URI; `artifacts` is where an embedded (SQLite) store keeps its files,
    and is left to the server otherwise; a store that was moved with them finds them again. `cache` receives
    downloaded versions.
    """

    def __init__(self, tracking_uri: str, *, name: str, artifacts: Path, cache: Path) -> None:
        self.name = name
        self._cache = cache
        follow(tracking_uri, name, artifacts)
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        self._client = cast(MlflowClient, Patient(client, f"MLflow at {without_password(tracking_uri)}"))
        self._tracking_uri = tracking_uri
        self._files = VersionFiles(self._client, tracking_uri)
        self._artifacts = str(artifacts) if tracking_uri.startswith("sqlite:") else None

    @contextmanager
    def night_run(self, night: str, *, title: str, tag: str = NIGHT_TAG) -> Iterator[NightRun]:
        """The MLflow run of `night`: the one an earlier attempt left, else a new one; FAILED when the body raises.

        `tag` tells runs apart that are of something else than a night.
        """
        experiment = self._experiment()
        mine = f"tags.`{tag}` = '{night}'"
        found = self._client.search_runs([experiment], mine, max_results=1)
        run = found[0] if found else self._client.create_run(experiment, run_name=title, tags={tag: night})
        self._client.update_run(run.info.run_id, status="RUNNING")
        try:
            yield NightRun(self._client, run)
        except BaseException:
            self._client.set_terminated(run.info.run_id, "FAILED")
            raise
        self._client.set_terminated(run.info.run_id, "FINISHED")

    def register(
        self, run_id: str, folder: Path, *, digest: str, tags: Mapping[str, str], parent: str | None = None
    ) -> Version:
        """Register the files of `folder` as a version; the version of `digest` that exists already, if one does.

        Files that the version of the state `parent` (a digest) has as well are shared with it.
        """
        if existing := self.by_digest(digest):
            return existing
        self._make()
        before = self.by_digest(parent) if parent else None
        listed = self._files.put(run_id, folder, parent_run=before.run_id if before else None)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{STATE_FOLDER}"
        told = {**tags, DIGEST_TAG: digest, LIST_TAG: listed}
        made = self._client.create_model_version(self.name, source, run_id=run_id, tags=told)
        return _version(made)

    def identity(self) -> str:
        """An id that is this registered model's own, made with it when first asked for."""
        self._make()
        if (found := self.found_identity()) is None:
            self._client.set_registered_model_tag(self.name, IDENTITY_TAG, found := uuid4().hex)
        return found

    def found_identity(self) -> str | None:
        """The id; None where there is no such registered model, or one without."""
        try:
            return self._client.get_registered_model(self.name).tags.get(IDENTITY_TAG)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _make(self) -> None:
        """The registered model, where it is missing."""
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def restore(self, version: Version, folder: Path) -> None:
        """Put all files of a version where its run keeps them, in place of those that are there."""
        self.tag(version.number, {LIST_TAG: self._files.put(version.run_id, folder)})

    def by_digest(self, digest: str) -> Version | None:
        """The version whose state has this digest."""
        found = self._client.search_model_versions(f"name = '{self.name}' and tags.`{DIGEST_TAG}` = '{digest}'")
        return _version(min(found, key=lambda version: int(version.version))) if found else None

    def get(self, reference: str | int) -> Version:
        """The version with this number or alias. Raises `RegistryError` when there is none."""
        try:
            if str(reference).isdecimal():
                return _version(self._client.get_model_version(self.name, str(reference)))
            return _version(self._client.get_model_version_by_alias(self.name, str(reference)))
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            known = ", ".join(str(version.number) for version in self.versions()) or "none yet"
            raise RegistryError(f"no version {reference!r} of {self.name!r}; versions: {known}") from error

    def aliased(self, alias: str) -> Version | None:
        """The version that holds `alias`, or None."""
        try:
            return self.get(alias)
        except RegistryError:
            return None

    def versions(self) -> list[Version]:
        """Every version, oldest first."""
        found = self._client.search_model_versions(f"name = '{self.name}'")
        return sorted(map(_version, found), key=lambda version: version.number)

    def point(self, alias: str, version: int | None) -> None:
        """Point `alias` at `version`, or take it away, and remember that it was done here."""
        now = self._number(alias)
        if now != version:
            if version is None:
                self._client.delete_registered_model_alias(self.name, alias)
            else:
                self._client.set_registered_model_alias(self.name, alias, str(version))
        if self._remembered(alias) != version:
            self._client.set_registered_model_tag(self.name, f"{POINTED_TAG}.{alias}", str(version))

    def moved_by_hand(self, alias: str) -> tuple[bool, int | None]:
        """Whether `alias` is elsewhere than `point` last put it, and where it is."""
        now = self._number(alias)
        return now != self._remembered(alias), now

    def _number(self, alias: str) -> int | None:
        version = self.aliased(alias)
        return version.number if version else None

    def _remembered(self, alias: str) -> int | None:
        try:
            told = self._client.get_registered_model(self.name).tags.get(f"{POINTED_TAG}.{alias}", "None")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if told == "None" else int(told)

    def metrics_of(self, version: Version) -> dict[str, float]:
        """The metrics of the run that made a version; empty where the run is gone."""
        try:
            return dict(self._client.get_run(version.run_id).data.metrics)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}

    def table_of(self, version: Version, name: str) -> list[dict[str, Any]]:
        """The rows of a table that `NightRun.table` logged in the run that made a version; none where there is none."""
        with tempfile.TemporaryDirectory() as scratch:
            try:
                path = Path(self._client.download_artifacts(version.run_id, f"{TABLES}/{name}.json", scratch))
                content = json.loads(path.read_text(encoding="utf-8"))
            except (MlflowException, OSError, ValueError) as error:
                if _is_outage(error):
                    raise
                return []
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name, str(version), key, value)

    def fetch(self, version: Version) -> Path:
        """The version's files as the registry has them, downloaded (on the store's own machine: linked) once.

        Checked against what was registered, byte by byte. Raises `ArtifactMissingError` for files that are not there,
        `StateError` for one that was altered since it was registered.
        """
        target = self._cache / f"{version.number}-{version.digest[:16]}"
        if not target.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._cache, prefix=".part-") as part:
                place = f"version {version.number} of {self.name!r}"
                try:
                    with self.answering():
                        source = self._client.get_model_version_download_uri(self.name, str(version.number))
                        files = self._files.get(source, Path(part), self._listed(version.number))
                except (MlflowException, OSError) as error:
                    sentence = f"the files of {place} are not at {without_password(self._tracking_uri)}: {error}"
                    raise ArtifactMissingError(sentence) from error
                files.replace(target)
        return target

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Inside it an outage is told apart from an answer: it raises `RegistryUnreachableError`."""
        try:
            yield
        except (MlflowException, OSError) as error:
            if not _is_outage(error):
                raise
            raise RegistryUnreachableError(
                f"the registry at {without_password(self._tracking_uri)} does not answer ({_first_line(error)}); "
                "see that MLflow and its artifact store run, then try again"
            ) from error

    def _listed(self, number: int) -> str | None:
        """The digest of the version's list of files, as its tag has it now; None for versions of before there was."""
        return self._client.get_model_version(self.name, str(number)).tags.get(LIST_TAG)

    def forget(self, version: Version) -> None:
        """Drop the downloaded copy of a version, so that the next `fetch` asks the registry again."""
        shutil.rmtree(self._cache / f"{version.number}-{version.digest[:16]}", ignore_errors=True)

    def _experiment(self) -> str:
        if found := self._client.get_experiment_by_name(self.name):
            return found.experiment_id
        return self._client.create_experiment(self.name, artifact_location=self._artifacts)


class NightRun:
    """What a night leaves in MLflow. Writing the same thing twice leaves it once."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client = client
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.started: int = run.info.start_time  # milliseconds since the epoch

    @property
    def url(self) -> str:
        """The run's page, on the tracking server (without user and password) or on the one that `errata ui` starts for
        an embedded store."""
        server = self._client.tracking_uri
        pages = _USER.sub("", server).rstrip("/") if server.startswith("http") else f"http://127.0.0.1:{MLFLOW_PORT}"
        return f"{pages}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; values longer than MLflow takes are cut."""
        known = self._client.get_run(self.run_id).data.params
        items = [Param(key, str(value)[:PARAM_LIMIT]) for key, value in values.items() if key not in known]
        for start in range(0, len(items), PARAMS_A_CALL):
            self._client.log_batch(self.run_id, params=items[start : start + PARAMS_A_CALL])

    def metrics(self, values: Mapping[str, float], *, timestamp: int, step: int = 0) -> None:
        """Log metrics; `timestamp` in milliseconds since the epoch."""
        self._client.log_batch(self.run_id, [Metric(key, value, timestamp, step) for key, value in values.items()])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        for key, value in values.items():
            self._client.set_tag(self.run_id, key, value)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log `rows` (one shape) as a table that MLflow's page shows; an earlier one of this name is replaced."""
        columns = list(rows[0]) if rows else []
        path = f"{TABLES}/{name}.json"
        self._client.log_dict(
            self.run_id, {"columns": columns, "data": [[row[c] for c in columns] for row in rows]}, path
        )
        logged = json.loads(self._client.get_run(self.run_id).data.tags.get(TABLES_TAG, "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in logged:
            self._client.set_tag(self.run_id, TABLES_TAG, json.dumps([*logged, entry]))

    def figure(self, name: str, figure: Figure) -> None:
        """Log a plot as `plots/NAME.png`."""
        self._client.log_figure(self.run_id, figure, f"plots/{name}.png")

    def text(self, path: str, text: str) -> None:
        """Log a text file."""
        self._client.log_text(self.run_id, text, path)

    def files(self, folder: Path, path: str) -> None:
        """Log a folder's files under `path`."""
        self._client.log_artifacts(self.run_id, str(folder), path)

    def dataset(self, *, name: str, source: str, digest: str, columns: Sequence[str], rows: int) -> None:
        """Log the feed as this run's dataset input; `digest` is that of its content."""
        schema = json.dumps({"mlflow_colspec": [{"type": "string", "name": column} for column in columns]})
        profile = json.dumps({"num_rows": rows})
        dataset = Dataset(name, digest[:36], "local", json.dumps({"uri": source}), schema, profile)
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "feed")])])


def is_missing(tracking_uri: str) -> bool:
    """Whether a store is an SQLite file that is not there; MLflow would make an empty one."""
    url = make_url(tracking_uri) if tracking_uri.startswith("sqlite:") else None
    return url is not None and bool(url.database) and not Path(str(url.database)).exists()


def _is_outage(error: Exception) -> bool:
    """Whether nobody answered. Only an answer that says so makes something missing."""
    if isinstance(error, MlflowException):
        return error.error_code in {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
    return isinstance(error, RequestException | ConnectionError | TimeoutError)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _version(found: ModelVersion) -> Version:
    tags = dict(found.tags)
    made = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
    return Version(int(found.version), tags.get(DIGEST_TAG, ""), found.run_id or "", tags, made)
