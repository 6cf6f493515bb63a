"""Partial forward passes: run a model only as far as needed and hand back what a module saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _Reached(Exception):  # noqa: N818  (a signal, not an error)
    """Ends a forward pass at the last module asked for."""


@contextmanager
def removing(handles: Iterable[Any]) -> Iterator[None]:
    """Remove these hook handles on the way out, also after an exception."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hidden_of(output: Any) -> Tensor:
    """The hidden states of a block's output, which is a tensor or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output


def inputs_of(model: nn.Module, module: nn.Module, **inputs: Any) -> Tensor:
    """First positional input of `module` while `model` runs on `inputs`; what comes after it is not run."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise _Reached

    with removing([module.register_forward_pre_hook(stop)]):
        try:
            model(**inputs)
        except _Reached:
            return seen[0]
    raise AssertionError("the module was not reached")


def output_of(model: nn.Module, module: nn.Module, **inputs: Any) -> Tensor:
    """Hidden states that `module` puts out while `model` runs on `inputs`; what comes after it is not run."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(hidden_of(output))
        raise _Reached

    with removing([module.register_forward_hook(stop)]):
        try:
            model(**inputs)
        except _Reached:
            return seen[0]
    raise AssertionError("the module was not reached")
