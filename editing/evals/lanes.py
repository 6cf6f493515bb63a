"""Lanes: model objects that share one base's tensors, so that threads can score batches side by side.

Hooks live on a model object and are not safe under threads, and a model's weights are most of its memory. So each
lane has module objects of its own, with hooks of its own, over the same parameters. Which rows form a batch
is decided before the batches are shared out: the number of lanes changes no score.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import cached_property
from itertools import chain
from queue import SimpleQueue
from typing import TypeVar

import torch

from editing.editors import get_editor
from editing.editors.base import EditState
from editing.errors import ModelError
from editing.models import BaseModel

Work = TypeVar("Work")
Result = TypeVar("Result")


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


class Lanes:
    """`count` model objects over one base, `base` itself the first; `map` runs work on all of them."""

    def __init__(self, base: BaseModel, count: int = 1) -> None:
        self.models = (base, *(twin(base) for _ in range(count - 1)))

    @cached_property
    def spare(self) -> BaseModel | None:
        """One more model object, never `attached`, to look at states on; None where there can be none."""
        try:
            return twin(self.models[0])
        except ModelError:
            return None

    @contextmanager
    def attached(self, state: EditState | None) -> Iterator[None]:
        """Inside it every lane serves `state` (None: the base)."""
        with ExitStack() as stack:
            if state is not None:
                assert self.spare is None or self.spare.model is not self.models[0].model  # made before any hook is on
                for model in self.models:
                    stack.enter_context(get_editor(state.method).attach(model, state))
            yield

    def map(
        self,
        work: Callable[[BaseModel, Work], Result],
        items: Sequence[Work],
        done: Callable[[int], None] | None = None,
    ) -> Iterable[Result]:
        """`work(model, item)` of every item, in the order of the items; `done` hears how many are finished."""
        if len(self.models) == 1 or len(items) < 2:
            for count, item in enumerate(items, 1):
                yield work(self.models[0], item)
                if done:
                    done(count)
            return
        free: SimpleQueue[BaseModel] = SimpleQueue()
        for model in self.models:
            free.put(model)

        def run(item: Work) -> Result:
            model = free.get()
            try:
                with torch.inference_mode():
                    return work(model, item)
            finally:
                free.put(model)

        threads = max(1, torch.get_num_threads() // len(self.models))
        with ThreadPoolExecutor(len(self.models), initializer=torch.set_num_threads, initargs=(threads,)) as pool:
            futures = [pool.submit(copy_context().run, run, item) for item in items]
            try:
                for count, future in enumerate(futures, 1):
                    yield future.result()
                    if done:
                        done(count)
            finally:
                for future in futures:
                    future.cancel()
