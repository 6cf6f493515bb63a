"""CoachHooK as an editor: consecutive batches, hooks, retraction by replay.

"Consecutive Batch Model Editing with HooK Layers" (arXiv 2403.05330) on top of MEMIT's closed form
(arXiv 2210.07229).

Shapes: N lookup contexts, D model width, F inner width of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing.editors.base import (
    AppliedBatch,
    Explanation,
    FactOutcome,
    Progress,
    Row,
    ScopeReading,
    continuation_from,
)
from editing.editors.coachhook import artifact, reading
from editing.editors.coachhook.asked import open_reader
from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.coachhook.explain import explain
from editing.editors.coachhook.leverage import LeverageGate
from editing.editors.coachhook.presets import preset_layers
from editing.editors.coachhook.prompts import Column, Context, Group, make_groups
from editing.editors.coachhook.scope import (
    Hooks,
    ScopeDecision,
    background_scale,
    calibrated_threshold,
    sequence_scores,
)
from editing.editors.coachhook.solve import solve_update
from editing.editors.coachhook.state import METHOD, BatchRecord, CoachHookState, LayerState, SubjectTarget
from editing.editors.coachhook.targets import optimise_targets
from editing.errors import ConfigError, EditRefusedError, StateError
from editing.facts import EditBatch, FactChange
from editing.models import BaseModel
from editing.models.trace import inputs_of, output_of, removing
from editing.statistics import SecondMoments
from editing.templates import tells
from editing.tokenisation import encode_prompts, pad, padding_id

ROWS_PER_PASS = 64


class CoachHook:
    """The editor; see `editing.editors.base.Editor` for what each verb promises."""

    method = METHOD
    parts: tuple[str, ...] = ()

    def defaults(self, base: BaseModel) -> dict[str, Any]:
        """The layers to edit: those of the papers for the models that they edit, else by relative depth; none where
        the architecture is unknown."""
        if base.architecture is None:
            return {}
        return {"layers": list(preset_layers(base.architecture.model_type, len(base.blocks)))}

    def statistics_layers(self, config: CoachHookConfig | Mapping[str, Any]) -> tuple[int, ...]:
        """The edited layers. Raises `ConfigError` when the config names none."""
        layers = config.layers if isinstance(config, CoachHookConfig) else config.get("layers")
        if not layers:
            raise ConfigError("no layers to edit are known; set layers in the options of coachhook")
        return tuple(layers)

    def start(
        self, base: BaseModel, config: CoachHookConfig | Mapping[str, Any], statistics: SecondMoments | None
    ) -> CoachHookState:
        """The state before the first batch: the hook's weights are the base's, `C = lambda C0`.

        Raises `StatisticsError` when the statistics do not serve this base and these layers, and
        `ConfigError` or `ModelError` when the config does not, or `StateError` when its reader is not found.
        """
        if not isinstance(config, CoachHookConfig):
            config = CoachHookConfig.from_dict(config)
        if statistics is None:
            raise StateError("CoachHooK needs second-moment statistics; run compute_second_moments for its layers")
        statistics.require(base, config.layers)
        layers = {}
        for layer in config.layers:
            weight_DF = base.down_weight(layer).cpu()
            moment_FF = statistics.moments[layer].double()
            ridge = config.moment_ridge * float(moment_FF.diagonal().mean())
            moment_FF = config.moment_weight * (moment_FF + ridge * torch.eye(len(moment_FF), dtype=torch.float64))
            alpha = config.sequence_alpha if config.scope == "sequence" else math.inf
            none_NF = torch.zeros(0, weight_DF.shape[1])
            layers[layer] = LayerState(weight_DF, moment_FF.float(), none_NF, none_NF.clone(), alpha, 0.0)
        return CoachHookState(
            config=config,
            model_id=base.model_id,
            revision=base.revision,
            base_fingerprint=base.fingerprint,
            tokenizer_hash=base.tokenizer_hash,
            statistics_key=statistics.key,
            parent=None,
            batches=(),
            solved_texts=(),
            key_texts=(),
            layers=layers,
            statistics=statistics,
            gate=LeverageGate.empty(layers[config.layers[0]].weight.shape[1]) if config.scope == "leverage" else None,
            form=base.form,
            reader_digest=open_reader(config.reader, base.model_id).backbone_digest if config.reader else None,
        )

    def apply(
        self,
        base: BaseModel,
        state: CoachHookState,
        batch: EditBatch,
        *,
        progress: Progress | None = None,
        effort: int = 1,
    ) -> AppliedBatch:
        """The state with the batch's facts, the outcome of each in batch order, and the canaries.

        `effort` times `max_steps` may be spent. Raises `EditRefusedError` for a batch that would leave an
        ill-conditioned or non-finite state; `state` itself never changes.
        """
        harder = replace(state.config, max_steps=state.config.max_steps * effort)
        after = _extend(base, replace(state, config=harder), batch.facts, {}, progress)
        after = replace(after, config=state.config, parent=state.digest)
        targets = {fact_id: target for target in after.batches[-1].targets for fact_id in target.fact_ids}
        outcomes = []
        for fact in batch.facts:
            target = targets[fact.fact_id]
            loss = target.losses[target.fact_ids.index(fact.fact_id)]
            outcomes.append(FactOutcome(fact.fact_id, loss < state.config.stop_loss, loss))
        return AppliedBatch(after, tuple(outcomes), _canaries(base, after))

    def retract(
        self, base: BaseModel, state: CoachHookState, fact_ids: Sequence[str], *, progress: Progress | None = None
    ) -> CoachHookState:
        """The state as if these facts had never been applied; an older fact that one superseded holds again.

        The closed-form solves are replayed from the first batch with the targets kept in the state. A
        target is optimised again only where it could have come out differently without the retracted
        facts: for their own subjects, since a target is made for all facts of its subject together,
        and for prompts in which a hook let a token through, then or in the replay. The result is that
        of never applying the facts, to float tolerance.
        Raises `StateError` for an id that the state does not hold.
        """
        state.require_base(base)
        gone = set(fact_ids)
        applied = {fact.fact_id for record in state.batches for fact in record.facts}
        if missing := sorted(gone - applied):
            raise StateError(f"facts {', '.join(missing)} are not in the state {state.digest[:12]}; nothing to retract")
        replayed = self.start(base, state.config, state.require_statistics())
        reopened: set[str] = set()
        for done, record in enumerate(state.batches):
            if progress is not None:
                progress("replay", done, len(state.batches))
            reopened |= {fact.key.subject for fact in record.facts if fact.fact_id in gone}
            facts = [fact for fact in record.facts if fact.fact_id not in gone]
            kept = {
                target.subject: target
                for target in record.targets
                if target.subject not in reopened and target.untouched
            }
            if facts:
                replayed = _extend(base, replayed, facts, kept, progress)
        return replace(replayed, parent=state.digest)

    def compact(self, base: BaseModel, state: CoachHookState) -> CoachHookState:
        """`state` itself: hooks do not grow, and what is kept of each batch is what a retraction replays."""
        state.require_base(base)
        return state

    def attach(
        self, base: BaseModel, state: CoachHookState, *, decisions: list[ScopeDecision] | None = None
    ) -> AbstractContextManager[Any]:
        """Inside it `base.model` is the edited model; `decisions` collects each hook's scores and choices.

        With the `sequence` scope, say where the answer starts with `continuation_from` wherever prompt
        and answer pass through the model together; beam search is not supported by it.
        """
        state.require_base(base)
        return Hooks.of(base, state, decisions)

    def hooks(self, base: BaseModel, state: CoachHookState) -> Hooks:
        """The hooks alone, for an attachment that has claimed the model for more than them."""
        state.require_base(base)
        return Hooks.of(base, state, within=True)

    def explain(self, base: BaseModel, state: CoachHookState, prompt: str) -> Explanation:
        """Every token of `prompt` at every edited layer with its score, and the facts whose subject it names."""
        return explain(base, state, prompt)

    def read_scope(
        self, base: BaseModel, state: CoachHookState, rows: Sequence[Row], *, batch_size: int
    ) -> list[ScopeReading]:
        """See `editing.editors.base.Editor`; scores are in units of the layer's threshold."""
        state.require_base(base)
        return reading.read_scope(base, state, rows, batch_size)

    def gauges(self, state: CoachHookState) -> dict[str, float]:
        """Each layer's threshold."""
        return reading.gauges(state)

    def save(self, state: CoachHookState, folder: Path) -> str:
        """Write `state.json`, `state.safetensors` and a README; returns the digest."""
        return artifact.save(state, folder)

    def load(self, folder: Path, base: BaseModel, statistics: SecondMoments | None = None) -> CoachHookState:
        """Read and verify a state; without statistics it can be served, not extended."""
        return artifact.load(folder, base, statistics)


