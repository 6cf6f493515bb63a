"""Editing methods by name."""

from __future__ import annotations

from typing import Any

from editing.editors.both import Both
from editing.editors.coachhook import CoachHook
from editing.editors.recipe import Recipe
from editing.errors import ConfigError

_EDITORS = {editor.method: editor for editor in (CoachHook(), Recipe(), Both())}


def get_editor(method: str) -> Any:
    """The editor of this name (see `editing.editors.base.Editor`). Raises `ConfigError` for an unknown one."""
    if method not in _EDITORS:
        raise ConfigError(f"editing method {method!r} is unknown; use one of {', '.join(sorted(_EDITORS))}")
    return _EDITORS[method]
