"""A pretrained sentence encoder as it comes: what RECIPE looks facts up with before anything is trained.

Knowledge and queries share one space (`editing.sentences`), and their score is the cosine. It makes no prompts: those
begin with their target's own words and are tuned. An artifact names it by name and digest only.

Shapes: N texts, R representation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editing.editors.identity import complete, require_format, require_unaltered
from editing.errors import StateError
from editing.models import BaseModel
from editing.sentences import SentenceModel, open_backbone
from editing.storage import canonical_json, read_json, write_json

FORMAT = 1
KIND = "sentence-encoder"


class SentenceEncoder(SentenceModel):
    """Make one with `find` (by name) or `load` (from a state's folder); it is frozen from the start."""

    behind = True  # where its facts' prompts stand: behind what is asked, where the answer begins
    scale = 1.0  # a score is the inner product divided by it

    def __init__(
        self,
        name: str,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        base: BaseModel,
        prompt_tokens: int,
    ) -> None:
        super().__init__(name, backbone, tokenizer)
        self.prompt_tokens = prompt_tokens
        words = base.model.get_input_embeddings().get_parameter("weight").detach()
        self.lm_width, self.spread = words.shape[1], float(words.float().std())
        self.to(base.device)

    @property
    def width(self) -> int:
        """R, of its representations."""
        return int(self.backbone.config.hidden_size)

    @classmethod
    def find(cls, name: str, base: BaseModel, prompt_tokens: int) -> SentenceEncoder:
        """The encoder in a folder (a relative one beside the model first), an installed package, or on the hub.

        Raises `StateError` naming the places and the way out when it is in none of them.
        """
        return cls(name, *open_backbone(name, base.model_id), base, prompt_tokens)

    # From text to representations

    def knowledge(self, texts: Sequence[str]) -> Tensor:
        """Representations `[N, R]` of knowledge statements, of unit length."""
        return self.represent(texts)

    def query(self, texts: Sequence[str]) -> Tensor:
        """Representations `[N, R]` of what is asked, of unit length."""
        return self.represent(texts)

    def scores(self, queries_NR: Tensor, knowledge_MR: Tensor) -> Tensor:
        """Cosines `[N, M]`."""
        return queries_NR @ knowledge_MR.T

    # The artifact

    def content(self) -> dict[str, Any]:
        """Its name, what it is, and the shape of prompts, as plain JSON types."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "backbone": self.name,
            "backbone_digest": self.backbone_digest,
            "prompt_tokens": self.prompt_tokens,
            "width": self.lm_width,
        }

    @property
    def digest(self) -> str:
        """SHA-256 over `content`, which names weights and tokenizer by their digest."""
        return hashlib.sha256(canonical_json(self.content()).encode()).hexdigest()

    def save(self, folder: Path) -> str:
        """Write `encoder.json`, which names the backbone and holds none of it; returns the digest."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "encoder.json", {"digest": self.digest, **self.content()})
        return self.digest

    @classmethod
    def load(cls, folder: Path, base: BaseModel) -> SentenceEncoder:
        """The encoder that `folder` names, found again and verified.

        Raises `StateError` when it is not found, has other weights or another tokenizer, or serves another width.
        """
        content = read_json(folder / "encoder.json", StateError)
        require_format(content, folder, kind=KIND, format=FORMAT)
        with complete(folder):
            encoder = cls.find(content["backbone"], base, content["prompt_tokens"])
            encoder.require(content["backbone_digest"])
            require_unaltered(folder, encoder.digest, content, encoder.content())
        return encoder


def is_sentence_encoder(folder: Path) -> bool:
    """Whether `folder` names a sentence encoder that is used as it comes."""
    return read_json(folder / "encoder.json", StateError).get("kind") == KIND
