"""Base models under home: brought in from a GGUF file, a folder or a hub, checked, and listed."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from editing.errors import ModelError
from editing.model_ids import PACKAGE
from editing.models import BaseModel, load_base_model
from editing.models.checks import check_model
from editing.models.costs import Costs, ModelShape, estimate_costs
from editing.models.licence import UNKNOWN, licence_files, licence_of
from editing.models.sources import fetch_model, find_source
from editing.storage import canonical_json, read_json, write_json
from tasks.errors import TasksError
from tasks.feed.files import file_digest
from tasks.settings import ALMANAC, IMPORTED_NAME, Settings
from tasks.waiting import HUB, waiting_for

RECORD = "errata-model.json"
FORMAT = 1
DTYPES = ("float32", "bfloat16")


class ModelImportError(TasksError, ValueError):
    """A model cannot be imported under the name asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    """A model under home. What is not known of a folder that was put there by hand is None.

    `source_digest` is the SHA-256 of a GGUF file, or that of the names and digests of a folder's files;
    `methods` has "yes" for each editing method, or a sentence that says why not.
    """

    name: str
    architecture: str
    licence: str = UNKNOWN
    licence_read_in: str | None = None
    parameters: int | None = None
    shape: ModelShape | None = None
    dtype: str | None = None
    tokenizer: str | None = None
    vocabulary: int | None = None
    template: str | None = None
    end_token: str | None = None
    methods: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    revision: str | None = None
    source_digest: str | None = None
    fingerprint: str | None = None
    tokenizer_hash: str | None = None
    imported_at: str | None = None

    def costs(self, facts: int) -> Costs | None:
        """Memory with `facts` edited in one batch, estimated from the shape."""
        if self.shape is None or self.dtype is None:
            return None
        return estimate_costs(self.shape, facts=facts, dtype=self.dtype)


def import_model(
    settings: Settings,
    source: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    force: bool = False,
) -> ImportedModel:
    """Bring a model under home as safetensors, config and tokenizer, checked, whole or not at all.

    `source` is a GGUF file, a folder, `package:NAME`, or a hub id (with `revision`). The copy is loaded
    again before it is put in place, and must be the same model. The same source in the same dtype is
    brought in once. Raises `ModelError` when it is no model that can be edited, `ModelImportError` for
    a name that cannot be, or that another model has (`force` replaces that).
    """
    if dtype not in DTYPES:
        raise ModelImportError(f"dtype {dtype!r} cannot be imported; use one of {', '.join(DTYPES)}")
    with waiting_for(HUB):
        found = find_source(source) or fetch_model(source, revision)
    name = _checked_name(name or _name_of(source, found))
    digest = source_digest(found)
    target = settings.models / name
    if target.exists() and not force:
        there = read_model(target)
        if (there.source_digest, there.dtype) == (digest, dtype):
            return there
        raise ModelImportError(
            f"{name!r} is another model (from {there.source or 'elsewhere'}, {there.dtype or 'unknown dtype'}); give "
            "this one another --name, or replace that one with --force"
        )
    settings.models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.models, prefix=".part-") as part:
        folder = Path(part) / "model"
        base = load_base_model(str(found), dtype=dtype, form="raw")
        checks = check_model(base)
        licence = licence_of(found)
        shape = ModelShape.of_config(base.model.config)
        _write(base, folder, found)
        identity = (base.fingerprint, base.tokenizer_hash)
        del base  # the copy is loaded in its room
        _check_copy(folder, dtype, identity)
        model = ImportedModel(
            name=name,
            architecture=checks.architecture,
            licence=licence.name,
            licence_read_in=licence.read_in,
            parameters=shape.parameters,
            shape=shape,
            dtype=dtype,
            tokenizer=checks.tokenizer,
            vocabulary=checks.vocabulary,
            template=checks.template,
            end_token=checks.end_token,
            methods=checks.methods,
            source=str(found.resolve()) if Path(source).expanduser().exists() else source,
            revision=revision,
            source_digest=digest,
            fingerprint=identity[0],
            tokenizer_hash=identity[1],
            imported_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_json(folder / RECORD, {"format": FORMAT, **asdict(model)})
        if target.exists():
            target.replace(Path(part) / "replaced")
        folder.replace(target)
    return model


def imported_models(settings: Settings) -> list[ImportedModel]:
    """The models under home by name; folders without a config are none."""
    folders = sorted(settings.models.glob("[!.]*")) if settings.models.is_dir() else []
    return [read_model(folder) for folder in folders if (folder / "config.json").is_file()]


def read_model(folder: Path) -> ImportedModel:
    """What is known of the model in `folder`: its record, or what its own files say.

    Raises `ModelError` when there is neither, or a record is damaged or from a later version.
    """
    record = folder / RECORD
    if not record.is_file():
        licence = licence_of(folder)
        architecture = read_json(folder / "config.json", ModelError).get("model_type", UNKNOWN)
        return ImportedModel(
            name=folder.name, architecture=architecture, licence=licence.name, licence_read_in=licence.read_in
        )
    told = read_json(record, ModelError)
    if told.pop("format", None) != FORMAT:
        raise ModelError(
            f"{record} is not of format {FORMAT}; import the model again with `errata model import --force`"
        )
    try:
        shape = told.pop("shape")
        return ImportedModel(**told, shape=ModelShape(**shape)) if shape else ImportedModel(**told)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{record} is damaged ({error}); import the model again with `--force`") from error


def size_on_disk(folder: Path) -> int:
    """Bytes of all files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def source_digest(source: Path) -> str:
    """SHA-256 of a file, or of the names and SHA-256 of the files in a folder."""
    if source.is_file():
        return file_digest(source)
    files = {path.name: file_digest(path) for path in sorted(source.iterdir()) if path.is_file()}
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()


def _name_of(source: str, found: Path) -> str:
    """A name for the model: of its file, its folder, its package or its hub id, without what a name may not have."""
    if found.is_file():
        told = found.stem
    elif Path(source).expanduser().is_dir():
        told = found.resolve().name
    else:
        told = source.removeprefix(PACKAGE).rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", told).strip(".-_")


def _checked_name(name: str) -> str:
    if not IMPORTED_NAME.fullmatch(name) or name == ALMANAC or name.lower().endswith(".gguf"):
        raise ModelImportError(
            f"{name!r} cannot be a model's name; give --name letters, digits, dots, dashes and underscores, not ending "
            f"in .gguf, and not {ALMANAC!r}"
        )
    return name


def _write(base: BaseModel, folder: Path, source: Path) -> None:
    """The model in the layout of a hub, with the licence files of its source."""
    base.model.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):  # safetensors writes for its owner alone
        path.chmod((folder / "config.json").stat().st_mode)
    base.tokenizer.save_pretrained(folder)
    for path in licence_files(source):
        shutil.copyfile(path, folder / path.name)


def _check_copy(folder: Path, dtype: str, identity: tuple[str, str]) -> None:
    copy = load_base_model(str(folder), dtype=dtype, form="raw")
    for what, before, after in zip(
        ("weights or config", "tokenizer"), identity, (copy.fingerprint, copy.tokenizer_hash), strict=True
    ):
        if before != after:
            raise ModelError(
                f"the copy has another {what} than its source ({after[:12]}, not {before[:12]}): this version of "
                "transformers does not write this model as it reads it; use the source itself as model.id"
            )
