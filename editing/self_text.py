"""Text that a model writes by itself: what its statistics are computed over where no corpus is at hand.

Every token is drawn from the model's own distribution, at temperature 1 with nothing cut off, in two
forms: plain text from the mark that parts documents, and, for a model with a chat template, talks in
that template, of which the model writes the user's turn as well as its own. Rows of a batch go in
step and begin with equally many tokens, so that nothing is padded. A batch depends only on the model,
the spec and its index.

Shapes: B rows of a batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from editing.errors import StatisticsError
from editing.models import BaseModel
from editing.storage import canonical_json

FORMAT = 1  # raised with any change of what a spec makes a model write
DOCUMENT_MARK = "<|endoftext|>"
TURN_MARK = "\u2402"  # stands where a turn's content goes; in no template
BATCH = 64
KEPT_ABOVE = 0.75  # share of a cache's rows that are still written; below, those that are done leave it
Form = Literal["plain", "chat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTextSpec:
    """Everything that the text depends on, beside the processor's rounding; `key` is the SHA-256 of it.

    At least `tokens` tokens are written, in texts of at most `length` tokens.
    """

    base_fingerprint: str
    tokenizer_hash: str
    chat_template_hash: str
    tokens: int
    length: int
    seed: int
    batch: int = BATCH
    format: int = FORMAT

    @classmethod
    def of(cls, base: BaseModel, *, tokens: int, length: int, seed: int) -> SelfTextSpec:
        """The spec for `base`; texts are no longer than its positions. Raises `StatisticsError` for sizes below one."""
        if tokens < 1 or length < 1:
            raise StatisticsError(f"{tokens} tokens in texts of {length} cannot be written; both must be at least one")
        template = base.tokenizer.chat_template or ""
        return cls(
            base_fingerprint=base.fingerprint,
            tokenizer_hash=base.tokenizer_hash,
            chat_template_hash=hashlib.sha256(canonical_json(template).encode()).hexdigest(),
            tokens=tokens,
            length=min(length, getattr(base.model.config, "max_position_embeddings", None) or length),
            seed=seed,
        )

    @property
    def key(self) -> str:
        """Identity of the text."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SelfText:
    """One text in the form it was written in, its special tokens spelt out, and how many tokens it has."""

    form: Form
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class _Opening:
    """How the rows of a form begin: `start`, the same for all (empty: with a word drawn evenly from the vocabulary).

    Where `turn` is not empty, what follows the start is the user's turn, up to `turn`, which begins the answer.
    The first `hidden` tokens of a row are not part of its text.
    """

    form: Form
    start: tuple[int, ...]
    turn: tuple[int, ...] = ()
    hidden: int = 0


def forms_of(base: BaseModel) -> tuple[Form, ...]:
    """The forms that `base` writes in: plain text, and talks when its tokenizer has a chat template."""
    return ("plain", "chat") if base.tokenizer.chat_template else ("plain",)


@torch.no_grad()
def write_batch(base: BaseModel, spec: SelfTextSpec, index: int) -> list[SelfText]:
    """The texts of batch `index`, those without any token left out; the batches take the forms in turn."""
    forms = forms_of(base)
    form = forms[index % len(forms)]
    opening = _plain(base) if form == "plain" else _chat(base)
    if len(opening.start) + len(opening.turn) >= spec.length:
        opening = _plain(base)  # such short texts have no room for a talk
    generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + index)
    texts = []
    for ids in _write(base, opening, spec, generator):
        shown = ids[opening.hidden :]
        if text := str(base.tokenizer.decode(shown, skip_special_tokens=False)):
            texts.append(SelfText(opening.form, text, len(shown)))
    return texts


def _plain(base: BaseModel) -> _Opening:
    """Text from the token that the tokenizer puts before every text, else from the mark that parts documents."""
    tokenizer = base.tokenizer
    if before := _put_before(base):
        return _Opening("plain", before, hidden=len(before))
    known = tokenizer.get_vocab()
    mark = known.get(DOCUMENT_MARK, tokenizer.eos_token_id)
    return _Opening("plain", () if mark is None else (int(mark),), hidden=0 if mark is None else 1)


