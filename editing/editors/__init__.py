"""Editing methods by name."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from editing.errors import ConfigError

# Where each method's editor is; a method is imported when it is first asked for.
METHODS = {
    "both": ("editing.editors.both.editor", "Both"),
    "coachhook": ("editing.editors.coachhook.editor", "CoachHook"),
    "recipe": ("editing.editors.recipe.editor", "Recipe"),
}


def get_editor(method: str) -> Any:
    """The editor of this name (see `editing.editors.base.Editor`). Raises `ConfigError` for an unknown one."""
    if method not in METHODS:
        raise ConfigError(f"editing method {method!r} is unknown; use one of {', '.join(METHODS)}")
    return _editor(method)


@cache
def _editor(method: str) -> Any:
    module, name = METHODS[method]
    return getattr(import_module(module), name)()
