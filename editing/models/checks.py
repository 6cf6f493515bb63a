"""What a model that was loaded can be used for: its tokenizer, its chat template, and each editing method on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from editing.errors import ModelError, TokenisationError
from editing.models.architectures import unknown_architecture
from editing.models.loading import BaseModel
from editing.tokenisation import tokenise

SENTENCE = "The capital of France is Paris, since 987. Ωmega 1580!"
YES = "yes"
NO_TEMPLATE = "none"
RENDERS = "renders"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What was found; `methods` has "yes" for each editing method, or one sentence that says why not."""

    architecture: str
    tokenizer: str
    vocabulary: int
    template: str
    end_token: str | None
    methods: dict[str, str]


def check_model(base: BaseModel) -> Checks:
    """Run `base` on a sentence and say what it can be used for.

    Raises `ModelError` when it is not causal, its logits are not finite, or its tokenizer has ids that
    the model has no embedding for, or does not cover a text with its offsets.
    """
    ids_1T = _check_tokenizer(base)
    logits_TV = _check_causal(base, ids_1T)
    return Checks(
        architecture=base.model.config.model_type,
        tokenizer=type(base.tokenizer).__name__,
        vocabulary=len(base.tokenizer),
        template=template_of(base.tokenizer),
        end_token=base.tokenizer.eos_token,
        methods={"coachhook": _coachhook(base), "recipe": _recipe(base, ids_1T, logits_TV)},
    )


def template_of(tokenizer: Any) -> str:
    """ "none", "renders", or "fails: " and why, for the chat template of a tokenizer."""
    if not tokenizer.chat_template:
        return NO_TEMPLATE
    try:
        told = tokenizer.apply_chat_template(
            [{"role": "user", "content": SENTENCE}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program of its publisher, and raises what it likes
        return f"fails: {error}"
    return RENDERS if SENTENCE in told else "fails: it leaves out what the user says"


def _check_tokenizer(base: BaseModel) -> torch.Tensor:
    try:
        (tokens,) = tokenise(base.tokenizer, [SENTENCE])
    except TokenisationError as error:
        raise ModelError(f"{error} (model {base.model_id!r})") from error
    covered = {place for start, end in tokens.spans for place in range(start, end)}
    if missed := [letter for place, letter in enumerate(SENTENCE) if place not in covered and not letter.isspace()]:
        raise ModelError(
            f"the tokenizer of {base.model_id!r} loses {missed[0]!r} of {SENTENCE!r}; facts could not be found among "
            "its tokens: use the model's own fast tokenizer"
        )
    rows = base.model.get_input_embeddings().get_parameter("weight").shape[0]
    # transformers gives the tokenizer of some GGUF files a special token more, which no text of ours has
    special = {str(token) for token in base.tokenizer.added_tokens_decoder.values() if token.special}
    beyond = {place: token for token, place in base.tokenizer.get_vocab().items() if place >= rows}
    if max(tokens.ids) >= rows or set(beyond.values()) - special:
        raise ModelError(
            f"the tokenizer of {base.model_id!r} has ids up to {max(beyond)}, the model has {rows} embeddings; give "
            "the tokenizer that belongs to the model"
        )
    return torch.tensor([tokens.ids], device=base.device)


@torch.no_grad()
def _check_causal(base: BaseModel, ids_1T: torch.Tensor) -> torch.Tensor:
    """Logits `[T, V]` of the sentence."""
    logits_TV = base.model(ids_1T).logits[0].float()
    if not logits_TV.isfinite().all():
        raise ModelError(f"the logits of {base.model_id!r} are not finite in this dtype; load it with dtype float32")
    half, changed_1T = ids_1T.shape[1] // 2, ids_1T.clone()
    changed_1T[0, half:] = ids_1T[0, 0]
    before_TV = base.model(changed_1T).logits[0, :half].float()
    if not _same(before_TV, logits_TV[:half], base):
        raise ModelError(
            f"{base.model_id!r} ({base.model.config.model_type}) reads the text that follows a token: it is no causal "
            "language model, and cannot be edited; give a decoder"
        )
    return logits_TV


def _coachhook(base: BaseModel) -> str:
    if base.architecture is None:
        return str(unknown_architecture(base.model))
    return YES


@torch.no_grad()
def _recipe(base: BaseModel, ids_1T: torch.Tensor, logits_TV: torch.Tensor) -> str:
    """RECIPE puts vectors before the embeddings of a question, and trains them through the body and the head."""
    embeddings = base.model.get_input_embeddings()
    head = base.head
    if embeddings is None or head is None:
        return "it has no input embeddings, or no head, that a prompt of vectors could be trained through"
    try:
        hidden_BTD = base.model.base_model(inputs_embeds=embeddings(ids_1T), use_cache=False).last_hidden_state
    except (TypeError, ValueError) as error:
        return f"it takes no embeddings in place of tokens ({error})"
    if not _same(head(hidden_BTD[0]).float(), logits_TV, base):
        return "from its embeddings, body and head alone it computes something else than from tokens"
    return YES


def _same(found: torch.Tensor, logits: torch.Tensor, base: BaseModel) -> bool:
    """Whether two ways to compute logits differ by rounding alone, measured against their spread."""
    rounding = max(1e-3, 8 * torch.finfo(base.model.dtype).eps)
    return torch.allclose(found, logits, rtol=0, atol=rounding * max(float(logits.std()), 1e-6))
