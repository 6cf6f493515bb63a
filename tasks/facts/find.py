"""Finding facts by what a person has at hand: an id, its beginning, or a subject and relation."""

from __future__ import annotations

from editing.facts import FactChange, fold
from tasks.errors import LedgerError
from tasks.ledger import Ledger

SHORTEST = 4  # hex digits of an id's beginning
_HEX = frozenset("0123456789abcdef")


def find_facts(ledger: Ledger, reference: str, relation: str | None = None) -> list[FactChange]:
    """The fact with this id or beginning of an id, or every fact of this subject (and relation), oldest first.

    Raises `LedgerError` when there is none, or a beginning is that of several.
    """
    begins = reference.casefold()
    if relation is None and len(begins) >= SHORTEST and set(begins) <= _HEX:
        found = ledger.matching(begins)
        if len(found) > 1:
            ids = ", ".join(fact.fact_id[:12] for fact in found[:5])
            raise LedgerError(f"{reference!r} is the beginning of {len(found)} facts ({ids}); give more of the id")
        if found:
            return found
    found = ledger.facts_of_subject(fold(reference))
    if relation is not None:
        found = [fact for fact in found if fact.key.relation == fold(relation)]
    if not found:
        about = f"{reference!r} / {relation!r}" if relation else repr(reference)
        raise LedgerError(f"no fact {about} was ever received; give an id, its beginning, or a subject")
    return found


def find_fact(ledger: Ledger, reference: str) -> FactChange:
    """The one fact with this id or beginning of an id. Raises `LedgerError` when it is none or several."""
    found = find_facts(ledger, reference)
    if len(found) > 1:
        ids = ", ".join(f"{fact.fact_id[:12]} ({fact.relation}: {fact.target})" for fact in found)
        raise LedgerError(f"{reference!r} has several facts; give the id of one of them: {ids}")
    return found[0]
