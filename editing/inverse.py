"""Inverse relations: one statement from both its ends, and facts that contradict each other through it.

Where `capital` has the inverse `capital of`, that the capital of France is Paris says as well that
Paris is the capital of France. A fact that says otherwise of Paris has another key, so no conflict
of keys shows that the two cannot both hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from editing.errors import FactError
from editing.facts import FactChange, FactKey, deciding_rule, fold, precedence

STANDS = "the other stands already"


class InverseRelations:
    """Which relations are inverses, declared as `{relation: inverse}`; names count without case and extra spaces.

    A declaration holds from both ends unless several relations share the inverse: `father` and `mother`
    with `child` say whose child somebody is, but not which of the two a parent is. A relation may be its
    own inverse (`spouse`). Raises `FactError` for an empty name, and for two inverses of one relation.
    """

    def __init__(self, declared: Mapping[str, str] | None = None) -> None:
        self._of: dict[str, str] = {}
        for relation, inverse in (declared or {}).items():
            if not fold(relation) or not fold(inverse):
                raise FactError(f"inverse relations {relation!r} = {inverse!r}: a name is empty; name both relations")
            self._declare(fold(relation), fold(inverse))
        shared = Counter(self._of.values())
        for relation, inverse in list(self._of.items()):
            if shared[inverse] == 1:
                self._declare(inverse, relation)

    def _declare(self, relation: str, inverse: str) -> None:
        if (other := self._of.setdefault(relation, inverse)) != inverse:
            raise FactError(f"relation {relation!r} has two inverses, {other!r} and {inverse!r}; declare one of them")

    def __bool__(self) -> bool:
        return bool(self._of)

    def of(self, relation: str) -> str | None:
        """The inverse of a folded relation, itself folded; None where none is declared."""
        return self._of.get(relation)

    def concerns(self, relations: Iterable[str]) -> frozenset[str]:
        """The folded relations whose facts can contradict facts of these (folded) ones."""
        wanted = frozenset(relations)
        opposite = {inverse for relation, inverse in self._of.items() if relation in wanted}
        return frozenset(opposite | {relation for relation, inverse in self._of.items() if inverse in wanted})


class Holding:
    """Facts that hold together, at most one for a key, and which of them a further fact contradicts."""

    def __init__(self, inverse: InverseRelations, facts: Iterable[FactChange] = ()) -> None:
        self._inverse = inverse
        self._by_key: dict[FactKey, FactChange] = {}
        self._implied: dict[FactKey, list[FactChange]] = {}
        for fact in facts:
            self.add(fact)

    def add(self, fact: FactChange) -> None:
        """From now on `fact` holds too."""
        self._by_key[fact.key] = fact
        if said := _said_of_target(self._inverse, fact):
            self._implied.setdefault(said, []).append(fact)

    def contradicted(self, fact: FactChange) -> FactChange | None:
        """A fact that holds and that `fact` cannot be true together with, if there is one.

        Either says of its object, by the inverse relation, what the other says otherwise. Many subjects with
        one object do not contradict each other by that alone: nobody has stated what is said of the object.
        """
        about = _said_of_target(self._inverse, fact)
        other = self._by_key.get(about) if about else None
        if other is not None and fold(other.target) != fact.key.subject:
            return other
        implied = (other for other in self._implied.get(fact.key, ()) if other.key.subject != fold(fact.target))
        return next(implied, None)


def _said_of_target(inverse: InverseRelations, fact: FactChange) -> FactKey | None:
    """The key about which `fact` says something through the inverse of its relation."""
    relation = inverse.of(fact.key.relation)
    return None if relation is None else FactKey(fold(fact.target), relation)


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A fact that stays out because it contradicts `rival` through an inverse relation, and the rule that decided."""

    fact: FactChange
    rival: FactChange
    rule: str

    def sentence(self, place: str) -> str:
        """The evidence in one sentence; `place` says where the rival was read."""
        ours, theirs = (f"{f.subject!r} / {f.relation!r}: {f.target!r}" for f in (self.fact, self.rival))
        return (
            f"{ours} contradicts {theirs} (fact {self.rival.fact_id}, {place}) through the inverse relations "
            f"{self.fact.relation!r} and {self.rival.relation!r}; {self.rule}"
        )


def contradictions(
    newcomers: Iterable[FactChange], inverse: InverseRelations, standing: Iterable[FactChange] = ()
) -> list[Contradiction]:
    """The newcomers that cannot go in beside `standing` and each other; both hold at most one fact for a key.

    What stands is kept whatever its date, since a fact of another key does not replace it; among the
    newcomers the one of higher `precedence` is kept.
    """
    held, accepted = Holding(inverse, standing), Holding(inverse)
    found: list[Contradiction] = []
    for fact in sorted(newcomers, key=precedence, reverse=True):
        if rival := held.contradicted(fact):
            found.append(Contradiction(fact, rival, STANDS))
        elif rival := accepted.contradicted(fact):
            found.append(Contradiction(fact, rival, f"the other goes in by {deciding_rule(fact, rival)}"))
        else:
            accepted.add(fact)
    return found
