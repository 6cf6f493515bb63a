"""RECIPE and its gates over a history of edits and over thousands of them: the tables of `errata bench recipe`.

The sentinel's gate is compared with two others over the same repository: none (the best row is
always used) and a fixed threshold, the score that tells own from foreign knowledge best on the
encoder's validation edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import torch

from editing.bench.replay import EDITS, History, bench_replay, scores_of, taught
from editing.editors.base import Progress
from editing.editors.recipe import MetaSource, Recipe, RecipeConfig, RecipeEncoder, RecipeState
from editing.editors.recipe.config import Gate
from editing.editors.recipe.editor import encoder_folder
from editing.evals.edits import AppliedFact
from editing.evals.probes import GENERATED, TEACHER_FORCED, Probe, ProbeSuite, freeze
from editing.evals.scorer import open_scorer
from editing.evals.suite import Suite, evaluate
from editing.facts import FactChange, make_batches
from editing.models import BaseModel

GATES: dict[str, Gate] = {"sentinel": "sentinel", "no_sentinel": "none", "fixed_threshold": "fixed"}
COUNTS = (1, 10, 100, 1_000, 10_000)
ASKED = 200  # facts asked at each count, and rephrasings, and prompts that must stay
BATCH = 1_000  # facts applied together on the way to thousands


def gated_configs(base: BaseModel, config: RecipeConfig, source: MetaSource) -> dict[str, RecipeConfig]:
    """The config under each gate of `GATES`; the fixed threshold is found on the source's validation edits."""
    encoder = RecipeEncoder.load(encoder_folder(base, config), base)
    fixed = best_threshold(encoder, source)
    return {name: replace(config, gate=gate, fixed_score=fixed) for name, gate in GATES.items()}


@torch.no_grad()
def best_threshold(encoder: RecipeEncoder, source: MetaSource) -> float:
    """The score from which on a best row is most often right, over the validation's queries and locality prompts."""
    edits = source.validation()
    knowledge_NR = encoder.knowledge([edit.statement for edit in edits])
    own = [index for index, edit in enumerate(edits) for _ in edit.queries]
    queries = [text for edit in edits for text in edit.queries]
    foreign = [text for edit in edits for text in edit.locality]
    scores_QN = encoder.scores(encoder.query([*queries, *foreign]), knowledge_NR)
    best = scores_QN.max(dim=1)
    right_Q = torch.cat(
        [
            best.indices[: len(own)] == torch.tensor(own, device=best.indices.device),
            torch.zeros(len(foreign), dtype=torch.bool, device=best.indices.device),
        ]
    )
    order = best.values.argsort(descending=True)
    gained = (right_Q[order].long() * 2 - 1).cumsum(0)
    return float(best.values[order[int(gained.argmax())]])


def bench_recipe(
    base: BaseModel,
    history: History,
    suites: Sequence[Suite],
    configs: Mapping[str, RecipeConfig],
    *,
    batch_size: int = 10,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`bench_replay` under each of `configs` (of `gated_configs`); the sentinel's is the default."""
    return bench_replay(
        base, Recipe(), None, history, suites, configs, "sentinel", batch_size=batch_size, progress=progress
    )


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Facts to apply by the thousand, and prompts that must stay however many there are."""

    facts: Sequence[FactChange]
    kept: Sequence[Probe]


def bench_lifelong(
    base: BaseModel,
    crowd: Crowd,
    configs: Mapping[str, RecipeConfig],
    *,
    counts: Sequence[int] = COUNTS,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Shares at each of `counts` edits and under each config, as rows of plain JSON types (generated, teacher forced).

    At most `ASKED` facts are asked at a count, spread evenly over all that were applied, and as many
    of their rephrased prompts. Counts above the number of facts are left out.
    """
    editor = Recipe()
    first = next(iter(configs.values()))
    state: RecipeState = editor.start(base, first)
    with open_scorer(base) as scorer:
        frozen = freeze(scorer, crowd.kept)
    rows: list[dict[str, Any]] = []
    done, due = 0, [count for count in sorted(counts) if count <= len(crowd.facts)]
    for count in due:
        for batch in make_batches(crowd.facts[done:count], BATCH):
            state = editor.apply(base, state, batch).state
        done = count
        probes = _asked(crowd.facts[:count])
        items = (*probes, *crowd.kept)
        suite = ProbeSuite(name=EDITS, version="1", items=items, frozen=frozen)
        for name, config in configs.items():
            with open_scorer(base, replace(state, config=config)) as scorer:
                report = evaluate(scorer, [suite])
            scores = {protocol: scores_of(report, protocol) for protocol in (GENERATED, TEACHER_FORCED)}
            rows.append({"variant": name, "edits": count, **scores, "asked": len(probes)})
            if progress is not None:
                progress("edits", len(rows), len(due) * len(configs))
    return rows


def _asked(facts: Sequence[FactChange]) -> list[Probe]:
    """What `ASKED` of the facts teach, spread evenly, and `ASKED` of their rephrased prompts."""
    chosen = [facts[int(at)] for at in np.unique(np.linspace(0, len(facts) - 1, min(ASKED, len(facts))).round())]
    probes = taught([AppliedFact(fact, date.min) for fact in chosen])
    first = [probe for probe in probes if probe.metric == "reliability"]
    others = [probe for probe in probes if probe.metric == "generality"]
    return [*first, *others[:: max(1, len(others) // ASKED)]]
