"""Which edit answers a prompt: the editor's own account, with what the ledger knows of each fact."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from editing.editors import get_editor
from editing.evals.scoring import exact_match
from editing.facts import FactChange
from tasks.ask import ask, version_number
from tasks.champion.choose import digest_of
from tasks.ledger.nights import not_learned_facts
from tasks.ledger.records import EventKind
from tasks.registry import CHAMPION
from tasks.workspace import Workspace


def explain(space: Workspace, prompt: str, version: str | int = CHAMPION) -> dict[str, Any]:
    """What `version` does to `prompt`, as plain JSON types.

    `number` is that of the version (None: the base); `edit` is the fact whose edit fired (None: the base answers),
    `limit` the score that it had to beat; `served` whether the answer is its target, and `doubt` what to say where it
    is not. `candidates` are the best-scored facts, each with its source, night and version; `tokens` the scores of
    CoachHooK's hooks, whose `threshold` is None while nothing is edited: no score reaches it.
    Raises `RegistryError` when there is no such version.
    """
    digest = digest_of(space, version)
    (answer,) = ask(space, [prompt], version)
    told: dict[str, Any] = {
        "prompt": prompt,
        "version": version,
        "number": version_number(space, version),
        "answer": answer,
        "edit": None,
        "served": None,
        "doubt": None,
    }
    if digest is None:
        return {**told, "method": "base", "asked": prompt, "limit": None, "candidates": [], "tokens": []}
    state = space.state(digest)
    found = get_editor(state.method).explain(space.base, state, prompt)
    scores = {candidate.fact.fact_id: candidate.score for candidate in found.candidates}
    edit = found.answered_by
    served = None if edit is None else exact_match(answer, edit.target)
    return {
        **told,
        "served": served,
        "doubt": _doubt(space, edit, digest) if edit is not None and not served else None,
        "method": found.method,
        "asked": found.asked,
        "edit": None if edit is None else {**_known(space, edit, digest), "score": scores.get(edit.fact_id)},
        "limit": found.limit,
        "candidates": [{**_known(space, item.fact, digest), "score": item.score} for item in found.candidates],
        "tokens": [asdict(token) for token in found.tokens],
    }


def _doubt(space: Workspace, edit: FactChange, digest: str) -> str:
    """Why the answer may not be the target of the edit that fired."""
    said = f"the answer is not {edit.target!r}, the target of this edit"
    if space.ledger.status(edit.fact_id, digest) is not EventKind.NOT_LEARNED:
        return f"{said}, which answers its own prompt: {edit.question!r}"
    why = next(why for fact, why, _ in not_learned_facts(space.ledger, digest) if fact.fact_id == edit.fact_id)
    return f"{said}, which is not learned: {why}"


def _known(space: Workspace, fact: FactChange, digest: str) -> dict[str, Any]:
    """A fact, who said it, and the night and version that applied it, as far as the ledger knows.

    `learned`: whether the state of `digest` answers it as far as it was asked.
    """
    applied = [event for event in space.ledger.history(fact.fact_id) if event.kind is EventKind.APPLIED]
    made = space.ledger.version_of_state(applied[-1].state_digest) if applied and applied[-1].state_digest else None
    return {
        "fact": fact.fact_id,
        "subject": fact.subject,
        "relation": fact.relation,
        "target": fact.target,
        "effective": f"{fact.effective_at:%Y-%m-%d}",
        "source": fact.source,
        "night": f"{made.night:%Y-%m-%d}" if made else None,
        "version": made.version if made else None,
        "learned": space.ledger.status(fact.fact_id, digest) is not EventKind.NOT_LEARNED,
    }
