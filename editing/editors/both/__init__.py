"""Both methods at once: hooks for the facts of some relations, prompts for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editing.lazily import lazily

if TYPE_CHECKING:
    from editing.editors.both.config import BothConfig
    from editing.editors.both.editor import Both
    from editing.editors.both.state import BothState

__getattr__ = lazily(
    __name__,
    {
        "BothConfig": "config",
        "Both": "editor",
        "BothState": "state",
    },
)

__all__ = [
    "Both",
    "BothConfig",
    "BothState",
]
