"""How fast RECIPE adds facts, finds them among a million, and answers: the numbers of `errata bench recipe --speed`.

Everything is measured on the project's own representations: statements of invented subjects, in the
relations and objects of the Almanac, each encoded for real.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import torch

from editing.bench.coachhook_speed import example_config, gpt2_small_shape, hooked
from editing.editors.base import Progress
from editing.editors.recipe import EncoderConfig, Recipe, RecipeConfig, RecipeEncoder, RecipeState
from editing.editors.recipe.editor import encode_facts
from editing.editors.recipe.index import one_thread
from editing.editors.recipe.repository import Repository
from editing.editors.recipe.segments import Segment
from editing.errors import ConfigError, StateError
from editing.evals.scoring import generate_greedy
from editing.facts import EditBatch, FactChange
from editing.models import BaseModel

PUBLISHED_SECONDS_PER_FACT = 0.0078  # median of RECIPE on one edit (arXiv 2405.03279, table 3)
SEGMENT = 20_000  # facts encoded and appended together
QUESTIONS = 400  # rephrased questions that retrieval is timed and checked with
NEW_TOKENS = 64
PROMPTS = 5  # questions that are answered
NIGHT = 10  # facts that are appended to the largest repository

Result = TypeVar("Result")


def measure_recipe_speed(
    base: BaseModel,
    config: RecipeConfig,
    facts: Iterator[FactChange],
    *,
    layers: Sequence[int],
    sizes: Sequence[int] = (100_000, 1_000_000),
    added: int = 1_100,
    crowd: int = 10_000,
    trials: int = 7,
    shapes: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Adding `added` facts, generation with `crowd` facts, and retrieval at `sizes` rows, as plain JSON types.

    `retrieval_ms_100k`, `retrieval_ms_1m` and `recall` (the lower of the two) are medians and shares
    of `measure_retrieval`; with other `sizes` they are named by those, and so is `open_s_1m` (seconds).
    `append_ms` and `append_bytes` are those of `NIGHT` facts more, on disk. `generation_overhead` is the
    base's; `inference` holds also, with `shapes`, that of a model of GPT-2 small's shape. `layers` are
    those that CoachHooK would edit; each generation is timed `trials` times.
    """
    start = Recipe().start(base, config)
    first = list(islice(facts, added))
    found: dict[str, Any] = measure_adding(base, start, first, batch=min(256, added // 2))
    state = fill(start, chain(first, facts), crowd, progress)
    asked = [fact.question for fact in state.repository.facts(range(0, crowd, crowd // PROMPTS))]
    inference = {base.model_id: measure_generation(base, with_index(state), layers, asked, trials)}
    if shapes:
        shaped, full = shaped_like_gpt2(state.repository.facts())
        edited = example_config(shaped).layers
        inference[shaped.model_id] = measure_generation(shaped, full, edited, asked[:2], min(trials, 2))
    retrieval = []
    for size in sorted(sizes):
        state = fill(state, facts, size, progress)
        seconds, indexed = _timed_result(with_index, state)
        parts = indexed.repository.parts
        lists = {name: sum(getattr(part, name) for part in parts) for name in ("lists", "probes")}
        retrieval.append({**measure_retrieval(indexed), **lists, "index_seconds": seconds})
        found[f"retrieval_ms_{_short(size)}"] = retrieval[-1]["ms"]
    opening = measure_opening(base, indexed, list(islice(facts, NIGHT)))
    return {
        **found,
        f"open_s_{_short(len(indexed.repository))}": opening["open_seconds"],
        "append_ms": 1e3 * opening["append_seconds"],
        "append_bytes": opening["append_bytes"],
        "recall": min(row["recall"] for row in retrieval),
        "generation_overhead": inference[base.model_id]["generation_overhead"],
        "retrieval": retrieval,
        "opening": opening,
        "inference": inference,
        "model": base.model_id,
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in ("torch", "faiss-cpu", "transformers")},
    }


def _short(size: int) -> str:
    return f"{size // 1_000_000}m" if size >= 1_000_000 else f"{size // 1_000}k" if size >= 1_000 else str(size)


def measure_adding(
    base: BaseModel, state: RecipeState, facts: Sequence[FactChange], *, batch: int = 256, alone: int = 32
) -> dict[str, Any]:
    """Facts added in batches of `batch` against one at a time.

    `adding` tells it three ways: `encoded` is encoding and appending, which is what the paper times as an edit;
    `applied` is all that `apply` does, with the language model's pass that tells whether each prompt converged
    and the tuning of those that did not; `saved` is that and the state on disk. Of each, `speedup` is the ratio of
    facts per second, and `seconds_per_fact` and `seconds_per_fact_alone` are medians. `add_speedup` is that of
    `encoded`.
    Raises `ConfigError` for too few facts.
    """
    rounds = (len(facts) - alone) // batch
    if rounds < 1:
        raise ConfigError(f"{len(facts)} facts are too few for {alone} alone and a batch of {batch}; give more")
    editor = Recipe()

    def encoded(some: Sequence[FactChange]) -> None:
        made = encode_facts(base, state, some)
        state.repository.append(Segment.of(some, made.knowledge, made.prompts))

    def applied(some: Sequence[FactChange]) -> RecipeState:
        return editor.apply(base, state, EditBatch(tuple(some))).state

    def saved(some: Sequence[FactChange]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            editor.save(applied(some), Path(scratch) / "state")

    batches = [facts[start : start + batch] for start in range(alone, alone + rounds * batch, batch)]
    adding = {}
    for way in (encoded, applied, saved):
        way(batches[0])
        singles = [_timed(way, [fact]) for fact in facts[:alone]]
        batched = [_timed(way, some) / batch for some in batches]
        adding[way.__name__] = {
            "speedup": statistics.mean(singles) / statistics.mean(batched),
            "seconds_per_fact": statistics.median(batched),
            "seconds_per_fact_alone": statistics.median(singles),
        }
    return {
        "add_speedup": adding["encoded"]["speedup"],
        "add_batch": batch,
        "adding": adding,
        "published_seconds_per_fact": PUBLISHED_SECONDS_PER_FACT,
    }


@torch.no_grad()
def fill(state: RecipeState, facts: Iterator[FactChange], rows: int, progress: Progress | None = None) -> RecipeState:
    """The state with `rows` of `facts`, in segments, without index and without asking the language model for losses.

    Raises `StateError` for a state without a trained encoder.
    """
    repository, encoder = state.repository, state.encoder
    if not isinstance(encoder, RecipeEncoder):
        raise StateError(
            "the rows are filled with a trained encoder's prompts; name its folder in the option `encoder`"
        )
    while len(repository) < rows:
        chunk = list(islice(facts, min(SEGMENT, rows - len(repository))))
        knowledge_NR = encoder.knowledge([f"{fact.question} {fact.target}" for fact in chunk])
        repository = repository.append(Segment.of(chunk, knowledge_NR, encoder.prompts(knowledge_NR)))
        if progress is not None:
            progress("rows", len(repository), rows)
    return replace(state, repository=repository)


@torch.no_grad()
def with_index(state: RecipeState) -> RecipeState:
    """The state with the index that `apply` would have built over its rows."""
    config, encoder = state.config, state.encoder
    repository = state.repository.indexed(
        config.exact_rows, config.recall, lambda some: encoder.query([fact.question for fact in some])
    )
    return replace(state, repository=repository)


@torch.no_grad()
def measure_retrieval(state: RecipeState, *, seed: int = 0) -> dict[str, float]:
    """One question at a time on one core.

    `ms` is the median search, `ms_with_encoding` that of encoding the question too, in milliseconds; `recall` the
    share of `QUESTIONS` rephrased questions whose best row by exact search is found.
    """
    encoder, indexed = state.encoder, state.repository
    rng = np.random.default_rng(seed)
    facts = indexed.facts(np.sort(rng.choice(len(indexed), QUESTIONS, replace=False)))
    questions = [fact.paraphrases[int(rng.integers(len(fact.paraphrases)))] for fact in facts]
    queries_QR = encoder.query(questions)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        indexed.search(queries_QR[:1])
        searched = [_timed(indexed.search, queries_QR[row : row + 1]) for row in range(QUESTIONS)]
        asked = [_timed(_look_up, indexed, encoder, text) for text in questions]
    finally:
        torch.set_num_threads(threads)
    truth_Q = _exact_rows(indexed, queries_QR)
    found_Q = indexed.search(queries_QR)[1][:, 0]
    return {
        "rows": len(indexed),
        "ms": 1e3 * statistics.median(searched),
        "ms_with_encoding": 1e3 * statistics.median(asked),
        "recall": float((found_Q == truth_Q).mean()),
    }


def measure_opening(base: BaseModel, state: RecipeState, more: Sequence[FactChange]) -> dict[str, float]:
    """Seconds to save the state, to open it with every digest verified, to answer a first question, and to apply and
    save `more` facts; bytes of the state's files, and of those that the further facts wrote."""
    editor = Recipe()
    with tempfile.TemporaryDirectory() as scratch:
        first, second = Path(scratch) / "first", Path(scratch) / "second"
        saved = _timed(editor.save, state, first)
        loaded, opened = _timed_result(editor.load, first, base)
        asked = _timed(editor.explain, base, opened, opened.repository.fact_at(0).question)
        applied, after = _timed_result(editor.apply, base, opened, EditBatch(tuple(more)))
        appended = applied + _timed(editor.save, after.state, second)
        before, now = _sizes(first), _sizes(second)
    return {
        "save_seconds": saved,
        "open_seconds": loaded,
        "first_question_seconds": asked,
        "append_seconds": appended,
        "append_bytes": sum(size for inode, size in now.items() if inode not in before),
        "bytes": sum(before.values()),
    }


def _sizes(folder: Path) -> dict[int, int]:
    """Bytes of the files below `folder`, each file once, whatever names it has."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return {stat.st_ino: stat.st_size for stat in found}


def _exact_rows(repository: Repository, queries_QR: torch.Tensor) -> np.ndarray:
    """The row with the highest score of each query `[Q]`, by exact search over every row that holds."""
    best, rows = np.full(len(queries_QR), -np.inf), np.full(len(queries_QR), -1)
    with one_thread():
        for start in range(0, len(repository), 100_000):
            at = np.arange(start, min(start + 100_000, len(repository)))
            at = at[repository.live[at]]
            scores, found = faiss.knn(
                queries_QR.numpy(), repository.knowledge(at).numpy(), 1, metric=faiss.METRIC_INNER_PRODUCT
            )
            better = scores[:, 0] > best
            best[better], rows[better] = scores[better, 0], at[found[better, 0]]
    return rows


def measure_generation(
    base: BaseModel, state: RecipeState, layers: Sequence[int], prompts: Sequence[str], trials: int
) -> dict[str, float]:
    """Seconds of a 64-token generation for one prompt: the base's, CoachHooK's with hooks on `layers`, RECIPE's.

    Medians over `prompts`, each `trials` times, interleaved so that the machine's other work meets all three alike.
    `generation_overhead` is RECIPE's time over the base's, less one.
    """
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "base": nullcontext,
        "coachhook": lambda: hooked(base, layers),
        "recipe": lambda: Recipe().attach(base, state),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for trial in range(trials + 1):
        for prompt in prompts:
            for name, way in ways.items():
                with way(), _never_ending(base):
                    spent = _timed(generate_greedy, base, [prompt], NEW_TOKENS, stop=())
                if trial:
                    seconds[name].append(spent)
    medians = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    return {**medians, "generation_overhead": medians["recipe_seconds"] / medians["base_seconds"] - 1}


@contextmanager
def _never_ending(base: BaseModel) -> Iterator[None]:
    """Inside it a generation does not end before its tokens are used up."""
    config = base.model.generation_config
    ends, config.eos_token_id = config.eos_token_id, None
    try:
        yield
    finally:
        config.eos_token_id = ends


def shaped_like_gpt2(facts: Sequence[FactChange]) -> tuple[BaseModel, RecipeState]:
    """A random model of GPT-2 small's shape, and a state of `facts` by a random encoder that always answers."""
    base = gpt2_small_shape()
    encoder = RecipeEncoder.create(base, EncoderConfig()).freeze()
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder))
        state = Recipe().start(base, RecipeConfig(encoder=folder, gate="none"))
    return base, fill(state, iter(facts), len(facts))


def _look_up(repository: Repository, encoder: RecipeEncoder, text: str) -> Any:
    return repository.search(encoder.query([text]))


def _timed(work: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    return _timed_result(work, *arguments, **options)[0]


def _timed_result(work: Callable[..., Result], *arguments: Any, **options: Any) -> tuple[float, Result]:
    began = time.perf_counter()
    result = work(*arguments, **options)
    return time.perf_counter() - began, result
