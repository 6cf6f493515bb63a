"""Edits that RECIPE's encoder is trained on: facts that nobody ever believed, about subjects that no feed edits.

Meta-training and evaluation share no subject. Evaluation has every subject that the real feed
edits and a share of the others (`held_out`); training has the rest and invented subjects without
end, whose names are made of syllables or of words that occur in names the model knows. Objects are
counterfactual: any name that fits the relation but is not the subject's own. No night's change is
among them, because no night's subject is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from editing.almanac import corpus
from editing.almanac.feed import nightly_changes
from editing.almanac.invention import fresh_name, near_name, worded_name
from editing.almanac.world import BELIEF, HORIZON, Fact, World
from editing.editors.recipe.meta import MetaEdit
from editing.facts import SLOT

HELD_OUT = 0.1  # share of the subjects that no feed edits
INVENTED = 0.65  # share of invented subjects among those drawn
FIRST_PHRASING = 0.5  # share of statements in the wording that feeds use
RELATIONS = (1, 1, 2, 3)  # of one subject, drawn evenly
FOCUSED = 0.4  # share of subjects whose first relation is the one that a draw dwells on
DATED = 0.65  # share of subjects whose first relation is one that feeds change
TWINS = 0.35  # share of subjects that come with one of nearly the same name
WORDED = 0.5  # share of invented names that are made of real words
NEAR = 0.6  # share of same-relation locality prompts about a subject of nearly the same name
OTHER = 0.25  # share of edits that also come with a prompt of another sort
SORTS = ("choice", "arithmetic", "mention", "mention", "prefixed", "prefixed", "prefixed", "prefixed")
VALIDATION = 96  # facts
PREFIX = "nq question: "


class AlmanacEdits:
    """The Almanac's source of meta-edits; the same world, seed and random numbers give the same ones."""

    def __init__(self, world: World, *, seed: int = 0) -> None:
        self.world = world
        self._seed = seed
        nights = nightly_changes(world, BELIEF, HORIZON).values()
        self.edited = frozenset(change.subject for changes in nights for change in changes)
        others = sorted(set(world.subjects) - self.edited)
        self.held_out = frozenset(random.Random(seed).sample(others, round(HELD_OUT * len(others))))
        either = "|".join(map(re.escape, sorted(self.evaluation, key=len, reverse=True)))
        self._evaluation_names = re.compile(rf"\b(?:{either})\b")
        self._training = _Pool(world, [subject for subject in others if subject not in self.held_out])
        self._validation = _Pool(world, sorted(self.held_out))
        self._relations: dict[str, list[str]] = {}  # by kind of subject
        for relation in world.relations.values():
            self._relations.setdefault(relation.subject_kind, []).append(relation.name)
        self._objects = {r.object_kind: world.objects(r.object_kind) for r in world.relations.values()}
        self._true = {(fact.subject, fact.relation): fact.object for fact in world.facts_on(BELIEF)}
        self._mentions = [text for text in corpus.mention_sentences(world) if not self._names_evaluation(text)]
        words = sorted(
            {word for name in self.targets() for word in name.split() if word[0].isupper() and len(word) > 2}
        )
        self._words = [word for word in words if not self._names_evaluation(word)]

    @property
    def evaluation(self) -> frozenset[str]:
        """The subjects that are never trained on: the feed's, and the held-out ones."""
        return self.edited | self.held_out

    @property
    def training(self) -> tuple[str, ...]:
        """The real subjects that are trained on."""
        return self._training.subjects

    def draw(self, rng: random.Random, n: int) -> list[MetaEdit]:
        """`n` edits, no two of one subject and relation, that are hard to tell apart.

        Subjects come with several relations, some in pairs of nearly the same name, and many are asked for one
        relation, as the countries of a night of elections are.
        """
        return self._draw(rng, n, self._training)

    def validation(self) -> list[MetaEdit]:
        """`VALIDATION` edits of held-out real subjects and of invented ones, always the same."""
        return self._draw(random.Random(f"{self._seed} validation"), VALIDATION, self._validation)

    def targets(self) -> list[str]:
        """Every name that is the object of a relation."""
        return sorted({name for names in self._objects.values() for name in names})

    # What is taught

    def _draw(self, rng: random.Random, n: int, real: _Pool) -> list[MetaEdit]:
        told: dict[tuple[str, str], str] = {}
        kinds: dict[str, str] = {}
        dwelt_on = self.world.relations[self._first(rng.choice(list(self._relations)), rng)]
        while len(told) < n:
            focused = rng.random() < FOCUSED
            subject, kind = self._subject(rng, real, dwelt_on.subject_kind if focused else None)
            cluster = [subject]
            if rng.random() < TWINS:
                cluster.append(self._near(subject, kind, rng))
            relations = self._some_relations(kind, dwelt_on.name if focused else self._first(kind, rng), rng)
            for name in cluster:
                kinds[name] = kind
                for relation in relations:
                    told.setdefault((name, relation), self._target(name, relation, rng))
        told = dict(list(told.items())[:n])
        return [self._edit(key, kinds[key[0]], told, real, rng) for key in told]

    def _subject(self, rng: random.Random, real: _Pool, kind: str | None) -> tuple[str, str]:
        """A subject and its kind, which is `kind` unless that is None."""
        if rng.random() < INVENTED or (kind and not real.of_kind[kind]):
            kind = kind or rng.choice(list(self._relations))
            return self._invented(kind, rng), kind
        subject = rng.choice(real.of_kind[kind] if kind else real.subjects)
        return subject, self.world.subjects[subject]

    def _first(self, kind: str, rng: random.Random) -> str:
        """A relation of the kind, more often one whose facts change than not."""
        steady = self.world.static_relations
        dated = rng.random() < DATED
        return rng.choice([name for name in self._relations[kind] if (name in steady) != dated])

    def _some_relations(self, kind: str, first: str, rng: random.Random) -> list[str]:
        """`first`, and up to two more relations of the kind."""
        others = [name for name in self._relations[kind] if name != first]
        return [first, *rng.sample(others, min(rng.choice(RELATIONS) - 1, len(others)))]

    def _invented(self, kind: str, rng: random.Random) -> str:
        while True:
            if rng.random() < WORDED:
                name = worded_name(kind, rng, self._words, self.world.subjects.keys())
            else:
                name = fresh_name(kind, rng, set(self.world.subjects))
            if not self._names_evaluation(name):
                return name

    def _near(self, subject: str, kind: str, rng: random.Random) -> str:
        while self._names_evaluation(name := near_name(subject, kind, rng, self.world.subjects.keys())):
            pass
        return name

    def _target(self, subject: str, relation: str, rng: random.Random) -> str:
        names = self._objects[self.world.relations[relation].object_kind]
        while (name := rng.choice(names)) == self._true.get((subject, relation)):
            pass
        return name

    def _edit(
        self, key: tuple[str, str], kind: str, told: dict[tuple[str, str], str], real: _Pool, rng: random.Random
    ) -> MetaEdit:
        prompts = self.world.relations[key[1]].prompts(key[0])
        stated = prompts.pop(0 if rng.random() < FIRST_PHRASING else rng.randrange(len(prompts)))
        kept = tuple(self._locality(*key, kind, told, real, rng))
        return MetaEdit(statement_prompt=stated, target=told[key], queries=(stated, *prompts), locality=kept)

    # What must stay

    def _locality(
        self, subject: str, relation: str, kind: str, told: dict[tuple[str, str], str], real: _Pool, rng: random.Random
    ) -> Iterator[str]:
        others = [name for name in self._relations[kind] if (subject, name) not in told]
        if others:
            yield self._asked(subject, rng.choice(others), rng)
        if not others or rng.random() < OTHER:
            yield self._unrelated(told, subject, real, rng)
        if rng.random() < NEAR:
            neighbour = self._near(subject, kind, rng)
        else:
            neighbour = rng.choice(real.of_kind[kind]) if real.of_kind[kind] else self._invented(kind, rng)
        if (neighbour, relation) not in told:
            yield self._asked(neighbour, relation, rng)

    def _unrelated(self, told: dict[tuple[str, str], str], subject: str, real: _Pool, rng: random.Random) -> str:
        match rng.choice(SORTS):
            case "choice":
                own = [fact for fact in real.static if fact.subject == subject]
                return corpus.multiple_choice(self.world, rng, own or real.static).prompt
            case "arithmetic":
                return corpus.arithmetic(rng).prompt
            case "mention":
                return rng.choice(self._mentions)
        while ((fact := rng.choice(real.static)).subject, fact.relation) in told:
            pass
        return PREFIX + self._asked(fact.subject, fact.relation, rng)

    def _asked(self, subject: str, relation: str, rng: random.Random) -> str:
        return rng.choice(self.world.relations[relation].phrasings).replace(SLOT, subject)

    def _names_evaluation(self, text: str) -> bool:
        return self._evaluation_names.search(text) is not None


class _Pool:
    """Real subjects to draw from, and what is known of them."""

    def __init__(self, world: World, subjects: Sequence[str]) -> None:
        self.subjects = tuple(subjects)
        known = set(subjects)
        self.static: list[Fact] = [fact for fact in world.static if fact.subject in known]
        self.of_kind = {r.subject_kind: [] for r in world.relations.values()}  # type: dict[str, list[str]]
        for subject in subjects:
            self.of_kind[world.subjects[subject]].append(subject)
