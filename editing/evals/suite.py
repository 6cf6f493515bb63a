"""What a suite is: versioned items with stable ids that any scorer can be asked, and their evaluation."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from typing import Any, Protocol, Self, TypeVar

from editing.errors import SuiteError
from editing.evals.report import EvalReport, ItemOutcome, SuiteRecord, content_digest
from editing.evals.scorer import Scorer
from editing.evals.scoring import ANSWER_SLACK
from editing.models import BaseModel

TOO_LONG = "too long for the model"
_MARKS = 8  # tokens that a tokenizer may put around a text


class Item(Protocol):
    """One question of a suite; `item_id` is unique in it and does not depend on its place.

    `expected` is the true answer in words, which an applied fact can make out of date.
    """

    @property
    def item_id(self) -> str: ...  # noqa: D102
    @property
    def prompt(self) -> str: ...  # noqa: D102
    @property
    def expected(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Suite(ABC):
    """Items under one protocol. `excluded` counts what was left out, by reason."""

    name: str
    version: str
    items: tuple[Item, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [item.item_id for item in self.items]
        if len(set(ids)) != len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise SuiteError(f"suite {self.name} holds item {twice!r} twice; item ids are unique")

    @abstractmethod
    def content(self) -> Any:
        """Everything that the suite's results depend on besides the model, as plain JSON types."""

    @abstractmethod
    def metric_sizes(self) -> dict[str, int]:
        """The full names of its metrics, and how many items each is a mean of."""

    @abstractmethod
    def score(self, scorer: Scorer) -> list[ItemOutcome]:
        """Ask the model every item."""

    def derived(self, outcomes: Sequence[ItemOutcome]) -> dict[str, float]:
        """Metrics that are no mean over items, by full name."""
        return {}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of name, version and content: equal digests ask the same questions in the same way."""
        return content_digest([self.name, self.version, self.content()])

    def room_for(self, item: Any) -> tuple[Sequence[str], int]:
        """The longest texts that the model reads for an item, and how many tokens it may then write."""
        answers = getattr(item, "answers", (item.expected,))
        return [f"{item.prompt} {answer}" for answer in answers], ANSWER_SLACK

    def __len__(self) -> int:
        return len(self.items)

    def stratum(self, item: Any) -> str:
        """The part of the suite that a sample draws from in turn: its metrics keep alike sizes."""
        return ""

    def sample(self, n: int, seed: int = 0) -> Self:
        """At most `n` items in the old order, as evenly from each stratum as it has items; seeded by item id."""
        if n >= len(self.items):
            return self
        drawn = sorted(self.items, key=lambda item: sha256(f"{seed}:{item.item_id}".encode()).digest())
        taken: Counter[str] = Counter()
        ranks: dict[str, int] = {}
        for item in drawn:
            ranks[item.item_id] = taken[self.stratum(item)]
            taken[self.stratum(item)] += 1
        kept = {item.item_id for item in sorted(drawn, key=lambda item: ranks[item.item_id])[:n]}
        return replace(self, items=tuple(item for item in self.items if item.item_id in kept))

    def without(self, reason: str, dropped: Callable[[Item], bool]) -> Self:
        """The suite without the items for which `dropped` is true; they are counted under `reason`."""
        kept = tuple(item for item in self.items if not dropped(item))
        gone = len(self.items) - len(kept)
        if not gone:
            return self
        return replace(self, items=kept, excluded={**self.excluded, reason: self.excluded.get(reason, 0) + gone})


AnyItem = TypeVar("AnyItem", bound=Item)
AnySuite = TypeVar("AnySuite", bound=Suite)


def distinct(items: Iterable[AnyItem]) -> tuple[tuple[AnyItem, ...], dict[str, int]]:
    """Items of one id once, in their order; none of those whose answers differ. Counted by reason, as `excluded`."""
    by_id: dict[str, list[AnyItem]] = {}
    for item in items:
        by_id.setdefault(item.item_id, []).append(item)
    kept: list[AnyItem] = []
    excluded: Counter[str] = Counter()
    for same in by_id.values():
        if len({item.expected for item in same}) > 1:
            excluded["question with different answers"] += len(same)
            continue
        kept.append(same[0])
        if same[1:]:
            excluded["repeated question"] += len(same) - 1
    return tuple(kept), dict(excluded)


def stable_id(*parts: str) -> str:
    """An item id made of its content: the first 16 hex digits of a SHA-256."""
    return content_digest(parts)[:16]


def fitting(suite: AnySuite, base: BaseModel) -> AnySuite:
    """The suite without the items that need more tokens than the model has positions, which are counted."""
    room = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if room is None:
        return suite

    def overflows(item: Item) -> bool:
        texts, new = suite.room_for(item)
        long = [text for text in texts if len(text.encode()) + new > room - _MARKS]  # a token has at least one byte
        return any(len(ids) + new > room for ids in base.tokenizer(long)["input_ids"]) if long else False

    return suite.without(TOO_LONG, overflows)


def evaluate(
    scorer: Scorer,
    suites: Iterable[Suite],
    *,
    seeds: Mapping[str, int] | None = None,
    created_at: datetime | None = None,
) -> EvalReport:
    """Score one model on `suites`, each without what is too long for it; empty suites are recorded, without metrics.

    `seeds` are those that drew the samples, for the record. Raises `SuiteError` when two suites
    share a name.
    """
    records: dict[str, SuiteRecord] = {}
    outcomes: list[ItemOutcome] = []
    for suite in (fitting(suite, scorer.base) for suite in suites):
        if suite.name in records:
            raise SuiteError(f"two suites are named {suite.name!r}; give each its own name")
        scorer.label = suite.name
        start, asked, computed = time.perf_counter(), scorer.asked, scorer.computed
        results = suite.score(scorer) if suite.items else []
        records[suite.name] = SuiteRecord(
            name=suite.name,
            version=suite.version,
            digest=suite.digest,
            items=len(suite),
            seconds=time.perf_counter() - start,
            excluded=dict(suite.excluded),
            derived=suite.derived(results) if results else {},
            asked=scorer.asked - asked,
            computed=scorer.computed - computed,
        )
        outcomes += results
    return EvalReport(
        model_digest=scorer.model_digest,
        base_fingerprint=scorer.base.fingerprint,
        tokenizer_hash=scorer.base.tokenizer_hash,
        model_id=scorer.base.model_id,
        method=scorer.state.method if scorer.state else None,
        batch_size=scorer.batch_size,
        dtype=scorer.dtype,
        device=scorer.device,
        packages=scorer.packages,
        seeds=dict(seeds or {}),
        created_at=(created_at or datetime.now(UTC)).isoformat(timespec="seconds"),
        suites=records,
        outcomes=tuple(outcomes),
    )
