"""Meta-edits: what a RECIPE encoder is trained on, and where they come from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from editing.errors import FactError
from editing.tokenisation import join_target


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaEdit:
    """One edit to learn from.

    `statement_prompt` and `target` make the knowledge statement. `queries` ask for the target: the
    first as the edit prompt does (reliability), the others in other words. `locality` are prompts
    whose answer the edit must leave alone; hard ones share the subject or the relation.
    Raises `FactError` at construction when there is no query or no locality prompt.
    """

    statement_prompt: str
    target: str
    queries: tuple[str, ...]
    locality: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("queries", "locality"):
            if not getattr(self, name):
                raise FactError(f"{name} of the meta-edit {self.statement!r} is empty; give at least one prompt")

    @property
    def statement(self) -> str:
        """The knowledge statement: prompt and target with one space between."""
        return join_target(self.statement_prompt, self.target)[0]


class MetaSource(Protocol):
    """Meta-edits without end for training, and a fixed split for validation, disjoint in subjects."""

    def draw(self, rng: random.Random, n: int) -> list[MetaEdit]:
        """`n` training edits, or as many as there are.

        Equal states of `rng` give equal edits: a resumed training draws what it would have.
        """
        ...

    def validation(self) -> list[MetaEdit]:
        """The validation edits, the same at every call."""
        ...

    def targets(self) -> list[str]:
        """Every target that `draw` may give, sorted; the same at every call."""
        ...
