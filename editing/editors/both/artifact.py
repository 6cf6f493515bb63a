"""States of both methods on disk: `state.json` and one folder for each method's own artifact."""

from __future__ import annotations

from pathlib import Path

from editing.editors.both.config import BothConfig
from editing.editors.both.state import FORMAT, METHOD, BothState
from editing.editors.coachhook import CoachHook
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
    for name, mine in (("method", METHOD), ("format", FORMAT)):
        if content.get(name) != mine:
            raise StateError(f"{folder} holds {name} {content.get(name)!r}, this loads {mine!r}; use its own version")
    try:
        state = BothState(
            config=BothConfig.from_dict(content["config"]),
            parent=content["parent"],
            coachhook=CoachHook().load(folder / "coachhook", base, statistics),
            recipe=Recipe().load(folder / "recipe", base),
        )
        recorded = content["digest"]
    except StateError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"{folder} lacks or garbles {error}; restore the files from where they were registered"
        ) from error
    if state.digest != recorded:
        raise StateError(
            f"{folder} was altered after it was written: its content has digest {state.digest[:12]}, its record says "
            f"{recorded[:12]}; restore the files from where they were registered"
        )
    return state
