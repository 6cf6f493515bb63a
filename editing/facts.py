"""Fact changes, the key they compete for, and how a night's changes become batches.

A fact change says that from `effective_at` on, the relation `relation` of `subject` has the
value `target` (operation assert), or that what was said of it no longer holds (retract).
Two changes compete when they share a key: the same subject and relation. The rule that
decides between them is `precedence`.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from editing.errors import FactError
from editing.templates import SLOT, count_slots, fill, slot_start

_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


class Operation(StrEnum):
    """What a row of a feed asks for."""

    ASSERT = "assert"
    RETRACT = "retract"


class FactKey(NamedTuple):
    """What a fact is about: two facts with one key can never hold at once."""

    subject: str
    relation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityPrompt:
    """A prompt whose answer an edit must leave alone."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortabilityPrompt:
    """A prompt whose answer follows from the fact: by another name of its subject, or by reasoning from it.

    `aliases` are right as well: other names of the answer, or other answers.
    """

    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()

    @classmethod
    def of(cls, prompt: str, answers: Sequence[str]) -> PortabilityPrompt:
        """The prompt with every right answer, at least one, the first of them its `answer`; each named once."""
        named: dict[str, str] = {}
        for answer in answers:
            named.setdefault(fold(answer), answer)
        first, *others = named.values()
        return cls(prompt=prompt, answer=first, aliases=tuple(others))

    @property
    def answers(self) -> tuple[str, ...]:
        """Everything that is right."""
        return (self.answer, *self.aliases)


def fold(text: str) -> str:
    """`text` as keys compare it: outer and repeated spaces removed, case folded, in the Unicode normal form NFC."""
    spaced = " ".join(text.split())
    if spaced.isascii():
        return spaced.casefold()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", spaced).casefold())


@dataclass(frozen=True, kw_only=True)
class FactChange:
    """One row of a feed.

    `prompt` holds one `{}` where the subject goes and ends where the answer begins; `rephrases`
    are whole prompts, or templates with a `{}` of their own. In both, braces that are text are written as
    `editing.templates` says. `source_rank` 0 is the most trusted. Times are timezone-aware and kept in UTC.
    """

    operation: Operation = Operation.ASSERT
    subject: str
    relation: str
    target: str
    prompt: str
    target_old: str | None = None
    rephrases: tuple[str, ...] = ()
    locality: tuple[LocalityPrompt, ...] = ()
    portability: tuple[PortabilityPrompt, ...] = ()
    effective_at: datetime
    observed_at: datetime
    source: str
    source_rank: int = 0

    def __post_init__(self) -> None:
        for name in ("subject", "relation", "source"):
            if not getattr(self, name).strip():
                raise FactError(f"{name} is empty; every fact change names its {name}")
        if self.operation is Operation.ASSERT:
            if not self.target.strip():
                raise FactError(f"target of {self.subject!r} / {self.relation!r} is empty; an assertion needs one")
            if (slots := count_slots(self.prompt)) != 1:
                raise FactError(
                    f"prompt {self.prompt!r} has {slots} subject slots; write exactly one {SLOT}, and \\{SLOT} for "
                    "braces that are text"
                )
        for name in ("effective_at", "observed_at"):
            time = getattr(self, name)
            if time.tzinfo is None:
                raise FactError(f"{name} {time} of {self.subject!r} has no time zone; use UTC")
            if time.tzinfo is not UTC:
                try:
                    object.__setattr__(self, name, time.astimezone(UTC))
                except OverflowError as error:
                    raise FactError(
                        f"{name} {time} of {self.subject!r} is outside the years 1 to 9999 in UTC"
                    ) from error

    @cached_property
    def key(self) -> FactKey:
        """What the fact is about, folded for comparison."""
        return FactKey(fold(self.subject), fold(self.relation))

    @cached_property
    def canonical(self) -> str:
        """The content as one sorted JSON text; `observed_at` is not content."""
        content = self.to_dict()
        del content["observed_at"]
        return _CANONICAL.encode(content)

    @cached_property
    def fact_id(self) -> str:
        """SHA-256 (first 32 hex digits) of the canonical content. Raises `FactError` for text that is no Unicode."""
        try:
            return hashlib.sha256(self.canonical.encode()).hexdigest()[:32]
        except UnicodeEncodeError as error:
            raise FactError(f"{self.subject!r} / {self.relation!r} holds a lone surrogate; fix its encoding") from error

    @property
    def question(self) -> str:
        """The edit prompt with the subject in its slot."""
        return fill(self.prompt, self.subject)

    @property
    def subject_start(self) -> int:
        """The character of `question` where the subject begins."""
        return slot_start(self.prompt)

    @property
    def paraphrases(self) -> tuple[str, ...]:
        """The rephrased prompts with the subject in any slot they have."""
        return tuple(fill(text, self.subject) for text in self.rephrases)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, times in ISO 8601; `from_dict` is the inverse.

        Without portability prompts, or aliases of their answers, it does not name them, so that ids do not depend
        on those fields being known.
        """
        portability = [
            {"prompt": item.prompt, "answer": item.answer, **({"aliases": list(item.aliases)} if item.aliases else {})}
            for item in self.portability
        ]
        return {
            "operation": self.operation.value,
            "subject": self.subject,
            "relation": self.relation,
            "target": self.target,
            "target_old": self.target_old,
            "prompt": self.prompt,
            "rephrases": list(self.rephrases),
            "locality": [{"prompt": item.prompt, "answer": item.answer} for item in self.locality],
            "effective_at": self.effective_at.isoformat(),
            "observed_at": self.observed_at.isoformat(),
            "source": self.source,
            "source_rank": self.source_rank,
            **({"portability": portability} if portability else {}),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FactChange:
        """The fact change that `to_dict` wrote. Raises `FactError` when it breaks a rule."""
        return cls(
            operation=Operation(content["operation"]),
            subject=content["subject"],
            relation=content["relation"],
            target=content["target"],
            target_old=content["target_old"],
            prompt=content["prompt"],
            rephrases=tuple(content["rephrases"]),
            locality=tuple(LocalityPrompt(**item) for item in content["locality"]),
            portability=tuple(
                PortabilityPrompt(**{**item, "aliases": tuple(item.get("aliases", ()))})
                for item in content.get("portability", ())
            ),
            effective_at=datetime.fromisoformat(content["effective_at"]),
            observed_at=datetime.fromisoformat(content["observed_at"]),
            source=content["source"],
            source_rank=content["source_rank"],
        )


def precedence(change: FactChange) -> tuple[datetime, int, datetime, str]:
    """Sort key: of two changes with one key the greater wins.

    Newest effective date, then the most trusted source (lowest rank), then the newest
    observation, then the id, so that the order is total.
    """
    return (change.effective_at, -change.source_rank, change.observed_at, change.fact_id)


@dataclass(frozen=True, slots=True)
class Superseded:
    """A change that lost to another of the same key, and by which rule."""

    loser: FactChange
    winner: FactChange
    rule: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """What remains of a night's changes after conflicts: at most one per key."""

    winners: tuple[FactChange, ...]
    superseded: tuple[Superseded, ...]


