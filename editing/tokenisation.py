"""The one place where text becomes tokens: prompts, joint prompt and target, lookup tokens.

A prompt and its target are tokenised together, with exactly one space between them, and the
target's tokens are found by character offsets; so are the tokens of a subject. No token id is ever
counted or cut by hand.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from editing.errors import TokenisationError
from editing.facts import SLOT

PaddingSide = Literal["left", "right"]


class Tokens(NamedTuple):
    """One text's token ids and, for each, its character span `(start, end)`; special tokens are empty spans."""

    ids: list[int]
    spans: list[tuple[int, int]]

    def within(self, start: int, end: int) -> list[int]:
        """Indices of the tokens that overlap the characters `start` to `end`."""
        return [i for i, (left, right) in enumerate(self.spans) if left < end and right > start and right > left]


@dataclass(frozen=True, slots=True)
class EncodedTargets:
    """Prompts with their targets, right padded: all `[B, T]`; `target_mask` is true on target tokens."""

    input_ids: Tensor
    attention_mask: Tensor
    target_mask: Tensor


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tokens]:
    """Tokenise each text as the model reads it (special tokens included), with character spans.

    Raises `TokenisationError` when the tokenizer reports no offsets.
    """
    if not texts:
        return []
    try:
        encoded = tokenizer(list(texts), return_offsets_mapping=True, return_attention_mask=False)
    except NotImplementedError as error:
        raise TokenisationError(
            f"{type(tokenizer).__name__} reports no character offsets; use the model's fast tokenizer"
        ) from error
    return [
        Tokens(list(ids), [tuple(span) for span in spans])
        for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id written where a batch is padded; it is always masked, so any id of the vocabulary does."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def pad(rows: Sequence[Sequence[int]], fill: int, *, side: PaddingSide) -> tuple[Tensor, Tensor]:
    """Rows of ids as `[B, T]` with `fill` at `side`, and the `[B, T]` mask (1 on real tokens), both int64."""
    width = max((len(row) for row in rows), default=0)
    padded, marks = [], []
    for row in rows:
        content, missing = list(row), width - len(row)
        before, behind = (missing, 0) if side == "left" else (0, missing)
        padded.append([fill] * before + content + [fill] * behind)
        marks.append([0] * before + [1] * len(content) + [0] * behind)
    shape = (len(rows), width)
    return torch.tensor(padded, dtype=torch.int64).reshape(shape), torch.tensor(marks, dtype=torch.int64).reshape(shape)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, padding_side: PaddingSide = "left"
) -> BatchEncoding:
    """`input_ids` and `attention_mask` `[B, T]` of whole prompts, on the CPU.

    Trailing spaces of a prompt are dropped: the model's next token brings its own.
    Raises `TokenisationError` when a prompt has no tokens.
    """
    rows = [tokens.ids for tokens in tokenise(tokenizer, [prompt.rstrip() for prompt in prompts])]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise TokenisationError(f"prompt {prompt!r} has no tokens; give it some text")
    ids, mask = pad(rows, padding_id(tokenizer), side=padding_side)
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})


def join_target(prompt: str, target: str) -> tuple[str, int]:
    """`prompt` and `target` with exactly one space between, and the character where the target starts."""
    head = prompt.rstrip()
    start = len(head) + 1 if head else 0
    return f"{head} {target.strip()}" if head else target.strip(), start


def tokenise_with_target(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[tuple[Tokens, list[int]]]:
    """Each (prompt, target) pair tokenised jointly, with the indices of the target's tokens.

    Raises `TokenisationError` when a target has no tokens of its own, or starts at the first token
    of the text, so that nothing precedes it.
    """
    joined = [join_target(prompt, target) for prompt, target in pairs]
    rows = []
    for (text, start), (prompt, target), tokens in zip(
        joined, pairs, tokenise(tokenizer, [text for text, _ in joined]), strict=True
    ):
        inside = tokens.within(start, len(text))
        if not inside or not target.strip():
            raise TokenisationError(f"target {target!r} after {prompt!r} has no tokens; give a target with text")
        if inside[0] == 0:
            raise TokenisationError(f"target {target!r} has nothing before it; give a prompt (got {prompt!r})")
        if tokens.spans[inside[0]][0] < start - 1:
            raise TokenisationError(
                f"the tokenizer merges the end of {prompt!r} with the start of target {target!r}; "
                "end the prompt with a word or punctuation mark"
            )
        rows.append((tokens, inside))
    return rows


def encode_with_targets(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str]
) -> EncodedTargets:
    """Prompts and targets tokenised jointly, right padded, on the CPU; shapes in `EncodedTargets`.

    Raises `TokenisationError` as `tokenise_with_target` does.
    """
    rows = tokenise_with_target(tokenizer, list(zip(prompts, targets, strict=True)))
    ids, attention = pad([tokens.ids for tokens, _ in rows], padding_id(tokenizer), side="right")
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, (_, inside) in enumerate(rows):
        mask[row, inside] = True
    return EncodedTargets(ids, attention, mask)


def find_subject(text: str, subject: str) -> int:
    """The character where `subject` first occurs in `text` as words of its own, in any case; -1 without it.

    "Niger" is not in "Nigeria". Scripts that do not part words (category Lo) are searched as they are.
    """
    folded = (text.casefold(), subject.casefold())
    for within, wanted in ((text, subject), folded if len(folded[0]) == len(text) else (text, subject)):
        at = within.find(wanted)
        while at >= 0:
            if not (_in_word(within[at - 1 : at]) or _in_word(within[at + len(wanted) :][:1])):
                return at
            at = within.find(wanted, at + 1)
    return -1


def _in_word(character: str) -> bool:
    return bool(character) and unicodedata.category(character) in ("Lu", "Ll", "Lt", "Mn", "Nd")


def last_subject_token(tokens: Tokens, text: str, subject: str, start: int) -> int:
    """Index of the last token of the `subject` that starts at character `start` of `text`.

    Raises `TokenisationError` when no token covers it.
    """
    inside = tokens.within(start, start + len(subject)) if start >= 0 else []
    if not inside:
        raise TokenisationError(f"subject {subject!r} has no tokens in {text!r}; the text must contain the subject")
    return inside[-1]


def lookup_index(tokenizer: PreTrainedTokenizerBase, template: str, subject: str) -> int:
    """Index, in the unpadded text, of the subject's last token where it fills the slot of `template`.

    This is the lookup token of MEMIT (arXiv 2210.07229, section 4.1). Raises `TokenisationError`
    when the template has no slot or the subject no tokens.
    """
    if SLOT not in template:
        raise TokenisationError(f"template {template!r} has no slot; write {SLOT} where the subject goes")
    text = template.replace(SLOT, subject).rstrip()
    return last_subject_token(tokenise(tokenizer, [text])[0], text, subject, template.index(SLOT))
