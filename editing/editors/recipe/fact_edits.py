"""Meta-edits out of fact changes: what an encoder for any base model is trained on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence, Set

from editing.editors.recipe.meta import MetaEdit
from editing.errors import FactError
from editing.facts import SLOT, FactChange, FactKey, Operation, fold

VALIDATION_LIMIT = 256
ESSENCE = "{} is a"  # what must stay of a subject of which nothing else is known


class FactEdits:
    """Meta-edits made of assertions; training and validation share no subject.

    A subject is held out for validation when the hash of its folded name says so, about
    `held_out` of them, so that the split does not depend on what else the facts say. Facts of a
    subject in `without` (folded) are in neither part: a later evaluation asks for those.
    Locality prompts are the facts' own, other relations of the subject and the same relation of
    other subjects, as far as the edits drawn together do not teach them.
    Raises `FactError` when a part has no facts.
    """

    def __init__(self, facts: Iterable[FactChange], *, held_out: float = 0.1, without: Set[str] = frozenset()) -> None:
        told = [fact for fact in facts if fact.operation is Operation.ASSERT and fact.key.subject not in without]
        self.training = _Part(fact for fact in told if not is_held_out(fact.key.subject, held_out))
        self.held_out = _Part(fact for fact in told if is_held_out(fact.key.subject, held_out))
        for name, part in (("training", self.training), ("validation", self.held_out)):
            if len(part.subjects) < 2:
                raise FactError(
                    f"{len(told)} facts leave {len(part.subjects)} subjects for {name}; give facts of more subjects, "
                    f"or another share than {held_out} of held-out ones"
                )

    def draw(self, rng: random.Random, n: int) -> list[MetaEdit]:
        """Up to `n` training edits, one per key, with several relations of a subject where it has them."""
        return self.training.draw(rng, n)

    def validation(self) -> list[MetaEdit]:
        """At most `VALIDATION_LIMIT` edits of held-out subjects, always the same."""
        return self.held_out.draw(random.Random(0), VALIDATION_LIMIT)

    def targets(self) -> list[str]:
        """The targets of the training facts."""
        return sorted({fact.target for facts in self.training.by_key.values() for fact in facts})


def is_held_out(subject: str, share: float) -> bool:
    """Whether a folded subject is among the `share` of all subjects that are kept for validation."""
    number = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8])
    return number < share * 2**64


class _Part:
    """The facts of some subjects, by subject and by relation."""

    def __init__(self, facts: Iterable[FactChange]) -> None:
        by_key: dict[FactKey, list[FactChange]] = {}
        for fact in facts:
            by_key.setdefault(fact.key, []).append(fact)
        self.by_key = by_key
        self.relations: dict[str, list[FactKey]] = {}
        self.by_subject: dict[str, list[FactKey]] = {}
        for key in by_key:
            self.relations.setdefault(key.relation, []).append(key)
            self.by_subject.setdefault(key.subject, []).append(key)
        self.subjects: Sequence[str] = sorted(self.by_subject)

    def draw(self, rng: random.Random, n: int) -> list[MetaEdit]:
        keys: list[FactKey] = []
        for subject in rng.sample(self.subjects, min(n, len(self.subjects))):
            keys += self.by_subject[subject]
            if len(keys) >= n:
                break
        chosen = [rng.choice(self.by_key[key]) for key in keys[:n]]
        taught = {text for fact in chosen for text in map(fold, (fact.question, *fact.paraphrases))}
        return [self._edit(fact, taught, set(keys[:n]), rng) for fact in chosen]

    def _edit(self, fact: FactChange, taught: set[str], told: set[FactKey], rng: random.Random) -> MetaEdit:
        kept = tuple(dict.fromkeys(text for text in self._locality(fact, told, rng) if fold(text) not in taught))
        return MetaEdit(
            statement_prompt=fact.question,
            target=fact.target,
            queries=(fact.question, *fact.paraphrases),
            locality=kept or (ESSENCE.replace(SLOT, fact.subject),),
        )

    def _locality(self, fact: FactChange, told: set[FactKey], rng: random.Random) -> Iterator[str]:
        yield from (item.prompt for item in fact.locality)
        for near in (self.by_subject[fact.key.subject], self.relations[fact.key.relation]):
            if untold := [key for key in near if key not in told]:
                yield rng.choice(self.by_key[rng.choice(untold)]).question
