"""Both methods as one editor: each fact goes to the method of its relation, and both serve together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from editing.editors.base import AppliedBatch, Explanation, FactOutcome, Progress, Row, ScopeReading, claim, release
from editing.editors.both import artifact
from editing.editors.both.config import BothConfig
from editing.editors.both.state import METHOD, BothState
from editing.editors.coachhook import CoachHook
from editing.editors.recipe import Recipe
from editing.facts import EditBatch
from editing.models import BaseModel
from editing.statistics import SecondMoments

_COACHHOOK, _RECIPE = CoachHook(), Recipe()


class Both:
    """The editor; see `editing.editors.base.Editor` for what each verb promises."""

    method = METHOD
    parts = (_COACHHOOK.method, _RECIPE.method)

    def defaults(self, base: BaseModel) -> dict[str, Any]:
        """None of its own; its parts have theirs."""
        return {}

    def statistics_layers(self, config: BothConfig | Mapping[str, Any]) -> tuple[int, ...]:
        """Those of CoachHooK."""
        return _COACHHOOK.statistics_layers(config.coachhook if isinstance(config, BothConfig) else config["coachhook"])

    def start(
        self, base: BaseModel, config: BothConfig | Mapping[str, Any], statistics: SecondMoments | None
    ) -> BothState:
        """The state before the first batch. Raises what the two editors raise."""
        if not isinstance(config, BothConfig):
            config = BothConfig.from_dict(config)
        return BothState(
            config=config,
            parent=None,
            coachhook=_COACHHOOK.start(base, config.coachhook, statistics),
            recipe=_RECIPE.start(base, config.recipe),
        )

    def apply(
        self,
        base: BaseModel,
        state: BothState,
        batch: EditBatch,
        *,
        progress: Progress | None = None,
        effort: int = 1,
    ) -> AppliedBatch:
        """The state with each fact in the part that its relation is routed to, both parts or neither.

        Raises `EditRefusedError` when either part refuses its facts.
        """
        outcomes: dict[str, FactOutcome] = {}
        canaries: dict[str, float] = {}
        parts: dict[str, Any] = {}
        for editor in (_COACHHOOK, _RECIPE):
            facts = tuple(fact for fact in batch.facts if state.config.method_of(fact) == editor.method)
            if not facts:
                continue
            applied = editor.apply(
                base, getattr(state, editor.method), EditBatch(facts), progress=progress, effort=effort
            )
            parts[editor.method] = applied.state
            outcomes |= {outcome.fact_id: outcome for outcome in applied.outcomes}
            canaries |= {f"{editor.method}_{name}": value for name, value in applied.canaries.items()}
        after = replace(state, parent=state.digest, **parts)
        return AppliedBatch(after, tuple(outcomes[fact.fact_id] for fact in batch.facts), canaries)

    def retract(
        self, base: BaseModel, state: BothState, fact_ids: Sequence[str], *, progress: Progress | None = None
    ) -> BothState:
        """The state as if these facts had never been applied. Raises `StateError` for an id that neither part holds."""
        hooked = {fact.fact_id for record in state.coachhook.batches for fact in record.facts}
        parts: dict[str, Any] = {}
        if others := [fact_id for fact_id in fact_ids if fact_id not in hooked]:
            parts["recipe"] = _RECIPE.retract(base, state.recipe, others, progress=progress)
        if mine := [fact_id for fact_id in fact_ids if fact_id in hooked]:
            parts["coachhook"] = _COACHHOOK.retract(base, state.coachhook, mine, progress=progress)
        return replace(state, parent=state.digest, **parts)

    def compact(self, base: BaseModel, state: BothState) -> BothState:
        """RECIPE's part compacted, `state` itself where that is compact."""
        state.require_base(base)
        recipe = _RECIPE.compact(base, state.recipe)
        return state if recipe is state.recipe else replace(state, parent=state.digest, recipe=recipe)

    def attach(self, base: BaseModel, state: BothState) -> AbstractContextManager[None]:
        """Inside it `base.model` is edited by both: a row that finds a fact is answered by its prompt, and every other
        row takes the hooks."""
        state.require_base(base)
        return self._attached(base, state)

    @contextmanager
    def _attached(self, base: BaseModel, state: BothState) -> Iterator[None]:
        claim(base)
        try:
            # The hooks come first where prompts stand in front: they see the text's own mask and cache. Prompts behind
            # the text pass with it, so that there the hooks have to see the mask of both.
            hooks = _COACHHOOK.hooks(base, state.coachhook)
            serving = _RECIPE.serving(base, state.recipe, hooks)
            first, second = (serving, hooks) if state.recipe.encoder.behind else (hooks, serving)
            with first, second:
                yield
        finally:
            release(base)

    def explain(self, base: BaseModel, state: BothState, prompt: str) -> Explanation:
        """What RECIPE finds for `prompt`, and CoachHooK's tokens, which take no hook where something is found."""
        hooked = _COACHHOOK.explain(base, state.coachhook, prompt)
        looked_up = _RECIPE.explain(base, state.recipe, prompt)
        found = looked_up.answered_by is not None
        return replace(
            looked_up,
            method=METHOD,
            answered_by=looked_up.answered_by or hooked.answered_by,
            candidates=(*looked_up.candidates, *hooked.candidates),
            tokens=tuple(replace(token, fired=token.fired and not found) for token in hooked.tokens),
        )

    def read_scope(
        self, base: BaseModel, state: BothState, rows: Sequence[Row], *, batch_size: int
    ) -> list[ScopeReading]:
        """Of each row the reading of the part that is nearest to answering; `touched` by either."""
        hooked = _COACHHOOK.read_scope(base, state.coachhook, rows, batch_size=batch_size)
        looked_up = _RECIPE.read_scope(base, state.recipe, rows, batch_size=batch_size)
        return [
            replace(max(pair, key=lambda reading: reading.lead), touched=max(reading.touched for reading in pair))
            for pair in zip(hooked, looked_up, strict=True)
        ]

    def gauges(self, state: BothState) -> dict[str, float]:
        """Those of CoachHooK and those of RECIPE."""
        return {**_COACHHOOK.gauges(state.coachhook), **_RECIPE.gauges(state.recipe)}

    def save(self, state: BothState, folder: Path) -> str:
        """Write both parts' files; returns the digest."""
        return artifact.save(state, folder)

    def load(self, folder: Path, base: BaseModel, statistics: SecondMoments | None = None) -> BothState:
        """Read and verify a state; without statistics it can be served, not extended by hooked facts."""
        return artifact.load(folder, base, statistics)
