"""Both methods at once: hooks for the facts of some relations, prompts for the others."""

from editing.editors.both.config import BothConfig
from editing.editors.both.editor import Both
from editing.editors.both.state import BothState

__all__ = ["Both", "BothConfig", "BothState"]
