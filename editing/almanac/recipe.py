"""The Almanac's RECIPE encoder: the settings it is trained with, its figures, and the card of any encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from editing.almanac.feed import nightly_changes
from editing.almanac.meta_edits import AlmanacEdits
from editing.almanac.world import BELIEF, HORIZON, MODEL, World, load_world
from editing.editors.recipe import EncoderConfig, MetaEdit, MetaSource, RecipeEncoder, TrainingConfig
from editing.editors.recipe.training import validate
from editing.facts import resolve_conflicts
from editing.models import BaseModel

ENCODER = Path(__file__).parent / "encoder"
FIGURES = "figures.json"
PACKAGES = ("torch", "transformers", "tokenizers")
SHARES = {
    "retrieved": "queries that find their own knowledge, above the sentinel",
    "steered": "queries whose knowledge's prompt gives the whole target",
    "reliability": "edit prompts that do both",
    "generality": "rephrased prompts that do both",
    "locality": "locality prompts that find nothing",
}
ALMANAC_ENCODER = EncoderConfig(width=512)
ALMANAC_TRAINING = TrainingConfig(
    free_steps=1000,
    imitation_steps=3600,
    steps=4000,
    learning_rate=1.5e-3,
    warmup_steps=50,
    batch=64,
    negatives=96,
    locality_weight=0.01,
    locality_queries=1,
    locality_edits=12,
    word_noise=1.0,
    validate_every=200,
    checkpoint_every=200,
    patience=0,
)


def measure_encoder(base: BaseModel, encoder: RecipeEncoder, source: MetaSource) -> dict[str, Any]:
    """The encoder's shares on its validation edits, and for the Almanac's on what really happened; plain JSON types."""
    folder = Path(base.model_id)
    figures: dict[str, Any] = {
        "base": base.model_id if not folder.is_dir() else "almanac" if folder == MODEL else folder.name,
        "base_fingerprint": base.fingerprint,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "digest": encoder.digest,
        "validation": _shares(base, encoder, source.validation()),
        "packages": {name: version(name) for name in PACKAGES},
    }
    if isinstance(source, AlmanacEdits):
        figures["feed"] = _shares(base, encoder, happened(load_world()))
        figures["subjects"] = {"training": len(source.training), "evaluation": len(source.evaluation)}
    return figures


def happened(world: World) -> list[MetaEdit]:
    """The facts that hold at the horizon because a night changed them, as edits to measure on; never trained on.

    The locality prompts of each are those of its feed.
    """
    changes = [change for night in nightly_changes(world, BELIEF, HORIZON).values() for change in night]
    return [
        MetaEdit(
            statement_prompt=fact.question,
            target=fact.target,
            queries=(fact.question, *fact.paraphrases),
            locality=tuple(item.prompt for item in fact.locality),
        )
        for fact in resolve_conflicts(changes).winners
    ]


def _shares(base: BaseModel, encoder: RecipeEncoder, edits: list[MetaEdit]) -> dict[str, Any]:
    return {"edits": len(edits), **{name: round(value, 4) for name, value in validate(base, encoder, edits).items()}}


def figure_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The card's table: what was measured, and the value as a person reads it."""
    rows = [("parameters, without the frozen word embeddings", f"{figures['parameters']:,}")]
    for part, told in (("validation", "held-out subjects"), ("feed", "what really happened")):
        if measured := figures.get(part):
            rows.append((f"{told}: edits, whose knowledge all competes", f"{measured['edits']:,}"))
            rows += [(f"{told}: {sentence}", f"{measured[name]:.3f}") for name, sentence in SHARES.items()]
    return rows


def write_card(
    figures: Mapping[str, Any], training: Mapping[str, Any], folder: Path, *, initial: str | None = None
) -> None:
    """Write `figures.json` and the encoder's card, `README.md`, beside its weights in `folder`.

    `initial` is the digest of the encoder that the training began with (None: at random).
    """
    content = {**figures, "training": dict(training), "initial": initial}
    (folder / FIGURES).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    table = "\n".join(f"| {name} | {value} |" for name, value in figure_rows(figures))
    subjects = figures.get("subjects")
    split = _ALMANAC_SPLIT.format(**subjects) if subjects else _FILE_SPLIT
    text = _CARD.format(
        base=figures["base"],
        fingerprint=figures["base_fingerprint"],
        digest=figures["digest"],
        steps=training["steps"],
        began=f"with the weights of the encoder with digest `{initial}`" if initial else "at random",
        split=split,
        table=table,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


_ALMANAC_SPLIT = (
    "{training} real subjects and invented ones without end; the {evaluation} subjects of the evaluation, every one "
    "that the real feed edits and a tenth of the others, are in no text of the training. The objects are "
    "counterfactual: any name that fits the relation. No night's change is among the edits"
)
_FILE_SPLIT = (
    "facts of a file, whose subjects are split by a hash: those of the validation are in no edit of the training"
)
_CARD = """---
license: apache-2.0
language: en
---
# A RECIPE encoder for `{base}`

It turns a fact's statement into a representation that questions about the fact find, and that into
prompt tokens which make the language model answer with the fact (arXiv 2405.03279). A learned
sentinel decides when a question is about no fact at all. The language model is not changed; the
encoder belongs to the model with fingerprint `{fingerprint}` and works with no other.

`encoder.json` says what it is made of, `encoder.safetensors` holds its weights, `figures.json` the
figures below and every setting of the training: {steps:,} steps at most, begun
{began}. Digest: `{digest}`.

## Trained on

{split}.

## Figures

All shares are over queries that compete with the knowledge of every edit of their row. "Gives the
target" is teacher forced: every token of the target is the most likely one behind the prompt.

| figure | value |
|---|---|
{table}

`errata recipe train` trains one; `errata bench recipe` scores it in use, by generated answers.

## What this shows, and what not

Queries are asked in the phrasings of the training's relations. How well the encoder tells facts
apart whose relations it has never met is not measured here.
"""
