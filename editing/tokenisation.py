"""The one place where text becomes tokens: prompts, joint prompt and target, lookup tokens.

A prompt is read in the model's form (`editing.prompts`), its target as what generation has to write after it: the
target's tokens are those that the prompt, tokenised as it is served, does not have. The tokens of a subject are found
by character offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from editing.errors import TokenisationError
from editing.facts import SLOT
from editing.prompts import RAW, PromptForm, takes_space
from editing.templates import count_slots, fill, in_word, slot_start

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


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special_tokens: bool = True) -> list[Tokens]:
    """Tokenise each text as the model reads it (with the tokenizer's `special_tokens`), with character spans.

    Raises `TokenisationError` when the tokenizer reports no offsets.
    """
    if not texts:
        return []
    try:
        encoded = tokenizer(
            list(texts),
            return_offsets_mapping=True,
            return_attention_mask=False,
            add_special_tokens=special_tokens,
        )
    except NotImplementedError as error:
        raise TokenisationError(
            f"{type(tokenizer).__name__} reports no character offsets; use the model's fast tokenizer"
        ) from error
    return [
        Tokens(list(ids), [tuple(span) for span in spans])
        for ids, spans in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The texts that the tokenizer reads as its special tokens wherever they stand, as "<|im_end|>"."""
    return frozenset(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)


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


def tokenise_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], form: PromptForm = RAW
) -> list[Tokens]:
    """The tokens of each prompt as it is served in `form`, up to where the answer begins; spans are those of the
    rendered text."""
    return tokenise(tokenizer, [form.render(prompt)[0] for prompt in prompts], special_tokens=form.special_tokens)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    padding_side: PaddingSide = "left",
    form: PromptForm = RAW,
) -> BatchEncoding:
    """`input_ids` and `attention_mask` `[B, T]` of whole prompts in `form`, on the CPU.

    Trailing spaces of a prompt are dropped: the model's next token brings its own.
    Raises `TokenisationError` when a prompt has no tokens.
    """
    rows = [tokens.ids for tokens in tokenise_prompts(tokenizer, prompts, form)]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise TokenisationError(f"prompt {prompt!r} has no tokens; give it some text")
    ids, mask = pad(rows, padding_id(tokenizer), side=padding_side)
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})


def join_target(prompt: str, target: str) -> tuple[str, int]:
    """`prompt` and `target` as one statement, and the character where the target starts.

    Exactly one space is between them, and none where the scripts or an opening mark want none.
    """
    head, said = prompt.rstrip(), target.strip()
    joint = " " if head and takes_space(head, said) else ""
    return f"{head}{joint}{said}", len(head) + len(joint)


def tokenise_with_target(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], form: PromptForm = RAW
) -> list[tuple[Tokens, list[int]]]:
    """Each (prompt, target) pair in `form`, with the indices of the tokens that generation has to write.

    Those are the tokens behind the prompt's own: with a tokenizer that splits digits the space before "1580" is one of
    them, and in a form that has one the end of the turn. Where prompt and target tokenised jointly would merge at the
    seam the prompt's tokens stay as they are served. Spans are those of the rendered text.
    Raises `TokenisationError` when a target has no tokens of its own, or nothing precedes it.
    """
    heads = [form.render(prompt)[0] for prompt, _ in pairs]
    answers = [form.answer(prompt, target) for prompt, target in pairs]
    wholes = [head + answer for head, answer in zip(heads, answers, strict=True)]
    special = form.special_tokens
    served = [_without_end(tokens) for tokens in tokenise(tokenizer, heads, special_tokens=special)]
    joined = [_without_end(tokens) for tokens in tokenise(tokenizer, wholes, special_tokens=special)]
    rows = []
    for (prompt, target), head, answer, before, whole in zip(pairs, heads, answers, served, joined, strict=True):
        if not target.strip():
            raise TokenisationError(f"target {target!r} after {prompt!r} has no tokens; give a target with text")
        if not before.ids:
            raise TokenisationError(f"target {target!r} has nothing before it; give a prompt (got {prompt!r})")
        tokens, count = whole, len(before.ids)
        if whole.ids[:count] != before.ids or len(whole.ids) == count:
            rest = tokenise(tokenizer, [answer], special_tokens=False)[0]
            moved = [(left + len(head), right + len(head)) for left, right in rest.spans]
            tokens = Tokens([*before.ids, *rest.ids], [*before.spans, *moved])
        rows.append((tokens, list(range(count, len(tokens.ids)))))
    return rows


def _without_end(tokens: Tokens) -> Tokens:
    """The tokens without special ones that the tokenizer puts after a text."""
    last = len(tokens.ids)
    while last > 1 and tokens.spans[last - 1][0] == tokens.spans[last - 1][1]:
        last -= 1
    return Tokens(tokens.ids[:last], tokens.spans[:last])


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
            if not (in_word(within[at - 1 : at]) or in_word(within[at + len(wanted) :][:1])):
                return at
            at = within.find(wanted, at + 1)
    return -1


def last_subject_token(tokens: Tokens, text: str, subject: str, start: int) -> int:
    """Index of the last token that carries the name of the `subject` that starts at character `start` of `text`.

    A token of punctuation alone, as at the end of "Avel Co.", carries none of it where another does: many subjects end
    in it. Raises `TokenisationError` when no token covers the subject.
    """
    end = start + len(subject)
    inside = tokens.within(start, end) if start >= 0 else []
    if not inside:
        raise TokenisationError(f"subject {subject!r} has no tokens in {text!r}; the text must contain the subject")
    for index in reversed(inside):
        left, right = tokens.spans[index]
        if any(character.isalnum() for character in text[max(left, start) : min(right, end)]):
            return index
    return inside[-1]


def lookup_index(tokenizer: PreTrainedTokenizerBase, template: str, subject: str) -> int:
    """Index, in the unpadded text, of the subject's last token where it fills the slot of `template`.

    This is the lookup token of MEMIT (arXiv 2210.07229, section 4.1). Raises `TokenisationError`
    when the template has no slot or the subject no tokens.
    """
    if not count_slots(template):
        raise TokenisationError(f"template {template!r} has no slot; write {SLOT} where the subject goes")
    text = fill(template, subject).rstrip()
    return last_subject_token(tokenise(tokenizer, [text])[0], text, subject, slot_start(template))
