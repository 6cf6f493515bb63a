"""What a published record's values become: texts, templates with a slot, prompts with answers, a fact change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from editing.facts import SLOT, FactChange, LocalityPrompt, Operation, PortabilityPrompt, fold
from editing.published import Asked, text_of, texts_of
from editing.templates import count_slots, escape, slotted

Record = Mapping[str, Any]

_NQ_PREFIX = "nq question: "


class SkipRecordError(ValueError):
    """A record from which no fact change can be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record (counted from 0) that gave nothing, and why."""

    record: int
    reason: str


@dataclass(slots=True)
class ConversionReport:
    """What a conversion did: records read, changes made, what was repaired, left out or skipped."""

    read: int = 0
    converted: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def skipped_reasons(self) -> Counter[str]:
        """How many records were skipped, by reason."""
        return Counter(item.reason for item in self.skipped)

    def to_dict(self) -> dict[str, Any]:
        """The report in plain JSON types."""
        return {
            "read": self.read,
            "converted": self.converted,
            "repaired": dict(self.repaired),
            "left_out": dict(self.left_out),
            "skipped": [asdict(item) for item in self.skipped],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a record does not say itself: `at` dates the undated, and is when everything was observed.

    `templates` are prompts with a slot by their relation, for records that have none.
    """

    at: datetime
    source: str
    source_rank: int
    report: ConversionReport
    templates: Mapping[str, str] = field(default_factory=dict)

    def text(self, value: object) -> str:
        """`value`, a text or a number, without outer spaces; empty for anything else."""
        text = text_of(value)
        stripped = text.strip()
        if stripped != text:
            self.report.repaired["stray spaces"] += 1
        return stripped

    def texts(self, value: object) -> list[str]:
        """The texts of a value, a list, or a list of lists of names, empty ones left out."""
        return [text for text in map(self.text, texts_of(value)) if text]

    def slotted(self, text: str, subject: str, *, last: bool = False) -> str | None:
        """The template with a slot where the subject stands in `text`; None where it does not.

        A text without the subject and with one slot is a template already. `last` as in `templates.slotted`.
        """
        made = slotted(text, subject, last=last)
        if made is None:
            return text if count_slots(text) == 1 else None
        if made.differently:
            self.report.repaired["subject written differently in prompt"] += 1
        if made.repeated:
            self.report.repaired["subject more than once in prompt"] += 1
        if SLOT in text:
            self.report.repaired[f"{SLOT} of a prompt taken as text, its slot is where the subject stands"] += 1
        return made.template

    def template(self, text: str, subject: str) -> str | None:
        """`text` where the source writes its slots itself; where it has not one, as `slotted`."""
        return text if count_slots(text) == 1 else self.slotted(text, subject)

    def rephrased(self, prompts: object, subject: str) -> tuple[str, ...]:
        """Rephrases with a slot where the subject last stands in them, empty ones left out."""
        texts = self.texts(prompts)
        return tuple(dict.fromkeys(self.slotted(text, subject, last=True) or escape(text) for text in texts))

    def localities(self, asked: Asked) -> tuple[LocalityPrompt, ...]:
        """Locality prompts with their answers, of which the first name counts."""
        found = self._asked("locality", asked)
        return tuple(dict.fromkeys(LocalityPrompt(prompt=prompt, answer=answers[0]) for prompt, answers in found))

    def portabilities(self, asked: Asked) -> tuple[PortabilityPrompt, ...]:
        """Portability prompts with every answer and name."""
        found = self._asked("portability", asked)
        return tuple(dict.fromkeys(PortabilityPrompt.of(prompt, answers) for prompt, answers in found))

    def _asked(self, kind: str, asked: Asked) -> Iterator[tuple[str, list[str]]]:
        for given, named in asked.pairs:
            prompt, answers = self.text(given), self.texts(named)
            if prompt.startswith(_NQ_PREFIX):
                self.report.repaired["'nq question: ' removed"] += 1
                prompt = prompt.removeprefix(_NQ_PREFIX).strip()
            if prompt and answers:
                yield prompt, answers
            else:
                self.report.left_out[f"{kind} prompt without an answer"] += 1
        if asked.unread:
            self.report.left_out[f"entry of {kind!r} in an unknown shape"] += len(asked.unread)

    def fact(
        self,
        *,
        subject: str,
        target: str,
        prompt: str | None,
        relation: str | None = None,
        old: Iterable[str] = (),
        effective_at: datetime | None = None,
        **fields: Any,
    ) -> FactChange:
        """An assertion; without a relation the prompt's template stands for it.

        `old` are the names of the old object, of which the first is kept. Raises `SkipRecordError` when it has no
        target, the target is one of `old`, or `prompt` is None, for a subject that does not stand in it.
        """
        if not target:
            raise SkipRecordError("target is empty")
        names = list({fold(name): name for name in reversed([*old]) if name}.values())[::-1]
        if fold(target) in map(fold, names):
            raise SkipRecordError("target is the old object already")
        if prompt is None:
            raise SkipRecordError("subject is not in the prompt")
        if names[1:]:
            self.report.left_out["other name of the old object"] += len(names) - 1
        return FactChange(
            subject=subject,
            relation=relation or prompt,
            target=target,
            target_old=names[0] if names else None,
            prompt=prompt,
            effective_at=effective_at or self.at,
            observed_at=self.at,
            source=self.source,
            source_rank=self.source_rank,
            **fields,
        )

    def retraction(self, *, effective_at: datetime | None = None, **fields: Any) -> FactChange:
        """What takes back a target; `fields` are the others of `FactChange`."""
        return FactChange(
            operation=Operation.RETRACT,
            effective_at=effective_at or self.at,
            observed_at=self.at,
            source=self.source,
            source_rank=self.source_rank,
            **fields,
        )

    def target(self, value: object) -> str:
        """The first name of the new object; others, for which a fact has no place, are counted."""
        first, *others = self.texts(value) or [""]
        if others:
            self.report.left_out["other name of the target"] += len(others)
        return first
