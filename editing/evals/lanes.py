"""Lanes: model objects that share one base's tensors, so that threads can score batches side by side.

Hooks live on a model object and are not safe under threads, and a model's weights are most of its memory. So each
lane has module objects of its own, with hooks of its own, over the same parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import chain
from threading import Lock

from editing.editors import get_editor
from editing.editors.base import EditState
from editing.errors import ModelError
from editing.models import BaseModel


def twin(base: BaseModel) -> BaseModel:
    """The same base with module objects of its own and the same tensors.

    Raises `ModelError` for a model that accelerate has spread over devices: its hooks name module objects.
    """
    if getattr(base.model, "hf_device_map", None):
        raise ModelError(
            f"{base.model_id!r} is spread over devices by its device map; set evaluation.shards to 1, "
            "or load it on one device"
        )
    tensors = chain(base.model.parameters(), base.model.buffers())
    return replace(base, model=copy.deepcopy(base.model, {id(tensor): tensor for tensor in tensors}))


def attached(model: BaseModel, state: EditState | None) -> AbstractContextManager[None]:
    """Inside it `model` serves `state` (None: the base)."""
    return nullcontext() if state is None else get_editor(state.method).attach(model, state)


class Lanes:
    """As many model objects over one base as are used at once."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._free: list[BaseModel] = []
        self._lock = Lock()

    @cached_property
    def spare(self) -> BaseModel | None:
        """A model object that nothing is ever attached to, to look at states on; None where there can be none.

        It is to be made while nothing is attached to the base.
        """
        try:
            return twin(self._base)
        except ModelError:
            return None

    @contextmanager
    def serving(self, state: EditState | None) -> Iterator[BaseModel]:
        """A model object for this `with` alone that serves `state` (None: the base).

        Raises `ModelError` where the base can have no second one.
        """
        with self._lock:
            model = self._free.pop() if self._free else twin(self.spare or self._base)
        try:
            with attached(model, state):
                yield model
        finally:
            self._free.append(model)
