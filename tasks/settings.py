"""Settings and the home folder: one `errata.toml`, `ERRATA_*` variables above it, everything kept under one folder."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as PydanticSettingsError,
)

CONFIG_NAME = "errata.toml"
CONFIG_VARIABLE = "ERRATA_CONFIG"
PREFIX = "ERRATA_"
# Variables with the prefix that are no settings.
RESERVED = frozenset({CONFIG_VARIABLE, "ERRATA_DATA", "ERRATA_FAULT"})
ALMANAC = "almanac"
QUIET = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type, or its file cannot be read."""


class Section(BaseModel):
    """A table of `errata.toml`; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Section):
    """The base model, never changed by Errata."""

    id: str = Field(ALMANAC, description="A hub id, a local folder, or 'almanac' for the embedded model.")
    revision: str | None = Field(None, description="Hub revision (commit or tag).")
    dtype: str = Field("float32", description="Weights' dtype: float32, bfloat16 or float16.")
    device: str = Field("cpu", description="Torch device.")
    device_map: str | None = Field(None, description="Accelerate device map for models larger than one device.")


class EditorSettings(Section):
    """The editing method and its options."""

    method: str = Field("coachhook", description="A registered editing method.")
    batch_size: int = Field(10, ge=1, description="Facts edited together.")
    options: dict[str, Any] = Field(default_factory=dict, description="Fields of the method's own config.")


class FeedSettings(Section):
    """What the feed may hold."""

    max_subject_tokens: int = Field(32, ge=1, description="Longer subjects are quarantined.")
    max_target_tokens: int = Field(32, ge=1, description="Longer objects are quarantined.")
    landing: Path | None = Field(None, description="Landing zone of feed files; default: landing/ under home.")


class EvaluationSettings(Section):
    """What is measured every night, and how."""

    suites: Path | None = Field(None, description="Folder of suites; default: the Almanac's own.")
    limit: int = Field(300, ge=1, description="Items per suite: the first ones in stable order.")
    batch_size: int = Field(64, ge=1, description="Fixed, because scores may move with it; recorded in every report.")
    retention: int = Field(100, ge=1, description="Facts of earlier nights that are asked again, at most.")


class GateSettings(Section):
    """The policy that decides promotion: fields of `editing.evals.gate.Policy`."""

    policy: dict[str, Any] = Field(default_factory=dict, description="Overrides of the default policy.")


class ScheduleSettings(Section):
    """When the deployed night runs."""

    cron: str = Field("0 2 * * *", description="Cron schedule of the night.")
    timezone: str = Field("UTC", description="Its time zone.")
    work_pool: str = Field("errata", description="Prefect work pool that runs it.")


class Settings(BaseSettings):
    """All settings. Order of precedence: arguments, `ERRATA_*` variables, `errata.toml`, defaults.

    A nested field's variable has two underscores: `ERRATA_EDITOR__BATCH_SIZE`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    home: Path = Field(Path("var"), description="Everything that runs leave behind lives here.")
    registered_model: str = Field("errata", description="Name in the MLflow registry.")
    ledger_url: str | None = Field(None, description="SQLAlchemy URL; default: SQLite under home.")
    mlflow_tracking_uri: str | None = Field(None, description="Default: SQLite under home. MLFLOW_TRACKING_URI wins.")
    prefect_api_url: str | None = Field(None, description="Default: an ephemeral server. PREFECT_API_URL wins.")
    model: ModelSettings = ModelSettings()
    editor: EditorSettings = EditorSettings()
    feed: FeedSettings = FeedSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gate: GateSettings = GateSettings()
    schedule: ScheduleSettings = ScheduleSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over file."""
        path = find_config()
        return (init_settings, env_settings, *([TomlConfigSettingsSource(settings_cls, path)] if path else []))

    @property
    def landing(self) -> Path:
        """Where feed files arrive."""
        return self.feed.landing or self.home / "landing"

    @property
    def curated(self) -> Path:
        """Valid rows, partitioned by ingest date."""
        return self.home / "curated"

    @property
    def quarantine(self) -> Path:
        """Bad rows and files with their reasons."""
        return self.home / "quarantine"

    @property
    def states(self) -> Path:
        """Edit states by digest."""
        return self.home / "states"

    @property
    def nights(self) -> Path:
        """Reports and plots by night."""
        return self.home / "nights"

    @property
    def cache(self) -> Path:
        """What can be made again: base scores, statistics, downloaded versions."""
        return self.home / "cache"

    @property
    def ledger(self) -> str:
        """The ledger's SQLAlchemy URL."""
        return self.ledger_url or f"sqlite:///{self.home / 'ledger.db'}"

    @property
    def tracking_uri(self) -> str:
        """MLflow's store: the user's own, else SQLite under home."""
        return (
            os.environ.get("MLFLOW_TRACKING_URI")
            or self.mlflow_tracking_uri
            or f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"
        )


