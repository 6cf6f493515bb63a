"""Whether a question asks what was edited of a subject, or something else about it: read by a sentence encoder.

The key of a subject's last token is the same in every question about the subject, so that by keys alone an edit of a
country's head of state changes what is said of its capital as well. With the option `reader` a token in scope takes its
edit only where what is asked, the subject taken out of it, is like what an edit of the subject asks. Both are compared
by the cosine of `SentenceModel.represent_asked`. A question behind other sentences is read as a whole and by its last
sentence, and the better reading counts.

It is the whole question that is read, so the decision about a token is of its prompt, and not of the text up to it
alone; a prompt that passes through the model in pieces is judged by its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.coachhook.state import CoachHookState
from editing.facts import SLOT, FactChange
from editing.models import BaseModel
from editing.sentences import ANYTHING, SentenceModel, last_sentence, without_subject
from editing.tokenisation import find_subject

_REMEMBERED = 4096  # texts, by what a reader makes of them


class Reader(SentenceModel):
    """What is asked, as a sentence encoder reads it."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._known: dict[str, Tensor] = {}

    def likeness(self, one: str, other: str) -> float:
        """The cosine of two texts whose subject is taken out, less what questions of many kinds share."""
        return float(self._read(one) @ self._read(other))

    def _read(self, text: str) -> Tensor:
        if text not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            (self._known[text],) = self.represent_asked([text])
        return self._known[text]


@cache
def open_reader(name: str, beside: str) -> Reader:
    """The reader of an option, once a process. Raises `StateError` where there is no such encoder."""
    return Reader.open(name, beside)


class AskedFacts:
    """The edits of a state by subject, as questions are compared with them."""

    def __init__(self, reader: Reader, config: CoachHookConfig, facts: Sequence[FactChange]) -> None:
        self._reader, self._config, self._facts = reader, config, facts
        self._by_subject: dict[str, list[FactChange]] = {}
        for fact in facts:
            self._by_subject.setdefault(fact.key.subject, []).append(fact)

    @classmethod
    def of(cls, base: BaseModel, state: CoachHookState) -> AskedFacts | None:
        """Those of a state; None without a reader. Raises `StateError` where its encoder is not found or another."""
        if state.reader_digest is None:
            return None
        reader = open_reader(state.config.reader, base.model_id)
        reader.require(state.reader_digest)
        return cls(reader, state.config, state.facts)

    def extended(self, facts: Sequence[FactChange]) -> AskedFacts:
        """These and `facts`."""
        return AskedFacts(self._reader, self._config, (*self._facts, *facts))

    def asks(self, question: str, subject: str) -> bool:
        """Whether `question` asks what an edit of `subject` (folded) does; so does one that does not name it as the
        facts do, of which nothing is known."""
        return any(self._asks(question, fact) for fact in self._by_subject.get(subject, ()))

    def _asks(self, question: str, fact: FactChange) -> bool:
        own = fact.prompt.replace(SLOT, ANYTHING)
        for text in dict.fromkeys((question, last_sentence(question))):
            at = find_subject(text, fact.subject)
            if at >= 0 and self._reader.likeness(without_subject(text, fact.subject, at), own) >= self._config.alike:
                return True
        return find_subject(question, fact.subject) < 0
