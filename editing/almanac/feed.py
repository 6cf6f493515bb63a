"""What really happened, night by night: the world's changes as the fact changes of a feed."""

from __future__ import annotations

import random
from calendar import monthrange
from collections.abc import Iterable
from datetime import UTC, date, datetime, time

from editing.almanac.world import Change, Fact, World
from editing.facts import SLOT, FactChange, LocalityPrompt

UNRELATED = 2  # locality prompts on other subjects


def nightly_changes(world: World, start: date, end: date) -> dict[date, list[FactChange]]:
    """The changes after `start` and until `end`, by night: one for each month with changes, on the month's last day.

    Nights and the changes of one are in the order of time. The edit prompt is the relation's first
    phrasing, the others are rephrases. The locality prompts ask for facts that no change ever
    touches: every one of the subject, and `UNRELATED` of other subjects.
    """
    nights: dict[date, list[FactChange]] = {}
    for change in world.changes(start, end):
        night = change.date.replace(day=monthrange(change.date.year, change.date.month)[1])
        nights.setdefault(night, []).append(_fact_change(world, change, night))
    return nights


def _fact_change(world: World, change: Change, night: date) -> FactChange:
    prompt, *rephrases = world.relations[change.relation].phrasings
    return FactChange(
        subject=change.subject,
        relation=change.relation,
        target=change.new,
        target_old=change.old,
        prompt=prompt,
        rephrases=tuple(rephrases),
        locality=_locality(world, change),
        effective_at=midnight(change.date),
        observed_at=midnight(night),
        source=change.source,
    )


def _locality(world: World, change: Change) -> tuple[LocalityPrompt, ...]:
    rng = random.Random(f"{change.subject}|{change.relation}|{change.date}")
    own = [fact for fact in world.steady_facts if fact.subject == change.subject]
    others = [fact for fact in world.steady_facts if fact.subject != change.subject]
    return tuple(_asked(world, [*own, *rng.sample(others, UNRELATED)], rng))


def _asked(world: World, facts: Iterable[Fact], rng: random.Random) -> Iterable[LocalityPrompt]:
    for fact in facts:
        phrasing = rng.choice(world.relations[fact.relation].phrasings)
        yield LocalityPrompt(prompt=phrasing.replace(SLOT, fact.subject), answer=fact.object)


def evening(day: date) -> datetime:
    """The last second of a day in UTC."""
    return datetime.combine(day, time(23, 59, 59), UTC)


def midnight(day: date) -> datetime:
    """The beginning of a day in UTC."""
    return datetime.combine(day, time.min, UTC)
