"""Tiny random models of every supported architecture, a tokenizer that any text round trips through, and states of
every editing method on them."""

import dataclasses
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel, PreTrainedTokenizerFast

from editing.editors import get_editor
from editing.editors.both import BothState
from editing.editors.recipe import EncoderConfig, MetaEdit, RecipeEncoder, TrainingConfig, train_encoder
from editing.editors.recipe.repository import Repository
from editing.editors.recipe.retrieval import retrieve
from editing.editors.recipe.segments import Segment
from editing.facts import EditBatch, FactChange
from editing.models import BaseModel, wrap_model
from editing.statistics import compute_second_moments
from editing.tokenisation import encode_prompts

TEXTS = [
    f"The {office} of {place} is {name}. {name} leads {place}."
    for office in ("mayor", "prime minister", "president", "governor")
    for place in ("Arden", "Belmont", "Corvia", "Dunmore", "Eastvale")
    for name in ("Ada Moss", "Ben Hale", "Cleo Vance", "Dov Stern")
]

SEED = int(os.environ.get("TEST_SEED", "0"))  # as the fixture `seed` has it, also for the tests' own processes
WIDTH, INNER, LAYERS = 32, 64, 4
SHAPES: dict[str, dict[str, object]] = {
    "gpt2": {"n_embd": WIDTH, "n_inner": INNER, "n_layer": LAYERS, "n_head": 4, "n_positions": 128},
    "gptj": {"n_embd": WIDTH, "n_inner": INNER, "n_layer": LAYERS, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
}
for _name in ("gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma"):
    SHAPES[_name] = {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
for _name in ("llama", "mistral", "qwen2", "qwen3", "gemma"):
    SHAPES[_name] |= {"num_key_value_heads": 2, "head_dim": 8}


@lru_cache
def build_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    post: list[processors.PostProcessor] = [processors.ByteLevel(trim_offsets=False)]
    if bos:
        post.append(processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]))
    tokenizer.post_processor = processors.Sequence(post)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")


def build_base(model_type: str = "gpt2", *, seed: int = SEED, spread: float = 0.15) -> BaseModel:
    """A random model of `model_type`; its weights are wide enough that tokens differ and answers can be certain."""
    tokenizer = build_tokenizer(bos=model_type in ("llama", "mistral", "gemma"))
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        initializer_range=spread,
        tie_word_embeddings=False,
        **SHAPES[model_type],
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    return wrap_model(model, tokenizer, model_id=f"tiny-{model_type}")


@pytest.fixture(scope="session")
def tiny_base() -> Callable[..., BaseModel]:
    """`tiny_base(model_type)`: a random base model, one per type and session."""
    return lru_cache(build_base)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def fact() -> Callable[..., FactChange]:
    """`fact(subject, target, relation, prompt, **more)`: an assertion with dates and source filled in."""

    def make(
        subject: str, target: str, relation: str = "mayor", prompt: str = "The mayor of {} is", **more: Any
    ) -> FactChange:
        noon = datetime(2020, 1, 1, 12, tzinfo=UTC)
        return FactChange(
            **{"effective_at": noon, "observed_at": noon, "source": "gazette", **more},
            subject=subject,
            target=target,
            relation=relation,
            prompt=prompt,
        )

    return make


# States of every editing method, for the contract suite.

