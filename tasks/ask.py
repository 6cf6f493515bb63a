"""Asking the model in force: the champion, any version, the champion of a moment, or the base."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from editing.facts import FactChange, Operation, fold
from tasks.champion.choose import digest_of
from tasks.registry import CHAMPION
from tasks.workspace import Workspace

MAX_NEW_TOKENS = 24
SHOWN = 3  # facts that a prompt may have meant, at most
_WORD = re.compile(r"\w+")


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


def about(
    space: Workspace, prompt: str, answer: str, version: str | int = CHAMPION, as_of: datetime | None = None
) -> list[FactChange]:
    """The facts of the version that a prompt may have meant without getting their answer, the likeliest first.

    Those whose subject stands in the prompt; none where the answer is one of their targets.
    """
    digest = digest_of(space, version, as_of)
    if digest is None:
        return []
    asked, words = f" {_words(prompt)} ", set(_words(prompt).split())
    named = [
        fact
        for fact in space.ledger.facts_in_state(digest)
        if fact.operation is Operation.ASSERT and f" {_words(fact.subject)} " in asked
    ]
    if any(fold(answer).startswith(fold(fact.target)) for fact in named):
        return []
    shared = {fact.fact_id: len(words & set(_words(f"{fact.question} {fact.relation}").split())) for fact in named}
    return sorted(named, key=lambda fact: (-shared[fact.fact_id], fact.fact_id))[:SHOWN]


def version_number(space: Workspace, version: str | int = CHAMPION, as_of: datetime | None = None) -> int | None:
    """The number of the version that answers; None for the base."""
    digest = digest_of(space, version, as_of)
    made = space.ledger.version_of_state(digest) if digest else None
    return made.version if made else None


def _words(text: str) -> str:
    """The words of a text, folded, with single spaces."""
    return " ".join(_WORD.findall(fold(text).replace("_", " ")))
