"""What a model will cost on this machine before it is loaded: memory, time and bytes of every kind of work.

Memory is the estimate of `editing.models.costs`. Time is the count of multiplications and additions over
the rates of matrix products that are measured here, and the elements that pass through memory in between
over the rate of that. Bytes are those on disk.

L layers, D width, F inner width of the MLP, V vocabulary, n facts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from editing.errors import ConfigError
from editing.models.costs import (
    ASKED_TOKENS,
    BACKGROUND_KEYS,
    BYTES,
    ROWS_PER_FACT,
    TAIL_TOKENS,
    ModelShape,
    estimate_costs,
)
from editing.models.loading import DTYPES

METHODS = ("coachhook", "recipe")
LARGEST_SIDE = 4096  # of the matrices that rates are measured with
SECONDS_PER_RATE = 0.15
PROMPT_VECTORS = 3  # of a RECIPE fact
RECIPE_WIDTH = 256  # of a RECIPE fact's knowledge vector
TEXT_BYTES = 1500  # of a fact's words in a state's JSON, with prompts and dates


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What this machine does a second, with the threads that torch has now.

    Operations of matrix products in the model's dtype with many rows (`wide`), with 64 (`narrow`), in
    float32 (`products`) and float64 (`exact`); bytes of a weight that one row is multiplied with
    (`stream`); elements through one elementwise operation in the model's dtype (`elements`).
    """

    wide: float
    narrow: float
    products: float
    exact: float
    stream: float
    elements: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is planned for; the defaults are the settings' own and what short facts have.

    `top` is the highest edited layer, None: a quarter of the way up. A fact has `rows` prompts that its
    target is optimised on, of `prompt_tokens`, of which `tail_tokens` from the subject's end on, `asked`
    of them with a loss, and takes `steps`; `questions` are asked of a model in an evaluation, with
    `answer_tokens` each.
    """

    facts: int
    batch: int = 20
    edited: int = 3
    top: int | None = None
    statistics_tokens: int = 100_000
    rows: int = ROWS_PER_FACT
    prompt_tokens: int = 24
    tail_tokens: int = TAIL_TOKENS
    asked: int = ASKED_TOKENS
    steps: int = 30
    questions: int = 2000
    answer_tokens: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One kind of work: peak memory of its process and what it leaves on disk in bytes, and seconds."""

    memory: int
    seconds: float
    disk: int


