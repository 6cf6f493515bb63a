"""The licence a model is published under: from its GGUF metadata, its card, or the licence file beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import metadata_load

from editing.model_ids import GGUF
from editing.models.sources import read_gguf

UNKNOWN = "unknown"
FILES = re.compile(r"(LICEN[CS]E|COPYING|NOTICE)([.\-_].*)?", re.IGNORECASE)
_KNOWN = (
    ("apache-2.0", r"Apache License\s+Version 2\.0"),
    ("mit", r"MIT License|Permission is hereby granted, free of charge, to any person"),
    ("gpl-3.0", r"GNU GENERAL PUBLIC LICENSE\s+Version 3"),
    ("bsd-3-clause", r"BSD 3-Clause"),
)
_FIRST_LINE = 80


class Licence(NamedTuple):
    """A licence's name, or "unknown", and where it was read."""

    name: str
    read_in: str | None


def licence_files(source: Path) -> list[Path]:
    """The licence and notice files beside a GGUF file, or in a model's folder."""
    folder = source if source.is_dir() else source.parent
    return sorted(path for path in folder.iterdir() if path.is_file() and FILES.fullmatch(path.name))


def licence_of(source: Path) -> Licence:
    """The licence of the model in `source`, as its publisher names it.

    Read are, in this order, the metadata of a GGUF file, the front matter of the card `README.md`, and
    the text of a licence file; "unknown" when none of them says it.
    """
    folder = source if source.is_dir() else source.parent
    if source.suffix.lower() == GGUF and (named := _from_gguf(source)):
        return Licence(named, "GGUF metadata")
    card = folder / "README.md"
    if card.is_file() and (named := _from_card(card)):
        return Licence(named, card.name)
    for path in licence_files(source):
        if not path.name.lower().startswith("notice") and (named := _from_text(path)):
            return Licence(named, path.name)
    return Licence(UNKNOWN, None)


def _from_gguf(file: Path) -> str | None:
    metadata = read_gguf(file)
    told = (str(metadata.get(name, "")).strip() for name in ("general.license.name", "general.license"))
    return next((name for name in told if name and name.lower() != "other"), None)


def _from_card(card: Path) -> str | None:
    told = metadata_load(card) or {}
    named = told.get("license")
    if not named or named == "other":
        named = told.get("license_name") or named
    return ", ".join(map(str, named)) if isinstance(named, list) else named


def _from_text(path: Path) -> str | None:
    text = path.read_text(encoding="utf-8", errors="replace")
    for name, pattern in _KNOWN:
        if re.search(pattern, text):
            return name
    first = next((line.strip(" \t#*=") for line in text.splitlines() if line.strip(" \t#*=")), "")
    return first[:_FIRST_LINE] or None