@torch.no_grad()
def _at_lookup(
    contexts: Sequence[Context], base: BaseModel, module: torch.nn.Module, top: torch.nn.Module
) -> tuple[Tensor, Tensor]:
    """What goes into `module` and what comes out of `top` behind it, at the contexts' lookup tokens: `[N, F]` and
    `[N, D]` float32. Contexts that are asked alike share a row."""
    asked = list(dict.fromkeys((context.ids, context.lookup) for context in contexts))
    seen: list[Tensor] = []
    keys: list[Tensor] = []
    states: list[Tensor] = []
    with removing([module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))]):
        for begin in range(0, len(asked), ROWS_PER_PASS):
            chunk = asked[begin : begin + ROWS_PER_PASS]
            ids, mask = pad([ids for ids, _ in chunk], padding_id(base.tokenizer), side="right")
            out_BTD = output_of(
                base.model.base_model,
                top,
                input_ids=ids.to(base.device),
                attention_mask=mask.to(base.device),
                use_cache=False,
            )
            at = torch.tensor([lookup for _, lookup in chunk])
            for parts, values in ((keys, seen.pop()), (states, out_BTD)):
                parts.append(values[torch.arange(len(chunk), device=values.device), at.to(values.device)].float())
    row = {context: index for index, context in enumerate(asked)}
    rows = torch.tensor([row[context.ids, context.lookup] for context in contexts])
    keys_NF, states_ND = torch.cat(keys), torch.cat(states)
    return keys_NF[rows.to(keys_NF.device)], states_ND[rows.to(states_ND.device)]


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What a batch's contexts are at one layer: the keys that the solve sets (of each column the mean over its context
    prefixes) `[N, F]`, those that the scope must let through `[J, F]`, and the columns' states at the last edited
    layer `[N, D]`."""

    solved: Tensor
    judged: Tensor
    present: Tensor

    @classmethod
    def at(cls, base: BaseModel, layer: int, top: int, columns: Sequence[Column], judged: Sequence[Context]) -> _Read:
        """Read in one pass over all of them."""
        bare = [column.bare for column in columns]
        prefixed = [context for column in columns for context in column.prefixed]
        keys_F, states_D = _at_lookup([*bare, *judged, *prefixed], base, base.down_projection(layer), base.blocks[top])
        n, m = len(bare), len(bare) + len(judged)
        return cls(keys_F[m:].unflatten(0, (n, -1)).mean(1), keys_F[n:m], states_D[:n])


def _extend(
    base: BaseModel,
    state: CoachHookState,
    facts: Sequence[FactChange],
    kept: Mapping[str, SubjectTarget],
    progress: Progress | None,
) -> CoachHookState:
    """One batch: targets (those in `kept` as they are, unless a hook meets them), then each layer's solve and scope."""
    state.require_base(base)
    statistics, config = state.require_statistics(), state.config
    groups = make_groups(base, facts, state.facts, config)
    columns = [column for group in groups for column in group.columns]
    judged = list({context.text: context for group in groups for context in group.judged}.values())
    texts = [column.bare.text for column in columns]
    top = config.layers[-1]
    layers: dict[int, LayerState] = {}
    gate = state.gate
    with Hooks.of(base, state) as hooks:
        # Below the first edited layer nothing is edited: its keys are known before any solve.
        read = _Read.at(base, config.layers[0], top, columns, judged)
        targets = _targets(base, hooks, groups, read.present, config, kept, progress)
        wanted_ND = torch.cat([target.values for target in targets]).to(base.device)
        if gate is not None:
            gate = _extended_gate(base, state, gate, groups, texts, read)
            hooks.guard(gate, facts)
        else:
            hooks.open()
        for done, layer in enumerate(config.layers):
            if progress is not None:
                progress("layers", done, len(config.layers))
            read = _Read.at(base, layer, top, columns, judged)
            residual_ND = (wanted_ND.to(read.present.device) - read.present).to(read.solved.device)
            residual_ND /= len(config.layers) - done
            before = state.layers[layer]
            solved_texts, solved_MF = _merge(state.solved_texts, before.solved, texts, read.solved.cpu())
            moment_FF = before.moment.to(read.solved.device)
            if config.accumulate:
                moment_FF = moment_FF - _outer(_replaced(state.solved_texts, before.solved, texts).to(moment_FF))
            update_DF = solve_update(
                moment_FF, read.solved, residual_ND, layer=layer, max_condition=config.max_condition
            )
            weight_DF = (before.weight.double() + update_DF.cpu()).float()
            if config.accumulate:
                moment_FF = moment_FF + _outer(read.solved)
            key_texts, edited_NF = _merge(
                state.key_texts, before.keys, [context.text for context in judged], read.judged.cpu()
            )
            content = LayerState(weight_DF, moment_FF.float().cpu(), solved_MF, edited_NF, before.alpha, before.scale)
            layers[layer] = _with_threshold(base, hooks, layer, content, groups, statistics, config)
            hooks.put(layer, layers[layer], solved_texts)
    record = BatchRecord(tuple(facts), tuple(targets))
    after = replace(
        state,
        parent=state.digest,
        batches=(*state.batches, record),
        solved_texts=solved_texts,
        key_texts=key_texts,
        layers=layers,
        gate=gate,
    )
    try:
        after.require_finite()
    except StateError as error:
        raise EditRefusedError(f"the batch of {len(facts)} facts is refused: {error}") from error
    return after


