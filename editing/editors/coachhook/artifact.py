"""CoachHooK states on disk: `state.json`, `state.safetensors` and a README, verified when read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.coachhook.leverage import LeverageGate
from editing.editors.coachhook.state import FORMAT, METHOD, BatchRecord, CoachHookState, LayerState, SubjectTarget
from editing.editors.identity import complete, form_of, require_format, require_unaltered
from editing.errors import StateError
from editing.facts import FactChange
from editing.models import BaseModel
from editing.statistics import SecondMoments
from editing.storage import read_json, read_tensors, replace_file, write_json, write_tensors


def save(state: CoachHookState, folder: Path) -> str:
    """Write the state into `folder` (made if needed) and return its digest.

    The JSON, which holds the digest, is written last: a folder without it holds no state. Raises
    `StateError` before anything is written when a tensor is not finite.
    """
    state.require_finite()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").unlink(missing_ok=True)
    write_tensors(folder / "state.safetensors", state.tensors())
    readme = (
        f"# An edit state of Errata\n\nMethod {METHOD}, format {FORMAT}, {len(state.facts)} facts, for the base model "
        f"`{state.model_id}` (fingerprint `{state.base_fingerprint}`).\n\n`state.json` says what it was made from and "
        "with; `state.safetensors` holds its tensors. It changes nothing in the base model's own files.\n"
    )
    replace_file(folder / "README.md", lambda path: path.write_text(readme, encoding="utf-8"))
    write_json(folder / "state.json", {"digest": state.digest, **state.content()})
    return state.digest


def load(folder: Path, base: BaseModel, statistics: SecondMoments | None = None) -> CoachHookState:
    """The state in `folder`, verified against `base`, the statistics and its own digest.

    Raises `StateError` naming what differs: method, format, base, tokenizer, statistics, or content
    that is missing, cut short or altered.
    """
    content = read_json(folder / "state.json", StateError)
    require_format(content, folder, method=METHOD, format=FORMAT)
    tensors = read_tensors(folder / "state.safetensors", StateError)
    with complete(folder):
        state = _rebuild(content, tensors, statistics)
    state.require_base(base)
    if statistics is not None and statistics.key != state.statistics_key:
        raise StateError(
            f"statistics differ: the state was made with {state.statistics_key[:12]}, these are "
            f"{statistics.key[:12]}; give those that the state names"
        )
    require_unaltered(folder, state.digest, content, state.content(), whole=set(tensors) == set(state.tensors()))
    return state


def _rebuild(content: dict[str, Any], tensors: dict[str, Any], statistics: SecondMoments | None) -> CoachHookState:
    base = content["base"]
    layers = {
        int(layer): LayerState(
            weight=tensors[f"layers.{layer}.weight"],
            moment=tensors[f"layers.{layer}.moment"],
            solved=tensors[f"layers.{layer}.solved"],
            keys=tensors[f"layers.{layer}.keys"],
            alpha=math.inf if figures["alpha"] is None else figures["alpha"],
            scale=figures["scale"],
        )
        for layer, figures in content["layers"].items()
    }
    batches = tuple(
        BatchRecord(
            facts=tuple(FactChange.from_dict(fact) for fact in batch["facts"]),
            targets=tuple(
                SubjectTarget(
                    subject=target["subject"],
                    fact_ids=tuple(target["fact_ids"]),
                    columns=tuple(target["columns"]),
                    values=tensors[f"batches.{b}.targets.{t}"],
                    losses=tuple(target["losses"]),
                    converged=target["converged"],
                    untouched=target.get("untouched", False),
                )
                for t, target in enumerate(batch["targets"])
            ),
        )
        for b, batch in enumerate(content["batches"])
    )
    return CoachHookState(
        config=CoachHookConfig.from_dict(content["config"]),
        model_id=base["model_id"],
        revision=base["revision"],
        base_fingerprint=base["fingerprint"],
        tokenizer_hash=base["tokenizer_hash"],
        statistics_key=content["statistics_key"],
        parent=content["parent"],
        batches=batches,
        solved_texts=tuple(content["solved_texts"]),
        key_texts=tuple(content["key_texts"]),
        layers=layers,
        statistics=statistics,
        gate=LeverageGate.rebuild(content["gate"], tensors) if "gate" in content else None,
        form=form_of(base),
        reader_digest=content.get("reader_digest"),
    )
