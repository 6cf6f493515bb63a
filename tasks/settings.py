"""Settings and the home folder: one `errata.toml`, `ERRATA_*` variables above it, everything kept under one folder."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as PydanticSettingsError,
)

from editing.inverse import InverseRelations
from editing.model_ids import PACKAGE, looks_like_path
from tasks.errors import TasksError

CONFIG_NAME = "errata.toml"
CONFIG_VARIABLE = "ERRATA_CONFIG"
PREFIX = "ERRATA_"
DEPLOYED_VARIABLE = "ERRATA_DEPLOYED"  # what `errata deploy` gives its runs: settings, and which ledger and registry
# Variables with the prefix that are no settings.
RESERVED = frozenset({CONFIG_VARIABLE, DEPLOYED_VARIABLE, "ERRATA_DATA", "ERRATA_FAULT"})
# Settings that may carry a password, and the variable of the worker's own that a deployed run then reads.
SECRETS = {"ledger_url": "ERRATA_LEDGER_URL", "mlflow_tracking_uri": "MLFLOW_TRACKING_URI"}
ALMANAC = "almanac"
IMPORTED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PREFECT_PORT, MLFLOW_PORT = 4200, 5080  # of the pages that `errata ui` starts
_OPEN_ENDED = (
    "EDITOR__OPTIONS",
    "FEED__INVERSE_RELATIONS",
    "GATE__POLICY",
    "EVALUATION__SUITES",
    "RECIPE__ENCODER",
    "RECIPE__TRAINING",
)
SUITE_PATHS = ("shots_from", "references")  # options of suites that name files
PATHS = (("feed", "landing"), ("statistics", "corpus"), ("recipe", "edits"), ("recipe", "initial"))
# Prefect's pages keep every log line; only the terminal is spared.
QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DO_NOT_TRACK": "true",
}


# Of a request to MLflow's server: seconds without a byte, and how often it is made again, with growing pauses.
PATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5"}
HASTY = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


class SettingsError(TasksError, ValueError):
    """A setting is unknown, of the wrong type, or its file cannot be read."""


def _without_empty(values: Any) -> Any:
    return {key: value for key, value in values.items() if value != ""} if isinstance(values, dict) else values


class Section(BaseModel):
    """A table of `errata.toml`; unknown keys are errors, an empty text means the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _empty = model_validator(mode="before")(_without_empty)


class ModelSettings(Section):
    """The base model, never changed by Errata."""

    id: str = Field(
        ALMANAC,
        description="An imported model's name, a folder, a GGUF file, a hub id, or 'almanac' for the embedded model.",
    )
    revision: str | None = Field(None, description="Hub revision (commit or tag).")
    dtype: str = Field("float32", description="Weights' dtype: float32, bfloat16 or float16.")
    device: str = Field("cpu", description="Torch device.")
    device_map: str | None = Field(None, description="Accelerate device map for models larger than one device.")


class PromptSettings(Section):
    """The form in which the model is asked: to edit, to evaluate and to serve."""

    form: Literal["auto", "raw", "question", "chat"] = Field(
        "auto", description="raw, question, chat (the tokenizer's template), or auto: chat where there is a template."
    )
    system: str | None = Field(None, description="System text of the chat template; default: the template's own.")


class EditorSettings(Section):
    """The editing method and its options."""

    method: str = Field("coachhook", description="A registered editing method.")
    batch_size: int = Field(10, ge=1, description="Facts edited together.")
    tries: int = Field(2, ge=1, description="Times that a fact is edited until it is answered, at most; then a person.")
    options: dict[str, Any] = Field(default_factory=dict, description="Fields of the method's own config.")


class BatchCanarySettings(Section):
    """What a batch may do to the model; one that does more is refused, and the night goes on without it."""

    perplexity_ratio: float = Field(2.0, gt=1, description="Of a fixed text, edited over base, at most.")
    weight_change: float | None = Field(None, gt=0, description="Largest relative change of an edited weight, at most.")


class StatisticsSettings(Section):
    """The text sample that second moments are computed over."""

    corpus: Path | None = Field(
        None, description="Text or Parquet file; default: the Almanac has its own, another model writes it by itself."
    )
    self_text_tokens: int = Field(50_000, ge=1, description="Tokens that a model writes by itself without a corpus.")
    max_tokens: int = Field(100_000, ge=1, description="Tokens taken, at most.")
    max_length: int = Field(256, ge=1, description="Tokens of one text, at most.")
    background_keys: int = Field(2048, ge=1, description="Keys kept as the background of a calibrated scope.")
    seed: int = Field(0, description="Draws the background keys.")