def _chat(base: BaseModel) -> _Opening:
    """A talk of one question and its answer in the tokenizer's template, with what the template says by itself."""
    tokenizer = base.tokenizer
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": TURN_MARK}], tokenize=False, add_generation_prompt=True
    )
    before, found, after = str(asked).partition(TURN_MARK)
    if not found:
        raise StatisticsError(
            f"the chat template of {base.model_id!r} does not show what the user says; set statistics.corpus instead"
        )
    start, turn = (tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (before, after))
    first = _put_before(base)
    return _Opening("chat", start, turn, hidden=len(first) if first and start[: len(first)] == first else 0)


def _put_before(base: BaseModel) -> tuple[int, ...]:
    """The tokens that the tokenizer puts before every text."""
    tokenizer = base.tokenizer
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return tuple(whole[:at])


class _Row:
    """A text in the making: what was written, and what is to come before the model goes on."""

    def __init__(self, opening: _Opening, start: Sequence[int], length: int, ends: frozenset[int]) -> None:
        self.ids = list(start)
        self.length, self.ends = length, ends
        self.turn = opening.turn
        self.told: list[int] = []  # of the turn, what is still to be written
        self.answers = not opening.turn
        # a question takes a third of what is left at most, and leaves the turn its room
        self.question_end = len(start) + max(1, (length - len(start) - len(opening.turn)) // 3)
        self.done = len(self.ids) >= length

    def take(self, drawn: int) -> int:
        """Write the next token, which is `drawn` where the model has the word; returns it."""
        if self.told:
            token = self.told.pop(0)
        elif not self.answers and (drawn in self.ends or drawn == self.turn[0] or len(self.ids) >= self.question_end):
            token, *self.told = self.turn
            self.answers = True
        else:
            token = drawn
            self.done = self.answers and drawn in self.ends
        self.ids.append(token)
        self.done |= len(self.ids) >= self.length
        return token


def _write(base: BaseModel, opening: _Opening, spec: SelfTextSpec, generator: torch.Generator) -> list[list[int]]:
    """The ids of `spec.batch` texts, each up to its end or `spec.length`."""
    model: Any = base.model
    if opening.start:
        starts = torch.tensor(opening.start).repeat(spec.batch, 1)
    else:
        starts = torch.randint(len(base.tokenizer), (spec.batch, 1), generator=generator)
    ends = frozenset(base.tokenizer.all_special_ids)
    rows = [_Row(opening, start, spec.length, ends) for start in starts.tolist()]
    live = [row for row in rows if not row.done]
    held = list(range(len(rows)))  # which rows the cache holds
    inputs, cache = starts, None
    while live:
        out = model(input_ids=inputs.to(base.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        uniform = torch.rand(len(rows), generator=generator)[held]
        drawn = _draw(out.logits[:, -1], uniform)
        taken = [0 if rows[at].done else rows[at].take(token) for at, token in zip(held, drawn.tolist(), strict=True)]
        live = [row for row in live if not row.done]
        if live and len(live) < KEPT_ABOVE * len(held):
            kept = [place for place, at in enumerate(held) if not rows[at].done]
            cache.batch_select_indices(torch.tensor(kept, device=base.device))
            held, taken = [held[place] for place in kept], [taken[place] for place in kept]
        inputs = torch.tensor(taken)[:, None]
    return [row.ids for row in rows]


def _draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """A token `[B]` for each row by its probability, where the distribution function passes `uniform_B`, on the CPU."""
    sums_BV = logits_BV.float().softmax(-1).cumsum(-1)
    places_B1 = uniform_B.to(sums_BV.device)[:, None] * sums_BV[:, -1:]
    drawn_B = torch.searchsorted(sums_BV, places_B1, right=True)[:, 0]
    return drawn_B.clamp(max=sums_BV.shape[1] - 1).cpu()
