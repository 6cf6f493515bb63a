"""Tiny random models of every supported architecture, and a tokenizer that any text round trips through."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from editing.facts import FactChange
from editing.models import BaseModel, wrap_model

TEXTS = [
    f"The {office} of {place} is {name}. {name} leads {place}."
    for office in ("mayor", "prime minister", "president", "governor")
    for place in ("Arden", "Belmont", "Corvia", "Dunmore", "Eastvale")
    for name in ("Ada Moss", "Ben Hale", "Cleo Vance", "Dov Stern")
]

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


def build_base(model_type: str = "gpt2", *, seed: int = 0, spread: float = 0.15) -> BaseModel:
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
