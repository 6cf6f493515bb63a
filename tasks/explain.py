"""Which edit answers a prompt: the editor's own account, with what the ledger knows of each fact."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from editing.editors import get_editor
from editing.facts import FactChange
from tasks.ask import ask, version_number
from tasks.champion.choose import digest_of
from tasks.ledger.records import EventKind
from tasks.registry import CHAMPION
from tasks.workspace import Workspace


def explain(space: Workspace, prompt: str, version: str | int = CHAMPION) -> dict[str, Any]:
    """What `version` does to `prompt`, as plain JSON types.

    `number` is that of the version (None: the base); `edit` is the fact that answers (None: the base does), `limit` the
    score that it had to beat; `candidates` are the best-scored facts, each with its source, night and version;
    `tokens` the scores of CoachHooK's hooks, whose `threshold` is None while nothing is edited: no score reaches it.
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
    }
    if digest is None:
        return {**told, "method": "base", "asked": prompt, "limit": None, "candidates": [], "tokens": []}
    state = space.state(digest)
    found = get_editor(state.method).explain(space.base, state, prompt)
    scores = {candidate.fact.fact_id: candidate.score for candidate in found.candidates}
    edit = found.answered_by
    return {
        **told,
        "method": found.method,
        "asked": found.asked,
        "edit": None if edit is None else {**_known(space, edit), "score": scores.get(edit.fact_id)},
        "limit": found.limit,
        "candidates": [{**_known(space, item.fact), "score": item.score} for item in found.candidates],
        "tokens": [asdict(token) for token in found.tokens],
    }


def _known(space: Workspace, fact: FactChange) -> dict[str, Any]:
    """A fact, who said it, and the night and version that applied it, as far as the ledger knows."""
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
    }