def _extended_gate(
    base: BaseModel,
    state: CoachHookState,
    gate: LeverageGate,
    groups: Sequence[Group],
    texts: Sequence[str],
    read: _Read,
) -> LeverageGate:
    """The gate with the keys of these groups, whose columns have `texts`, as `read` at the first edited layer."""
    config, first = state.config, state.config.layers[0]
    before = state.layers[first]
    moment_FF = before.moment.to(read.solved.device).double()
    if config.accumulate:
        moment_FF = moment_FF - _outer(_replaced(state.solved_texts, before.solved, texts).to(moment_FF))
    judged = {context.text: (context, group) for group in groups for context in group.judged}
    return gate.extended(
        moment_FF + _outer(read.solved),
        list(judged),
        [group.owner(context).bare.text for context, group in judged.values()],
        [group.subject for _, group in judged.values()],
        [group.subject if tells(context.text, group.subject) else "" for context, group in judged.values()],
        read.judged.cpu(),
        state.require_statistics().background[first],
        config,
    )


def _targets(
    base: BaseModel,
    hooks: Hooks,
    groups: Sequence[Group],
    present_ND: Tensor,
    config: CoachHookConfig,
    kept: Mapping[str, SubjectTarget],
    progress: Progress | None,
) -> list[SubjectTarget]:
    """A target for each group in order: `z = h + delta` under the present hooks, or one kept from an earlier run.

    `present_ND` are h, the states of all groups' columns.

    A kept one stays only where no hook changes what its group asks, as it was when the target was made.
    """
    touched = dict(zip((group.subject for group in groups), _touched(base, hooks, groups, config), strict=True))
    new = [group for group in groups if touched[group.subject] or group.subject not in kept]
    optimised = optimise_targets(base, hooks, new, config, progress)
    made = dict(kept)
    present = dict(
        zip(
            (group.subject for group in groups), present_ND.split([len(group.columns) for group in groups]), strict=True
        )
    )
    for group, result in zip(new, optimised, strict=True):
        present_CD = present[group.subject]
        made[group.subject] = SubjectTarget(
            subject=group.subject,
            fact_ids=tuple(fact.fact_id for fact in group.facts),
            columns=tuple(column.bare.text for column in group.columns),
            values=(present_CD + result.delta.to(present_CD.device)).cpu(),
            losses=result.losses,
            converged=result.converged,
            untouched=not touched[group.subject],
        )
    return [made[group.subject] for group in groups]


