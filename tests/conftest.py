"""What every test stands on: no workspace of its user, arithmetic that is the same on any number of cores, and a small
model in the layouts that models are published in."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

KEPT = "ERRATA_DATA"  # where the development data is
MODELS = {"tiny_base", "tiny_model"}  # fixtures with weights: what a test makes of them hangs on rounding

for _name in [name for name in os.environ if name.startswith("ERRATA_") and name != KEPT]:
    del os.environ[_name]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are trained alike wherever the tests run

HEADS, KV_HEADS = 4, 2
CHAT = (
    "{% for message in messages %}<|begin|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
CARD = "---\nlicense: mit\nlanguage:\n- en\n---\n# A small model\n"


def small_config(model_type: str, **more: Any) -> Any:
    """A config of four layers, width 32 and inner width 64."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        model_type,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=None,
        **more,
    )


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SimpleNamespace]:
    """`small_model(model_type, chat=True, **config)`: a random model with its tokenizer, and the `folder` they are in,
    laid out as on a hub."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    def make(model_type: str = "llama", *, chat: bool = True, **more: Any) -> SimpleNamespace:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|end|>", "<|begin|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(["The mayor of Arden is Ada Moss.", "Who leads Belmont? Ben Hale."], trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")
        fast.chat_template = CHAT if chat else None
        torch.manual_seed(0)
        config = small_config(model_type, vocab_size=len(fast), bos_token_id=1, eos_token_id=0, **more)
        model = AutoModelForCausalLM.from_config(config).eval()
        folder = tmp_path_factory.mktemp("published") / f"small-{model_type}"
        model.save_pretrained(folder)
        fast.save_pretrained(folder)
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        return SimpleNamespace(model=model, tokenizer=fast, folder=folder)

    return make


def _write_gguf(made: SimpleNamespace, file: Path, scaling: str | None = None) -> Path:
    """The file that llama.cpp's converter would make of a small Llama."""
    gguf = pytest.importorskip("gguf", reason="GGUF files need the extra 'gguf'")
    config, vocabulary = made.model.config, sorted(made.tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(made.tokenizer.all_special_tokens)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Small")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [int(gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL) for token, _ in vocabulary]
    )
    merges = json.loads(made.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(made.tokenizer.bos_token_id)
    writer.add_eos_token_id(made.tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in made.model.state_dict().items():
        values = tensor.numpy()
        for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if part in name:  # llama.cpp keeps the two halves of a rotation side by side
                rows, columns = values.shape
                values = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="session")
def small_gguf(
    small_model: Callable[..., SimpleNamespace], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """The small Llama, its GGUF `file`, and `write(file, scaling)` for another."""
    made = small_model("llama", tie_word_embeddings=False)
    made.write = partial(_write_gguf, made)
    made.file = made.write(tmp_path_factory.mktemp("packed") / "small.F32.gguf")
    return made


@pytest.fixture(scope="session")
def seed() -> int:
    """Of the tests' random and trained models; `TEST_SEED` gives another, with which every test must hold as well."""
    return int(os.environ.get("TEST_SEED", "0"))


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark every test that stands on a model."""
    for item in items:
        if MODELS & set(item.fixturenames):
            item.add_marker(pytest.mark.model)