def measure_rates(shape: ModelShape, dtype: str, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """The rates of matrices of the shape's widths (each at most `LARGEST_SIDE`); a second or two.

    Raises `ConfigError` for a dtype that is unknown.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    width, inner = min(shape.width, LARGEST_SIDE), min(shape.inner, LARGEST_SIDE)

    def rate(work: Callable[[], Any], amount: float) -> float:
        work()
        began, done = clock(), 0
        while (spent := clock() - began) < SECONDS_PER_RATE:
            work()
            done += 1
        return done * amount / spent

    def product(rows: int, kind: torch.dtype) -> float:
        left, right = torch.randn(rows, width).to(kind), torch.randn(inner, width).to(kind)
        return rate(lambda: torch.nn.functional.linear(left, right), 2 * rows * width * inner)

    own = DTYPES[dtype]
    keys = torch.randn(1024, width)
    exact = torch.randn(width, width, dtype=torch.float64)
    halves = torch.randn(512, inner).to(own), torch.randn(512, inner).to(own)
    with torch.no_grad():
        return Rates(
            wide=product(1024, own),
            narrow=product(64, own),
            products=rate(lambda: keys.T @ keys, 2 * 1024 * width * width),
            exact=rate(lambda: exact @ exact, 2 * width**3),
            stream=product(1, own) / 2 * BYTES[dtype],
            elements=rate(lambda: halves[0] * halves[1], halves[0].numel()),
        )


def plan_costs(
    shape: ModelShape, rates: Rates, workload: Workload, *, dtype: str = "float32", method: str = "coachhook"
) -> dict[str, Cost]:
    """The cost of the statistics, of editing all facts, of one evaluation and of serving one answer of a sequence.

    A forward pass takes `2 (P - embeddings) / L` operations a token and layer and about `12 D + 4 F` elements
    through memory; a step of target optimisation passes the layers above the edited ones forward and,
    with as many operations again, back; the products of statistics are `F^2` operations a token and layer, a
    solve `F^3 / 3 + 4 F^2 n` of float64. Training a RECIPE encoder is not in it. Raises
    `ConfigError` for a method that is unknown or no facts.
    """
    if method not in METHODS or workload.facts < 1:
        raise ConfigError(
            f"{workload.facts} facts by method {method!r} cannot be planned; the methods are {', '.join(METHODS)}, and "
            "there must be a fact"
        )
    size = BYTES[dtype]
    batch = min(workload.batch, workload.facts)
    edited = min(workload.edited, shape.layers)
    memory = estimate_costs(shape, facts=batch, dtype=dtype, edited=edited)
    embeddings = shape.vocabulary * shape.width * (1 if shape.tied else 2)
    block = (shape.parameters - embeddings) / shape.layers
    top = shape.layers // 4 if workload.top is None else workload.top
    elements = 12 * shape.width + 4 * shape.inner

    def forward(tokens: float, layers: float) -> float:
        """Seconds of many tokens together."""
        return tokens * layers * (2 * block / rates.wide + elements / rates.elements)

    def head(tokens: float) -> float:
        return tokens * (2 * shape.vocabulary * shape.width / rates.wide + 2 * shape.vocabulary / rates.elements)

    def decode(tokens: float, rows: int) -> float:
        """Seconds of answers, so many rows at a time."""
        weights = shape.parameters - (0 if shape.tied else shape.vocabulary * shape.width)
        step = weights * size / rates.stream if rows == 1 else rows * 2 * weights / rates.narrow
        return tokens / rows * (step + rows * shape.layers * elements / rates.elements)

    evals = Cost(
        memory=memory.serving + 64 * (shape.vocabulary * 8 + 2 * shape.layers * shape.kv_width * 64 * size),
        seconds=forward(workload.questions * workload.prompt_tokens, shape.layers)
        + head(workload.questions)
        + decode(workload.questions * workload.answer_tokens, 64),
        disk=workload.questions * TEXT_BYTES,
    )
    serving = Cost(
        memory=memory.serving,
        seconds=forward(workload.prompt_tokens, shape.layers) + decode(workload.answer_tokens, 1),
        disk=shape.parameters * size,
    )
    if method == "recipe":
        rows = workload.facts * (PROMPT_VECTORS * shape.width + RECIPE_WIDTH) * 4
        step = forward(workload.facts * workload.prompt_tokens, shape.layers) + head(workload.facts * workload.asked)
        editing = Cost(
            memory=memory.serving + rows + batch * workload.prompt_tokens * shape.layers * elements * size,
            seconds=(1 + 2 * workload.steps) * step,
            disk=rows + workload.facts * TEXT_BYTES,
        )
        return {"editing": editing, "evals": evals, "serving": serving}

    square, hook = shape.inner**2, shape.width * shape.inner
    statistics = Cost(
        memory=memory.statistics,
        seconds=forward(workload.statistics_tokens, top + 1)
        + workload.statistics_tokens * edited * square / rates.products,
        disk=edited * (square + BACKGROUND_KEYS * shape.inner) * 4,
    )
    tokens = workload.facts * workload.rows * workload.tail_tokens
    asked = workload.facts * workload.rows * workload.asked
    step = 2 * (forward(tokens, shape.layers - top - 1) + head(asked))
    reading = (2 + edited) * forward(workload.facts * workload.rows * workload.prompt_tokens, top + 1)
    batches = -(-workload.facts // batch)
    solve = edited * batches * (square * shape.inner / 3 + 100 * square + 4 * square * batch) / rates.exact
    editing = Cost(
        memory=memory.editing,
        seconds=workload.steps * step + reading + solve,
        disk=edited * (hook + square + 2 * workload.facts * shape.inner) * 4
        + workload.facts * (shape.width * 4 + TEXT_BYTES),
    )
    return {"statistics": statistics, "editing": editing, "evals": evals, "serving": serving}


def plan(shape: ModelShape, workload: Workload, *, dtype: str = "float32", method: str = "coachhook") -> dict[str, Any]:
    """`plan_costs` with rates measured here, and what it stands on, as plain JSON types."""
    rates = measure_rates(shape, dtype)
    costs = plan_costs(shape, rates, workload, dtype=dtype, method=method)
    return {
        "shape": asdict(shape),
        "dtype": dtype,
        "method": method,
        "threads": torch.get_num_threads(),
        "rates": asdict(rates),
        "workload": asdict(workload),
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "memory": max(cost.memory for cost in costs.values()),
        "seconds_a_fact": costs["editing"].seconds / workload.facts,
        "bytes_a_fact": _bytes_a_fact(shape, workload, method),
    }


def _bytes_a_fact(shape: ModelShape, workload: Workload, method: str) -> int:
    """What one more fact adds to a state on disk."""
    if method == "recipe":
        return (PROMPT_VECTORS * shape.width + RECIPE_WIDTH) * 4 + TEXT_BYTES
    return (shape.width + 2 * workload.edited * shape.inner) * 4 + TEXT_BYTES
