"""The RECIPE encoder: from text to knowledge and query representations, and on to continuous prompts.

"Lifelong Knowledge Editing for LLMs with Retrieval-Augmented Continuous Prompt Learning"
(arXiv 2405.03279). Features of a text are the pooler's output and the mean,
maximum and minimum of the last hidden states over real tokens. Two heads make representations of
knowledge and of queries out of them; the prompt encoder makes prompt tokens out of knowledge.

Shapes: N texts, T tokens, V vocabulary, D width of the language model, H width of the encoder,
R representation, P prompt tokens, S sentinel tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from editing.editors.identity import complete, require_format, require_unaltered
from editing.editors.recipe.config import EncoderConfig
from editing.errors import ModelError, StateError
from editing.models import BaseModel
from editing.passes import in_passes
from editing.storage import (
    canonical_json,
    link_file,
    read_json,
    read_tensors,
    replace_file,
    tensors_digest,
    write_json,
    write_tensors,
)
from editing.tokenisation import padding_id, tokenise

FORMAT = 1
KIND = "recipe-encoder"


class _Head(nn.Module):
    """`x = Linear(features)`, then `ReLU(Linear(x)) + x`."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(features, width)
        self.mix = nn.Linear(width, width)

    def forward(self, features_NF: Tensor) -> Tensor:
        x_NR = self.into(features_NF)
        return torch.relu(self.mix(x_NR)) + x_NR


class _PromptHead(nn.Module):
    """`Linear(ReLU(Linear(r)) + r)`, reshaped to `[N, P, D]`, in units of `spread`, that of the word embeddings.

    The unit makes a step of Adam as large for prompts as for the rest, however small a model's embeddings are.
    """

    def __init__(self, width: int, tokens: int, lm_width: int, spread: float) -> None:
        super().__init__()
        self.tokens, self.spread = tokens, spread
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, tokens * lm_width)

    def forward(self, knowledge_NR: Tensor) -> Tensor:
        prompts_ND = self.spread * self.out(torch.relu(self.mix(knowledge_NR)) + knowledge_NR)
        return prompts_ND.unflatten(-1, (self.tokens, -1))


