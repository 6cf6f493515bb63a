"""Which layers to edit in a model that nobody has edited before: causal tracing, then a small sweep on a user's facts.

Causal tracing (ROME, arXiv 2202.05262, section 2): the subject's embeddings are disturbed, and what the
down-projections of a window of layers put out at the subject's last token is restored; the layers whose restoration
brings the answer back are those that look the subject up. The sweep edits the facts of one half with each candidate
and asks them afterwards; the other half reports the choice beside the defaults, so that what is told was not chosen on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from editing.editors.base import Progress
from editing.editors.coachhook.config import CoachHookConfig
from editing.errors import TokenisationError
from editing.evals.probes import GENERATED, WILD
from editing.facts import FactChange
from editing.models import BaseModel
from editing.models.trace import removing
from editing.tokenisation import last_subject_token, tokenise_prompts

NOISE = 3.0  # standard deviations of the subject's embeddings, as in ROME
WINDOW = 5  # layers restored together
EDITED = 3
PEAKS = 3
WEIGHTS = (0.2, 5.0)  # of the moment weight in force
FLOORS = (0.4, 0.65)


@torch.no_grad()
def causal_trace(
    base: BaseModel,
    facts: Sequence[FactChange],
    *,
    samples: int = 2,
    stride: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[int, float]:
    """Of every `stride`th layer the mean share of the answer's lost probability that restoring the window around it
    at the subject's last token brings back.

    The answer is the base's own next token, so that facts that it does not know trace as well. Facts whose prompt does
    not name the subject, or that lose nothing to the noise, are passed over; no layers come back when all are.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = range(0, len(base.blocks) - 1, stride)
    found: list[list[float]] = []
    for done, fact in enumerate(facts):
        if progress is not None:
            progress("causal tracing", done, len(facts))
        shares = _traced(base, fact, centres, samples, generator)
        if shares is not None:
            found.append(shares)
    return {centre: fmean(row[place] for row in found) for place, centre in enumerate(centres)} if found else {}


def _traced(
    base: BaseModel, fact: FactChange, centres: Sequence[int], samples: int, generator: torch.Generator
) -> list[float] | None:
    """Of one fact the share that each window brings back, or None where there is nothing to bring back."""
    tokens = tokenise_prompts(base.tokenizer, [fact.question], base.form)[0]
    rendered, shift = base.form.render(fact.question)
    start = fact.subject_start + shift if fact.subject_start >= 0 else -1
    try:
        last = last_subject_token(tokens, rendered, fact.subject, start)
    except TokenisationError:
        return None
    places = tokens.within(start, start + len(fact.subject))
    ids = torch.tensor([tokens.ids], device=base.device)
    embedding = base.model.get_input_embeddings()
    scale = NOISE * float(embedding(ids)[0, places].float().std())
    noise = scale * torch.randn(samples, len(places), embedding.get_parameter("weight").shape[1], generator=generator)
    clean: dict[int, Tensor] = {}

    def probability(restored: Sequence[int] = (), *, disturbed: bool = True, answer: int | None = None) -> Tensor:
        def disturb(_: Any, __: Any, output: Tensor) -> Tensor:
            mixed = output.clone()
            mixed[:, places] += noise.to(output)
            return mixed

        def restore(layer: int) -> Any:
            def hook(_: Any, __: Any, output: Tensor) -> Tensor:
                mixed = output.clone()
                mixed[:, last] = clean[layer].to(output)
                return mixed

            return hook

        def keep(layer: int) -> Any:
            return lambda _, __, output: clean.__setitem__(layer, output[0, last].clone())

        handles = [base.down_projection(layer).register_forward_hook(restore(layer)) for layer in restored]
        if disturbed:
            handles.append(embedding.register_forward_hook(disturb))
        else:
            handles += [
                base.down_projection(layer).register_forward_hook(keep(layer)) for layer in range(len(base.blocks))
            ]
        with removing(handles):
            rows = ids.expand(samples if disturbed else 1, -1)
            share = base.model(input_ids=rows, use_cache=False).logits[:, -1].float().softmax(-1).mean(0)
        return share if answer is None else share[answer]

    whole = probability(disturbed=False)
    answer = int(whole.argmax())
    broken = float(probability(answer=answer))
    lost = float(whole[answer]) - broken
    if lost < 0.1:
        return None
    shares = []
    for centre in centres:
        window = range(max(0, centre - WINDOW // 2), min(len(base.blocks), centre + WINDOW // 2 + 1))
        shares.append((float(probability(window, answer=answer)) - broken) / lost)
    return shares


@dataclass(frozen=True, slots=True)
class Trial:
    """Options beside the defaults, and the shares that edits with them reach in the served protocol."""

    options: Mapping[str, Any]
    shares: Mapping[str, float]

    @property
    def score(self) -> float:
        """The mean of what was asked: reliability, generality, locality."""
        return fmean(self.shares.values()) if self.shares else 0.0


def candidates(trace: Mapping[int, float], blocks: int, defaults: CoachHookConfig) -> Iterator[dict[str, Any]]:
    """The options of the sweep's first part, best guess first: the defaults, then layers around the trace's peaks.

    Layers end two blocks below the top, which has to read what was edited.
    """
    yield {}
    told = {defaults.layers}
    for centre in sorted(trace, key=lambda layer: -trace[layer]):
        first = min(max(0, centre - EDITED // 2), max(0, blocks - 2 - EDITED))
        layers = tuple(range(first, first + min(EDITED, blocks - 1)))
        if layers not in told:
            told.add(layers)
            yield {"layers": list(layers)}
        if len(told) > PEAKS:
            return


def refinements(best: Mapping[str, Any], defaults: CoachHookConfig) -> Iterator[dict[str, Any]]:
    """The options of the second part around the best layers: the weight of the background, and the floor of the
    leverage scope where that is in force."""
    for factor in WEIGHTS:
        yield {**best, "moment_weight": factor * defaults.moment_weight}
    for floor in FLOORS if defaults.scope == "leverage" else ():
        yield {**best, "leverage_floor": floor}


def served_shares(found: Mapping[str, Any]) -> dict[str, float]:
    """What counts of a bench's result: whole answers where the form ends them, else their beginnings."""
    shares = found[WILD] or found[GENERATED]
    return {name: shares[name] for name in ("reliability", "generality", "locality") if name in shares}
