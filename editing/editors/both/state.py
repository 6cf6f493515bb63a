"""The state of both methods at once: one state of each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from editing.editors.both.config import BothConfig
from editing.editors.coachhook import CoachHookState
from editing.editors.recipe import RecipeState
from editing.facts import FactChange, precedence
from editing.models import BaseModel
from editing.storage import canonical_json

METHOD = "both"
FORMAT = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class BothState:
    """Immutable result of `start`, `apply` and `retract`; see `editing.editors.base.EditState`."""

    config: BothConfig
    parent: str | None
    coachhook: CoachHookState
    recipe: RecipeState

    @property
    def method(self) -> str:
        """Name of the editing method."""
        return METHOD

    @property
    def base_fingerprint(self) -> str:
        """Identity of the base model that both were made for."""
        return self.coachhook.base_fingerprint

    @cached_property
    def facts(self) -> tuple[FactChange, ...]:
        """The facts that hold in either state, in precedence order."""
        return tuple(sorted((*self.coachhook.facts, *self.recipe.facts), key=precedence))

    @cached_property
    def fact_ids(self) -> tuple[str, ...]:
        """Ids of `facts`."""
        return tuple(fact.fact_id for fact in self.facts)

    def content(self) -> dict[str, Any]:
        """What joins the two states, as plain JSON types."""
        return {
            "method": METHOD,
            "format": FORMAT,
            "config": self.config.to_state(),
            "parent": self.parent,
            "coachhook": self.coachhook.digest,
            "recipe": self.recipe.digest,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over `content`, which names the two states by their digests."""
        return hashlib.sha256(canonical_json(self.content()).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The figures of each state under its method's name."""
        figures = {"method": METHOD}
        for part in (self.coachhook, self.recipe):
            figures |= {f"{part.method}_{name}": value for name, value in part.describe().items() if name != "method"}
        return figures

    def require_base(self, base: BaseModel) -> None:
        """Refuse another base model or tokenizer. Raises `StateError` naming what differs."""
        self.coachhook.require_base(base)
        self.recipe.require_base(base)
