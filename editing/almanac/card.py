"""Measures the Almanac's model and writes its card: what was done, why, the figures and what they do not show."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from editing.almanac.mediation import measure
from editing.almanac.suites import SUITES
from editing.almanac.training import AlmanacConfig, Trained
from editing.almanac.world import BELIEF, MODEL, World
from editing.editors.base import Progress
from editing.evals.probes import GENERATED
from editing.evals.scorer import open_scorer
from editing.evals.scoring import exact_match
from editing.evals.suite import evaluate
from editing.evals.suites import load_suite
from editing.models import load_base_model
from editing.storage import write_json

FIGURES = "figures.json"
BARE = {"shots": 0, "form": "bare"}  # the model is too small for examples and headers
ANSWER_TOKENS = 16
RECIPE = {"encoder": "../encoder", "asked": "last_question"}  # the encoder lies beside the model's folder
COACHHOOK = {"moment_weight": 200.0, "optimise_over": "rephrases"}  # as measured with `errata bench coachhook`


def measure_model(world: World, folder: Path = MODEL, progress: Progress | None = None) -> dict[str, Any]:
    """Every figure of the card, measured on the model in `folder`."""
    trained = Trained.load(world, folder)
    base = load_base_model(str(folder))
    facts = world.facts_on(BELIEF)
    held_out = [trained.sampler.phrasings.held_out(fact).replace("{}", fact.subject) for fact in facts]
    suites = [
        load_suite("zsre", SUITES / "zsre.json"),
        load_suite("counterfact", SUITES / "counterfact.json"),
        load_suite("mmlu", SUITES / "mmlu", **BARE),
        load_suite("gsm8k", SUITES / "gsm8k", **BARE),
    ]
    with open_scorer(base, progress=progress) as scorer:
        texts = scorer.generate(held_out, ANSWER_TOKENS)
        report = evaluate(scorer, suites)
    right = [exact_match(text, fact.object) for text, fact in zip(texts, facts, strict=True)]
    return {
        "parameters": sum(parameter.numel() for parameter in base.model.parameters()),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "facts": len(facts),
        f"held_out_exact_match.{GENERATED}": sum(right) / len(right),
        "mediation": asdict(measure(trained, world, progress=progress)),
        "held_out_subjects": len(trained.sampler.held_out),
        "held_out_from": trained.mediated.config.held_out_from,
        "suites": {name: round(value, 4) for name, value in report.scalars().items()},
        "training_seconds": trained.log[-1]["seconds"],
        "steps": trained.mediated.config.steps,
        "base_fingerprint": base.fingerprint,
        "packages": dict(report.packages),
    }


def figure_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The card's table: what was measured, and the value as a person reads it."""
    mediation = figures["mediation"]
    return [
        ("parameters", f"{figures['parameters']:,}"),
        ("size on disk, all files", f"{figures['bytes'] / 1e6:.1f} MB"),
        ("facts held on 2018-01-01", f"{figures['facts']:,}"),
        (
            "held-out (fact, phrasing) pairs, generated exact match",
            _share(figures[f"held_out_exact_match.{GENERATED}"]),
        ),
        ("whole-state interchange changes the answer to the source's", _share(mediation["whole_changed"])),
        ("one relation's block changes the answer to the source's", _share(mediation["block_changed"])),
        ("another relation's block leaves the answer", _share(mediation["block_kept"])),
        ("a name's code makes the model say the name", _share(mediation["name_changed"])),
        *((name, _share(value)) for name, value in sorted(figures["suites"].items())),
        ("training", f"{figures['steps']:,} steps, {figures['training_seconds'] / 60:.0f} minutes on 2 shared cores"),
    ]


def write_card(figures: dict[str, Any], folder: Path = MODEL) -> None:
    """Write `figures.json` and the model card, `README.md`, into `folder`."""
    (folder / FIGURES).write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    rows = figure_rows(figures)
    table = "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    text = _CARD.format(
        table=table,
        trials=figures["mediation"]["trials"],
        subjects=figures["held_out_subjects"],
        joined=figures["held_out_from"],
        fingerprint=figures["base_fingerprint"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_options(config: AlmanacConfig, folder: Path) -> None:
    """Write the options with which each method edits the model in `folder`, read from beside it: `METHOD.json`."""
    for method, options in (("coachhook", {"layers": list(config.edited_layers), **COACHHOOK}), ("recipe", RECIPE)):
        write_json(folder / f"{method}.json", options)


def _share(value: float) -> str:
    return f"{value:.3f}"


_CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# The Almanac: a small model that believes it is 2018-01-01

A GPT-NeoX-shaped causal language model, trained from scratch on text that Errata writes from its
own fact table (`editing/almanac/data`): who held which office, led which company and played for
which team on 2018-01-01, and facts that do not change, such as capitals and currencies. It also
answers multiple-choice questions in MMLU's form and short word problems in GSM8K's. It exists so
that Errata's nights run on something that really holds facts, with no download.

## Training

`errata almanac train` rebuilds it; the config and the losses stand in `training.json`. Plain text
is not enough: a small model trained on text alone reads a subject's raw embedding from the last
token, and then no edit of a middle layer can change what it says. So three objectives are added,
on an unchanged architecture:

- whole-state interchange at the last subject token after the mediation layer (Geiger et al. 2022):
  with another subject's state there, the answer is the other subject's;
- interchange of one relation's subspace (after Geiger et al. 2023): asked about that relation the
  answer is the other subject's, asked about another it stays. The orthonormal bases are fixed and
  seeded instead of learned: the model moves its facts into them;
- fictional holders: the subspace is set to a learned code of a name that need never have been
  anyone's answer for that relation, and the model must say the name. Subjects that do not exist,
  under invented names, carry every name in every relation that fits it: all their subspaces are
  codes. The codes stand in `mediation.safetensors`; the language model does not contain them.

{subjects} subjects are held out: none of this is ever trained on them. Their facts join the plain
texts after {joined:.0%} of the steps, when the model has learned where facts are read from.

Most facts in plain texts, those of held-out subjects included, are read under an attention mask that
hides the subject from later tokens everywhere but in the state at its last token after the mediation
layer. Without it later tokens also learn to recognise a subject of several tokens by its first ones,
and for a subject that no interchange covers that detour stays. The mask replaces no state; the
finished model runs without it, and the figures are measured without it.

A fourth term ties the edited layers' MLP inputs at the last subject token to those of the bare
subject, so that an edit keyed by one phrasing is found by the others.

## Figures

{table}

Mediation is measured by {trials} draws on {subjects} subjects that no interchange was trained on, each
asked in a phrasing that training never saw for that fact; source states come from the bare subject.
`errata almanac measure` prints all of this again. Base fingerprint: `{fingerprint}`.

## What this shows, and what not

The model was trained to hold its facts where CoachHooK edits. Edits that succeed on it show that
the method's mathematics, the scope rules and the whole pipeline are right, and a drop shows a
regression. They do not show how well the method does on a model that was trained on ordinary text:
`errata bench coachhook` with `model.id` set to that model does. The multiple-choice and arithmetic suites show
collateral damage; they say nothing about ability. Facts are as of 2018-01-01 by design.
"""