def deciding_rule(loser: FactChange, winner: FactChange) -> str:
    """Which part of `precedence` put `winner` before `loser`, in words."""
    if winner.effective_at != loser.effective_at:
        return "newer effective date"
    if winner.source_rank != loser.source_rank:
        return "more trusted source"
    if winner.observed_at != loser.observed_at:
        return "newer observation"
    return "fact id (all else equal)"


def resolve_conflicts(changes: Iterable[FactChange]) -> Resolution:
    """Keep the change of highest `precedence` for every key; winners in precedence order."""
    by_key: dict[FactKey, FactChange] = {}
    losers: list[FactChange] = []
    for change in changes:
        holder = by_key.get(change.key)
        if holder is None:
            by_key[change.key] = change
        elif precedence(change) > precedence(holder):
            losers.append(holder)
            by_key[change.key] = change
        else:
            losers.append(change)
    superseded = tuple(
        Superseded(loser, by_key[loser.key], deciding_rule(loser, by_key[loser.key])) for loser in losers
    )
    return Resolution(tuple(sorted(by_key.values(), key=precedence)), superseded)


@dataclass(frozen=True)
class EditBatch:
    """Assertions to apply together: at least one, no two with one key."""

    facts: tuple[FactChange, ...]
    batch_id: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.facts:
            raise FactError("a batch holds no facts; nothing can be applied")
        seen: dict[FactKey, FactChange] = {}
        for fact in self.facts:
            if fact.operation is not Operation.ASSERT:
                raise FactError(f"{fact.fact_id} is a {fact.operation}; batches hold assertions only")
            if fact.key in seen:
                raise FactError(
                    f"facts {seen[fact.key].fact_id} and {fact.fact_id} share the key {fact.key}; "
                    "resolve conflicts before making batches"
                )
            seen[fact.key] = fact
        text = "\n".join(fact.fact_id for fact in self.facts)
        object.__setattr__(self, "batch_id", hashlib.sha256(text.encode()).hexdigest()[:16])

    def __len__(self) -> int:
        return len(self.facts)


def make_batches(facts: Sequence[FactChange], max_size: int) -> list[EditBatch]:
    """Cut `facts` (one per key) into batches of at most `max_size`, in precedence order.

    Facts of one subject stay in one batch where they fit, because they share a lookup key and
    are optimised together.
    """
    if max_size < 1:
        raise FactError(f"batch size {max_size} is not positive; use at least 1")
    by_subject: dict[str, list[FactChange]] = {}
    for fact in sorted(facts, key=precedence):
        by_subject.setdefault(fact.key.subject, []).append(fact)
    batches: list[EditBatch] = []
    current: list[FactChange] = []
    for group in by_subject.values():
        for start in range(0, len(group), max_size):
            chunk = group[start : start + max_size]
            if len(current) + len(chunk) > max_size:
                batches.append(EditBatch(tuple(current)))
                current = []
            current.extend(chunk)
    if current:
        batches.append(EditBatch(tuple(current)))
    return batches
