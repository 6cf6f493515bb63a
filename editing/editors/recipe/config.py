"""The settings of RECIPE: of its encoder, of the encoder's training, and of a state that is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, Self, get_args

from editing.errors import ConfigError
from editing.model_ids import SENTENCE_BACKBONE

Asked = Literal["prompt", "last_question"]
Relation = Literal["auto", "asked", "plain"]
Gate = Literal["auto", "sentinel", "subject", "fixed", "none"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "cosine"]


# A two-layer encoder from scratch over the language model's own word embeddings.
SMALL_BACKBONE: Mapping[str, Any] = {
    "model_type": "bert",
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 768,
    "max_position_embeddings": 128,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class _Settings:
    """What the three configs share: plain JSON in and out, unknown settings refused by name."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The config with these settings. Raises `ConfigError` for a setting that does not exist or is missing."""
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(content) - known):
            raise ConfigError(f"{cls.__name__} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        try:
            return cls(**content)
        except TypeError as error:
            raise ConfigError(f"{cls.__name__} is not complete: {error}; it has {', '.join(sorted(known))}") from error

    def _check(self, choices: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]]) -> None:
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} {getattr(self, name)!r} is unknown; use one of {', '.join(get_args(kind))}")
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} {getattr(self, name)} is outside {low} to {high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig(_Settings):
    """The shape of a RECIPE encoder (arXiv 2405.03279, section 4); each field's help text is its annotation.

    Raises `ConfigError` at construction for values that contradict each other.
    """

    backbone: Annotated[
        str | None,
        "hub id or folder of a Hugging Face encoder, read with its own tokenizer; none: backbone_config from scratch, "
        "over the language model's tokenizer and frozen word embeddings",
    ] = None
    backbone_config: Annotated[
        Mapping[str, Any] | None, "Hugging Face config of an encoder from scratch, with its model_type"
    ] = field(default_factory=lambda: dict(SMALL_BACKBONE))
    width: Annotated[int, "r, of knowledge and query representations; the paper: 4096"] = 256
    prompt_tokens: Annotated[int, "continuous prompt tokens per fact, 1 to 5; the paper: 3"] = 3
    sentinel_tokens: Annotated[int, "learned tokens that the knowledge sentinel is encoded from"] = 10
    max_length: Annotated[int, "tokens of a text that are read; of a longer one, the last"] = 96
    seed: Annotated[int, "of the initial weights"] = 0

    def __post_init__(self) -> None:
        if self.backbone is not None:
            object.__setattr__(self, "backbone_config", None)
        elif not self.backbone_config or "model_type" not in self.backbone_config:
            raise ConfigError(
                f"backbone_config {self.backbone_config!r} names no model_type; give one, or a backbone by id or path"
            )
        else:
            object.__setattr__(self, "backbone_config", dict(self.backbone_config))
            room = self.backbone_config.get("max_position_embeddings", self.max_length + 1)
            if room <= self.max_length:
                raise ConfigError(
                    f"max_length {self.max_length} and the class token do not fit the backbone's "
                    f"max_position_embeddings {room}; lower max_length"
                )
        self._check(
            {},
            {
                "width": (1, 65_536),
                "prompt_tokens": (1, 5),
                "sentinel_tokens": (1, 512),
                "max_length": (4, 100_000),
                "seed": (0, 2**31),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig(_Settings):
    """How an encoder is trained (arXiv 2405.03279); each field's help text is its annotation.

    Raises `ConfigError` at construction for values out of range.
    """

    steps: Annotated[int, "optimiser steps at most"] = 2000
    learning_rate: Annotated[float, "of Adam; the paper: 1e-5 with a pretrained encoder"] = 1e-3
    warmup_steps: Annotated[int, "steps over which the learning rate rises from 0"] = 50
    schedule: Annotated[Schedule, "the learning rate after the warm-up: constant, or cosine down to a tenth"] = "cosine"
    weight_decay: Annotated[float, "decoupled weight decay"] = 0.0
    clip_norm: Annotated[float, "gradients are scaled to this norm at most"] = 1.0
    batch: Annotated[int, "edits that go through the language model in a step; the paper: 8"] = 24
    negatives: Annotated[int, "further edits per step that only the retrieval losses see"] = 0
    margin: Annotated[float, "a term counts only while p(wanted) < margin * p(second best); the paper: 1.2"] = 1.2
    temperature: Annotated[float, "scores q.k / sqrt(r) are divided by it in the retrieval losses"] = 1.0
    reliability_weight: Annotated[float, "of the edit loss on reliability queries"] = 1.0
    generality_weight: Annotated[float, "of the edit loss on rephrased queries"] = 1.0
    locality_weight: Annotated[float, "of the divergence from the base on locality queries"] = 1.0
    contrastive_weight: Annotated[float, "of finding a query's own knowledge"] = 1.0
    sentinel_weight: Annotated[float, "of preferring the sentinel to foreign knowledge"] = 1.0
    locality_queries: Annotated[int, "locality queries drawn per edit and step"] = 2
    locality_edits: Annotated[int, "edits per step at most whose locality queries go through the language model"] = 24
    free_steps: Annotated[
        int, "steps before all others in which one free prompt is optimised for every target of the source; 0: none"
    ] = 0
    free_learning_rate: Annotated[float, "of Adam, for free prompts, in units of the word embeddings' spread"] = 0.3
    imitation_steps: Annotated[
        int, "first steps in which the prompt encoder imitates free prompts and nothing goes through the language model"
    ] = 0
    imitation_weight: Annotated[float, "of the distance from the free prompts, in shares of their variance"] = 8.0
    naming_weight: Annotated[float, "of telling the target's free prompt from those of all other targets"] = 1.0
    word_noise: Annotated[
        float,
        "deviation of the noise on frozen word embeddings, in units of their spread, as words never met; 0: none",
    ] = 0.0
    noisy_words: Annotated[float, "share of the vocabulary that has noise in a step"] = 0.5
    precision: Annotated[Precision, "of the forward passes: float32, or bfloat16 by autocast"] = "float32"
    validate_every: Annotated[int, "steps between validations"] = 100
    patience: Annotated[int, "validations without a better score before training stops; 0: never"] = 5
    stop_score: Annotated[float, "training stops at this validation score; above 1: never"] = 2.0
    checkpoint_every: Annotated[int, "steps between checkpoints"] = 100
    seed: Annotated[int, "of the draws"] = 0

    def __post_init__(self) -> None:
        weights = dict.fromkeys(
            (
                "reliability_weight",
                "generality_weight",
                "locality_weight",
                "contrastive_weight",
                "sentinel_weight",
                "imitation_weight",
                "naming_weight",
                "weight_decay",
            ),
            (0.0, 1e6),
        )
        if self.imitation_steps and not self.free_steps:
            raise ConfigError(
                f"imitation_steps is {self.imitation_steps} and free_steps is 0: there is nothing to imitate; set "
                "free_steps too"
            )
        self._check(
            {"precision": Precision, "schedule": Schedule},
            {
                **weights,
                "steps": (1, 10**8),
                "learning_rate": (1e-9, 10.0),
                "warmup_steps": (0, 10**7),
                "clip_norm": (1e-9, 1e9),
                "batch": (1, 10**6),
                "negatives": (0, 10**6),
                "margin": (1.0, 1e9),
                "temperature": (1e-6, 1e6),
                "locality_queries": (1, 1000),
                "locality_edits": (1, 10**6),
                "free_steps": (0, 10**8),
                "free_learning_rate": (1e-9, 100.0),
                "imitation_steps": (0, 10**8),
                "word_noise": (0.0, 100.0),
                "noisy_words": (0.0, 1.0),
                "validate_every": (1, 10**8),
                "patience": (0, 10**6),
                "stop_score": (0.0, 2.0),
                "checkpoint_every": (1, 10**8),
                "seed": (0, 2**31),
            },
        )


TUNING = ("tuning_steps", "tuning_rate")
UNTRAINED = ("backbone", "prompt_tokens", "named_score", "unnamed_score")  # settings that came with day one
NAMED = {"plain": 0.45, "asked": 0.4}  # by `relation`
AUTO_SCORE = -2.0  # no mean of cosines is as low
STEPS_BEHIND, RATE_BEHIND = 24, 0.15  # for prompts that begin with their target's own words
STEPS_TRAINED, RATE_TRAINED = 10, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeConfig(_Settings):
    """The settings of a RECIPE state, all of which are part of the artifact.

    With a trained `encoder` prompts are made by it and stand in front of what is asked; without one a pretrained
    sentence encoder is used as it comes, and prompts begin with their target's own words and stand where the answer
    begins. Settings given as auto or below 0 are those that fit the one or the other.
    Raises `ConfigError` at construction for values that contradict each other.
    """

    encoder: Annotated[
        str, "folder of a trained encoder, looked for in the model's folder first; empty: none, `backbone` is used"
    ] = ""
    backbone: Annotated[
        str,
        "folder, installed package or hub id of a pretrained sentence encoder, used as it comes where `encoder` is "
        f"empty; by default the package {SENTENCE_BACKBONE}",
    ] = ""
    asked: Annotated[
        Asked,
        "what is looked up: the whole prompt, or the last question of a few-shot or chat prompt",
    ] = "prompt"
    gate: Annotated[
        Gate,
        "the best row is used when it beats the sentinel, when it fits and the prompt names its subject (subject), "
        "when it reaches fixed_score, or always (none); auto: sentinel with a trained encoder, else subject",
    ] = "auto"
    fixed_score: Annotated[float, "the score that the fixed gate asks for"] = 0.0
    relation: Annotated[
        Relation,
        "how the subject gate compares prompt and fact's question with the subject taken out of both: less what "
        "questions of many kinds share (asked), or as they are (plain); auto: asked without a trained encoder",
    ] = "auto"
    named_score: Annotated[
        float,
        "of the subject gate, for a row whose subject the prompt names: the mean of two cosines, that of prompt and "
        f"statement and that of `relation`; below -1: {NAMED['asked']}, or {NAMED['plain']} where relation is plain",
    ] = AUTO_SCORE
    unnamed_score: Annotated[
        float, "of the subject gate, for a row whose subject the prompt does not name: the cosine to its statement"
    ] = 0.85
    prompt_tokens: Annotated[int, "continuous prompt tokens per fact without a trained encoder, 1 to 64"] = 13
    converged_loss: Annotated[float, "nats per target token: a fact converged when its prompt gets below"] = 0.5
    tuning_steps: Annotated[
        int,
        "steps of Adam at most for the prompt of a fact that its first prompt did not make the model say; 0: none; "
        f"below 0: {STEPS_TRAINED} with a trained encoder, else {STEPS_BEHIND}",
    ] = -1
    tuning_rate: Annotated[
        float,
        "a step's length in units of the word embeddings' spread; below 0: "
        f"{RATE_TRAINED} with a trained encoder, else {RATE_BEHIND}",
    ] = -1.0
    exact_rows: Annotated[int, "rows that are searched exactly; above, an approximate index is built over them"] = 5_000
    recall: Annotated[float, "recall@1 against exact search that an approximate index must show when it is built"] = (
        0.995
    )
    encode_batch: Annotated[int, "texts encoded in one pass"] = 256

    def to_state(self) -> dict[str, Any]:
        """What a state is written with: `to_dict`, without the settings that are newer than the kind of state and
        have no part in it, so that older states keep their digests. `of_state` is the inverse."""
        content, plain = self.to_dict(), {item.name: item.default for item in fields(self)}
        plain["named_score"] = NAMED["plain"]
        newer = [] if self.backbone else [name for name in UNTRAINED if content[name] == plain[name]]
        if self.relation == "plain":
            newer.append("relation")
        if not self.tuning_steps:
            newer += TUNING
        return {name: content[name] for name in content if name not in newer}

    @classmethod
    def of_state(cls, content: Mapping[str, Any]) -> Self:
        """The config that a state was written with. Raises `ConfigError` as `from_dict` does."""
        return cls.from_dict({"relation": "plain", "tuning_steps": 0, "tuning_rate": RATE_TRAINED, **content})

    def __post_init__(self) -> None:
        if self.encoder and self.backbone:
            raise ConfigError(
                f"encoder {self.encoder!r} and backbone {self.backbone!r} are both given; a trained encoder has a "
                "backbone of its own, so give one of the two"
            )
        trained = bool(self.encoder)
        for name, open_, fitting in (
            ("backbone", not self.backbone, "" if trained else SENTENCE_BACKBONE),
            ("gate", self.gate == "auto", "sentinel" if trained else "subject"),
            ("relation", self.relation == "auto", "plain" if trained else "asked"),
            ("tuning_steps", self.tuning_steps < 0, STEPS_TRAINED if trained else STEPS_BEHIND),
            ("tuning_rate", self.tuning_rate < 0, RATE_TRAINED if trained else RATE_BEHIND),
        ):
            if open_:
                object.__setattr__(self, name, fitting)
        if self.named_score < -1.0:
            object.__setattr__(self, "named_score", NAMED[self.relation])
        if self.relation == "asked" and trained:
            raise ConfigError("relation 'asked' needs a sentence encoder as it comes; leave it out with `encoder`")
        if self.gate == "sentinel" and not trained:
            raise ConfigError("gate 'sentinel' needs a trained encoder; use subject, fixed or none, or give an encoder")
        self._check(
            {"asked": Asked, "gate": Gate, "relation": Relation},
            {
                "fixed_score": (-1e9, 1e9),
                "named_score": (-1e9, 1e9),
                "unnamed_score": (-1e9, 1e9),
                "prompt_tokens": (1, 64),
                "converged_loss": (0.0, 100.0),
                "tuning_steps": (0, 10**4),
                "tuning_rate": (0.0, 100.0),
                "exact_rows": (1, 10**9),
                "recall": (0.0, 1.0),
                "encode_batch": (1, 10**6),
            },
        )