@torch.no_grad()
def _touched(base: BaseModel, hooks: Hooks, groups: Sequence[Group], config: CoachHookConfig) -> list[bool]:
    """For each group, whether the present hooks change any token of the prompts that its target depends on."""
    asked = [
        (place, ids, end)
        for place, group in enumerate(groups)
        for ids, end in (
            *((row.ids, row.asked[0]) for row in group.rows),
            *((column.bare.ids, len(column.bare.ids)) for column in group.columns),
        )
    ]
    asked.sort(key=lambda item: len(item[1]))
    top = base.blocks[config.layers[-1]]
    touched = [False] * len(groups)
    for begin in range(0, len(asked), ROWS_PER_PASS):
        chunk = asked[begin : begin + ROWS_PER_PASS]
        ids, mask = pad([ids for _, ids, _ in chunk], padding_id(base.tokenizer), side="right")
        inputs = {"input_ids": ids.to(base.device), "attention_mask": mask.to(base.device), "use_cache": False}
        with continuation_from(torch.tensor([end for *_, end in chunk], device=base.device)):
            edited_BTD = output_of(base.model.base_model, top, **inputs)
        with hooks.paused():
            plain_BTD = output_of(base.model.base_model, top, **inputs)
        moved_B = ((edited_BTD != plain_BTD).any(-1).cpu() & mask.bool()).any(1)
        for (place, *_), moved in zip(chunk, moved_B.tolist(), strict=True):
            touched[place] |= moved
    return touched


