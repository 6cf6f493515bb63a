"""Registering a kept state as a version that is known to come back: loaded from the registry again, and asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from editing.editors import get_editor
from editing.errors import StateError
from editing.tokenisation import encode_prompts
from tasks.faults import checkpoint
from tasks.registry import ArtifactMissingError, Version
from tasks.workspace import Workspace

PROBES = 8
PROBE_TOLERANCE = 1e-4


def register_state(
    space: Workspace, run_id: str, digest: str, tags: Mapping[str, str], *, parent: str | None = None
) -> Version:
    """The version of the kept state `digest`, loaded back and checked; files that it shares with `parent` are not
    written again.

    Safe to repeat. Raises `StateError` when the registry does not give back what was put in.
    """
    folder = space.state_folder(digest)
    version = space.registry.register(run_id, folder, digest=digest, tags=tags, parent=parent)
    checkpoint("registered")
    try:
        _load_back(space, version)
    except (StateError, ArtifactMissingError):  # registered before and damaged since, or shared with a damaged parent
        space.registry.restore(version, folder)
        _load_back(space, version)
    return version


def _load_back(space: Workspace, version: Version) -> None:
    """Raise unless the registry gives back the very state that was put in: same digest, same logits on the probes."""
    kept = space.state(version.digest)
    space.registry.forget(version)
    back = space.load(space.registry.fetch(version), version.digest)
    space.registry.forget(version)
    prompts = [fact.question for fact in kept.facts[-PROBES:]]
    if not prompts:
        return
    before, after = (_logits(space, state, prompts) for state in (kept, back))
    difference = (before - after).abs().max().item()
    if not difference <= PROBE_TOLERANCE:
        raise StateError(
            f"version {version.number} answers the probes with logits that differ by {difference:.3g} from the state "
            f"that was registered; no alias was moved, register state {version.digest[:12]} again"
        )


@torch.inference_mode()
def _logits(space: Workspace, state: Any, prompts: list[str]) -> torch.Tensor:
    inputs = encode_prompts(space.base.tokenizer, prompts, form=space.base.form).to(space.base.device)
    with get_editor(state.method).attach(space.base, state):
        return space.base.model(**inputs).logits[:, -1].float()
