"""RECIPE states on disk: `state.json`, `encoder/`, `segments/`, `index/` and a README, verified when read.

What an earlier state has on disk already is linked, not written again: a night's state costs its own rows.
"""

from __future__ import annotations

from pathlib import Path

from editing.editors.identity import complete, form_of, require_format, require_unaltered
from editing.editors.recipe.config import RecipeConfig
from editing.editors.recipe.encoder import RecipeEncoder
from editing.editors.recipe.repository import Repository
from editing.editors.recipe.sentence import SentenceEncoder, is_sentence_encoder
from editing.editors.recipe.state import FORMAT, METHOD, RecipeState
from editing.errors import StateError
from editing.models import BaseModel
from editing.storage import read_json, replace_file, write_json


def save(state: RecipeState, folder: Path) -> str:
    """Write the state into `folder` (made if needed) and return its digest.

    The JSON, which holds the digest, is written last: a folder without it holds no state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").unlink(missing_ok=True)
    state.encoder.save(folder / "encoder")
    state.repository.save(folder)
    readme = (
        f"# An edit state of Errata\n\nMethod {METHOD}, format {FORMAT}, {len(state.repository)} rows, for the base "
        f"model `{state.model_id}` (fingerprint `{state.base_fingerprint}`).\n\n`state.json` says what it was made "
        "with and lists its parts; `segments` holds facts, representations and prompts, `encoder` what made them. It "
        "changes nothing in the base model's own files.\n"
    )
    replace_file(folder / "README.md", lambda path: path.write_text(readme, encoding="utf-8"))
    write_json(folder / "state.json", {"digest": state.digest, **state.content()})
    return state.digest


def load(folder: Path, base: BaseModel) -> RecipeState:
    """The state in `folder`, verified against `base`, its encoder and its own digests; rows are memory-mapped.

    Raises `StateError` naming what differs: method, format, base, tokenizer, encoder, index, or content
    that is missing, cut short or altered.
    """
    content = read_json(folder / "state.json", StateError)
    require_format(content, folder, method=METHOD, format=FORMAT)
    with complete(folder):
        named = content["base"]
        untrained = is_sentence_encoder(folder / "encoder")
        encoder = (SentenceEncoder if untrained else RecipeEncoder).load(folder / "encoder", base)
        if encoder.digest != content["encoder"]:
            raise StateError(
                f"the encoder in {folder} ({encoder.digest[:12]}) does not belong to the repository, which was made by "
                f"{content['encoder'][:12]}; restore the encoder from where the state was registered"
            )
        state = RecipeState(
            config=RecipeConfig.of_state(content["config"]),
            model_id=named["model_id"],
            revision=named["revision"],
            base_fingerprint=named["fingerprint"],
            tokenizer_hash=named["tokenizer_hash"],
            parent=content["parent"],
            encoder=encoder,
            repository=Repository.load(folder, content),
            form=form_of(named),
        )
    state.require_base(base)
    require_unaltered(folder, state.digest, content, state.content())
    return state