def _merge(
    texts: tuple[str, ...], keys_NF: Tensor, new_texts: Sequence[str], new_NF: Tensor
) -> tuple[tuple[str, ...], Tensor]:
    """Earlier keys with the new ones behind; a context that comes again is replaced by its new key."""
    stay = [index for index, text in enumerate(texts) if text not in set(new_texts)]
    return (*(texts[index] for index in stay), *new_texts), torch.cat([keys_NF[stay], new_NF])


def _replaced(texts: tuple[str, ...], keys_MF: Tensor, new_texts: Sequence[str]) -> Tensor:
    """The earlier keys whose contexts are solved again: what they held is no longer to be kept."""
    return keys_MF[[index for index, text in enumerate(texts) if text in set(new_texts)]]


def _outer(keys_MF: Tensor) -> Tensor:
    """`sum k k^T` `[F, F]` in float64."""
    exact = keys_MF.double()
    return exact.T @ exact


def _with_threshold(
    base: BaseModel,
    hooks: Hooks,
    layer: int,
    content: LayerState,
    groups: Sequence[Group],
    statistics: SecondMoments,
    config: CoachHookConfig,
) -> LayerState:
    """The layer with its scope fixed for what has just been solved.

    The layers below are already served with theirs, so scores are those of the served model.
    """
    change_DF = content.weight - base.down_weight(layer).cpu()
    scale = background_scale(change_DF, statistics.moments[layer])
    alpha = content.alpha
    if config.scope == "leverage":
        alpha = 1.0
    elif config.scope == "calibrated":
        alpha = calibrated_threshold(change_DF, statistics.background[layer], content.keys, scale, config)
    elif config.scope == "sequence":
        lowest = _lowest_sequence_score(base, layer, change_DF, [context for g in groups for context in g.judged])
        if lowest > 0:
            alpha = min(alpha, lowest * (1 - config.alpha_margin))
    return replace(content, alpha=alpha, scale=scale)


@torch.no_grad()
def _lowest_sequence_score(base: BaseModel, layer: int, change_DF: Tensor, prompts: Sequence[Context]) -> float:
    """Over the prompts, the lowest of each one's highest z-score at `layer`."""
    ids, mask = pad([prompt.ids for prompt in prompts], padding_id(base.tokenizer), side="right")
    keys_BTF = inputs_of(
        base.model.base_model,
        base.down_projection(layer),
        input_ids=ids.to(base.device),
        attention_mask=mask.to(base.device),
        use_cache=False,
    )
    changes_BT = torch.linalg.vector_norm(keys_BTF @ change_DF.T.to(keys_BTF), dim=-1, dtype=torch.float32)
    scores_BT, _ = sequence_scores(changes_BT, mask.bool().to(changes_BT.device))
    return float(scores_BT.amax(1).min())


@torch.no_grad()
def _canaries(base: BaseModel, state: CoachHookState) -> dict[str, float]:
    """Health of a new state: how far each layer's weight moved, relatively, and perplexity against the base."""
    encoded = encode_prompts(base.tokenizer, [state.config.canary_text])
    longest = getattr(base.model.config, "max_position_embeddings", None)
    ids = encoded["input_ids"][:, :longest].to(base.device)

    def perplexity() -> float:
        logits = base.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        return math.exp(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:].to(logits.device))))

    figures = {"perplexity_base": perplexity()}
    with Hooks.of(base, state):
        figures["perplexity_edited"] = perplexity()
    for layer, content in state.layers.items():
        original = base.down_weight(layer).cpu()
        figures[f"layer_{layer}_relative_change"] = float((content.weight - original).norm() / original.norm())
    return figures
