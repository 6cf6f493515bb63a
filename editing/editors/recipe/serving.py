"""Serving: retrieved prompt tokens in front of what is asked, in the base model's own forward passes.

At a prefill the rows' texts are looked up. Where a prompt is used its tokens pass through the model
first, as the beginning of the row: their keys and values stand in the cache before those of the text,
the text attends to them and moves back by their number. In a causal model that is `f(p + emb(q))`
(arXiv 2405.03279), and the logits are those of the text alone. Rows of one batch that use nothing have
that beginning masked; a batch of which no row uses anything runs as the base does, bit for bit.

Prompts that stand `behind` what is asked pass through the model together with the text, between it and its answer;
rows that use nothing have masked tokens at their end instead. The logits of the prompt's last token stand for those
of the text's last.

Shapes: B rows, T tokens, P prompt tokens, D model width.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editing.editors.base import claim, continuation_column, release
from editing.editors.recipe.asked import AskedText
from editing.editors.recipe.prompted import Inserted
from editing.editors.recipe.retrieval import retrieve
from editing.editors.recipe.state import RecipeState
from editing.errors import StateError
from editing.models import BaseModel

REMEMBERED = 4096  # questions whose row is remembered while a state is attached


@dataclass(frozen=True, eq=False, slots=True)
class Lookup:
    """One row of a prefill: the text that was looked up, and the row of the repository that is used (None: none)."""

    asked: str
    row: int | None


class Beside(Protocol):
    """Hooks that edit the same model at the same time."""

    def paused(self) -> AbstractContextManager[Any]:
        """Inside it prompt tokens pass through the model as the base has them."""
        ...

    def silence(self, rows_B: Tensor | None) -> None:
        """These rows (boolean; None: none) are answered by a prompt in the passes from now on, so by nothing else."""
        ...


class Serving:
    """A state on a base model, active inside `with`. With `lookups`, each prefill appends one for each of its rows.

    With hooks `beside` it, whoever put both on has claimed the model.
    """

    def __init__(
        self,
        base: BaseModel,
        state: RecipeState,
        lookups: list[Lookup] | None = None,
        *,
        beside: Beside | None = None,
    ) -> None:
        self._base, self._state, self._lookups, self._beside = base, state, lookups, beside
        self._asked = AskedText(base.tokenizer, state.config.asked, base.form)
        self._room = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
        self._width = state.encoder.prompt_tokens
        self._parameters = tuple(inspect.signature(base.model.base_model.forward).parameters)
        self._handles: list[Any] = []
        self._remembered: dict[str, int] = {}
        self._rows_of: WeakKeyDictionary[Any, _Used | None] = WeakKeyDictionary()
        self._busy = False
        self._pass: tuple[_Used | None, bool, Tensor | None] = (None, False, None)

    def __enter__(self) -> Self:
        """Start serving. Raises `StateError` when another state is attached to this model object."""
        if self._beside is None:
            claim(self._base)
        backbone = self._base.model.base_model
        self._handles = [
            backbone.register_forward_pre_hook(self._begin, with_kwargs=True),
            backbone.register_forward_hook(self._end),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self._beside is None:
            release(self._base)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """At a prefill look the rows up and put their prompts into the cache; afterwards make room for those."""
        if self._busy:
            return None
        given = kwargs | dict(zip(self._parameters, args, strict=False))
        cache = given.get("past_key_values")
        seen = 0 if cache is None else int(cache.get_seq_length())
        hidden = given.get("use_cache") is False
        if seen:
            if cache not in self._rows_of:
                raise StateError(
                    "the cache was filled outside this `attach`, so nobody knows which prompts are in it; start the "
                    "generation inside it"
                )
            used = self._rows_of[cache]
            self._expect(used, hidden=False)
            return None if used is None else ((), self._behind(given, used, seen - self._width))
        rows = self._look_up(given)
        used_B = torch.tensor([row >= 0 for row in rows], device=self._base.device)
        if not used_B.any():
            self._expect(None, hidden=False)
            return None
        if self._state.encoder.behind:
            return (), self._with_prompts(given, rows, used_B)
        used = _Used(used_B, torch.zeros_like(used_B, dtype=torch.int64))
        given["past_key_values"] = self._prefilled(module, rows, used_B, cache)
        self._expect(used, hidden=hidden)
        return (), self._behind(given, used, 0)

    def _expect(self, used: _Used | None, *, hidden: bool, take: Tensor | None = None) -> None:
        """Note for the end of this pass whose prompts are in its cache, whether nobody asked for the cache, and which
        of the tokens' hidden states are the text's `[B, T]` (None: all)."""
        self._pass = (used, hidden, take)
        if self._beside is not None:
            self._beside.silence(None if used is None else used.rows_B)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Remember whose prompts are in the cache; hide a cache, and tokens, that nobody asked for."""
        if self._busy:
            return None
        used, hidden, take_BT = self._pass
        cache = getattr(output, "past_key_values", None)
        if cache is not None and not hidden:
            self._rows_of[cache] = used
        if not hidden and take_BT is None:
            return None
        content = {name: value for name, value in output.items() if not (hidden and name == "past_key_values")}
        if take_BT is not None:
            states_BSD = content["last_hidden_state"]
            index_BTD = take_BT.to(states_BSD.device)[..., None].expand(-1, -1, states_BSD.shape[-1])
            content["last_hidden_state"] = states_BSD.gather(1, index_BTD)
        return type(output)(**content)

    def _look_up(self, given: dict[str, Any]) -> list[int]:
        """Per row of the batch the row of the repository that it uses; -1: none."""
        ids_BT = given.get("input_ids")
        if ids_BT is None:
            raise StateError("embeddings cannot be looked up; give the attached model input_ids")
        real_BT = _asked_tokens(ids_BT, given.get("attention_mask"))
        texts = [self._asked.of_ids(row[real].tolist()) for row, real in zip(ids_BT, real_BT, strict=True)]
        if new := sorted(set(texts) - set(self._remembered)):
            found = retrieve(self._state, new)
            if len(self._remembered) + len(new) > REMEMBERED:
                self._remembered = {text: row for text, row in self._remembered.items() if text in texts}
            rows = [row if used else -1 for row, used in zip(found.rows[:, 0].tolist(), found.used, strict=True)]
            self._remembered.update(zip(new, rows, strict=True))
        chosen = [self._remembered[text] for text in texts]
        if self._lookups is not None:
            self._lookups += [Lookup(text, row if row >= 0 else None) for text, row in zip(texts, chosen, strict=True)]
        return chosen

    def _prompts_of(self, rows: list[int], used_B: Tensor) -> Tensor:
        """The rows' prompts `[B, P, D]`; zeros for those that use none."""
        embedding = self._base.model.get_input_embeddings().get_parameter("weight")
        prompts_BPD = embedding.new_zeros(len(rows), self._width, embedding.shape[1])
        prompts_nPD = self._state.repository.prompts(
            used_B.new_tensor([row for row in rows if row >= 0], dtype=torch.int64).cpu().numpy()
        )
        prompts_BPD[used_B] = prompts_nPD.to(embedding.device, embedding.dtype)
        return prompts_BPD

    def _with_prompts(self, given: dict[str, Any], rows: list[int], used_B: Tensor) -> dict[str, Any]:
        """The prefill's arguments with each row's prompt where its answer begins."""
        ids_BT, mask = given["input_ids"], given.get("attention_mask")
        device, width = ids_BT.device, ids_BT.shape[1]
        columns_1T = torch.arange(width, device=device)[None]
        last_B = (_asked_tokens(ids_BT, mask) * (columns_1T + 1)).amax(1)
        starts_B = torch.where(used_B.to(device), last_B, width)
        used = _Used(used_B.to(device), starts_B)
        put = Inserted.at(starts_B, width, self._width)
        embeds_BTD = self._base.model.get_input_embeddings()(ids_BT)
        places_BT = given.get("position_ids")
        places_BT = (columns_1T if places_BT is None else places_BT).expand(len(rows), -1)
        last_B1 = places_BT.gather(1, (starts_B - 1).clamp(min=0)[:, None])
        prompt_BP = last_B1 + used.rows_B[:, None] * torch.arange(1, self._width + 1, device=device)[None]
        mask_BT = torch.ones_like(ids_BT) if mask is None else _flat(mask)
        moved_BT = places_BT + self._width * (used.rows_B[:, None] & (columns_1T >= starts_B[:, None]))
        self._require_room(torch.cat([moved_BT, prompt_BP], dim=1))
        at_end_BT = used.rows_B[:, None] & (columns_1T == (starts_B - 1)[:, None])
        self._expect(used, hidden=False, take=put.text_BT + self._width * at_end_BT)
        return given | {
            "input_ids": None,
            "inputs_embeds": put.embeds(embeds_BTD, self._prompts_of(rows, used_B)),
            "attention_mask": used.mask(mask_BT, self._width),
            "position_ids": put.columns(moved_BT, prompt_BP),
        }

    def _prefilled(self, module: nn.Module, rows: list[int], used_B: Tensor, cache: Any) -> Any:
        """The cache with the prompts' keys and values. Rows that use none get those of zeros, which are masked."""
        prompts_BPD = self._prompts_of(rows, used_B)
        if cache is None:
            cache = DynamicCache(config=self._base.model.config)
        self._busy = True
        try:
            with nullcontext() if self._beside is None else self._beside.paused():
                module(
                    inputs_embeds=prompts_BPD,
                    attention_mask=torch.ones(prompts_BPD.shape[:2], dtype=torch.int64, device=prompts_BPD.device),
                    position_ids=torch.arange(self._width, device=prompts_BPD.device)[None].expand(len(rows), -1),
                    past_key_values=cache,
                    use_cache=True,
                )
        finally:
            self._busy = False
        return cache

    def _behind(self, given: dict[str, Any], used: _Used, seen: int) -> dict[str, Any]:
        """The pass's arguments with mask and positions as they are behind the prompts; `seen` tokens of the text
        are in the cache."""
        tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        rows, width = tokens.shape[:2]
        mask = given.get("attention_mask")
        mask_BT = (
            torch.ones(rows, seen + width, dtype=torch.int64, device=tokens.device) if mask is None else _flat(mask)
        )
        places = given.get("position_ids")
        if places is None:
            places = torch.arange(seen, seen + width, device=tokens.device)[None]
        places_BT = places + self._width * used.rows_B.to(tokens.device)[:, None]
        self._require_room(places_BT)
        return given | {"attention_mask": used.mask(mask_BT, self._width), "position_ids": places_BT}

    def _require_room(self, places_BT: Tensor) -> None:
        """Raises `StateError` for positions that the model does not have."""
        if self._room is not None and int(places_BT.max()) >= self._room:
            raise StateError(
                f"a text of {int(places_BT.max()) + 1 - self._width} tokens and {self._width} prompt tokens do not fit "
                f"the {self._room} positions of {self._base.model_id!r}; shorten the prompt"
            )


