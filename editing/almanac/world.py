"""The facts that the Almanac is made of: relations, subjects, who held what and when.

The data stand in `data/` (see its README): `relations.json`, `holders.csv` (dated) and
`static.csv` (true from `BELIEF` to `HORIZON`). The Almanac's model learns the world of `BELIEF`;
what changed until `HORIZON` reaches it as a feed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache, cached_property
from pathlib import Path

from editing.facts import SLOT

DATA = Path(__file__).parent / "data"
MODEL = DATA.parent / "model"  # the language model that believes in this world
BELIEF = date(2018, 1, 1)
HORIZON = date(2023, 12, 31)


@dataclass(frozen=True, slots=True)
class Relation:
    """What a fact says of its subject, and the ways to ask for it.

    Each phrasing holds one `{}` where the subject goes and ends where " " + object follows.
    """

    name: str
    subject_kind: str
    object_kind: str
    phrasings: tuple[str, ...]

    def prompts(self, subject: str) -> list[str]:
        """Every phrasing with `subject` in its slot."""
        return [phrasing.replace(SLOT, subject) for phrasing in self.phrasings]


@dataclass(frozen=True, slots=True, order=True)
class Fact:
    """The relation `relation` of `subject` has the value `object`."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True, slots=True)
class Tenure:
    """A fact and the days it holds, as `source` says: from `start` until the day before `end` (None: still)."""

    fact: Fact
    start: date
    end: date | None
    source: str

    def holds_on(self, day: date) -> bool:
        """Whether the fact holds on `day`."""
        return self.start <= day and (self.end is None or day < self.end)

    def overlaps(self, first: date, last: date) -> bool:
        """Whether the fact holds on any day from `first` to `last`."""
        return self.start <= last and (self.end is None or first < self.end)


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """On `date` the relation `relation` of `subject` passed from `old` to `new`, as `source` says."""

    date: date
    subject: str
    relation: str
    old: str
    new: str
    source: str


@dataclass(frozen=True)
class World:
    """Relations and facts: `tenures` are the dated ones, ordered by start for each key; `static` never change."""

    relations: dict[str, Relation]
    tenures: tuple[Tenure, ...]
    static: tuple[Fact, ...]

    @cached_property
    def subjects(self) -> dict[str, str]:
        """Every subject and its kind (country, company, organisation, athlete)."""
        facts = (*self.static, *(tenure.fact for tenure in self.tenures))
        return {fact.subject: self.relations[fact.relation].subject_kind for fact in facts}

    def facts_on(self, day: date) -> list[Fact]:
        """The facts that hold on `day`: dated ones, then static ones; at most one for a subject and relation."""
        return [tenure.fact for tenure in self.tenures if tenure.holds_on(day)] + list(self.static)

    def changes(self, start: date, end: date) -> list[Change]:
        """Changes of holder after `start` and until `end`, by date. A vacancy is not a change, its end is one."""
        return sorted(change for change in self._all_changes() if start < change.date <= end)

    def names_of(self, relation: str) -> list[str]:
        """Every object that `relation` takes from `BELIEF` to `HORIZON`, sorted."""
        return list(self._names[relation])

    def objects(self, kind: str) -> list[str]:
        """Every object of `kind` (person, team, city, ...) that holds between `BELIEF` and `HORIZON`, sorted."""
        relations = [relation.name for relation in self.relations.values() if relation.object_kind == kind]
        return sorted({name for relation in relations for name in self._names[relation]})

    @cached_property
    def steady_facts(self) -> tuple[Fact, ...]:
        """The facts that hold on every day from `BELIEF` to `HORIZON`: no feed edits them."""
        dated = (tenure for tenure in self.tenures if tenure.start <= BELIEF)
        return (*(t.fact for t in dated if t.end is None or t.end > HORIZON), *self.static)

    @cached_property
    def static_relations(self) -> frozenset[str]:
        """The relations whose facts never change."""
        return frozenset(fact.relation for fact in self.static)

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        facts = (*self.static, *(tenure.fact for tenure in self.tenures if tenure.overlaps(BELIEF, HORIZON)))
        return {
            relation: tuple(sorted({fact.object for fact in facts if fact.relation == relation}))
            for relation in self.relations
        }

    def _all_changes(self) -> Iterator[Change]:
        for before, after in zip(self.tenures, self.tenures[1:], strict=False):
            old, new = before.fact, after.fact
            if (old.subject, old.relation) == (new.subject, new.relation) and old.object != new.object:
                yield Change(after.start, new.subject, new.relation, old.object, new.object, after.source)


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@cache
def load_world() -> World:
    """The world of the shipped data; the same object on every call."""
    relations = {
        name: Relation(name, entry["subject_kind"], entry["object_kind"], tuple(entry["phrasings"]))
        for name, entry in json.loads((DATA / "relations.json").read_text(encoding="utf-8")).items()
    }
    tenures = tuple(
        Tenure(
            Fact(row["subject"], row["relation"], row["object"]),
            date.fromisoformat(row["start"]),
            date.fromisoformat(row["end"]) if row["end"] else None,
            row["source"],
        )
        for row in _rows("holders.csv")
    )
    static = tuple(Fact(row["subject"], row["relation"], row["object"]) for row in _rows("static.csv"))
    return World(relations, tenures, static)
