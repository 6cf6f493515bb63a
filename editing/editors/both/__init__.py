"""Both methods at once: hooks for the facts of some relations, prompts for the others."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editing.editors.both.config import BothConfig
    from editing.editors.both.editor import Both
    from editing.editors.both.state import BothState

# What the package has, imported when it is first asked for: the settings alone need no model library.
_MODULES = {
    "BothConfig": "config",
    "Both": "editor",
    "BothState": "state",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "Both",
    "BothConfig",
    "BothState",
]
