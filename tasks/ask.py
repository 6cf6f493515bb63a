"""Asking the model in force: the champion, any version, or the base."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.registry import CHAMPION
from tasks.workspace import Workspace

BASE = "base"
MAX_NEW_TOKENS = 24


def ask(
    space: Workspace, prompts: Sequence[str], version: str | int = CHAMPION, max_new_tokens: int = MAX_NEW_TOKENS
) -> list[str]:
    """What a version answers to each prompt, up to the end of the line, without the full stop. Greedy.

    `version` is an alias, a number or `base`; the champion is the base while nothing was promoted.
    Raises `RegistryError` when there is no such version.
    """
    with space.scorer(resolve(space, version)) as scorer:
        return [text.removesuffix(".") for text in scorer.generate(prompts, max_new_tokens)]


def resolve(space: Workspace, version: str | int) -> str | None:
    """The digest of a version's state; None for the base."""
    if version == BASE or (version == CHAMPION and space.champion is None):
        return None
    return space.registry.get(version).digest
