"""What every method's states and artifacts are checked for: the base, the format, whole and unaltered content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from editing.errors import StateError
from editing.models import BaseModel
from editing.prompts import RAW, PromptForm
from editing.storage import canonical_json


class OfBase(Protocol):
    """Something that was made for one base model."""

    @property
    def model_id(self) -> str: ...  # noqa: D102
    @property
    def base_fingerprint(self) -> str: ...  # noqa: D102
    @property
    def tokenizer_hash(self) -> str: ...  # noqa: D102
    @property
    def form(self) -> PromptForm: ...  # noqa: D102


def require_same_base(state: OfBase, base: BaseModel) -> None:
    """Refuse another base model or tokenizer. Raises `StateError` naming what differs."""
    for name, mine, theirs in (
        ("base fingerprint", state.base_fingerprint, base.fingerprint),
        ("tokenizer hash", state.tokenizer_hash, base.tokenizer_hash),
    ):
        if mine != theirs:
            raise StateError(
                f"{name} differs: the state was made for {mine[:12]} ({state.model_id!r}), "
                f"this is {theirs[:12]} ({base.model_id!r}); load the base model that the state names"
            )
    if state.form != base.form:
        raise StateError(
            f"prompt form differs: the state was made for {state.form.name!r} prompts, {base.model_id!r} is asked in "
            f"{base.form.name!r}; set prompts.form and prompts.system as they were"
        )


def form_content(form: PromptForm) -> dict[str, Any]:
    """How a record names the prompt form: not at all where prompts are raw. `form_of` is the inverse."""
    return {} if form == RAW else {"form": form.to_dict()}


def form_of(content: Mapping[str, Any]) -> PromptForm:
    """The prompt form that a record names."""
    return PromptForm(**content["form"]) if "form" in content else RAW


def require_format(content: Mapping[str, Any], folder: Path, **expected: str | int) -> None:
    """Refuse a record of another kind: one whose fields are not those `expected`. Raises `StateError` naming which."""
    for name, mine in expected.items():
        if content.get(name) != mine:
            raise StateError(f"{folder} holds {name} {content.get(name)!r}, this loads {mine!r}; use its own version")


@contextmanager
def complete(folder: Path, *also: type[Exception]) -> Iterator[None]:
    """Turn what a record that lacks or garbles something raises inside into a `StateError` that names it.

    `also` are errors, beside those of missing keys and wrong values, that mean the same.
    """
    garbled: tuple[type[Exception], ...] = (KeyError, TypeError, ValueError, *also)
    try:
        yield
    except StateError:
        raise
    except garbled as error:
        raise StateError(
            f"{folder} lacks or garbles {error}; restore the files from where they were registered"
        ) from error


def require_unaltered(
    folder: Path,
    digest: str,
    recorded: Mapping[str, Any],
    content: Mapping[str, Any] | None = None,
    *,
    whole: bool = True,
) -> None:
    """Raises `StateError` when content has another digest than its record says, or is not what the digest is of.

    `recorded` is the record as it was read, with its `digest`; `content` what it is to hold beside that, to the letter.
    """
    if digest != recorded.get("digest") or not whole:
        raise StateError(
            f"{folder} was altered after it was written: its content has digest {digest[:12]}, its record says "
            f"{str(recorded.get('digest'))[:12]}; restore the files from where they were registered"
        )
    rest = {name: value for name, value in recorded.items() if name != "digest"}
    if content is not None and canonical_json(rest) != canonical_json(content):
        told = {
            name for name in {*rest, *content} if canonical_json(rest.get(name)) != canonical_json(content.get(name))
        }
        raise StateError(
            f"{folder} was altered after it was written: {', '.join(sorted(told))} in its record is not what its "
            "content says; restore the files from where they were registered"
        )
