"""What a causal LM answers: teacher-forced targets, greedy generation, and when a text is the answer.

Both protocols see the model as it is served. A prompt is one left-padded prefill; the tokens
after it are read through the cache, the target's in teacher forcing and the model's own in
generation. So anything that a model decides at prefill (the scope of an edit, a retrieved
prompt) is decided on the prompt alone, never on the answer it is scored on.

Shape legend: B rows of a batch, P prompt tokens, C continuation tokens, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from editing.editors.base import Progress
from editing.evals.requests import ForcedPlan, GenerationPlan, Ids, Row, plan_forced, plan_generation
from editing.evals.shards import Work, batched, carry_out
from editing.facts import fold
from editing.models import BaseModel
from editing.tokenisation import pad, padding_id

SCORING_VERSION = "3"  # raised with any change that can move a result; part of every cache key
DEFAULT_BATCH_SIZE = 64
ANSWER_SLACK = 3  # tokens an answer may run beyond its target, so that the boundary after it is seen
NEWLINE = ("\n",)
_GOES_ON = "+#%\u2030\u00b0/&@_"  # behind a word or number these make another one of it
_HYPHENS = "-\u2010\u2011"  # and these before a letter or digit
_OUTER = " .,;:!?\"'\u201c\u201d\u2018\u2019"  # what may stand around an answer


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


@dataclass(frozen=True, slots=True)
class ForcedWork(Work):
    """Targets to be read: each row with the targets, as tokens, that are asked after its prompt."""

    protocol = "teacher-forced"

    def answer(self, base: BaseModel, batch: Sequence[tuple[Row, tuple[Ids, ...]]]) -> list[list[TeacherForced]]:
        """Each row's targets as the model reads them."""
        logits_BCV = _read(base, [row for row, _ in batch], padding_id(base.tokenizer)).float()
        best_BC = logits_BCV.argmax(-1).tolist()
        norm_BC = logits_BCV.logsumexp(-1)
        found: list[list[TeacherForced]] = []
        for b, (_, targets) in enumerate(batch):
            found.append([])
            for target in targets:
                places = torch.arange(len(target), device=norm_BC.device)
                token_C = logits_BCV[b, places, torch.tensor(target, device=norm_BC.device)]
                logprob = (token_C - norm_BC[b, places]).double().sum().item()
                found[b].append(TeacherForced(target, tuple(best_BC[b][: len(target)]), logprob))
        return found


def forced_work(plan: ForcedPlan, rows: Sequence[Row], batch_size: int) -> ForcedWork:
    """The work of reading the targets of those requests of `plan` that `rows` answer."""
    asked = [(row, tuple(plan.pairs[item][1] for item in plan.asked[row])) for row in rows]
    return ForcedWork(batched(asked, batch_size))


def targets_read(
    plan: ForcedPlan, rows: Sequence[Row], answers: Sequence[Sequence[TeacherForced]]
) -> dict[int, TeacherForced]:
    """The answers to `forced_work`, by request."""
    return {
        item: target
        for row, targets in zip(rows, answers, strict=True)
        for item, target in zip(plan.asked[row], targets, strict=True)
    }


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
    plan = plan_forced(base, prompts, targets)
    work = forced_work(plan, plan.rows, batch_size)
    results = targets_read(plan, plan.rows, carry_out(work, base, work.protocol, progress=progress))
    return [results[item] for item in range(len(plan.pairs))]


class _StopTexts(StoppingCriteria):
    """A row is finished when its new text holds a stop text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start
        self.window = max(map(len, stop)) + 1

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        recent = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(recent)
        return torch.tensor([any(s in text for s in self.stop) for text in texts], device=input_ids.device)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Draws each token from the `top_k` likeliest, by its probability among them; the same `seed` draws the same."""

    top_k: int
    seed: int


class _Draw(LogitsProcessor):
    """Adds Gumbel noise to each row's best tokens, so that the greedy choice is a draw (Gumbel 1954).

    Every row draws from a stream of its own, made of the seed and its prompt: batch mates change nothing.
    """

    def __init__(self, sampling: Sampling, rows: Sequence[Ids]) -> None:
        self.top_k = sampling.top_k
        self.streams = []
        for row in rows:
            seed = sha256(f"{sampling.seed}:{row}".encode()).digest()
            self.streams.append(torch.Generator().manual_seed(int.from_bytes(seed[:7])))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best_BK, at_BK = scores.float().topk(self.top_k)
        uniform_BK = torch.stack([torch.rand(self.top_k, generator=stream) for stream in self.streams])
        noise_BK = -torch.log(-torch.log(uniform_BK.clamp(1e-20, 1 - 1e-7)))
        drawn = torch.full_like(scores, float("-inf"), dtype=torch.float32)
        return drawn.scatter(1, at_BK, best_BK + noise_BK.to(best_BK.device))