class RecipeSettings(Section):
    """The training of a RECIPE encoder for the base model."""

    edits: Path | None = Field(None, description="Facts to train on, in any format of feeds; the Almanac has its own.")
    without: list[Path] = Field(default_factory=list, description="Files whose subjects are not trained on.")
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of the file's subjects that validation is on.")
    initial: Path | None = Field(None, description="Folder of an encoder for this base to begin with.")
    encoder: dict[str, Any] = Field(default_factory=dict, description="Fields of the encoder's config.")
    training: dict[str, Any] = Field(default_factory=dict, description="Fields of the training's config.")


class FeedSettings(Section):
    """What the feed may hold."""

    max_subject_tokens: int = Field(32, ge=1, description="Longer subjects are quarantined.")
    max_target_tokens: int = Field(32, ge=1, description="Longer objects are quarantined.")
    landing: Path | None = Field(None, description="Landing zone of feed files; default: landing/ under home.")
    inverse_relations: dict[str, str] = Field(
        default_factory=dict,
        description="Relations that say one thing from both ends, name to inverse; contradictions stay out.",
    )

    @field_validator("inverse_relations")
    @classmethod
    def _consistent(cls, declared: dict[str, str]) -> dict[str, str]:
        InverseRelations(declared)
        return declared


class SuiteSettings(Section):
    """One suite of the nightly evaluation: local files, or a Hugging Face dataset."""

    path: Path | None = Field(None, description="File or folder in the suite's published format.")
    dataset: str | None = Field(None, description="A Hugging Face dataset instead: hub id, or a folder in its layout.")
    subset: str | None = Field(None, description="Configuration of the dataset, such as 'all' of cais/mmlu.")
    revision: str | None = Field(None, description="Revision of the dataset: commit or tag.")
    limit: int = Field(300, ge=1, description="Items drawn, at most; the same ones every night.")
    options: dict[str, Any] = Field(default_factory=dict, description="The suite's own options: shots, form, split.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give the suite either a path or a dataset")
        if self.dataset is None and (self.subset or self.revision):
            raise ValueError("subset and revision belong to a dataset, not to a path")
        return self


class EvaluationSettings(Section):
    """What is measured every night, and how."""

    suites: dict[str, SuiteSettings] = Field(default_factory=dict, description="By name; default: the Almanac's four.")
    batch_size: int = Field(64, ge=1, description="Fixed, because scores may move with it; recorded in every report.")
    shards: int = Field(1, ge=1, description="Parts of a model's batches, scored side by side; changes no score.")
    task_runner: Literal["threads", "processes", "dask"] = Field(
        "threads", description="What runs the shards when there are several: threads, processes or dask."
    )
    dask_scheduler: str | None = Field(None, description="Address of a Dask scheduler; default: one of this machine.")
    retention: int = Field(100, ge=1, description="Facts of earlier nights that are asked again, at most.")
    seed: int = Field(0, description="Draws the samples.")

    @model_validator(mode="after")
    def _runner_is_there(self) -> Self:
        if self.task_runner == "dask" and find_spec("prefect_dask") is None:
            raise ValueError("task_runner 'dask' needs prefect-dask: pip install 'errata[dask]'")
        if self.dask_scheduler and self.task_runner != "dask":
            raise ValueError(f"dask_scheduler is for task_runner 'dask', and task_runner is {self.task_runner!r}")
        return self


class GateSettings(Section):
    """The policy that decides promotion (fields of `editing.evals.policy.Policy`), and what a failure may cost."""

    policy: dict[str, Any] = Field(
        default_factory=dict,
        description="Additions to the default policy; false takes away a limit, or a table of them.",
    )
    approval: Literal["auto", "manual"] = Field(
        "auto", description="auto: what passes the gate is promoted; manual: a person approves it first."
    )
    approval_hours: float = Field(12, gt=0, description="How long a version waits for the person; then it is held.")
    culprit_budget: int = Field(
        60, ge=0, description="Evaluations that a failed gate may spend on finding the facts to blame; 0: it holds."
    )


class CanarySettings(Section):
    """What the canary asks of the champion, as a fresh process loads it from the registry."""

    after_promotion: bool = Field(True, description="Check after every move of the champion, beside the schedule.")
    facts: int = Field(24, ge=0, description="Applied facts whose answers are recorded with a version.")
    suite: str = Field("", description="The suite that a sample is taken of; default: the first configured.")
    items: int = Field(48, ge=0, description="Items of that sample, at most.")
    tolerance: float = Field(0.05, ge=0, lt=1, description="Share of a suite's answers that may differ.")


