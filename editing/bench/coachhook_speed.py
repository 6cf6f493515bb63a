"""How fast CoachHooK's target optimisation and its hooks are, against the published way and against the floor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editing.bench.published import optimise_alone
from editing.editors.base import Progress
from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.coachhook.frozen import UpperBlocks
from editing.editors.coachhook.prompts import Group, make_groups
from editing.editors.coachhook.scope import Hooks
from editing.editors.coachhook.state import LayerState
from editing.editors.coachhook.targets import Optimised, length_buckets, optimise_targets
from editing.errors import ConfigError
from editing.facts import FactChange
from editing.models import BaseModel, wrap_model

# Context prefixes of ten tokens or so, as MEMIT's published settings put before every prompt.
CONTEXTS = (
    "",
    "The letter that came this morning was short and clear. ",
    "After the meeting everyone in the room agreed on one thing. ",
)

_TEMPLATES = (
    ("leader", "The person who has led {} since the last election is"),
    ("capital", "On the map that hangs in the hall, the capital of {} is"),
    ("founder", "{} was founded a long time ago by"),
    ("language", "Most of the people who live and work in {} speak"),
)
_SYLLABLES = ("bar", "den", "cor", "mel", "tav", "ris", "lon", "quia", "ster", "vik", "ona", "pel")


def example_facts(count: int) -> list[FactChange]:
    """`count` facts about as many invented places, in four phrasings with the subject early and late."""
    noon = datetime(2020, 1, 1, 12, tzinfo=UTC)
    names = [f"{a}{b}{c}".capitalize() for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES if a != b != c]
    facts = []
    for index in range(count):
        relation, prompt = _TEMPLATES[index % len(_TEMPLATES)]
        facts.append(
            FactChange(
                subject=names[7 * index % len(names)],
                relation=relation,
                target=names[(11 * index + 5) % len(names)][:6],
                prompt=prompt,
                effective_at=noon,
                observed_at=noon,
                source="bench",
            )
        )
    return facts


def gpt2_small_shape(seed: int = 0) -> BaseModel:
    """A random model of GPT-2 small's shape (12 layers, width 768, vocabulary 50,257), with a small tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [*CONTEXTS, *(f"{fact.question} {fact.target}" for fact in example_facts(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0))
    return wrap_model(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), model_id="random-gpt2-small-shape")


def example_config(base: BaseModel) -> CoachHookConfig:
    """Twenty steps for every fact, behind the contexts, with the three layers below the middle edited."""
    middle = len(base.blocks) // 2
    layers = tuple(range(max(0, middle - 3), middle))
    return CoachHookConfig(layers=layers, contexts=CONTEXTS, max_steps=20, stop_loss=0.0)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _floor(base: BaseModel, groups: Sequence[Group], config: CoachHookConfig, steps: int) -> float:
    """Seconds of `steps` forward and backward passes of the layers above the edited ones, from the lookup on."""
    rows = [row for group in groups for row in group.rows]
    parts = [
        UpperBlocks(base, Hooks(base, {}, config), [rows[index] for index in bucket], config.layers[-1])
        for bucket in length_buckets(rows)
    ]
    deltas = [torch.zeros_like(part.moved_BD, requires_grad=True) for part in parts]

    def once() -> Any:
        return [torch.autograd.grad(part(delta).sum(), delta) for part, delta in zip(parts, deltas, strict=True)]

    once()
    return _timed(lambda: [once() for _ in range(steps)])[0]


@torch.no_grad()
def inference_ratio(
    base: BaseModel, layers: Sequence[int], *, rows: int = 8, columns: int = 32, trials: int = 9
) -> float:
    """Time of a forward pass with calibrated hooks on `layers` over the base's; medians of interleaved trials."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(base.tokenizer), (rows, columns), generator=generator).to(base.device)
    plain, edited = [], []
    for _ in range(trials):
        plain.append(_timed(lambda: base.model(input_ids=ids))[0])
        with hooked(base, layers):
            edited.append(_timed(lambda: base.model(input_ids=ids))[0])
    return statistics.median(edited[1:]) / statistics.median(plain[1:])


def hooked(base: BaseModel, layers: Sequence[int]) -> Hooks:
    """Calibrated hooks on `layers` whose weights are the base's own and a little noise: for timing alone."""
    generator = torch.Generator().manual_seed(0)
    states = {}
    for layer in layers:
        weight = base.down_weight(layer).cpu()
        noise = 0.01 * weight.std() * torch.randn(weight.shape, generator=generator)
        none = torch.zeros(0, weight.shape[1])
        states[layer] = LayerState(weight + noise, torch.zeros(0, 0), none, none, 1.0, 1e-3)
    return Hooks(base, states, CoachHookConfig(layers=tuple(sorted(layers))))


def measure_speed(
    base: BaseModel | None = None,
    facts: Sequence[FactChange] | None = None,
    config: CoachHookConfig | None = None,
    *,
    batch: int = 64,
    alone: int = 4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Batched target optimisation against the published way, in one run on one model, with the same steps.

    Without `base`, a random model of GPT-2 small's shape; without `config`, `example_config`. The
    batch is timed whole, the published way on `alone` subjects spread over the batch and scaled per
    fact. Returns `speedup`, `floor_ratio` (batched time over that of the bare passes that it cannot
    avoid), `inference_ratio`, and what they were measured on: seconds, threads, shapes, and
    `loss_difference`, the largest relative difference of a fact's final loss between the two ways.
    Raises `ConfigError` for too few facts.
    """
    base = base or gpt2_small_shape()
    config = config or example_config(base)
    facts = list(facts) if facts is not None else example_facts(batch)
    if not 1 <= alone <= batch <= len(facts):
        raise ConfigError(f"{len(facts)} facts cannot fill a batch of {batch} with {alone} of them alone; give more")
    facts = facts[:batch]
    groups = make_groups(base, facts, [], config)
    told = progress or (lambda stage, done, total: None)
    told("batched", 0, 3)
    with Hooks(base, {}, config) as hooks:
        batched_s, together = _timed(lambda: optimise_targets(base, hooks, groups, config, progress))
    told("published way", 1, 3)
    chosen = [index * len(groups) // alone for index in range(alone)]
    alone_s, apart = _timed(lambda: [optimise_alone(base, groups[index], config) for index in chosen])
    told("floor", 2, 3)
    floor_s = _floor(base, groups, config, config.max_steps)
    published_s = alone_s * len(facts) / sum(len(groups[index].facts) for index in chosen)
    result = {
        "speedup": published_s / batched_s,
        "floor_ratio": batched_s / floor_s,
        "inference_ratio": inference_ratio(base, config.layers),
        "loss_difference": max(_difference(together[index], one) for index, one in zip(chosen, apart, strict=True)),
        "batched_seconds": batched_s,
        "published_seconds": published_s,
        "published_seconds_measured": alone_s,
        "floor_seconds": floor_s,
        "model": base.model_id,
        "batch": len(facts),
        "alone": alone,
        "rows": sum(len(group.rows) for group in groups),
        "steps": config.max_steps,
        "layers": list(config.layers),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    told("done", 3, 3)
    return result


def _difference(one: Optimised, other: Optimised) -> float:
    return max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(one.losses, other.losses, strict=True))
