"""Facts to fill a repository with: counterfactual ones of real subjects first, then ones of invented subjects."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, time
from itertools import islice

from editing.almanac.invention import fresh_name
from editing.almanac.meta_edits import AlmanacEdits
from editing.almanac.world import BELIEF, World
from editing.facts import FactChange

SEED = 20_000  # apart from the seeds of training


def filling_facts(world: World, count: int, *, seed: int = SEED) -> list[FactChange]:
    """`count` false facts, one per subject and relation: the same ones at every call, and fewer are the first of more.

    The real subjects are those that no encoder of the Almanac is trained on. Invented subjects have
    one relation each, so that 10,000 facts are about nearly as many subjects.
    """
    return list(islice(filling_stream(world, seed=seed), count))


def filling_stream(world: World, *, seed: int = SEED) -> Iterator[FactChange]:
    """`filling_facts` without end."""
    rng = random.Random(seed)
    relations: dict[str, list[str]] = {}
    for relation in world.relations.values():
        relations.setdefault(relation.subject_kind, []).append(relation.name)
    true = {(fact.subject, fact.relation): fact.object for fact in world.facts_on(BELIEF)}
    real = [
        (subject, name)
        for subject in sorted(AlmanacEdits(world).evaluation)
        for name in relations[world.subjects[subject]][::2]
    ]
    rng.shuffle(real)
    for subject, name in real:
        yield _fact(world, subject, name, true.get((subject, name)), rng)
    taken = set(world.subjects)
    while True:
        kind = rng.choice(list(relations))
        yield _fact(world, fresh_name(kind, rng, taken), rng.choice(relations[kind]), None, rng)


def _fact(world: World, subject: str, name: str, true: str | None, rng: random.Random) -> FactChange:
    relation = world.relations[name]
    prompt, *rephrases = relation.phrasings
    midnight = datetime.combine(BELIEF, time.min, UTC)
    return FactChange(
        subject=subject,
        relation=name,
        target=rng.choice([value for value in world.objects(relation.object_kind) if value != true]),
        target_old=true,
        prompt=prompt,
        rephrases=tuple(rephrases),
        effective_at=midnight,
        observed_at=midnight,
        source="invented",
    )
