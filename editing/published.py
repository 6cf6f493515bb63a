"""Values of published records in every shape that they come in: texts, numbers, answers, prompts with answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROMPTS = ("prompt", "question", "New Question")
_ANSWERS = ("ground_truth", "answer", "answers", "New Answer", "target")
_NAMES = ("aliases", "answer_alias")


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file that are not blank, with or without a byte order mark.

    Line feeds and carriage returns part them, and nothing else: U+2028, U+0085 and their like are text inside JSON.
    Raises `OSError` and `UnicodeDecodeError`.
    """
    with path.open(encoding="utf-8-sig") as lines:
        yield from (line for line in lines if line.strip())


def is_empty(value: object) -> bool:
    """Whether a field says nothing."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def text_of(value: object) -> str:
    """A text as it is, a number in its digits (a float that is whole without its point); else empty."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def texts_of(value: object) -> Iterator[str]:
    """The texts and numbers in a value, a list, or a list of lists of names, in order."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)
    elif text := text_of(value):
        yield text


def zipped(prompts: object, answers: object) -> list[tuple[object, object]]:
    """(prompt, answers) pairs of two fields: one of each, or two lists side by side.

    A list of prompts beside what is no list of the same length leaves all its prompts without an answer.
    """
    if not isinstance(prompts, list | tuple):
        return [] if is_empty(prompts) and is_empty(answers) else [(prompts, answers)]
    if isinstance(answers, list | tuple) and len(answers) == len(prompts):
        return list(zip(prompts, answers, strict=True))
    return [(prompt, None) for prompt in prompts]


@dataclass(slots=True)
class Asked:
    """The prompts with answers of a block; `unread` are the parts of it that are none in any known shape."""

    pairs: list[tuple[object, object]] = field(default_factory=list)
    unread: list[Any] = field(default_factory=list)


def asked_of(block: object) -> Asked:
    """Prompts with their answers: an entry, a list of entries, or either of them by kind.

    An entry names its prompt and its answers as MEND, EasyEdit, KnowEdit or our own columns do, or lists of both.
    """
    asked = Asked()
    _collect(block, asked)
    return asked


def _collect(block: object, asked: Asked) -> None:
    if is_empty(block):
        return
    if isinstance(block, list | tuple):
        for item in block:
            _collect(item, asked)
    elif not isinstance(block, Mapping):
        asked.unread.append(block)
    elif (prompt := _first(block, _PROMPTS)) is not None and not isinstance(block[prompt], Mapping):
        answer = _first(block, _ANSWERS)
        named = zipped(block[prompt], None if answer is None else block[answer])
        others = [block[name] for name in _NAMES if not is_empty(block.get(name))]
        asked.pairs += [(text, [answers, others]) for text, answers in named] if others and len(named) == 1 else named
    else:
        for item in block.values():
            _collect(item, asked)


def _first(block: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in block), None)
