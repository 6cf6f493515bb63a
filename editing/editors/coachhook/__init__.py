"""CoachHooK: consecutive batches of closed-form edits behind gated hooks (arXiv 2403.05330)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editing.lazily import lazily

if TYPE_CHECKING:
    from editing.editors.coachhook.config import CoachHookConfig
    from editing.editors.coachhook.editor import CoachHook
    from editing.editors.coachhook.scope import ScopeDecision
    from editing.editors.coachhook.state import CoachHookState

__getattr__ = lazily(
    __name__,
    {
        "CoachHookConfig": "config",
        "CoachHook": "editor",
        "ScopeDecision": "scope",
        "CoachHookState": "state",
    },
)

__all__ = [
    "CoachHook",
    "CoachHookConfig",
    "CoachHookState",
    "ScopeDecision",
]
