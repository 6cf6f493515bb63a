"""The part of a forward pass that a delta at the lookup token can change, and nothing else.

Below and at the last edited layer nothing changes between optimisation steps, and before the
lookup token nothing changes at all. So a batch of rows is laid out with all lookup tokens in one
column, run once as a whole, and from then on only the blocks above run, on the columns from the
lookup on, with the keys and values of the columns before it kept from that first pass.

Shapes: B rows, T columns, S columns from the lookup on, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from editing.editors.base import continuation_from
from editing.editors.coachhook.prompts import Row
from editing.editors.coachhook.scope import Hooks
from editing.models import BaseModel
from editing.models.trace import hidden_of, removing
from editing.tokenisation import padding_id


class _Prefix:
    """Keys and values before the lookup column, as attention modules ask a cache for them; never grows."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        self._layers = layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The kept keys and values with this pass's behind them."""
        kept_keys, kept_values = self._layers[layer_idx]
        return torch.cat([kept_keys, keys], dim=-2), torch.cat([kept_values, values], dim=-2)

    def rows(self, chosen: Tensor) -> _Prefix:
        return _Prefix(
            [(keys[chosen.to(keys.device)], values[chosen.to(keys.device)]) for keys, values in self._layers]
        )

    def cache(self) -> DynamicCache:
        """The same as a cache of the library, for a pass of the whole model."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._layers):
            cache.update(keys, values, layer)
        return cache


class UpperBlocks:
    """The blocks above `layer`, from the lookup column on, for a fixed set of rows.

    Calling it with deltas `[B, D]` (added to the output of `layer` at the lookup token) gives the
    last hidden states `[B, S, D]`, before the final norm; column 0 is the lookup token's.
    `unedited_BD` is what the base puts out there, `moved_BD` how far the hooks have moved it already.
    """

    @torch.no_grad()
    def __init__(self, base: BaseModel, hooks: Hooks, rows: Sequence[Row], layer: int) -> None:
        before = max(row.lookup for row in rows)
        width = max(before - row.lookup + len(row.ids) - 1 for row in rows)
        ids = torch.full((len(rows), width), padding_id(base.tokenizer))
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            at = slice(before - row.lookup, before - row.lookup + len(row.ids) - 1)
            ids[index, at] = torch.tensor(row.ids[:-1])
            mask[index, at] = 1
        ids, mask = ids.to(base.device), mask.to(base.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        seen: list[Tensor] = []
        cache = DynamicCache()
        answers = torch.tensor([before - row.lookup + row.asked[0] for row in rows], device=base.device)
        keep = base.blocks[layer].register_forward_hook(lambda _, __, out: seen.append(hidden_of(out)))
        with removing([keep]), continuation_from(answers):
            base.model.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
        self._hidden_BSD = seen[0][:, before:]
        self._prefix = _Prefix([(keys[:, :, :before], values[:, :, :before]) for keys, values, *_ in cache])
        self._calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
        unedited: list[Tensor] = []
        handles = [block.register_forward_pre_hook(self._note, with_kwargs=True) for block in base.blocks[layer + 1 :]]
        handles.append(
            base.blocks[layer].register_forward_hook(lambda _, __, out: unedited.append(hidden_of(out)[:, 0]))
        )
        with removing(handles), hooks.paused():
            base.model.base_model(
                input_ids=ids[:, before:],
                attention_mask=mask,
                position_ids=positions[:, before:],
                past_key_values=self._prefix.cache() if before else DynamicCache(),
                use_cache=True,
            )
        self.unedited_BD = unedited[0].float()
        self.moved_BD = self._hidden_BSD[:, 0].float() - self.unedited_BD

    def _note(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep how the model calls a block on these columns: masks and positions, with the cache replaced."""
        swap = lambda value: self._prefix if isinstance(value, Cache) else value  # noqa: E731
        kwargs = {name: swap(value) for name, value in kwargs.items() if name != "hidden_states"}
        self._calls.append((block, tuple(swap(value) for value in args[1:]), kwargs))

    def __call__(self, delta_BD: Tensor) -> Tensor:
        """Last hidden states `[B, S, D]` with `delta_BD` at the lookup tokens, differentiable in it."""
        first = self._hidden_BSD[:, :1] + delta_BD[:, None].to(self._hidden_BSD)
        hidden_BSD = torch.cat([first, self._hidden_BSD[:, 1:]], dim=1)
        for block, args, kwargs in self._calls:
            hidden_BSD = hidden_of(block(hidden_BSD, *args, **kwargs))
        return hidden_BSD

    def keep(self, chosen: Tensor) -> None:
        """Go on with these rows only (indices `[b]` into the present ones)."""
        rows = len(self._hidden_BSD)
        self._hidden_BSD = self._hidden_BSD[chosen.to(self._hidden_BSD.device)]
        prefix, self._prefix = self._prefix, self._prefix.rows(chosen)

        def cut(value: Any) -> Any:
            if value is prefix:
                return self._prefix
            if isinstance(value, Tensor) and value.dim() >= 2 and len(value) == rows > 1:
                return value[chosen.to(value.device)]
            if isinstance(value, tuple):
                return tuple(cut(item) for item in value)
            return value

        self._calls = [
            (block, tuple(cut(value) for value in args), {name: cut(value) for name, value in kwargs.items()})
            for block, args, kwargs in self._calls
        ]
