"""Asking the model in force: the champion, any version, the champion of a moment, or the base."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tasks.champion.choose import digest_of
from tasks.registry import CHAMPION
from tasks.workspace import Workspace

MAX_NEW_TOKENS = 24


def ask(
    space: Workspace,
    prompts: Sequence[str],
    version: str | int = CHAMPION,
    max_new_tokens: int = MAX_NEW_TOKENS,
    as_of: datetime | None = None,
) -> list[str]:
    """What a version answers to each prompt, up to the end of the line, without the full stop. Greedy.

    `version` is an alias, a number or `base`; the champion is the base while nothing was promoted. With
    `as_of` the champion of that moment answers. Raises `RegistryError` when there is no such version.
    """
    with space.scorer(digest_of(space, version, as_of)) as scorer:
        return [text.removesuffix(".") for text in scorer.generate(prompts, max_new_tokens)]
