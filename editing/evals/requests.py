"""Requests as a model reads them: tokenised once, equal ones merged, ordered so that batches hold rows of like length.

The order depends on the requests alone, so every model that is asked them runs the same batches, however many threads
share the work. A plan is kept and serves base, champion and candidate alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from editing.errors import SuiteError
from editing.evals.report import content_digest
from editing.models import BaseModel
from editing.tokenisation import encode_prompts, tokenise_with_target

Ids = tuple[int, ...]
Row = tuple[Ids, Ids]  # a prompt's tokens, and those that follow it

_ENCODE_ROWS = 1024
_PLANS_KEPT = 256


@dataclass(frozen=True, slots=True, eq=False)
class ForcedPlan:
    """Targets to be read: each request's prompt and target, and the distinct rows the model is run on.

    A row is a prompt and the target without its last token; `asked` says which requests it answers.
    """

    pairs: tuple[Row, ...]
    rows: tuple[Row, ...]
    asked: Mapping[Row, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class GenerationPlan:
    """Texts to be generated: each request's prompt and its tokens to come, and the distinct prompts with the most."""

    prompts: tuple[Ids, ...]
    budgets: tuple[int, ...]
    rows: tuple[Ids, ...]
    budget_of: Mapping[Ids, int]


def prompt_ids(base: BaseModel, prompts: Sequence[str]) -> list[Ids]:
    """The tokens of each prompt in the model's form."""
    rows: list[Ids] = []
    for start in range(0, len(prompts), _ENCODE_ROWS):
        batch = encode_prompts(base.tokenizer, prompts[start : start + _ENCODE_ROWS], form=base.form)
        for row, kept in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
            rows.append(tuple(row[kept].tolist()))
    return rows


def pair_ids(base: BaseModel, prompts: Sequence[str], targets: Sequence[str]) -> list[Row]:
    """The tokens of each prompt in the model's form, and those of its target."""
    return [
        (tuple(tokens.ids[: inside[0]]), tuple(tokens.ids[i] for i in inside))
        for tokens, inside in tokenise_with_target(base.tokenizer, list(zip(prompts, targets, strict=True)), base.form)
    ]


def target_lengths(base: BaseModel, prompts: Sequence[str], targets: Sequence[str]) -> list[int]:
    """Tokens in each target where it follows its prompt."""
    return [len(target) for _, target in pair_ids(base, prompts, targets)]


def plan_forced(base: BaseModel, prompts: Sequence[str], targets: Sequence[str]) -> ForcedPlan:
    """Raises `SuiteError` when a row does not fit the model's positions."""
    pairs = pair_ids(base, prompts, targets)
    asked: dict[Row, list[int]] = {}
    for item, (prompt, target) in enumerate(pairs):
        asked.setdefault((prompt, target[:-1]), []).append(item)
    rows = sorted(asked, key=lambda row: (len(row[1]), len(row[0]), row))
    if rows:
        longest = max(rows, key=lambda row: len(row[0]) + len(row[1]))
        _check_room(base, len(longest[0]) + len(longest[1]), prompts[asked[longest][0]])
    return ForcedPlan(tuple(pairs), tuple(rows), {row: tuple(items) for row, items in asked.items()})


def plan_generation(base: BaseModel, prompts: Sequence[str], budgets: Sequence[int]) -> GenerationPlan:
    """Raises `SuiteError` when a prompt and its budget do not fit the model's positions."""
    ids = prompt_ids(base, prompts)
    budget_of: dict[Ids, int] = {}
    for row, budget in zip(ids, budgets, strict=True):
        budget_of[row] = max(budget, budget_of.get(row, 0))
    for row, prompt in zip(ids, prompts, strict=True):
        _check_room(base, len(row) + budget_of[row], prompt)
    rows = sorted(budget_of, key=lambda row: (budget_of[row], len(row), row))
    return GenerationPlan(tuple(ids), tuple(budgets), tuple(rows), budget_of)


def _check_room(base: BaseModel, longest: int, prompt: str) -> None:
    room = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and longest > room:
        raise SuiteError(
            f"{longest} tokens are needed for prompt {prompt[:60]!r} and its answer, {base.model_id} has room for "
            f"{room}; use fewer shots or fewer new tokens"
        )


class RequestBook:
    """The plans made so far, by tokenizer and requests: whoever asks the same things reads the same plan."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = Lock()

    def forced(self, base: BaseModel, prompts: Sequence[str], targets: Sequence[str]) -> ForcedPlan:
        """`plan_forced`, made once."""
        key = ("forced", base.tokenizer_hash, base.form, content_digest([list(prompts), list(targets)]))
        return self._get(key, lambda: plan_forced(base, prompts, targets))

    def generation(self, base: BaseModel, prompts: Sequence[str], budgets: Sequence[int]) -> GenerationPlan:
        """`plan_generation`, made once."""
        key = ("generation", base.tokenizer_hash, base.form, content_digest([list(prompts), list(budgets)]))
        return self._get(key, lambda: plan_generation(base, prompts, budgets))

    def _get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._plans:
                self._plans[key] = make()
                while len(self._plans) > _PLANS_KEPT:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return self._plans[key]