@dataclass(frozen=True, eq=False, slots=True)
class _Used:
    """Which rows of a batch have a prompt in their cache, `[B]`, and the column of the text `[B]` that it precedes."""

    rows_B: Tensor
    starts_B: Tensor

    def mask(self, mask_BT: Tensor, width: int) -> Tensor:
        """The attention mask `[B, T + width]` with the prompts' tokens, which rows without one do not see."""
        used_BP = self.rows_B.to(mask_BT)[:, None].expand(-1, width)
        return Inserted.at(self.starts_B.to(mask_BT.device), mask_BT.shape[1], width).columns(mask_BT, used_BP)


def _asked_tokens(ids_BT: Tensor, mask: Any) -> Tensor:
    """Which tokens are real and none of an answer's; boolean `[B, T]`."""
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask is None else _flat(mask).bool()
    if (column := continuation_column()) is not None:
        ends = torch.as_tensor(column, device=ids_BT.device).reshape(-1, 1)
        real_BT = real_BT & (torch.arange(ids_BT.shape[1], device=ids_BT.device)[None] < ends)
    return real_BT


def _flat(mask: Any) -> Tensor:
    """The `[B, T]` attention mask. Raises `StateError` for any other kind."""
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask
    raise StateError(
        "an attached RECIPE state needs a mask of two dimensions; use a dynamic cache and no mask of your own making"
    )