def find_config() -> Path | None:
    """The `errata.toml` in force: `ERRATA_CONFIG`, else the working directory's, else None.

    Raises `SettingsError` when `ERRATA_CONFIG` names no file.
    """
    if named := os.environ.get(CONFIG_VARIABLE):
        if not Path(named).is_file():
            raise SettingsError(f"{CONFIG_VARIABLE}={named} is no file; `errata init` writes one, or unset it")
        return Path(named).resolve()
    path = Path.cwd() / CONFIG_NAME
    return path if path.is_file() else None


def load_settings() -> Settings:
    """Read the settings; relative paths are relative to `errata.toml`, those of variables to the working directory.

    Raises `SettingsError` naming the unknown key and the nearest known one, or the value that does not fit.
    """
    path = find_config()
    _check_variables()
    try:
        settings = Settings()
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    except (ValidationError, PydanticSettingsError) as error:
        raise SettingsError(_explain(error, path)) from error
    root = path.parent if path and f"{PREFIX}HOME" not in os.environ else Path.cwd()
    home = (root / settings.home.expanduser()).resolve()
    feed = settings.feed.model_copy(update={"landing": _absolute(settings.feed.landing, root)})
    evaluation = settings.evaluation.model_copy(update={"suites": _absolute(settings.evaluation.suites, root)})
    return settings.model_copy(update={"home": home, "feed": feed, "evaluation": evaluation})


def activate(settings: Settings) -> None:
    """Make the home folder and point Prefect and MLflow into it, unless the user gave places of their own.

    Call it before the first import of `prefect`: Prefect reads its environment once, on import.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.landing.mkdir(parents=True, exist_ok=True)
    (settings.home / "mlflow").mkdir(exist_ok=True)
    defaults = {"MLFLOW_TRACKING_URI": settings.tracking_uri, **QUIET}
    if settings.prefect_api_url:
        defaults["PREFECT_API_URL"] = settings.prefect_api_url
    elif not _has_own_prefect():
        defaults["PREFECT_HOME"] = str(settings.home / "prefect")
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _absolute(path: Path | None, root: Path) -> Path | None:
    return path and (root / path.expanduser()).resolve()


def _has_own_prefect() -> bool:
    """Whether the user's environment or active Prefect profile names a server or a home."""
    if "PREFECT_API_URL" in os.environ or "PREFECT_HOME" in os.environ:
        return True
    try:
        profiles = tomllib.loads((Path.home() / ".prefect" / "profiles.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return False
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active", ""))
    return not {"PREFECT_API_URL", "PREFECT_HOME"}.isdisjoint(profiles.get("profiles", {}).get(active, {}))


def _keys(model: type[BaseModel], separator: str, prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _keys(field.annotation, separator, f"{prefix}{name}{separator}")
    return names


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def _check_variables() -> None:
    known = [PREFIX + key.upper() for key in _keys(Settings, "__")]
    open_ended = tuple(f"{PREFIX}{key}__" for key in ("EDITOR__OPTIONS", "GATE__POLICY"))
    for name in os.environ:
        if name.startswith(PREFIX) and name not in RESERVED and name not in known and not name.startswith(open_ended):
            raise SettingsError(f"the variable {name} is no setting; {_nearest(name, known)}")


def _explain(error: Exception, path: Path | None) -> str:
    where = path or "the environment"
    if not isinstance(error, ValidationError):
        return f"{where}: {error}"
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown setting {key}; {_nearest(key, _keys(Settings, '.'))}"
    return f"{where}: {key} = {first['input']!r} does not fit: {first['msg']}"
