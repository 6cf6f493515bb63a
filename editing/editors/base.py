"""What every editing method offers: an immutable state, and verbs that turn states into states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from editing.errors import StateError
from editing.facts import EditBatch, FactChange
from editing.models import BaseModel
from editing.statistics import SecondMoments

Progress = Callable[[str, int, int], None]
Row = tuple[Sequence[int], Sequence[int]]  # the tokens of a prompt, and those of what follows it


@dataclass(frozen=True, slots=True)
class FactOutcome:
    """How the optimisation of one fact ended: `loss` is its mean negative log-likelihood per target token, in nats."""

    fact_id: str
    converged: bool
    loss: float


class EditState(Protocol):
    """The immutable artifact of a method after some batches.

    `digest` is a SHA-256 over all content; `facts` are those that hold, oldest first, and
    `fact_ids` their ids; `parent` is the digest of the state that this one was made from.
    """

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def facts(self) -> tuple[FactChange, ...]: ...  # noqa: D102
    @property
    def fact_ids(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def parent(self) -> str | None: ...  # noqa: D102
    @property
    def base_fingerprint(self) -> str: ...  # noqa: D102

    def describe(self) -> dict[str, Any]:
        """Scalars for a report (norms, thresholds, counts), as plain JSON types."""
        ...


State = TypeVar("State", bound=EditState)


@dataclass(frozen=True, slots=True)
class AppliedBatch:
    """A batch's new state, the outcome of each of its facts in batch order, and health figures of the state."""

    state: Any
    outcomes: tuple[FactOutcome, ...]
    canaries: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fact that a prompt could have been answered with, and its score."""

    fact: FactChange
    score: float


@dataclass(frozen=True, slots=True)
class HookedToken:
    """A token of a prompt at one edited layer: its score, the layer's threshold, and whether it took the hook.

    `threshold` is None while nothing is edited at the layer: no score reaches it.
    """

    layer: int
    position: int
    token: str
    score: float
    threshold: float | None
    fired: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which edit answers a prompt, and by how much.

    Of RECIPE: `asked` is the text that was looked up, `answered_by` the fact whose prompt is used (None:
    the base model answers), `limit` the score that it had to beat (the sentinel's), `candidates` the best
    facts. Of CoachHooK: `tokens` of the prompt at every edited layer, and `candidates` the facts whose
    subject the prompt names, with the highest score among the subject's tokens.
    """

    method: str
    prompt: str
    asked: str
    answered_by: FactChange | None = None
    limit: float | None = None
    candidates: tuple[Candidate, ...] = ()
    tokens: tuple[HookedToken, ...] = ()


@dataclass(frozen=True, slots=True)
class ScopeReading:
    """How far a state's edits reach into one text.

    `touched` of its `tokens` are computed otherwise than by the base; a text with none gets the base's
    logits. `score` is the highest that an edit reached and `threshold` what it had to reach, both in the
    method's own unit; `fact_id` is the edit that answered, from a method that answers by one.
    """

    tokens: int
    touched: int
    score: float
    threshold: float
    fact_id: str | None = None

    @property
    def margin(self) -> float:
        """How far the score is above the threshold."""
        return self.score - self.threshold

    @property
    def lead(self) -> float:
        """The margin as a share of the threshold, which counts as 1 where it is smaller."""
        return self.margin / max(1.0, abs(self.threshold))


class Editor(Protocol[State]):
    """An editing method. States never change: `apply` and `retract` return new ones."""

    method: str
    parts: tuple[str, ...]  # the methods that this one is made of, whose options it takes by their names

    def defaults(self, base: BaseModel) -> dict[str, Any]:
        """Options that fit this base where nobody set them, as its layers to edit; possibly none."""
        ...

    def statistics_layers(self, config: Any) -> tuple[int, ...]:
        """Layers whose second moments `start`, `apply` and `retract` need under this config; none: no statistics."""
        ...

    def start(self, base: BaseModel, config: Any, statistics: SecondMoments | None) -> State:
        """The state before the first batch."""
        ...

    def apply(
        self,
        base: BaseModel,
        state: State,
        batch: EditBatch,
        *,
        progress: Progress | None = None,
        effort: int = 1,
    ) -> AppliedBatch:
        """The state with the batch's facts; earlier facts with the same keys are superseded.

        `effort` times the steps of the config may be spent, on facts that a first edit did not bring about.
        """
        ...

    def retract(
        self, base: BaseModel, state: State, fact_ids: Sequence[str], *, progress: Progress | None = None
    ) -> State:
        """The state as if these facts had never been applied."""
        ...

    def compact(self, base: BaseModel, state: State) -> State:
        """A state that holds, answers and takes facts back as `state` does, in as few bytes and files as can be.

        `state` itself where nothing is to be gained.
        """
        ...

    def attach(self, base: BaseModel, state: State) -> AbstractContextManager[None]:
        """Inside it `base.model` is the edited model; leaving it restores the base bit for bit."""
        ...

    def explain(self, base: BaseModel, state: State, prompt: str) -> Explanation:
        """What the state does to `prompt`; nothing of it is attached outside this call."""
        ...

    def read_scope(self, base: BaseModel, state: State, rows: Sequence[Row], *, batch_size: int) -> list[ScopeReading]:
        """What `state`, which is not attached to `base`, does to each row: a prompt's tokens and those after it."""
        ...

    def gauges(self, state: State) -> dict[str, float]:
        """Figures of the state that are worth following from night to night, by name; finite."""
        ...

    def save(self, state: State, folder: Path) -> str:
        """Write the state as files (safetensors, JSON) and return its digest."""
        ...

    def load(self, folder: Path, base: BaseModel, statistics: SecondMoments | None = None) -> State:
        """Read and verify a state; anything that does not belong to `base` is refused by name."""
        ...


_ATTACHED = "_errata_attached"


def claim(base: BaseModel) -> None:
    """Take the model object for one state. Raises `StateError` when another state is attached to it."""
    if getattr(base.model, _ATTACHED, False):
        raise StateError(
            f"another state is attached to this {base.model_id!r}; leave its `with` first, or load the base model once "
            "more to serve two states side by side"
        )
    setattr(base.model, _ATTACHED, True)


def release(base: BaseModel) -> None:
    """Give the model object back that `claim` took."""
    delattr(base.model, _ATTACHED)


_continuation: ContextVar[int | Tensor | None] = ContextVar("continuation", default=None)


@contextmanager
def continuation_from(column: int | Tensor) -> Iterator[None]:
    """Say which tokens of the forward passes inside are answer, not prompt: those from `column` on.

    `column` is a column of `input_ids`, one for all rows or one per row `[B]` (int64). A scope that
    takes statistics over the prompt needs it wherever prompt and answer pass through the model
    together: teacher-forced scoring, and generation without a cache. With a cache the model itself
    shows where the prompt ended.
    """
    token = _continuation.set(column)
    try:
        yield
    finally:
        _continuation.reset(token)


def continuation_column() -> int | Tensor | None:
    """What the innermost `continuation_from` said, if any."""
    return _continuation.get()
