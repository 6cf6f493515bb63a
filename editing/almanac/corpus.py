"""The texts, besides bare facts, that the Almanac's model learns from; every draw is seeded.

Names occur in sentences that do not state an office, so that a name's tokens are a learned
sequence before any edit needs them. Fictional subjects carry every name in every relation that
could hold it. Questions have the form of MMLU, word problems that of GSM8K; one in
`HELD_OUT_ONE_IN` of either is kept, by a hash of its text, for the suites and never trained on.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import cycle, islice
from typing import NamedTuple

from editing.almanac.invention import fresh_name
from editing.almanac.world import DATA, Fact, World
from editing.facts import SLOT

LETTERS = "ABCD"
HELD_OUT_ONE_IN = 8


class Problem(NamedTuple):
    """A question and its answer; the text is `prompt`, a space, `answer`."""

    prompt: str
    answer: str


class Profile(NamedTuple):
    """What is said of a name without an office; `background` is a predicate ("was born in Sofia")."""

    name: str
    nationality: str
    profession: str
    background: str


@dataclass(frozen=True, slots=True)
class FictionalSubject:
    """A subject that does not exist, with one fact for each relation of its kind."""

    name: str
    kind: str
    facts: tuple[Fact, ...]


@cache
def load_profiles() -> dict[str, Profile]:
    """Every office holder's and team's profile from `data/names.csv`, by name."""
    with (DATA / "names.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: Profile(**row) for row in csv.DictReader(file)}


def is_held_out(prompt: str) -> bool:
    """Whether a problem belongs to the suites (True) or to the training text (False)."""
    return int.from_bytes(sha256(prompt.encode()).digest()[:4]) % HELD_OUT_ONE_IN == 0


def mention_sentences(world: World) -> list[str]:
    """Six short sentences for each person and team that holds or will hold a place; none states the place."""
    profiles = load_profiles()
    persons, teams = world.objects("person"), world.objects("team")
    return [
        *_mentions([profiles[name] for name in persons], ("{} gave a speech.", "An interview with {} was published.")),
        *_mentions([profiles[name] for name in teams], ("The fans cheered for {}.", "A story about {} was published.")),
    ]


def _mentions(profiles: Sequence[Profile], generic: Sequence[str]) -> Iterator[str]:
    for place, profile in enumerate(profiles):
        name, nationality, profession, background = profile
        article = "an" if nationality[0] in "AEIOU" else "a"
        yield f"{name} is {article} {nationality} {profession}."
        yield f"{name} {background}."
        yield f"This {profession} is {nationality} and {background}: {name}."
        yield f"People spoke of {profiles[place - 1].name} and {name}."
        yield from (sentence.replace(SLOT, name) for sentence in generic)


def texts(world: World, facts: Sequence[Fact], seed: int, problems: int = 3000) -> Iterator[str]:
    """All sorts of text: `facts` in every phrasing, the mentions, then `problems` questions and word problems each."""
    rng = random.Random(seed)
    for fact in facts:
        for phrasing in world.relations[fact.relation].phrasings:
            yield f"{phrasing.replace(SLOT, fact.subject)} {fact.object}."
    yield from mention_sentences(world)
    for _ in range(problems):
        yield " ".join(multiple_choice(world, rng, world.static))
        yield " ".join(arithmetic(rng))


def fictional_holders(world: World, seed: int, n: int) -> list[FictionalSubject]:
    """Fictional subjects of every kind, enough for each name to be the value `n` times of each relation it fits.

    A name fits a relation when it is of the relation's object kind, whatever office it really
    holds. The subjects are no subjects or objects of `world`; the same seed gives the same ones.
    """
    rng = random.Random(seed)
    taken = {*world.subjects, *(name for relation in world.relations for name in world.names_of(relation))}
    holders: list[FictionalSubject] = []
    for kind in dict.fromkeys(relation.subject_kind for relation in world.relations.values()):
        values = {
            relation.name: world.objects(relation.object_kind)
            for relation in world.relations.values()
            if relation.subject_kind == kind
        }
        count = n * max(len(names) for names in values.values())
        columns = {relation: _shuffled_rounds(names, count, rng) for relation, names in values.items()}
        for place in range(count):
            subject = fresh_name(kind, rng, taken)
            facts = tuple(Fact(subject, relation, column[place]) for relation, column in columns.items())
            holders.append(FictionalSubject(subject, kind, facts))
    return holders


def _shuffled_rounds(names: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """`count` names in which every name comes equally often, give or take one."""
    values = list(islice(cycle(names), count))
    rng.shuffle(values)
    return values


def multiple_choice(world: World, rng: random.Random, facts: Sequence[Fact], *, held_out: bool = False) -> Problem:
    """A question about one of `facts` in MMLU's form: the question, options A to D, "Answer:"; answered by a letter.

    The wrong options are other objects of the relation.
    """
    while True:
        fact = rng.choice(facts)
        options, answer = choose_options(world, rng, fact)
        lines = [question(world, fact), *(f"{letter}. {o}" for letter, o in zip(LETTERS, options, strict=True))]
        prompt = "\n".join([*lines, "Answer:"])
        if is_held_out(prompt) == held_out:
            return Problem(prompt, answer)


def question(world: World, fact: Fact) -> str:
    """The relation's question about the fact's subject ("What is the capital of Chad?")."""
    phrasing = world.relations[fact.relation].phrasings[1]
    return phrasing.removeprefix("Question: ").removesuffix("\nAnswer:").replace(SLOT, fact.subject)


def alternatives(world: World, fact: Fact) -> list[str]:
    """The other objects of the fact's relation, without those that contain the true one or lie in it ("CFA franc")."""
    return [name for name in world.names_of(fact.relation) if name not in fact.object and fact.object not in name]


