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

from collections.abc import Iterable
from functools import cache

from torch import Tensor

from editing.editors.coachhook.config import CoachHookConfig
from editing.facts import SLOT, FactChange
from editing.sentences import ANYTHING, SentenceModel, last_sentence, without_subject
from editing.tokenisation import find_subject

_REMEMBERED = 4096  # texts, by what a reader makes of them


class Reader:
    """What is asked, as a sentence encoder reads it; `digest` names the encoder's weights and tokenizer."""

    def __init__(self, model: SentenceModel) -> None:
        self._model = model
        self._known: dict[str, Tensor] = {}

    @property
    def digest(self) -> str:
        """SHA-256 over weights and tokenizer."""
        return self._model.backbone_digest

    def require(self, digest: str) -> None:
        """Raises `StateError` where the encoder is not the one of `digest`."""
        self._model.require(digest)

    def likeness(self, one: str, other: str) -> float:
        """The cosine of two texts whose subject is taken out, less what questions of many kinds share."""
        return float(self._read(one) @ self._read(other))

    def _read(self, text: str) -> Tensor:
        if text not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            (self._known[text],) = self._model.represent_asked([text])
        return self._known[text]


@cache
def open_reader(name: str, beside: str) -> Reader:
    """The reader of an option, once a process. Raises `StateError` where there is no such encoder."""
    return Reader(SentenceModel.open(name, beside))


class AskedFacts:
    """The edits of a state by subject, as questions are compared with them."""

    def __init__(self, reader: Reader, config: CoachHookConfig, facts: Iterable[FactChange]) -> None:
        self._reader, self._least = reader, config.alike
        self._facts: dict[str, list[FactChange]] = {}
        for fact in facts:
            self._facts.setdefault(fact.key.subject, []).append(fact)

    def asks(self, question: str, subject: str) -> bool:
        """Whether `question` asks what an edit of `subject` (folded) does; so does one that does not name it as the
        facts do, of which nothing is known."""
        return any(self._asks(question, fact) for fact in self._facts.get(subject, ()))

    def _asks(self, question: str, fact: FactChange) -> bool:
        own = fact.prompt.replace(SLOT, ANYTHING)
        for text in dict.fromkeys((question, last_sentence(question))):
            at = find_subject(text, fact.subject)
            if at >= 0 and self._reader.likeness(without_subject(text, fact.subject, at), own) >= self._least:
                return True
        return find_subject(question, fact.subject) < 0
