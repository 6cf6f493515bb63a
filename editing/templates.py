r"""Prompts with a slot for their subject: finding the subject in a text, and putting one back.

A template holds `{}` where the subject goes. Braces that are part of the text are written `\{}`; of two backslashes
before a `{}` one stays, as the rule needs it to tell a text that ends in a backslash. Everything else is text.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

SLOT = "{}"
_BRACES = re.compile(r"(\\*)\{\}")
_WORD = ("Lu", "Ll", "Lt", "Mn", "Nd")  # categories that part words with spaces; Lo, as of Chinese, does not


def count_slots(template: str) -> int:
    """How many `{}` of `template` are slots."""
    return sum(len(found[1]) % 2 == 0 for found in _BRACES.finditer(template))


def fill(template: str, subject: str) -> str:
    """`template` with `subject` in every slot, and its written braces as braces."""
    if "\\" not in template:
        return template.replace(SLOT, subject)

    def put(found: re.Match[str]) -> str:
        backslashes = len(found[1])
        return "\\" * (backslashes // 2) + (SLOT if backslashes % 2 else subject)

    return _BRACES.sub(put, template)


def slot_start(template: str) -> int:
    """The character of the filled text where the first slot's subject begins; -1 without a slot."""
    for found in _BRACES.finditer(template):
        if len(found[1]) % 2 == 0:
            return len(fill(template[: found.start()], "")) + len(found[1]) // 2
    return -1


def escape(text: str) -> str:
    """The template without a slot that gives `text`."""
    return _BRACES.sub(lambda found: f"{found[1] * 2}\\{SLOT}", text)


def with_slot(text: str, start: int, length: int) -> str:
    """The template that gives `text`, its slot in place of the `length` characters from `start` on."""
    before = text[:start]
    kept = before.rstrip("\\")
    return f"{escape(kept)}{before[len(kept) :] * 2}{SLOT}{escape(text[start + length :])}"


def places(subject: str, text: str) -> list[int]:
    """Where `subject` begins in `text` as words of its own: "Niger" is not in "Nigeria"."""
    found: list[int] = []
    start = text.find(subject) if subject else -1
    while start >= 0:
        end = start + len(subject)
        apart = not (in_word(text[start - 1 : start]) or in_word(text[end : end + 1]))
        if apart:
            found.append(start)
        start = text.find(subject, end if apart else start + 1)
    return found


def tells(text: str, name: str) -> bool:
    """Whether every word of `name` stands in `text`, in any order and whatever its case, accents and punctuation.

    A word counts where one begins with it ("Ardens" tells "Arden"; "Bearden" does not), in a script that does not part
    words with spaces anywhere.
    """
    bare = plain(text)
    return all(_begins_a_word(bare, word) for word in re.findall(r"\w+", plain(name)))


def plain(text: str) -> str:
    """`text` with its case folded and without accents."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in apart if not unicodedata.combining(character))


def _begins_a_word(text: str, word: str) -> bool:
    start = text.find(word)
    while start >= 0:
        if not (start and in_word(word[0]) and in_word(text[start - 1])):
            return True
        start = text.find(word, start + 1)
    return False


def in_word(character: str) -> bool:
    """Whether a character (or none) is one of a word in a script that parts words with spaces."""
    return bool(character) and unicodedata.category(character) in _WORD


class Slotted(NamedTuple):
    """A template made of a text, and what had to be decided on the way."""

    template: str
    differently: bool  # the subject stands there in another case, spacing or Unicode normal form
    repeated: bool  # it stands there more than once


def slotted(text: str, subject: str, *, last: bool = False) -> Slotted | None:
    """The template with a slot where `subject` stands in `text`; None where it does not.

    Of several places the first is taken, or with `last` the last: a rephrase that opens with a sentence of its own
    asks at its end. A `{}` of the text stays a `{}`. A subject that is written differently is found in NFC with single
    spaces, and then whatever its case.
    """
    found = places(subject, text)
    differently = not found
    if differently:
        text, subject = (unicodedata.normalize("NFC", " ".join(part.split())) for part in (text, subject))
        found = places(subject, text)
        if not found and len(text) == len(text.lower()):
            found = places(subject.lower(), text.lower())
        if not found:
            return None
    return Slotted(with_slot(text, found[-1 if last else 0], len(subject)), differently, len(found) > 1)
