"""RECIPE's artifact: an encoder and the repository of what it has encoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from editing.editors.identity import form_content, require_same_base
from editing.editors.recipe.config import RecipeConfig
from editing.editors.recipe.encoder import RecipeEncoder
from editing.editors.recipe.repository import Repository
from editing.editors.recipe.sentence import SentenceEncoder
from editing.facts import FactChange
from editing.models import BaseModel
from editing.prompts import RAW, PromptForm
from editing.storage import canonical_json

METHOD = "recipe"
FORMAT = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class RecipeState:
    """Immutable result of `start`, `apply` and `retract`; see `editing.editors.base.EditState`.

    The encoder never changes from state to state; the repository names it by its digest.
    """

    config: RecipeConfig
    model_id: str
    revision: str | None
    base_fingerprint: str
    tokenizer_hash: str
    parent: str | None
    encoder: RecipeEncoder | SentenceEncoder
    repository: Repository
    form: PromptForm = RAW

    @property
    def method(self) -> str:
        """Name of the editing method."""
        return METHOD

    @cached_property
    def facts(self) -> tuple[FactChange, ...]:
        """The facts that hold, oldest first: the last applied of every key, without those retracted."""
        return self.repository.facts()

    @cached_property
    def fact_ids(self) -> tuple[str, ...]:
        """Ids of `facts`."""
        return self.repository.fact_ids()

    @cached_property
    def sentinel(self) -> Tensor:
        """The knowledge sentinel of a trained encoder."""
        assert isinstance(self.encoder, RecipeEncoder)
        with torch.no_grad():
            return self.encoder.sentinel()

    def content(self) -> dict[str, Any]:
        """Everything that is neither a row nor a weight, as plain JSON types."""
        return {
            "method": METHOD,
            "format": FORMAT,
            "config": self.config.to_state(),
            "base": {
                "model_id": self.model_id,
                "revision": self.revision,
                "fingerprint": self.base_fingerprint,
                "tokenizer_hash": self.tokenizer_hash,
                **form_content(self.form),
            },
            "parent": self.parent,
            "encoder": self.encoder.digest,
            **self.repository.content(),
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over `content`, which names encoder, segments and indexes by their digests."""
        return hashlib.sha256(canonical_json(self.content()).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Counts of rows, segments and indexes, and which encoder made them."""
        parts = self.repository.parts
        return {
            "method": METHOD,
            "gate": self.config.gate,
            "asked": self.config.asked,
            "rows": len(self.repository),
            "retracted_rows": len(self.repository.retracted),
            "segments": len(self.repository.segments),
            "indexed_rows": parts[-1].end if parts else 0,
            "index_recall": min((part.recall for part in parts), default=1.0),
            "encoder": self.encoder.digest,
        }

    def require_base(self, base: BaseModel) -> None:
        """Refuse another base model or tokenizer. Raises `StateError` naming what differs."""
        require_same_base(self, base)