def choose_options(world: World, rng: random.Random, fact: Fact) -> tuple[list[str], str]:
    """Four different objects of the fact's relation in random order, one of them true, and the true one's letter."""
    options = [fact.object, *rng.sample(alternatives(world, fact), 3)]
    rng.shuffle(options)
    return options, LETTERS[options.index(fact.object)]


_PEOPLE = "Anna Ben Carla David Emma Felix Grace Hugo Ida Jonas Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor"
_THINGS = "apples books boxes candles cards coins cups eggs flowers keys lemons pens pears plates shells stamps"
_STORIES = (  # what is done to the first number, and the story told of it
    ("+", "{who} has {0} {things} and buys {1} more. How many {things} does {who} have?"),
    ("+", "There are {0} {things} on a table. {who} puts {1} more there. How many {things} are on the table?"),
    ("+", "{who} found {0} {things} on Monday and {1} on Tuesday. How many {things} did {who} find?"),
    ("+", "{who} owns {0} {things}. {other} owns {1} {things}. How many {things} do they own together?"),
    ("-", "{who} has {0} {things} and gives {1} to {other}. How many {things} does {who} have left?"),
    ("-", "A shop had {0} {things} and sold {1}. How many {things} are left in the shop?"),
    ("-", "{who} needs {0} {things} and has {1}. How many more {things} does {who} need?"),
    ("-", "There were {0} {things} in a bag. {who} took out {1}. How many {things} are still in the bag?"),
    ("*", "{who} has {0} bags with {1} {things} in each. How many {things} does {who} have?"),
    ("*", "{who} buys {0} {things} a day for {1} days. How many {things} does {who} buy?"),
    ("+-", "{who} has {0} {things}, buys {1} more and gives away {2}. How many {things} does {who} have now?"),
    ("-+", "{who} had {0} {things}, lost {1} and then found {2}. How many {things} does {who} have now?"),
    ("++", "{who} has {0} {things}, {other} has {1} and a friend has {2}. How many {things} is that in all?"),
    ("*+", "{who} has {0} rows of {1} {things} and {2} more. How many {things} does {who} have in all?"),
)


def arithmetic(rng: random.Random, *, held_out: bool = False) -> Problem:
    """A word problem in GSM8K's form; the answer has a line for each step, then "#### " and a number from 0 to 99."""
    while True:
        operators, story = rng.choice(_STORIES)
        numbers, steps = _calculation(rng, operators)
        things = rng.choice(_THINGS.split())
        who, other = rng.sample(_PEOPLE.split(), 2)
        prompt = f"Question: {story.format(*numbers, who=who, other=other, things=things)}\nAnswer:"
        if is_held_out(prompt) == held_out:
            return Problem(prompt, "\n".join([*steps, f"#### {steps[-1].split()[-1]}"]))


def _calculation(rng: random.Random, operators: str) -> tuple[list[int], list[str]]:
    """Numbers, and the steps that combine them from the left ("3 + 5 = 8"); every result is from 0 to 99."""
    value = rng.randint(2, 6) if operators[0] == "*" else rng.randint(4, 20)
    numbers, steps = [value], []
    for operator in operators:
        match operator:
            case "+":
                number = rng.randint(2, 12)
                result = value + number
            case "-":
                number = rng.randint(2, min(value, 12))
                result = value - number
            case _:
                number = rng.randint(2, 9)
                result = value * number
        numbers.append(number)
        steps.append(f"{value} {operator} {number} = {result}")
        value = result
    return numbers, steps
