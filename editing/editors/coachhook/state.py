"""CoachHooK's artifact: what is served, what the next batch builds on, and what a replay needs.

Shapes: D model width, F inner width of the MLP, M solved and N edited lookup contexts, C columns of a target.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.coachhook.leverage import LeverageGate
from editing.editors.identity import form_content, require_same_base
from editing.errors import StateError
from editing.facts import FactChange, FactKey
from editing.models import BaseModel
from editing.prompts import RAW, PromptForm
from editing.statistics import SecondMoments
from editing.storage import canonical_json, tensors_digest

METHOD = "coachhook"
FORMAT = 1


@dataclass(frozen=True, eq=False, slots=True)
class LayerState:
    """One edited layer after some batches.

    `weight` `[D, F]` float32 is the hook's; `moment` `[F, F]` float32 is `lambda C0 + sum k k^T` over
    the `solved` keys `[M, F]` (rows as in `CoachHookState.solved_texts`); `keys` `[N, F]` are those of
    all edited lookup contexts (rows as in `CoachHookState.key_texts`). A token is in scope when its
    score, in units of `scale`, reaches `alpha`.
    """

    weight: Tensor
    moment: Tensor
    solved: Tensor
    keys: Tensor
    alpha: float
    scale: float


@dataclass(frozen=True, eq=False, slots=True)
class SubjectTarget:
    """The joint target of a subject's facts in one batch.

    `values` `[C, D]` float32 are the target states at the last edited layer, one for each distinct
    lookup context in `columns` (the text up to the subject's end); `losses` are nats per fact.
    `untouched` says that no hook changed any token of the prompts it was optimised on: it does not
    depend on the facts that were applied before.
    """

    subject: str
    fact_ids: tuple[str, ...]
    columns: tuple[str, ...]
    values: Tensor
    losses: tuple[float, ...]
    converged: bool
    untouched: bool


@dataclass(frozen=True, eq=False, slots=True)
class BatchRecord:
    """What one batch applied: its facts in order, and a target for each of their subjects."""

    facts: tuple[FactChange, ...]
    targets: tuple[SubjectTarget, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class CoachHookState:
    """Immutable result of `start`, `apply` and `retract`; see `editing.editors.base.EditState`.

    `gate` decides what is in the leverage scope; None under another scope. `form` is the form in which the model is
    asked. `reader_digest` names the encoder of the option `reader`. `statistics` is needed to apply or retract, not to
    serve.
    """

    config: CoachHookConfig
    model_id: str
    revision: str | None
    base_fingerprint: str
    tokenizer_hash: str
    statistics_key: str
    parent: str | None
    batches: tuple[BatchRecord, ...]
    solved_texts: tuple[str, ...]
    key_texts: tuple[str, ...]
    layers: Mapping[int, LayerState]
    statistics: SecondMoments | None
    gate: LeverageGate | None = None
    form: PromptForm = RAW
    reader_digest: str | None = None

    @property
    def method(self) -> str:
        """Always `coachhook`."""
        return METHOD

    @cached_property
    def facts(self) -> tuple[FactChange, ...]:
        """The facts that hold: of those with one key the one applied last, in order of application."""
        live: dict[FactKey, FactChange] = {}
        for batch in self.batches:
            for fact in batch.facts:
                live.pop(fact.key, None)
                live[fact.key] = fact
        return tuple(live.values())

    @property
    def fact_ids(self) -> tuple[str, ...]:
        """Ids of `facts`."""
        return tuple(fact.fact_id for fact in self.facts)

    def facts_of(self, row: int) -> tuple[FactChange, ...]:
        """The facts that hold of the subject whose edited key is this row of the gate."""
        assert self.gate is not None
        subject = self.gate.subjects[row]
        return tuple(fact for fact in self.facts if fact.key.subject == subject)

    def fact_of(self, row: int) -> str | None:
        """The id of the fact that this row of the gate answers with; None where its subject has several."""
        found = self.facts_of(row)
        return found[0].fact_id if len(found) == 1 else None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as they are saved."""
        named = {}
        for layer, content in self.layers.items():
            named[f"layers.{layer}.weight"] = content.weight
            named[f"layers.{layer}.moment"] = content.moment
            named[f"layers.{layer}.solved"] = content.solved
            named[f"layers.{layer}.keys"] = content.keys
        for b, batch in enumerate(self.batches):
            for t, target in enumerate(batch.targets):
                named[f"batches.{b}.targets.{t}"] = target.values
        return named if self.gate is None else named | self.gate.tensors()

    def content(self) -> dict[str, Any]:
        """Everything that is not a tensor, as plain JSON types."""
        return {
            "method": METHOD,
            "format": FORMAT,
            "config": self.config.to_state(),
            "base": {
                "model_id": self.model_id,
                "revision": self.revision,
                "fingerprint": self.base_fingerprint,
                "tokenizer_hash": self.tokenizer_hash,
                **form_content(self.form),
            },
            **({} if self.gate is None else {"gate": self.gate.content()}),
            **({} if self.reader_digest is None else {"reader_digest": self.reader_digest}),
            "statistics_key": self.statistics_key,
            "parent": self.parent,
            "fact_ids": list(self.fact_ids),
            "solved_texts": list(self.solved_texts),
            "key_texts": list(self.key_texts),
            "layers": {
                str(layer): {"alpha": _finite_or_none(content.alpha), "scale": content.scale}
                for layer, content in self.layers.items()
            },
            "batches": [
                {
                    "facts": [fact.to_dict() for fact in batch.facts],
                    "targets": [
                        {
                            "subject": target.subject,
                            "fact_ids": list(target.fact_ids),
                            "columns": list(target.columns),
                            "losses": list(target.losses),
                            "converged": target.converged,
                            **({"untouched": True} if target.untouched else {}),
                        }
                        for target in batch.targets
                    ],
                }
                for batch in self.batches
            ],
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over `content` and `tensors`."""
        return hashlib.sha256((canonical_json(self.content()) + tensors_digest(self.tensors())).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Counts, and per layer the threshold, the background scale and the norm of the hook's weight."""
        figures: dict[str, Any] = {
            "method": METHOD,
            "scope": self.config.scope,
            "facts": len(self.facts),
            "batches": len(self.batches),
            "edited_keys": len(self.key_texts),
        }
        for layer, content in self.layers.items():
            figures[f"layer_{layer}_alpha"] = _finite_or_none(content.alpha)
            figures[f"layer_{layer}_scale"] = content.scale
            figures[f"layer_{layer}_weight_norm"] = float(content.weight.norm())
        return figures

    def require_base(self, base: BaseModel) -> None:
        """Refuse another base model or tokenizer. Raises `StateError` naming what differs."""
        require_same_base(self, base)

    def require_statistics(self) -> SecondMoments:
        """The statistics, for a verb that needs them. Raises `StateError` when the state was loaded without."""
        if self.statistics is None:
            raise StateError(
                f"the state was loaded without statistics and can only be served; load it with statistics "
                f"{self.statistics_key[:12]} to apply or retract facts"
            )
        return self.statistics

    def require_finite(self) -> None:
        """Raises `StateError` naming the first tensor that holds a value that is not finite."""
        for name, tensor in self.tensors().items():
            if not torch.isfinite(tensor).all():
                raise StateError(f"{name} holds values that are not finite; the batch before is the last good state")


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