class RecipeEncoder(nn.Module):
    """Encoder, heads, sentinel and prompt encoder for one language model.

    Make one with `create` or `load`. The language model's identity is part of it: prompts are made of
    that model's embedding space. With the language model's own tokenizer the word embeddings are the
    model's, frozen, and not part of the artifact; a learned class token then stands before each text.
    """

    _words_VD: Tensor | None
    behind = False  # where its facts' prompts stand: in front of what is asked, as the paper has it

    def __init__(
        self, config: EncoderConfig, backbone: PreTrainedModel, own: PreTrainedTokenizerBase | None, base: BaseModel
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self._backbone_content = _plain(backbone.config)
        self.tokenizer = base.tokenizer if own is None else own
        self._own_tokenizer = own is not None
        self.model_id = Path(base.model_id).name if Path(base.model_id).is_dir() else base.model_id
        self.base_fingerprint, self.tokenizer_hash = base.fingerprint, base.tokenizer_hash
        words = base.model.get_input_embeddings().get_parameter("weight").detach()
        self.lm_width = words.shape[1]
        hidden = int(backbone.config.hidden_size)
        if own is None:
            self.register_buffer("_words_VD", words.float(), persistent=False)
            self.project = nn.Linear(self.lm_width, hidden)
            self.class_token_H = nn.Parameter(torch.randn(hidden) * 0.02)
        else:
            self._words_VD = None
        self.knowledge_head = _Head(4 * hidden, config.width)
        self.query_head = _Head(4 * hidden, config.width)
        self.prompt_head = _PromptHead(config.width, config.prompt_tokens, self.lm_width, float(words.float().std()))
        self.sentinel_SH = nn.Parameter(torch.randn(config.sentinel_tokens, hidden) * 0.02)
        self._frozen_digest: str | None = None
        self._folder: Path | None = None

    @classmethod
    def create(cls, base: BaseModel, config: EncoderConfig) -> RecipeEncoder:
        """A new encoder for `base` with the initial weights of `config.seed`, on the base's device.

        Raises `ModelError` when the backbone cannot be loaded or made.
        """
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            try:
                own = None
                if config.backbone is None:
                    backbone = _from_config(dict(config.backbone_config or {}))
                else:
                    backbone = AutoModel.from_pretrained(config.backbone, dtype=torch.float32)
                    own = AutoTokenizer.from_pretrained(config.backbone)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise ModelError(
                    f"the encoder {config.backbone or config.backbone_config!r} cannot be made: {error}; give the hub "
                    "id or folder of a Hugging Face encoder, or a config with its model_type"
                ) from error
            return cls(config, backbone, own, base).to(base.device)

    @contextmanager
    def noisy_words(self, share: float, deviation: float, generator: torch.Generator) -> Iterator[None]:
        """Inside it a random `share` of the frozen word embeddings has noise of `deviation` times their spread.

        A word's noise is the same in every text: those words are new to the encoder, and mean one thing.
        Raises `StateError` for an encoder with word embeddings of its own.
        """
        words_VD = self._words_VD
        if words_VD is None:
            raise StateError("the encoder's word embeddings are its own and learned: set word_noise to 0")
        noise_VD = torch.randn(words_VD.shape, generator=generator) * float(words_VD.std() * deviation)
        noise_VD *= torch.rand(len(words_VD), 1, generator=generator) < share
        self._words_VD = words_VD + noise_VD.to(words_VD.device)
        try:
            yield
        finally:
            self._words_VD = words_VD

    @property
    def prompt_tokens(self) -> int:
        """P, of a fact's prompt."""
        return self.config.prompt_tokens

    @property
    def spread(self) -> float:
        """The unit of prompts, the spread of the language model's word embeddings."""
        return self.prompt_head.spread

    @property
    def scale(self) -> float:
        """A score is the inner product divided by it, `sqrt(R)`."""
        return self.config.width**0.5

    # From text to representations

    def knowledge(self, texts: Sequence[str]) -> Tensor:
        """Representations `[N, R]` of knowledge statements."""
        return self.knowledge_head(self._features(texts))

    def query(self, texts: Sequence[str]) -> Tensor:
        """Representations `[N, R]` of what is asked."""
        return self.query_head(self._features(texts))

    def sentinel(self) -> Tensor:
        """The knowledge sentinel `[R]`: a query that is nearer to it than to all knowledge finds nothing."""
        embeds_STH = self._with_class_token(self.sentinel_SH[None])
        mask = torch.ones(embeds_STH.shape[:2], dtype=torch.int64, device=embeds_STH.device)
        return self.knowledge_head(self._pooled(embeds_STH, mask))[0]

    def prompts(self, knowledge_NR: Tensor) -> Tensor:
        """Continuous prompt tokens `[N, P, D]` of knowledge representations `[N, R]`."""
        return self.prompt_head(knowledge_NR)

    def scores(self, queries_NR: Tensor, knowledge_MR: Tensor) -> Tensor:
        """`q . k / sqrt(R)` `[N, M]` (arXiv 2405.03279)."""
        return queries_NR @ knowledge_MR.T / self.config.width**0.5

    def _features(self, texts: Sequence[str]) -> Tensor:
        """Features `[N, 4H]`; texts of like length share a pass."""
        device = self.sentinel_SH.device
        rows = [self._ids(tokens.ids) for tokens in tokenise(self.tokenizer, [text.strip() for text in texts])]
        found = in_passes(
            rows, padding_id(self.tokenizer), device, lambda ids, mask: self._pooled(*self._embedded(ids, mask))
        )
        return self.sentinel_SH.new_zeros(0, 4 * self.sentinel_SH.shape[1]) if found is None else found

    def _ids(self, ids: list[int]) -> list[int]:
        """The ids that are read: of a long text the last, behind the tokenizer's own class token if it has one."""
        longest = self.config.max_length
        if len(ids) <= longest:
            return ids
        return [ids[0], *ids[1 - longest :]] if self._own_tokenizer else ids[-longest:]

    def _embedded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self._words_VD is None:
            return self.backbone.get_input_embeddings()(ids), mask
        embeds_NTH = self._with_class_token(self.project(nn.functional.embedding(ids, self._words_VD)))
        return embeds_NTH, torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)

    def _with_class_token(self, embeds_NTH: Tensor) -> Tensor:
        if self._words_VD is None:
            return embeds_NTH
        return torch.cat([self.class_token_H.expand(len(embeds_NTH), 1, -1), embeds_NTH], dim=1)

    def _pooled(self, embeds_NTH: Tensor, mask_NT: Tensor) -> Tensor:
        output = self.backbone(inputs_embeds=embeds_NTH, attention_mask=mask_NT)
        hidden_NTH = output.last_hidden_state
        first_NH = getattr(output, "pooler_output", None)
        if first_NH is None:
            first_NH = hidden_NTH[:, 0]
        absent = ~mask_NT[..., None].bool()
        mean_NH = hidden_NTH.masked_fill(absent, 0.0).sum(1) / mask_NT.sum(1, keepdim=True)
        most_NH = hidden_NTH.masked_fill(absent, -torch.inf).amax(1)
        least_NH = hidden_NTH.masked_fill(absent, torch.inf).amin(1)
        return torch.cat([first_NH, mean_NH, most_NH, least_NH], dim=-1).float()

    # The artifact

    def freeze(self) -> RecipeEncoder:
        """This encoder, ready to serve: no gradients, no dropout, its digest fixed."""
        self.eval().requires_grad_(False)
        self._frozen_digest = self._digest()
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over what it was made for, its config and its weights."""
        return self._frozen_digest or self._digest()

    def content(self) -> dict[str, Any]:
        """Everything that is not a tensor, as plain JSON types."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "config": self.config.to_dict(),
            "backbone": self._backbone_content,
            "own_tokenizer": self._own_tokenizer,
            "base": {
                "model_id": self.model_id,
                "fingerprint": self.base_fingerprint,
                "tokenizer_hash": self.tokenizer_hash,
                "width": self.lm_width,
            },
        }

    def _digest(self) -> str:
        return hashlib.sha256((canonical_json(self.content()) + tensors_digest(self.state_dict())).encode()).hexdigest()

    def require_base(self, base: BaseModel) -> None:
        """Refuse another language model. Raises `StateError` naming what differs."""
        width = base.model.get_input_embeddings().get_parameter("weight").shape[1]
        for name, mine, theirs in (
            ("language model width", str(self.lm_width), str(width)),
            ("base fingerprint", self.base_fingerprint, base.fingerprint),
            ("tokenizer hash", self.tokenizer_hash, base.tokenizer_hash),
        ):
            if mine != theirs:
                raise StateError(
                    f"{name} differs: the encoder was trained for {mine[:12]} ({self.model_id!r}), this is "
                    f"{theirs[:12]} ({base.model_id!r}); train an encoder for this base with `errata recipe train`"
                )

    def save(self, folder: Path) -> str:
        """Write `encoder.json`, `encoder.safetensors`, a README and its own tokenizer; returns the digest.

        An encoder that was loaded is linked, not written again. The JSON, which holds the digest, is
        written last. Raises `StateError` before anything is written when a tensor is not finite.
        """
        if self._frozen_digest is not None and self._folder is not None and self._linked(self._folder, folder):
            return self._frozen_digest
        tensors = self.state_dict()
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise StateError(f"{name} of the encoder is not finite; train again with a lower learning rate")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "encoder.json").unlink(missing_ok=True)
        if self._own_tokenizer:
            self.tokenizer.save_pretrained(folder / "tokenizer")
        write_tensors(folder / "encoder.safetensors", tensors)
        if not (folder / "README.md").exists():
            readme = (
                f"# A RECIPE encoder of Errata\n\nFormat {FORMAT}, for the base model `{self.model_id}` "
                f"(fingerprint `{self.base_fingerprint}`): {self.config.prompt_tokens} prompt tokens, representations "
                f"of {self.config.width}. `encoder.json` says what it was made for, `encoder.safetensors` holds its "
                "weights.\n"
            )
            replace_file(folder / "README.md", lambda path: path.write_text(readme, encoding="utf-8"))
        digest = self.digest
        write_json(folder / "encoder.json", {"digest": digest, **self.content()})
        return digest

    def _linked(self, source: Path, folder: Path) -> bool:
        """Whether all files of `source` are now in `folder` as well; the JSON comes last."""
        files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
        for name in (*(name for name in files if name.name != "encoder.json"), Path("encoder.json")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / name).exists() and not link_file(source / name, folder / name):
                return False
        return True

    @classmethod
    def load(cls, folder: Path, base: BaseModel) -> RecipeEncoder:
        """The frozen encoder in `folder`, verified against `base` and its own digest.

        Raises `StateError` naming what differs: kind, format, base, tokenizer, or content that is
        missing, cut short or altered.
        """
        content = read_json(folder / "encoder.json", StateError)
        require_format(content, folder, kind=KIND, format=FORMAT)
        tensors = read_tensors(folder / "encoder.safetensors", StateError)
        with complete(folder, RuntimeError, OSError):
            own = AutoTokenizer.from_pretrained(folder / "tokenizer") if content["own_tokenizer"] else None
            with torch.random.fork_rng():
                config = EncoderConfig.from_dict(content["config"])
                encoder = cls(config, _from_config(content["backbone"]), own, base)
            named = content["base"]
            encoder._backbone_content = content["backbone"]
            encoder.model_id, encoder.base_fingerprint = named["model_id"], named["fingerprint"]
            encoder.tokenizer_hash, encoder.lm_width = named["tokenizer_hash"], named["width"]
            encoder.require_base(base)
            encoder.load_state_dict(tensors)
        encoder.to(base.device).freeze()
        encoder._folder = folder
        require_unaltered(folder, encoder.digest, content, encoder.content())
        return encoder


def _from_config(content: dict[str, Any]) -> PreTrainedModel:
    """A backbone of this config. One over the language model's embeddings has a vocabulary of its own in name only."""
    content = {"vocab_size": 2, "pad_token_id": 0, **content}
    model_type = content.pop("model_type")
    return AutoModel.from_config(AutoConfig.for_model(model_type, **content), dtype=torch.float32)


def _plain(config: Any) -> dict[str, Any]:
    """The backbone's config without where it came from, as plain JSON types."""
    content = config.to_diff_dict()
    for name in ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"):
        content.pop(name, None)
    return {"model_type": config.model_type, **content}
