"""Names that belong to nobody: of syllables, of real words put together anew, or nearly those of somebody."""

from __future__ import annotations

import random
from collections.abc import Sequence, Set

_ONSETS = "b bl br d dr f fl g gl gr h j k kl kr l m n p pl pr r s sk st t tr v w z"
_VOWELS = "a e i o u ai au ea ia io ou"
_CODAS = ("", "", "", "l", "m", "n", "nd", "r", "rk", "s", "st", "t", "x")
_ENDINGS = {
    "country": ("ia", "land", "stan", "ora", "una", "esh", "ania", "ador", "ique", "mark"),
    "company": (" Group", " Works", " Motors", " Labs", " Energy", " Foods", " Bank", " Systems", " Mills", " Trading"),
    "organisation": (" Council", " Union", " Agency", " League", " Forum", " Alliance", " Society", " Institute"),
}
_BEFORE = {
    "country": ("North", "South", "East", "West", "New", "Upper", "Lower", "Greater"),
    "company": ("American", "General", "First", "National", "United", "Royal"),
    "organisation": ("International", "World", "European", "African", "Asian", "Pan-American"),
}


def fresh_name(kind: str, rng: random.Random, taken: set[str]) -> str:
    """A name of syllables for a subject of `kind`, new to `taken`, which it joins."""
    while True:
        name = _word(rng, rng.choice((1, 2)))
        name += rng.choice(_ENDINGS[kind]) if kind in _ENDINGS else f" {_word(rng, 2)}"
        if kind == "organisation":
            name = f"the {name}"
        if name not in taken:
            taken.add(name)
            return name


def worded_name(kind: str, rng: random.Random, words: Sequence[str], taken: Set[str]) -> str:
    """A name of one to three of `words` for a subject of `kind`, none of `taken`."""
    while True:
        chosen = rng.sample(words, 2 if kind == "athlete" else rng.choice((1, 1, 2)))
        if kind in _ENDINGS and kind != "country" and rng.random() < 0.6:
            chosen.append(rng.choice(_ENDINGS[kind]).strip())
        article = kind == "organisation" or (kind == "country" and rng.random() < 0.3)
        name = " ".join(["the", *chosen] if article else chosen)
        if name not in taken:
            return name


def near_name(name: str, kind: str, rng: random.Random, taken: Set[str]) -> str:
    """Another name of `kind` that differs from `name` in one word, one ending or one syllable; none of `taken`."""
    while True:
        article, body = ("the ", name[4:]) if name.startswith("the ") else ("", name)
        words = body.split()
        place = rng.randrange(len(words))
        draw = rng.random()
        if draw < 0.3 and kind in _BEFORE:
            words.insert(0, rng.choice(_BEFORE[kind]))
        elif draw < 0.55 and len(words) > 1:
            words[place] = _word(rng, rng.choice((1, 2)))
        elif draw < 0.7 and kind in _ENDINGS:
            ending = rng.choice(_ENDINGS[kind])
            words = [*words, ending.strip()] if ending[0] == " " else [*words[:-1], words[-1] + ending]
        else:
            words[place] = _respelled(words[place], rng)
        other = article + " ".join(words)
        if other != name and other not in taken:
            return other


def _word(rng: random.Random, syllables: int) -> str:
    return ("".join(_syllable(rng) for _ in range(syllables)) + rng.choice(_CODAS)).capitalize()


def _syllable(rng: random.Random) -> str:
    return rng.choice(_ONSETS.split()) + rng.choice(_VOWELS.split())


def _respelled(word: str, rng: random.Random) -> str:
    """`word` with one stretch of one to three letters replaced by a syllable."""
    at = rng.randrange(len(word))
    changed = word[:at] + _syllable(rng) + word[at + rng.randint(1, 3) :]
    return changed[0].upper() + changed[1:] if word[0].isupper() else changed
