"""Which tokens take the hook's weights: scores, thresholds, and the hooks that apply them.

A hook adds `(Wh - W0) k` to the down-projection's output at the tokens in scope and leaves the
others as the base computes them, bit for bit.
The change at a token is `|(Wh - W0) k|`; a scope turns it into a score:

- `leverage`: the share of an edited key in the token's own, over the key's threshold (`leverage`). It
  is read at the first edited layer and holds for all of them; in scope is what scores 1 behind the name of its subject,
  where a reader (`asked`) finds nothing else asked of it.
- `calibrated`: the change over its root mean square on background text. It depends on nothing
  but the token's own key.
- `sequence`: the paper's z-score of the change along the sequence, over real tokens. Tokens of
  the prompt are judged by the whole prompt; each later token by everything up to itself.
- `always`: every token is in scope.

Shapes: B rows, T tokens, D model width, F inner width, S background keys, N edited keys.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from editing.editors.base import claim, continuation_column, release
from editing.editors.coachhook.asked import AskedFacts
from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.coachhook.leverage import LeverageGate
from editing.editors.coachhook.state import CoachHookState, LayerState
from editing.errors import StateError
from editing.facts import FactChange
from editing.models import BaseModel


class Running(NamedTuple):
    """Tokens, sum and sum of squares of the changes along each row so far, each `[B]` float64."""

    tokens: Tensor
    total: Tensor
    squares: Tensor


def sequence_scores(
    change_BT: Tensor, real_BT: Tensor, column: int | Tensor | None = None, before: Running | None = None
) -> tuple[Tensor, Running]:
    """Z-scores `[B, T]` of the changes along each row, and the running sums behind the last token.

    Tokens before `column` (all of them when it is None and nothing came `before`) are judged by
    mean and sample deviation of the whole prompt, later ones by those of everything up to
    themselves. A token that has no deviation to compare with (a prompt of one token, or equal
    changes) scores 0; so does padding.
    """
    width = change_BT.shape[1]
    x_BT = torch.where(real_BT, change_BT, 0.0).double()
    sums = [real_BT.double().cumsum(1), x_BT.cumsum(1), x_BT.square().cumsum(1)]
    if before is not None:
        sums = [now + then[:, None] for now, then in zip(sums, before, strict=True)]
    running = Running(*(each[:, -1] for each in sums))
    if column is None:
        column = width if before is None else 0
    last = torch.as_tensor(column, device=change_BT.device).reshape(-1, 1) - 1
    at_BT = torch.maximum(torch.arange(width, device=change_BT.device)[None], last.clamp(max=width - 1))
    count, total, squares = (each.gather(1, at_BT.expand_as(each)) for each in sums)
    mean = total / count.clamp(min=1)
    variance = (squares - total * mean) / (count - 1).clamp(min=1)
    usable = real_BT & (count >= 2) & (variance > 1e-12 * mean.square())
    scores = (x_BT - mean) / torch.where(usable, variance, 1.0).sqrt()
    return torch.where(usable, scores, 0.0), running


def background_scale(change_DF: Tensor, moment_FF: Tensor) -> float:
    """Root mean square of `|change k|` over background text: `sqrt(tr(change C0 change^T))`."""
    exact = change_DF.double()
    return math.sqrt(max(float((exact @ moment_FF.double() * exact).sum()), 0.0))


def calibrated_threshold(
    change_DF: Tensor, background_SF: Tensor, edited_NF: Tensor, scale: float, config: CoachHookConfig
) -> float:
    """Threshold between the background's high quantile and the edited keys' scores, in units of `scale`.

    Never above the lowest edited score less the margin: what was edited stays in scope.
    """
    if scale == 0.0 or len(edited_NF) == 0:
        return math.inf
    background = torch.linalg.vector_norm(background_SF @ change_DF.T, dim=1) / scale
    lowest = float(torch.linalg.vector_norm(edited_NF @ change_DF.T, dim=1).min()) / scale
    ordered = background.double().sort().values
    quantile = float(ordered[round(config.background_quantile * (len(ordered) - 1))])
    between = quantile ** (1 - config.alpha_weight) * lowest**config.alpha_weight
    return min(between, lowest * (1 - config.alpha_margin))


@dataclass(frozen=True, eq=False, slots=True)
class ScopeDecision:
    """One hook's decision in one forward pass: scores and whether tokens took the hook's weights, both `[B, T]`.

    `keys` `[B, T]` are the rows of the gate that tokens were compared with last, in the leverage scope.
    """

    layer: int
    scores: Tensor
    fired: Tensor
    keys: Tensor | None = None


@dataclass(slots=True, eq=False)
class _Hook:
    """A layer's hook: `change` `[F, D]` of its weight as the forward pass uses it, and the threshold.

    `own` `[N, D]` are the changes of the gate's keys themselves; None while the layer has none of the newest.
    """

    change: Tensor
    threshold: float
    scale: float
    gated: bool
    own: Tensor | None = None


@dataclass(slots=True)
class _Row:
    """What a row of the batch has been so far: its tokens (None where they are not known), the subjects whose
    edits it has taken, and how many of its tokens are the prompt."""

    ids: list[int] | None
    taken: set[str]
    prompt: int = 0

    def copy(self) -> _Row:
        return _Row(None if self.ids is None else [*self.ids], {*self.taken}, self.prompt)


class Hooks:
    """A state's hooks on a base model, active inside `with`. Serves `attach` and the editor's own passes.

    With `decisions`, each forward pass appends what each hook decided. `within` another attachment that
    has claimed the model the hooks do not claim it again.
    """

    def __init__(
        self,
        base: BaseModel,
        layers: Mapping[int, LayerState],
        config: CoachHookConfig,
        decisions: list[ScopeDecision] | None = None,
        *,
        gate: LeverageGate | None = None,
        solved_texts: Sequence[str] = (),
        asked: AskedFacts | None = None,
        within: bool = False,
    ) -> None:
        self._base = base
        self._within = within
        self._asked = asked
        self._scope, self._change = config.scope, config.change
        self._gate, self._first = gate, config.layers[0]
        self._read: tuple[Tensor, Tensor, Tensor] | None = None
        self._cached = False
        self._read_so_far: list[_Row] = []
        self._read_before: WeakKeyDictionary[Any, list[_Row]] = WeakKeyDictionary()
        self._decisions = decisions
        self._hooks: dict[int, _Hook] = {}
        self._handles: list[Any] = []
        self._paused = False
        self._silent_B: Tensor | None = None
        self._running: WeakKeyDictionary[Any, dict[int, Running]] = WeakKeyDictionary()
        self._real_BT: Tensor | None = None
        self._before: dict[int, Running] = {}
        self._after: dict[int, Running] = {}
        for layer, content in layers.items():
            self.put(layer, content, solved_texts)

    @classmethod
    def of(
        cls,
        base: BaseModel,
        state: CoachHookState,
        decisions: list[ScopeDecision] | None = None,
        *,
        within: bool = False,
    ) -> Hooks:
        """The hooks of a state."""
        return cls(
            base,
            state.layers,
            state.config,
            decisions,
            gate=state.gate,
            solved_texts=state.solved_texts,
            asked=AskedFacts.of(base, state),
            within=within,
        )

    def put(self, layer: int, content: LayerState, solved_texts: Sequence[str]) -> None:
        """Use this layer state, whose solved keys are those of `solved_texts`, from now on, gated by the scope."""
        weight = self._base.down_projection(layer).get_parameter("weight")
        change_DF = content.weight.to(weight.device) - self._base.down_weight(layer)
        hook = _Hook(change_DF.T.contiguous().to(weight.dtype), content.alpha, content.scale, self._scope != "always")
        if self._gate is not None and self._change == "own":
            row = {text: index for index, text in enumerate(solved_texts)}
            owners_NF = content.solved[[row[text] for text in self._gate.owners]].to(change_DF)
            hook.own = (owners_NF @ change_DF.T).to(weight.dtype)
        self._hooks[layer] = hook

    def guard(self, gate: LeverageGate, facts: Sequence[FactChange]) -> None:
        """Let this gate, with the edits of these facts, decide from now on. Until `put` gives a layer its own changes,
        a token gets its plain one."""
        self._gate = gate
        self._asked = None if self._asked is None else self._asked.extended(facts)
        for hook in self._hooks.values():
            hook.own = None

    def open(self) -> None:
        """Let every token take the hooks' weights, until `put` gates a layer again."""
        for hook in self._hooks.values():
            hook.gated = False

    def silence(self, rows_B: Tensor | None) -> None:
        """Let no token of these rows (boolean) take the hooks' weights in the passes from now on; None: of no row."""
        self._silent_B = rows_B

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The base model, for a while."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __enter__(self) -> Self:
        """Put the hooks on. Raises `StateError` when another state is attached to this model object."""
        if not self._within:
            claim(self._base)
        for layer in self._hooks:
            module = self._base.down_projection(layer)
            self._handles.append(module.register_forward_hook(self._make(layer)))
        if self._scope in ("leverage", "sequence"):
            backbone = self._base.model.base_model
            self._handles.append(backbone.register_forward_pre_hook(self._begin, with_kwargs=True))
            self._handles.append(backbone.register_forward_hook(self._end))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        if not self._within:
            release(self._base)

    def _make(self, layer: int) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            mine = self._hooks[layer]
            if self._paused:
                return output
            if self._gate is not None:
                return self._by_leverage(layer, mine, self._gate, args[0], output)
            change_BTD = args[0] @ mine.change
            if not mine.gated and self._silent_B is None:
                return output + change_BTD
            fired_BT = self._decide(layer, mine, torch.linalg.vector_norm(change_BTD, dim=-1, dtype=torch.float32))
            return torch.where(fired_BT[..., None], output + change_BTD, output)

        return hook

    def _by_leverage(self, layer: int, hook: _Hook, gate: LeverageGate, keys_BTF: Tensor, output: Tensor) -> Tensor:
        """The output with the changes of the tokens in scope; the first edited layer decides for those above."""
        if layer == self._first:
            self._read = self._judge(gate, keys_BTF)
        assert self._read is not None, "the first edited layer runs before those above it"
        scores_BT, rows_BT, fired_BT = (each.to(output.device) for each in self._read)
        if self._silent_B is not None:
            fired_BT = fired_BT & ~self._silent_B.to(fired_BT.device)[:, None]
        if self._decisions is not None:
            self._decisions.append(ScopeDecision(layer, scores_BT, fired_BT, rows_BT))
        if not fired_BT.any():
            return output
        rows_M = rows_BT[fired_BT]
        if hook.own is not None:
            change_MD = hook.own[rows_M]
        else:
            change_MD = keys_BTF[fired_BT] @ hook.change
            if self._change == "scaled":
                share_M = scores_BT[fired_BT] * gate.thresholds.to(scores_BT.device)[rows_M]
                change_MD = (change_MD.float() / share_M[:, None]).to(change_MD.dtype)
        edited_BTD = output.clone()
        edited_BTD[fired_BT] = output[fired_BT] + change_MD
        return edited_BTD

    def _judge(self, gate: LeverageGate, keys_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each token's score, the edited key that it is taken for, and whether it is in scope, all `[B, T]`.

        In scope are the real tokens whose key is that of a subject which the text has named and, with a reader, of
        which the prompt asks what was edited; of an answer those alone whose subject the row has not told before: an
        answer that says a name of its subject ("Bahmann" of a Bahmann) is not to be edited in its middle.
        """
        scores_BT, rows_BT = gate.read(keys_BTF)
        fired_BT = scores_BT >= 1.0
        if self._real_BT is not None:
            fired_BT = fired_BT & self._real_BT.to(fired_BT.device)
        if len(self._read_so_far) != len(fired_BT):
            self._read_so_far = [_Row(None, set()) for _ in fired_BT]
        begins_B = self._answers_begin(*fired_BT.shape)
        for index, place in fired_BT.nonzero().tolist():
            row = self._read_so_far[index]
            text = self._text(index, place)
            if text is not None:
                told = gate.told_by(text, keys_BTF[index, place])
                if told is None:
                    fired_BT[index, place] = False
                    continue
                scores_BT[index, place], rows_BT[index, place] = told
            subject = gate.subjects[int(rows_BT[index, place])]
            if self._asked is not None and not self._asked.asks(self._question(row), subject):
                fired_BT[index, place] = False
                continue
            if subject in row.taken and place >= begins_B[index]:
                fired_BT[index, place] = False
            row.taken.add(subject)
        return scores_BT, rows_BT, fired_BT

    def _answers_begin(self, rows: int, columns: int) -> list[int]:
        """The column of this pass at which each row's answer begins."""
        column = continuation_column()
        begins = 0 if self._cached else columns if column is None else column
        return torch.as_tensor(begins).reshape(-1).expand(rows).tolist()

    def _question(self, row: _Row) -> str:
        """What a row's prompt asks, without the form that it stands in; empty where its tokens are not known."""
        return self._base.form.asked(str(self._base.tokenizer.decode((row.ids or [])[: row.prompt])))

    def _text(self, index: int, place: int) -> str | None:
        """The text of a row up to a column of this pass; None where its tokens are not known (embeddings came)."""
        ids = self._read_so_far[index].ids
        if ids is None or self._real_BT is None:
            return None
        behind = int(self._real_BT[index, place + 1 :].sum())
        return str(self._base.tokenizer.decode(ids[: len(ids) - behind]))

    def _decide(self, layer: int, hook: _Hook, change_BT: Tensor) -> Tensor:
        if self._scope == "sequence":
            assert self._real_BT is not None
            real_BT = self._real_BT.to(change_BT.device)
            scores_BT, after = sequence_scores(change_BT, real_BT, continuation_column(), self._before.get(layer))
            self._after[layer] = after
        else:
            scores_BT = change_BT / hook.scale if hook.scale else torch.zeros_like(change_BT)
        fired_BT = scores_BT >= hook.threshold if hook.gated else torch.ones_like(scores_BT, dtype=torch.bool)
        if self._silent_B is not None:
            fired_BT = fired_BT & ~self._silent_B.to(fired_BT.device)[:, None]
        if self._decisions is not None:
            self._decisions.append(ScopeDecision(layer, scores_BT, fired_BT))
        return fired_BT

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note which tokens of this pass are real, and what is known of the tokens in its cache: their sums, or what
        they say and the subjects whose edits they took."""
        if self._paused:
            return
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids")
        tokens = given["inputs_embeds"] if tokens is None else tokens
        mask = given.get("attention_mask")
        self._real_BT = (
            mask[:, -tokens.shape[1] :].bool()
            if isinstance(mask, Tensor) and mask.dim() == 2
            else torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        )
        cache = given.get("past_key_values")
        self._cached = cache is not None and cache.get_seq_length() > 0
        self._after, self._before = {}, {}
        self._read_so_far = self._rows(given.get("input_ids"), cache)
        if self._cached and self._scope == "sequence":
            if cache not in self._running:
                raise StateError(
                    "the sequence scope needs the scores of the tokens in the cache, which was filled outside this "
                    "`attach`; start the generation inside it, or use the calibrated scope"
                )
            self._before = self._running[cache]

    def _rows(self, ids_BT: Tensor | None, cache: Any) -> list[_Row]:
        """What each row is with this pass's tokens behind those in its cache."""
        assert self._real_BT is not None
        if self._scope != "leverage":
            return []
        rows = [row.copy() for row in self._read_before.get(cache, [])] if self._cached else []
        if not self._cached:
            rows = [_Row([], set()) for _ in self._real_BT]
        if ids_BT is None:
            return [_Row(None, row.taken) for row in rows]
        begins = self._answers_begin(*ids_BT.shape)
        for row, ids, real, begin in zip(rows, ids_BT.tolist(), self._real_BT.tolist(), begins, strict=False):
            if row.ids is not None:
                row.ids += [token for token, kept in zip(ids, real, strict=True) if kept]
            if not self._cached:
                row.prompt = sum(real[:begin])
        return rows

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if cache is not None and not self._paused:
            self._running[cache] = self._after
            self._read_before[cache] = self._read_so_far
