"""Text from feeds and models where people see it: on terminals and on Prefect's pages it is data, never markup."""

from __future__ import annotations

import re

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")


def printable(text: str) -> str:
    """`text` with what no terminal is to get written out: control characters, those that turn its direction, and bytes
    that are no text, as `\\x1b`, `\\u202e` and `\\udcff`."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_markdown(text: str) -> str:
    """`text` in one line, as Markdown shows it letter by letter: no tag, link, list or emphasis is made of it."""
    return _MARKDOWN.sub(r"\\\1", printable(" ".join(text.split())))
