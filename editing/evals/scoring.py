"""What a causal LM answers: teacher-forced targets, greedy generation, and when a text is the answer.

Both protocols see the model as it is served. A prompt is one left-padded prefill; the tokens
after it are read through the cache, the target's in teacher forcing and the model's own in
generation. So anything that a model decides at prefill (the scope of an edit, a retrieved
prompt) is decided on the prompt alone, never on the answer it is scored on.

Shape legend: B rows of a batch, P prompt tokens, C continuation tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from editing.editors.base import Progress
from editing.errors import SuiteError
from editing.facts import fold
from editing.models import BaseModel
from editing.tokenisation import encode_prompts, pad, padding_id, tokenise_with_target

Ids = tuple[int, ...]

SCORING_VERSION = "1"  # raised with any change that can move a result; part of every cache key
DEFAULT_BATCH_SIZE = 64
ANSWER_SLACK = 3  # tokens an answer may run beyond its target, so that the boundary after it is seen
NEWLINE = ("\n",)
_ENCODE_ROWS = 1024


@dataclass(frozen=True, slots=True)
class TeacherForced:
    """One target read token by token: its ids, the argmax at each place, and its log-likelihood in nats."""

    target_ids: Ids
    predicted_ids: Ids
    logprob: float

    @property
    def token_accuracy(self) -> float:
        """Share of the target's tokens that are the argmax: the "accuracy" of the editing papers."""
        return sum(a == b for a, b in zip(self.target_ids, self.predicted_ids, strict=True)) / len(self.target_ids)

    @property
    def all_correct(self) -> bool:
        """Whether greedy decoding would begin with the whole target."""
        return self.target_ids == self.predicted_ids

    @property
    def mean_logprob(self) -> float:
        """Log-likelihood per token in nats, so that targets of unlike length can be compared."""
        return self.logprob / len(self.target_ids)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[Ids]:
    rows: list[Ids] = []
    for start in range(0, len(prompts), _ENCODE_ROWS):
        batch = encode_prompts(tokenizer, prompts[start : start + _ENCODE_ROWS])
        for row, kept in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
            rows.append(tuple(row[kept].tolist()))
    return rows


def _pair_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str]
) -> list[tuple[Ids, Ids]]:
    return [
        (tuple(tokens.ids[: inside[0]]), tuple(tokens.ids[i] for i in inside))
        for tokens, inside in tokenise_with_target(tokenizer, list(zip(prompts, targets, strict=True)))
    ]


def target_lengths(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str]) -> list[int]:
    """Tokens in each target where it follows its prompt."""
    return [len(target) for _, target in _pair_ids(tokenizer, prompts, targets)]


def _check_room(base: BaseModel, longest: int, prompt: str) -> None:
    room = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and longest > room:
        raise SuiteError(
            f"{longest} tokens are needed for prompt {prompt[:60]!r} and its answer, {base.model_id} has room for "
            f"{room}; use fewer shots or fewer new tokens"
        )


def _read(base: BaseModel, batch: Sequence[tuple[Ids, Ids]], fill: int) -> Tensor:
    """Logits [B, 1 + C, V]: after each prompt, and after each token of its continuation."""
    device = base.device
    prompts_BP, mask_BP = (x.to(device) for x in pad([prompt for prompt, _ in batch], fill, side="left"))
    width = max(len(continuation) for _, continuation in batch)
    places_BP = (mask_BP.cumsum(-1) - 1).clamp(min=0)
    prefill = base.model(
        input_ids=prompts_BP,
        attention_mask=mask_BP,
        position_ids=places_BP,
        use_cache=width > 0,
        logits_to_keep=1,
    )
    if width == 0:
        return prefill.logits
    more_BC, more_mask_BC = (x.to(device) for x in pad([continuation for _, continuation in batch], fill, side="right"))
    rest = base.model(
        input_ids=more_BC,
        attention_mask=torch.cat([mask_BP, more_mask_BC], dim=1),
        position_ids=places_BP[:, -1:] + torch.arange(1, width + 1, device=device),
        past_key_values=prefill.past_key_values,
        use_cache=True,
    )
    return torch.cat([prefill.logits, rest.logits], dim=1)


