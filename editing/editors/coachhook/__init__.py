"""CoachHooK: consecutive batches of closed-form edits behind gated hooks (arXiv 2403.05330)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editing.editors.coachhook.config import CoachHookConfig
    from editing.editors.coachhook.editor import CoachHook
    from editing.editors.coachhook.scope import ScopeDecision
    from editing.editors.coachhook.state import CoachHookState

# What the package has, imported when it is first asked for: the settings alone need no model library.
_MODULES = {
    "CoachHookConfig": "config",
    "CoachHook": "editor",
    "ScopeDecision": "scope",
    "CoachHookState": "state",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "CoachHook",
    "CoachHookConfig",
    "CoachHookState",
    "ScopeDecision",
]
