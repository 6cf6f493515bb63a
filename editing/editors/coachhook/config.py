"""The settings of CoachHooK, all of which are part of the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, get_args

from editing.errors import ConfigError

Scope = Literal["leverage", "calibrated", "sequence", "always"]
Change = Literal["own", "scaled", "plain"]
Texts = Literal["prompt", "rephrases"]

STOP_KEPT, ALIKE = 0.05, 0.2
CANARY_TEXT = (
    "The town lies on a river between two hills. Its market opens at eight every morning, and most people who "
    "live there work in the fields or on the boats. In winter the road over the pass is closed for some weeks."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoachHookConfig:
    """Settings of CoachHooK (arXiv 2403.05330); each field's help text is its annotation.

    Raises `ConfigError` at construction for values that contradict each other.
    """

    layers: Annotated[tuple[int, ...], "edited layers, ascending; the paper: 13-17 of GPT-2 XL's 48"]
    scope: Annotated[
        Scope,
        "tokens that take the hook's weights: leverage (whose key is, to the solve, an edited one), calibrated (size "
        "of the change against a fixed background), sequence (the paper's z-score along the prompt) or always",
    ] = "leverage"
    change: Annotated[
        Change,
        "what a token in the leverage scope gets: the change of the edited key it is taken for (own), its own "
        "change over its r (scaled), or its own change (plain)",
    ] = "own"
    leverage_floor: Annotated[float, "least threshold of the leverage scope, as a share of the edited key's own"] = 0.5
    leverage_quantile: Annotated[float, "share of background keys that a threshold must keep out"] = 0.999
    reader: Annotated[
        str,
        "a sentence encoder (a folder, an installed package or a hub id) that keeps an edit to questions that ask what "
        "was edited; empty: every question about the subject takes it",
    ] = ""
    alike: Annotated[float, "least likeness, as a cosine, of such a question to the edit's own"] = ALIKE
    accumulate: Annotated[bool, "add each batch's keys to the second moment; without it, sequential MEMIT"] = True
    moment_weight: Annotated[float, "lambda, the weight of C0 against edited keys; the paper: 15000-20000"] = 50.0
    moment_ridge: Annotated[
        float,
        "added to C0's diagonal, as a fraction of its mean, for units that never fire",
    ] = 1e-5
    max_condition: Annotated[float, "a batch whose system has a larger condition estimate is refused"] = 1e12
    contexts: Annotated[tuple[str, ...], "texts put before a prompt; keys and losses are averaged over them"] = ("",)
    optimise_over: Annotated[Texts, "optimise targets over the edit prompt, or over its rephrases as well"] = "prompt"
    max_steps: Annotated[int, "Adam steps per target at most"] = 40
    learning_rate: Annotated[float, "step per coordinate as a fraction of the base's |h| / sqrt(width)"] = 0.3
    stop_loss: Annotated[float, "nats: a subject is done when each of its facts' losses is below"] = 0.05
    stop_kept: Annotated[float, "nats: and the weighted divergence of what is kept of it is below"] = STOP_KEPT
    clamp: Annotated[float, "how far a target may lie from the base's own state, as a fraction of its |h|"] = 3.0
    weight_decay: Annotated[float, "weight of |delta| / |h|^2 in the objective"] = 0.1
    essence_prompt: Annotated[str, "prompt on which the subject's own distribution is held"] = "{} is a"
    kl_factor: Annotated[float, "weight of the KL divergence on the essence prompt; the paper: 0.0625"] = 0.0
    preservation: Annotated[float, "weight of the KL divergence on the subject's locality prompts"] = 1.0
    sequence_alpha: Annotated[float, "threshold of the sequence scope before the first batch, in z-scores"] = 2.2
    background_quantile: Annotated[float, "quantile of background scores that a calibrated threshold starts from"] = 0.8
    alpha_weight: Annotated[
        float,
        "0: threshold at that quantile; 1: at the lowest edited key; between: geometric",
    ] = 1.0
    alpha_over: Annotated[Texts, "edited keys that bound a calibrated threshold: of the prompt, or all"] = "rephrases"
    alpha_margin: Annotated[float, "how far, relatively, a threshold stays below the lowest edited score"] = 1e-3
    memory_mib: Annotated[int, "memory that one micro-batch of target optimisation may plan for, in MiB"] = 2048
    canary_text: Annotated[str, "text whose perplexity is recorded after each batch"] = CANARY_TEXT

    def __post_init__(self) -> None:
        for name in ("layers", "contexts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(f"layers {self.layers} must name at least one layer, ascending and without repeats")
        if not self.contexts:
            raise ConfigError('contexts is empty; use [""] for the bare prompt')
        for name, kind in (("scope", Scope), ("change", Change), ("optimise_over", Texts), ("alpha_over", Texts)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; use one of {', '.join(get_args(kind))}")
        for name, low, high in _RANGES:
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} {getattr(self, name)} is outside {low} to {high}")
        if self.reader and self.scope != "leverage":
            raise ConfigError(
                f"reader needs the scope leverage, which knows whose edit a token takes; scope is {self.scope!r}"
            )
        if self.essence_prompt.count("{}") != 1:
            raise ConfigError(f"essence_prompt {self.essence_prompt!r} must have exactly one {{}} for the subject")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        content = asdict(self)
        return {**content, "layers": list(self.layers), "contexts": list(self.contexts)}

    def to_state(self) -> dict[str, Any]:
        """What a state is written with: `to_dict`, without the settings of the leverage scope where another is in
        force, without `stop_kept` where it is the default and without the reader's where there is none, so that states
        of the time before them keep their digests."""
        content = self.to_dict()
        left_out = {
            *(LEVERAGE if self.scope != "leverage" else ()),
            *(("stop_kept",) if self.stop_kept == STOP_KEPT else ()),
            *(("reader", "alike") if not self.reader else ()),
        }
        return {key: value for key, value in content.items() if key not in left_out}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CoachHookConfig:
        """The config with these settings. Raises `ConfigError` for a setting that does not exist."""
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise ConfigError(f"CoachHooK has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**content)


LEVERAGE = ("change", "leverage_floor", "leverage_quantile")
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("moment_weight", 1e-12, 1e12),
    ("moment_ridge", 0.0, 1.0),
    ("max_condition", 1.0, 1e16),
    ("max_steps", 1, 100_000),
    ("learning_rate", 1e-6, 100.0),
    ("stop_loss", 0.0, 100.0),
    ("stop_kept", 0.0, 100.0),
    ("clamp", 1e-6, 100.0),
    ("weight_decay", 0.0, 1e6),
    ("kl_factor", 0.0, 1e6),
    ("preservation", 0.0, 1e6),
    ("leverage_floor", 1e-6, 0.95),
    ("leverage_quantile", 0.0, 1.0),
    ("alike", -1.0, 1.0),
    ("background_quantile", 0.0, 1.0),
    ("alpha_weight", 0.0, 1.0),
    ("alpha_margin", 0.0, 0.5),
    ("memory_mib", 1, 10_000_000),
)