@dataclass(frozen=True, slots=True)
class GenerationWork(Work):
    """Texts to be generated, to a stop text or the budget; greedy without `sampling`.

    Each row is a prompt with its budget, and the last of a batch has the largest.
    """

    stop: tuple[str, ...] = NEWLINE
    sampling: Sampling | None = None

    @property
    def protocol(self) -> str:
        """How the rows are asked, in a word."""
        return "sampled" if self.sampling else "generated"

    def answer(self, base: BaseModel, batch: Sequence[tuple[Ids, int]]) -> list[Ids]:
        """The tokens that the model adds to each row."""
        prompts, budgets = zip(*batch, strict=True)
        fill = padding_id(base.tokenizer)
        input_ids, mask = (x.to(base.device) for x in pad(prompts, fill, side="left"))
        width = input_ids.shape[1]
        stopping = [_StopTexts(base.tokenizer, self.stop, width)] if self.stop else []
        out: Tensor = base.model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=budgets[-1],
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            pad_token_id=fill,
            eos_token_id=list(base.stop_ids) or None,
            logits_processor=LogitsProcessorList([_Draw(self.sampling, prompts)] if self.sampling else []),
            stopping_criteria=StoppingCriteriaList(stopping),
        )
        made = out[:, width:].tolist()
        return [_ended(base, tuple(ids[:budget]), self.stop) for ids, budget in zip(made, budgets, strict=True)]


def generation_work(
    plan: GenerationPlan,
    rows: Sequence[Ids],
    batch_size: int,
    stop: Sequence[str] = NEWLINE,
    sampling: Sampling | None = None,
) -> GenerationWork:
    """The work of generating after `rows` of `plan`."""
    return GenerationWork(batched([(row, plan.budget_of[row]) for row in rows], batch_size), tuple(stop), sampling)


def _ended(base: BaseModel, ids: Ids, stop: Sequence[str]) -> Ids:
    """`ids` up to where the text was finished: what follows is there for batch mates that needed longer."""
    ends = [ids.index(token) for token in base.stop_ids if token in ids]
    ids = ids[: min(ends) + 1] if ends else ids
    counts, decode = range(1, len(ids) + 1), base.tokenizer.decode
    return ids[: bisect_left(counts, True, key=lambda n: any(s in decode(list(ids[:n])) for s in stop)) + 1]


def texts_of(
    tokenizer: PreTrainedTokenizerBase, plan: GenerationPlan, made: dict[Ids, Ids], stop: Sequence[str]
) -> list[str]:
    """The text of each request of `plan`, cut at its budget and at the first stop text."""
    ids = [list(made[row][:budget]) for row, budget in zip(plan.prompts, plan.budgets, strict=True)]
    return [cut(text, stop) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


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
    plan = plan_generation(base, prompts, budgets)
    work = generation_work(plan, plan.rows, batch_size, stop)
    made = carry_out(work, base, work.protocol, progress=progress)
    return texts_of(base.tokenizer, plan, dict(zip(plan.rows, made, strict=True)), stop)


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop text, outer spaces removed."""
    for mark in stop:
        text = text.split(mark, 1)[0]
    return text.strip()


def whole_match(text: str, target: str) -> bool:
    """Whether a generated text is `target` and nothing else; case, runs of spaces and outer punctuation are nothing."""
    return _bare(text) == _bare(target)


def _bare(text: str) -> str:
    return fold(text).strip(_OUTER) or fold(text)


def exact_match(text: str, target: str) -> bool:
    """Whether a generated text gives `target`: it starts with it and the answer ends there.

    Case and runs of spaces do not count. A target ends where a word or number ends, and not inside a longer name or
    figure: "George" is not given by "Georgia", nor 3 by 3.5, "C" by "C++", "Jean" by "Jean-Luc", 5 by "5%".
    """
    said, wanted = fold(text), fold(target)
    if not wanted or not said.startswith(wanted):
        return False
    rest = said[len(wanted) :]
    if wanted[-1].isdigit() and len(rest) > 1 and rest[0] in ".," and rest[1].isdigit():
        return False
    if rest and (rest[0] in _GOES_ON or (rest[0] in _HYPHENS and rest[1:2].isalnum())):
        return False
    return not (rest and wanted[-1].isalnum() and rest[0].isalnum())