class Settings(BaseSettings):
    """All settings. Order of precedence: arguments, `ERRATA_*` variables, `errata.toml`, defaults.

    A nested field's variable has two underscores: `ERRATA_EDITOR__BATCH_SIZE`.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    _empty = model_validator(mode="before")(_without_empty)

    home: Path = Field(Path("var"), description="Everything that runs leave behind lives here.")
    registered_model: str = Field("errata", description="Name in the MLflow registry.")
    ledger_url: str | None = Field(None, description="SQLAlchemy URL; default: SQLite under home.")
    mlflow_tracking_uri: str | None = Field(None, description="Default: SQLite under home. MLFLOW_TRACKING_URI wins.")
    prefect_api_url: str | None = Field(None, description="Default: an ephemeral server. PREFECT_API_URL wins.")
    model: ModelSettings = ModelSettings()
    prompts: PromptSettings = PromptSettings()
    editor: EditorSettings = EditorSettings()
    batch_canaries: BatchCanarySettings = BatchCanarySettings()
    statistics: StatisticsSettings = StatisticsSettings()
    recipe: RecipeSettings = RecipeSettings()
    feed: FeedSettings = FeedSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gate: GateSettings = GateSettings()
    canary: CanarySettings = CanarySettings()

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> Settings:
        """The settings that `model_dump` gave, of any mode, whatever file and variables say now.

        What it does not name has its default.
        """
        kinds = get_type_hints(cls)
        named = [name for name in cls.model_fields if name in content]
        known = {name: TypeAdapter(kinds[name]).validate_python(content[name]) for name in named}
        return cls.model_construct(**known)

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
    def encoders(self) -> Path:
        """RECIPE encoders by the key of their training."""
        return self.home / "encoders"

    @property
    def models(self) -> Path:
        """Imported base models by name."""
        return self.home / "models"

    @property
    def nights(self) -> Path:
        """Reports and plots by night."""
        return self.home / "nights"

    @property
    def corpora(self) -> Path:
        """Texts that models wrote by themselves, by what they depend on."""
        return self.home / "corpora"

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
        """MLflow's store: the user's own, in a deployed run the deployer's, else SQLite under home."""
        return (
            (DEPLOYED_VARIABLE not in os.environ and os.environ.get("MLFLOW_TRACKING_URI"))
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


def load_settings(**sections: Any) -> Settings:
    """Read the settings; relative paths are relative to `errata.toml`, those of variables to the working directory.

    Whole `sections`, as `model_dump` gives them, stand in place of what file and variables say of them. A deployed
    run has the settings that it was deployed with, whatever file and variables there are where it runs.
    Raises `SettingsError` naming the unknown key and the nearest known one, or the value that does not fit.
    """
    if deployed := deployment():
        return _deployed(deployed, sections)
    path = find_config()
    _check_variables()
    try:
        settings = Settings(**sections)
        settings = settings.model_copy(
            update={name: type(getattr(settings, name)).model_validate(values) for name, values in sections.items()}
        )
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    except (ValidationError, PydanticSettingsError) as error:
        raise SettingsError(_explain(error, path)) from error
    home = (_root(path, "home") / settings.home.expanduser()).resolve()
    placed: dict[str, Any] = {"home": home}
    model_id = _model_id(settings.model.id, home, _root(path, "model", "id"))
    placed["model"] = settings.model.model_copy(update={"id": model_id})
    for section, field in PATHS:
        table = getattr(settings, section)
        if (place := getattr(table, field)) is not None:
            root = _root(path, section, field)
            placed[section] = placed.get(section, table).model_copy(
                update={field: (root / place.expanduser()).resolve()}
            )
    recipe, root = placed.get("recipe", settings.recipe), _root(path, "recipe", "without")
    without = [(root / place.expanduser()).resolve() for place in recipe.without]
    placed["recipe"] = recipe.model_copy(update={"without": without})
    suites = {
        name: _placed(suite, _root(path, "evaluation", "suites", name))
        for name, suite in settings.evaluation.suites.items()
    }
    placed["evaluation"] = settings.evaluation.model_copy(update={"suites": suites})
    return settings.model_copy(update=placed)


def deployment() -> dict[str, Any] | None:
    """What `errata deploy` gave this process; None outside of deployed runs.

    `settings` as `model_dump` gave them, the names of the `secrets` among them that are to be read from the worker's
    variables, and the ids of `ledger` and `registry`. Raises `SettingsError` where it cannot be read.
    """
    text = os.environ.get(DEPLOYED_VARIABLE)
    if not text:
        return None
    try:
        found = json.loads(text)
        return {name: found[name] for name in ("settings", "secrets", "ledger", "registry")}
    except (ValueError, KeyError, TypeError) as error:
        told = f"{DEPLOYED_VARIABLE} is not what `errata deploy` gives; deploy again, or unset it"
        raise SettingsError(told) from error


def _deployed(given: Mapping[str, Any], sections: Mapping[str, Any]) -> Settings:
    secrets = {}
    for name in given["secrets"]:
        if not (value := os.environ.get(SECRETS[name])):
            raise SettingsError(
                f"{name} carries a password, so it is no part of the deployment, and this worker has no variable "
                f"{SECRETS[name]}; start the worker with it, or deploy again with `errata deploy --blocks`"
            )
        secrets[name] = value
    try:
        return Settings.restored({**given["settings"], **secrets, **sections})
    except ValidationError as error:
        told = _explain(error, Path(DEPLOYED_VARIABLE))
        raise SettingsError(f"{told}; another Errata made this deployment: deploy again with this one") from error


def _root(file: Path | None, *keys: str) -> Path:
    """Where a relative path of this setting begins: at the folder of `errata.toml`, or at the working directory where
    a variable names the setting, a table that it is in, or a part of it."""
    mine = f"{PREFIX}{'__'.join(keys)}".upper()
    given = any(mine == name or mine.startswith(f"{name}__") or name.startswith(f"{mine}__") for name in _variables())
    return Path.cwd() if file is None or given else file.parent


def _variables() -> list[str]:
    return [name.upper() for name in os.environ if name.upper().startswith(PREFIX)]


def _model_id(model_id: str, home: Path, root: Path) -> str:
    """Where an imported model, a folder or a file is that `model_id` names; a hub id as it is.

    What looks like a path is one, whether something is there or not: loading it says so.
    """
    imported = home / "models" / model_id
    if model_id == ALMANAC or model_id.startswith(PACKAGE):
        return model_id
    if IMPORTED_NAME.fullmatch(model_id) and imported.is_dir():
        return str(imported)
    place = root / Path(model_id).expanduser()
    return str(place.resolve()) if looks_like_path(model_id) or place.is_dir() else model_id


def _placed(suite: SuiteSettings, root: Path) -> SuiteSettings:
    """The suite with its own paths, and those among its options, below `root`."""
    options = {
        name: str((root / Path(value).expanduser()).resolve()) if name in SUITE_PATHS else value
        for name, value in suite.options.items()
    }
    path = suite.path and (root / suite.path.expanduser()).resolve()
    local = suite.dataset and (root / suite.dataset).is_dir()
    dataset = str((root / suite.dataset).resolve()) if suite.dataset and local else suite.dataset
    return suite.model_copy(update={"path": path, "dataset": dataset, "options": options})


def activate(settings: Settings, *, patient: bool = True) -> None:
    """Point Prefect into the home folder, unless the user gave it a server or a home; quiet the terminal.

    MLflow's server is waited for as long as a night may need, or, not `patient`, as long as a person does. Call it
    before the first import of `prefect`: Prefect reads its environment once, on import.
    """
    defaults = QUIET | (PATIENT if patient else HASTY)
    if settings.prefect_api_url:
        defaults["PREFECT_API_URL"] = settings.prefect_api_url
    elif not _has_own_prefect():
        (settings.home / "prefect").mkdir(parents=True, exist_ok=True)
        defaults["PREFECT_HOME"] = str(settings.home / "prefect")
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def template(
    given: Mapping[str, Mapping[str, Any]] | None = None, more: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The text of an `errata.toml` that names every setting with its meaning and default, all commented out.

    Values that are `given`, by table and key, are in force in it; `more` has lines that go behind a table.
    """
    given, more = given or {}, more or {}
    lines = ["# Errata's settings. Every commented line shows a default; remove the # to change it.", ""]
    tables: list[tuple[str, type[BaseModel]]] = [("", Settings)]
    for name, table in tables:
        lines += [f"[{name}]"] if name else []
        for key, field in table.model_fields.items():
            default = field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel):
                tables.append((key, type(default)))
                continue
            if any(line.startswith(f"[{name}.{key}") for line in more.get(name, ())):
                continue
            lines.append(f"# {field.description}")
            value = given.get(name, {}).get(key)
            lines.append(f"# {key} = {toml_value(default)}" if value is None else f"{key} = {toml_value(value)}")
        lines += ["", *more.get(name, ())]
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    """A value as `errata.toml` writes it; None is an empty text, which means the default."""
    if value is None:
        return '""'
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)  # a JSON string is a TOML one
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return str(value).lower()


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
    open_ended = tuple(f"{PREFIX}{key}__" for key in _OPEN_ENDED)
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
