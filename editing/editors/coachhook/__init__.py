"""CoachHooK: consecutive batches of closed-form edits behind gated hooks (arXiv 2403.05330)."""

from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.coachhook.editor import CoachHook
from editing.editors.coachhook.scope import ScopeDecision
from editing.editors.coachhook.state import CoachHookState

__all__ = ["CoachHook", "CoachHookConfig", "CoachHookState", "ScopeDecision"]