QUICK = {
    "layers": [1, 2],
    "max_steps": 60,
    "learning_rate": 0.5,
    "clamp": 20.0,
    "weight_decay": 0.0,
    "kl_factor": 0.0,
    "moment_weight": 1e-3,
    "stop_loss": 0.2,
}
ENCODER = EncoderConfig(
    width=WIDTH,
    backbone_config={
        "model_type": "bert",
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
)
TRAINING = TrainingConfig(
    steps=200,
    batch=8,
    learning_rate=1e-2,
    warmup_steps=1,
    schedule="constant",
    locality_weight=0.0,
    locality_queries=1,
    validate_every=10,
    patience=0,
    stop_score=1.0,
)
ROUTES = {"seat": "recipe", "governor": "recipe"}
ASKED = [
    "The mayor of Arden is",
    "Arden",
    "In the year of the flood, people of Corvia and of old Belmont elected",
    "Who leads Dunmore?",
    "Cleo Vance leads",
]


@pytest.fixture(scope="session")
def asked() -> list[str]:
    """Prompts of unlike lengths, one of a single token."""
    return ASKED


@pytest.fixture(scope="session")
def moments(tiny_base, corpus):
    """`moments(model_type)`: statistics of layers 1 and 2."""
    return lru_cache(lambda model_type: compute_second_moments(tiny_base(model_type), corpus, [1, 2], n_background=400))


@pytest.fixture(scope="session")
def batches(fact) -> tuple[EditBatch, ...]:
    """Three nights; the third supersedes a fact of the first and tells one more of another subject of it."""

    def ask(subject, target, relation="mayor", prompt="The mayor of {}"):
        return fact(subject, target, relation, prompt)

    return (
        EditBatch(
            (ask("Arden", "Vance"), ask("Belmont", "Stern"), ask("Dunmore", "Hale", "seat", "At the seat of {}"))
        ),
        EditBatch((ask("Corvia", "Moss"), ask("Eastvale", "Hale"))),
        EditBatch((ask("Arden", "Moss"), ask("Belmont", "Vance", "governor", "The governor of {}"))),
    )


@pytest.fixture(scope="session")
def sentence_encoder(tiny_base, tmp_path_factory):
    """The folder of a sentence encoder: texts of like words are near, which is what a random one can do."""
    folder = tmp_path_factory.mktemp("sentence-encoder")
    tokenizer = tiny_base("gpt2").tokenizer
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(3)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class _Told:
    """Meta-edits that are the very facts of the tests: a tiny encoder learns them by heart."""

    def __init__(self, batches: tuple[EditBatch, ...]) -> None:
        self.edits = [
            MetaEdit(statement_prompt=fact.question, target=fact.target, queries=(fact.question,), locality=ASKED[1:])
            for batch in batches
            for fact in batch.facts
        ]

    def draw(self, rng, n):
        return self.edits

    def targets(self):
        return sorted({edit.target for edit in self.edits})

    def validation(self):
        return self.edits


@pytest.fixture(scope="session")
def recipe_encoder(tiny_base, batches, tmp_path_factory):
    """`recipe_encoder(model_type, trained)`: folder of an encoder, trained on the tests' facts, or random but with
    prompts that move the model."""

    @lru_cache
    def make(model_type: str = "gpt2", trained: bool = True) -> str:
        base = tiny_base(model_type)
        if trained:
            encoder = train_encoder(base, ENCODER, TRAINING, _Told(batches), checkpoints=None)
        else:
            encoder = RecipeEncoder.create(base, ENCODER)
            encoder.query_head.load_state_dict(encoder.knowledge_head.state_dict())
            with torch.no_grad():
                encoder.prompt_head.out.weight.mul_(5)
        folder = tmp_path_factory.mktemp("encoder")
        encoder.freeze().save(folder)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def config_of(recipe_encoder):
    """`config_of(method, model_type, trained, **settings)`: settings of a state that is made quickly."""

    def of(method: str, model_type: str = "gpt2", trained: bool = True, **settings: Any) -> dict[str, Any]:
        if method == "coachhook":
            return {**QUICK, **settings}
        recipe = {"encoder": recipe_encoder(model_type, trained), "converged_loss": 2.0}
        if method == "recipe":
            return {**recipe, **settings}
        return {"coachhook": QUICK, "recipe": recipe, "routes": ROUTES, "default": "coachhook", **settings}

    return of


@pytest.fixture(scope="session")
def edited(tiny_base, moments, batches, config_of):
    """`edited(method, n, model_type, trained, **settings)`: the state after the first `n` batches."""
    kept: dict[Any, Any] = {}

    def after(method: str, n: int, model_type: str = "gpt2", trained: bool = True, **settings: Any) -> Any:
        name = (method, n, model_type, trained, json.dumps(settings, sort_keys=True))
        if name not in kept:
            base, editor = tiny_base(model_type), get_editor(method)
            if n == 0:
                config = config_of(method, model_type, trained, **settings)
                kept[name] = editor.start(base, config, moments(model_type))
            else:
                before = after(method, n - 1, model_type, trained, **settings)
                kept[name] = editor.apply(base, before, batches[n - 1]).state
        return kept[name]

    return after


@torch.no_grad()
def alone(base: BaseModel, texts: list[str]) -> list[torch.Tensor]:
    """Logits `[T, V]` of each text in a pass of its own."""
    return [base.model(**encode_prompts(base.tokenizer, [text])).logits[0] for text in texts]


@torch.no_grad()
def _perturbed_hooks(base: BaseModel, state: Any) -> Any:
    """The state with every weight moved and thresholds that let about half of all tokens through."""
    generator = torch.Generator().manual_seed(7)
    layers = {
        layer: dataclasses.replace(
            content, weight=content.weight + 0.05 * torch.randn(content.weight.shape, generator=generator)
        )
        for layer, content in state.layers.items()
    }
    state = dataclasses.replace(state, layers=layers)
    for layer in layers:
        decisions: list[Any] = []
        with get_editor("coachhook").attach(base, state, decisions=decisions):
            alone(base, ASKED)
        scores = torch.cat([d.scores[0] for d in decisions if d.layer == layer]) if decisions else torch.zeros(2)
        ordered = scores.sort().values[len(scores) // 4 : 3 * len(scores) // 4 + 2]
        gap = int(ordered.diff().argmax())
        alpha = float((ordered[gap] + ordered[gap + 1]) / 2)
        layers[layer] = dataclasses.replace(layers[layer], alpha=alpha)
        state = dataclasses.replace(state, layers=dict(layers))
    return state


def _perturbed_prompts(state: Any) -> Any:
    """The state with every row moved and a limit that about half of the prompts pass."""
    generator = torch.Generator().manual_seed(7)
    segments = [
        Segment.made(*(t + 0.05 * torch.randn(t.shape, generator=generator) for t in (s.knowledge, s.prompts)), s.table)
        for s in state.repository.segments
    ]
    state = dataclasses.replace(
        state, repository=Repository(tuple(segments)), config=dataclasses.replace(state.config, gate="none")
    )
    scores = sorted(retrieve(state, ASKED).scores[:, 0].tolist())
    gap = max((1, 2), key=lambda at: scores[at + 1] - scores[at])
    limit = (scores[gap] + scores[gap + 1]) / 2
    return dataclasses.replace(state, config=dataclasses.replace(state.config, gate="fixed", fixed_score=limit))


@pytest.fixture(scope="session")
def perturbed():
    """`perturbed(base, state)`: the state with all that it learned moved, firing at about half of what is asked."""

    def of(base: BaseModel, state: Any) -> Any:
        if isinstance(state, BothState):
            return dataclasses.replace(
                state,
                coachhook=_perturbed_hooks(base, state.coachhook),
                recipe=_perturbed_prompts(state.recipe),
            )
        return _perturbed_prompts(state) if state.method == "recipe" else _perturbed_hooks(base, state)

    return of