@torch.inference_mode()
def teacher_forced(
    base: BaseModel,
    prompts: Sequence[str],
    targets: Sequence[str],
    batch_size: int = DEFAULT_BATCH_SIZE,
    *,
    progress: Progress | None = None,
) -> list[TeacherForced]:
    """Read each target after its prompt; results in the order given.

    Rows that need the same tokens in are computed once, so the one-token options of a question
    cost one row. Raises `SuiteError` when a row does not fit the model's positions.
    """
    pairs = _pair_ids(base.tokenizer, prompts, targets)
    asked: dict[tuple[Ids, Ids], list[int]] = {}
    for item, (prompt, target) in enumerate(pairs):
        asked.setdefault((prompt, target[:-1]), []).append(item)
    rows = sorted(asked, key=lambda row: (len(row[1]), len(row[0]), row))
    if rows:
        longest = max(rows, key=lambda row: len(row[0]) + len(row[1]))
        _check_room(base, len(longest[0]) + len(longest[1]), prompts[asked[longest][0]])
    results: list[TeacherForced | None] = [None] * len(pairs)
    fill = padding_id(base.tokenizer)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        logits_BCV = _read(base, batch, fill).float()
        best_BC = logits_BCV.argmax(-1).tolist()
        norm_BC = logits_BCV.logsumexp(-1)
        for b, row in enumerate(batch):
            for item in asked[row]:
                target = pairs[item][1]
                places = torch.arange(len(target), device=norm_BC.device)
                token_C = logits_BCV[b, places, torch.tensor(target, device=norm_BC.device)]
                logprob = (token_C - norm_BC[b, places]).double().sum().item()
                results[item] = TeacherForced(target, tuple(best_BC[b][: len(target)]), logprob)
        if progress:
            progress("teacher-forced", min(start + batch_size, len(rows)), len(rows))
    return [result for result in results if result is not None]


class _StopTexts(StoppingCriteria):
    """A row is finished when its new text holds a stop text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        self.window = max(map(len, stop)) + 1

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        recent = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(recent)
        return torch.tensor([any(s in text for s in self.stop) for text in texts], device=input_ids.device)


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop text, outer spaces removed."""
    for mark in stop:
        text = text.split(mark, 1)[0]
    return text.strip()


@torch.inference_mode()
def generate_greedy(
    base: BaseModel,
    prompts: Sequence[str],
    max_new_tokens: int | Sequence[int],
    batch_size: int = DEFAULT_BATCH_SIZE,
    *,
    stop: Sequence[str] = NEWLINE,
    progress: Progress | None = None,
) -> list[str]:
    """The text that greedy decoding adds to each prompt, up to a stop text; in the order given.

    `max_new_tokens` is one budget or one for each prompt: a text never depends on its batch
    mates' budgets. A prompt that occurs twice is generated once. Raises `SuiteError` when a
    prompt and its budget do not fit the model's positions.
    """
    budgets = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    ids = _prompt_ids(base.tokenizer, prompts)
    budget_of: dict[Ids, int] = {}
    for row, budget in zip(ids, budgets, strict=True):
        budget_of[row] = max(budget, budget_of.get(row, 0))
    for row, prompt in zip(ids, prompts, strict=True):
        _check_room(base, len(row) + budget_of[row], prompt)
    rows = sorted(budget_of, key=lambda row: (budget_of[row], len(row), row))
    fill = padding_id(base.tokenizer)
    new_ids: dict[Ids, list[int]] = {}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        input_ids, mask = (x.to(base.device) for x in pad(batch, fill, side="left"))
        width = input_ids.shape[1]
        out: Tensor = base.model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=budget_of[batch[-1]],
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            pad_token_id=fill,
            stopping_criteria=StoppingCriteriaList([_StopTexts(base.tokenizer, stop, width)] if stop else []),
        )
        new_ids.update(zip(batch, out[:, width:].tolist(), strict=True))
        if progress:
            progress("generated", min(start + batch_size, len(rows)), len(rows))
    texts = base.tokenizer.batch_decode(
        [new_ids[row][:budget] for row, budget in zip(ids, budgets, strict=True)], skip_special_tokens=True
    )
    return [cut(text, stop) for text in texts]


def exact_match(text: str, target: str) -> bool:
    """Whether a generated text gives `target`: it starts with it and the answer ends there.

    Case and runs of spaces do not count. "George" is not given by "Georgia", nor 3 by 3.5.
    """
    said, wanted = fold(text), fold(target)
    if not wanted or not said.startswith(wanted):
        return False
    rest = said[len(wanted) :]
    if wanted[-1].isdigit() and len(rest) > 1 and rest[0] in ".," and rest[1].isdigit():
        return False
    return not (rest and wanted[-1].isalnum() and rest[0].isalnum())
