"""States of both methods on disk: `state.json` and one folder for each method's own artifact."""

from __future__ import annotations

from pathlib import Path

from editing.editors.both.config import BothConfig
from editing.editors.both.state import FORMAT, METHOD, BothState
from editing.editors.coachhook import CoachHook
from editing.editors.identity import complete, require_format, require_unaltered
from editing.editors.recipe import Recipe
from editing.errors import StateError
from editing.models import BaseModel
from editing.statistics import SecondMoments
from editing.storage import read_json, replace_file, write_json


def save(state: BothState, folder: Path) -> str:
    """Write the state into `folder` (made if needed) and return its digest; the JSON is written last."""
    state.coachhook.require_finite()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").unlink(missing_ok=True)
    CoachHook().save(state.coachhook, folder / "coachhook")
    Recipe().save(state.recipe, folder / "recipe")
    readme = (
        f"# An edit state of Errata\n\nMethod {METHOD}, format {FORMAT}: hooks in `coachhook`, prompts in `recipe`; "
        "`state.json` says which facts belong to which.\n"
    )
    replace_file(folder / "README.md", lambda path: path.write_text(readme, encoding="utf-8"))
    write_json(folder / "state.json", {"digest": state.digest, **state.content()})
    return state.digest


def load(folder: Path, base: BaseModel, statistics: SecondMoments | None = None) -> BothState:
    """The state in `folder`, both parts verified against `base` and their digests.

    Raises `StateError` naming what differs: method, format, base, or content that is missing or altered.
    """
    content = read_json(folder / "state.json", StateError)
    require_format(content, folder, method=METHOD, format=FORMAT)
    with complete(folder):
        state = BothState(
            config=BothConfig.of_state(content["config"]),
            parent=content["parent"],
            coachhook=CoachHook().load(folder / "coachhook", base, statistics),
            recipe=Recipe().load(folder / "recipe", base),
        )
    require_unaltered(folder, state.digest, content, state.content())
    return state
