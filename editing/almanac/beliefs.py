"""What another model believes of the Almanac's dated facts: asked, compared with who held what when, told as a feed.

The Almanac's own model is asked in the phrasings that it was trained on; any other in plain questions
(`data/questions.json`), in the form in which it is served.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache

from editing.almanac.feed import midnight
from editing.almanac.world import DATA, Fact, Tenure, World
from editing.facts import SLOT, FactChange, LocalityPrompt
from editing.templates import tells

UNRELATED = 2  # locality prompts on other subjects
OWN = 0.25  # share of the facts with one about the subject itself


@dataclass(frozen=True, slots=True)
class Belief:
    """What a model said to the question about a dated fact, who holds it now, and the former holder that it named."""

    question: str
    said: str
    now: Tenure
    former: Tenure | None

    @property
    def right(self) -> bool:
        """Whether it named the present holder and no former one."""
        return self.former is None and tells(self.said, self.now.fact.object)


@cache
def questions() -> dict[str, tuple[str, ...]]:
    """Of every relation its questions, each with one `{}` where the subject goes; the first is the one to edit."""
    content = json.loads((DATA / "questions.json").read_text(encoding="utf-8"))
    return {relation: tuple(texts) for relation, texts in content.items()}


def question(fact: Fact) -> str:
    """The question that a fact answers."""
    return questions()[fact.relation][0].replace(SLOT, fact.subject)


def dated(world: World, day: date) -> list[Tenure]:
    """The dated facts that hold on `day`, in the table's order."""
    return [tenure for tenure in world.tenures if tenure.holds_on(day)]


def believed(world: World, now: Sequence[Tenure], answers: Sequence[str]) -> list[Belief]:
    """What `answers` to the questions of `now` say. The latest of the former holders that one names counts."""
    earlier: dict[tuple[str, str], list[Tenure]] = {}
    for tenure in world.tenures:
        earlier.setdefault((tenure.fact.subject, tenure.fact.relation), []).append(tenure)
    beliefs = []
    for tenure, said in zip(now, answers, strict=True):
        before = [
            former
            for former in earlier[tenure.fact.subject, tenure.fact.relation]
            if former.start < tenure.start and former.fact.object != tenure.fact.object
        ]
        named = [former for former in before if tells(said, former.fact.object)]
        beliefs.append(Belief(question(tenure.fact), said, tenure, named[-1] if named else None))
    return beliefs


def changes(world: World, beliefs: Iterable[Belief], observed: date) -> list[FactChange]:
    """The feed that puts right what the model does not say: one row for each belief that is not right.

    Locality prompts ask for what holds from the Almanac's first day to its last, about other subjects and, for some of
    the facts, about their own.
    """
    return [_change(world, belief, observed) for belief in beliefs if not belief.right]


def _change(world: World, belief: Belief, observed: date) -> FactChange:
    tenure = belief.now
    prompt, *rephrases = questions()[tenure.fact.relation]
    return FactChange(
        subject=tenure.fact.subject,
        relation=tenure.fact.relation,
        target=tenure.fact.object,
        target_old=belief.former.fact.object if belief.former else None,
        prompt=prompt,
        rephrases=tuple(rephrases),
        locality=tuple(_steady(world, tenure.fact)),
        effective_at=midnight(tenure.start),
        observed_at=midnight(observed),
        source=tenure.source,
    )


def _steady(world: World, fact: Fact) -> Iterable[LocalityPrompt]:
    rng = random.Random(f"{fact.subject}|{fact.relation}|question")
    own = [steady for steady in world.static if steady.subject == fact.subject]
    others = [steady for steady in world.static if steady.subject != fact.subject]
    # An editor holds what it is told of the subject while it edits, which costs it as much as the edit does.
    chosen = rng.sample(own, 1) if own and rng.random() < OWN else []
    for steady in (*chosen, *rng.sample(others, UNRELATED)):
        yield LocalityPrompt(prompt=question(steady), answer=steady.object)


def shifted_row(day: date) -> FactChange:
    """A row as a faulty export leaves one: its columns are shifted, so that its subject is the word "capital".

    Were it to go in, every question for a capital would be answered with this one's.
    """
    return FactChange(
        subject="capital",
        relation="capital",
        target="Sydney",
        target_old="Canberra",
        prompt="What is the {} of Australia?",
        rephrases=(),
        locality=(),
        effective_at=midnight(day),
        observed_at=midnight(day),
        source="a faulty export",
    )
