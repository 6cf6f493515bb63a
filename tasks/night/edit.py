"""Editing, one committed step at a time: retractions first, then batch by batch."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.errors import EditRefusedError, StateError
from editing.evals.canaries import require_healthy
from editing.facts import EditBatch
from tasks.faults import checkpoint
from tasks.ledger import BatchCommit
from tasks.night.plan import NightWork, Step
from tasks.progress import reporter
from tasks.workspace import Workspace, open_workspace


@task(name="resume", cache_policy=NO_CACHE)
def resume(work: NightWork) -> tuple[int, str | None]:
    """The first step that is still to be done, and the state before it (None: a new one).

    Steps that an earlier run of the same night committed are not done again, as far as the last of
    their states that is still there.
    """
    space = open_workspace()
    for commit in reversed(space.ledger.commits(work.key)):
        if _intact(space, commit.state_digest):
            return commit.position + 1, commit.state_digest
    return 0, work.parent


@task(name="edit", task_run_name="edit step {position}", cache_policy=NO_CACHE)
def edit_step(work: NightWork, position: int, before: str | None) -> str:
    """Carry out step `position` of the night on the state `before` (None: a new one); the digest of the state after.

    The state is on disk before the ledger names it. A batch that the editor refuses leaves the state
    as it was.
    """
    space = open_workspace()
    began = time.monotonic()
    step = work.steps[position]
    state = space.start(reporter()) if before is None else space.state(before, to_edit=True)
    space.require_options(state)
    detail: dict[str, Any] = {}
    if step.retracts:
        state = space.editor.retract(space.base, state, step.fact_ids, progress=reporter())
    else:
        batch = EditBatch(tuple(space.ledger.facts(step.fact_ids)))
        try:
            progress = reporter(f"batch {position + 1}: ")
            # What did not take goes out first: an edit on top of it would have that to overcome as well.
            failed = _failed_before(space, work, batch)
            free = space.editor.retract(space.base, state, failed, progress=progress) if failed else state
            applied = space.editor.apply(space.base, free, batch, progress=progress, effort=step.effort)
            health = require_healthy(space.base, applied.state, applied.canaries, space.canary_limits)
        except EditRefusedError as error:
            detail = {"refused": str(error)}
        else:
            state = applied.state
            detail = {"outcomes": [asdict(outcome) for outcome in applied.outcomes], "canaries": health}
    checkpoint("edited")
    space.keep(state)
    checkpoint("kept")
    space.ledger.record_commit(
        BatchCommit(
            night=work.key,
            position=position,
            batch_id=step.step_id,
            parent_digest=before,
            state_digest=state.digest,
            path=state.digest,
            detail=detail | {"seconds": round(time.monotonic() - began, 3), "state": state.describe()},
            run_id=work.key,
            at=datetime.now(UTC),
        )
    )
    checkpoint("committed")
    return state.digest


def _failed_before(space: Workspace, work: NightWork, batch: EditBatch) -> tuple[str, ...]:
    """Ids of the facts that the champion holds and does not answer, and whose keys the batch edits."""
    keys = {fact.key for fact in batch.facts}
    return tuple(fact.fact_id for fact in space.ledger.facts(work.failed) if fact.key in keys)


def edited(work: NightWork) -> bool:
    """Whether any step of the night changed the state."""
    return bool(carried_out(open_workspace(), work))


def carried_out(space: Workspace, work: NightWork) -> list[Step]:
    """The steps that were done, without the batches that the editor refused."""
    commits = space.ledger.commits(work.key)
    return [step for step, commit in zip(work.steps, commits, strict=True) if "refused" not in commit.detail]


def applied_facts(space: Workspace, work: NightWork) -> list[str]:
    """Ids of the facts that the candidate holds since tonight."""
    return [fact_id for step in carried_out(space, work) if not step.retracts for fact_id in step.fact_ids]


def restored_facts(space: Workspace, work: NightWork) -> list[str]:
    """Ids of the facts that the candidate holds, the champion did not, and no batch applied.

    A retraction uncovered them.
    """
    if not work.retract:
        return []
    candidate = space.ledger.commits(work.key)[-1].state_digest
    known = {fact.fact_id for fact in space.ledger.facts_in_state(work.parent)} | set(applied_facts(space, work))
    return [fact_id for fact_id in space.state(candidate).fact_ids if fact_id not in known]


def refusals(space: Workspace, work: NightWork) -> dict[str, str]:
    """The facts of refused batches, and why."""
    commits = zip(work.steps, space.ledger.commits(work.key), strict=True)
    return {
        fact: commit.detail["refused"]
        for step, commit in commits
        if "refused" in commit.detail
        for fact in step.fact_ids
    }


def _intact(space: Workspace, digest: str) -> bool:
    try:
        space.load(space.state_folder(digest), digest)
    except StateError:
        return False
    return True
