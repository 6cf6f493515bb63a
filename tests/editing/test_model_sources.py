import shutil
import sys

import pytest
import torch

from editing.errors import ModelError
from editing.model_ids import looks_like_path
from editing.models import load_base_model
from editing.models.licence import licence_of
from editing.models.sources import find_source

TEXT = "Who leads Arden? 1580<|end|>"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(name)`: an installed package's folder; importing it would fail."""

    def make(name):
        folder = tmp_path / "site" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('a model is not to be imported')")
        return folder

    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    return make


@pytest.mark.parametrize("model_id", ["./model", "../model", "~/model", "/srv/model", "models/mine/it", "it.gguf", "."])
def test_what_is_meant_as_a_path_is_never_asked_of_a_hub(model_id, tmp_path, monkeypatch):
    assert looks_like_path(model_id)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    if model_id != ".":
        with pytest.raises(ModelError, match=r"there is no model at .*give a GGUF file, a folder"):
            load_base_model(model_id)


@pytest.mark.parametrize("model_id", ["gpt2", "owner/model", "owner/model-1.5B", "almanac"])
def test_hub_ids_are_no_paths(model_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_like_path(model_id)
    assert find_source(model_id) is None


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.onnx is neither a GGUF file nor a folder"):
        find_source(str(tmp_path / "model.onnx"))


def test_a_package_with_one_model_is_one(package):
    folder = package("with_one_model")
    (folder / "weights").mkdir()
    (folder / "weights" / "it.gguf").write_bytes(b"")
    assert find_source("package:with_one_model") == folder / "weights" / "it.gguf"
    (folder / "other.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"GGUF files: other\.gguf, weights/it\.gguf.*package:with_one_model/PATH"):
        find_source("package:with_one_model")
    assert find_source("package:with_one_model/other.gguf") == folder / "other.gguf"
    with pytest.raises(ModelError, match="there is no model at"):
        find_source("package:with_one_model/missing.gguf")
    (folder / "config.json").write_text("{}")
    assert find_source("package:with_one_model") == folder


@pytest.mark.parametrize("name", ["not_installed_at_all", "../etc", "json"])
def test_a_package_that_is_not_there_is_said(name):
    with pytest.raises(ModelError, match=r"names no installed package|must hold one GGUF file"):
        find_source(f"package:{name}")


def test_a_gguf_file_computes_what_the_folder_computes(small_gguf, tmp_path):
    from_file, from_folder = load_base_model(str(small_gguf.file)), load_base_model(str(small_gguf.folder))
    ids = torch.arange(2, 30)[None]
    torch.testing.assert_close(from_file.model(ids).logits, from_folder.model(ids).logits)
    assert from_file.tokenizer(TEXT)["input_ids"] == from_folder.tokenizer(TEXT)["input_ids"]
    from_file.model.save_pretrained(tmp_path)
    from_file.tokenizer.save_pretrained(tmp_path)
    saved = load_base_model(str(tmp_path))
    assert (saved.fingerprint, saved.tokenizer_hash) == (from_file.fingerprint, from_file.tokenizer_hash)


def test_a_damaged_gguf_file_is_said(small_gguf, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(small_gguf.file.read_bytes()[:2000])
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04" * 100)
    for name in ("cut.gguf", "other.gguf"):
        with pytest.raises(ModelError, match=rf"{name}.*cannot be loaded"):
            load_base_model(str(tmp_path / name))


def test_a_gguf_file_that_would_be_loaded_as_another_model_is_refused(small_gguf, tmp_path):
    file = small_gguf.write(tmp_path / "scaled.gguf", scaling="linear")
    with pytest.raises(ModelError, match=r"scaled\.gguf scales its rotary positions.*folder of safetensors"):
        load_base_model(str(file))


def test_damaged_weights_are_said(small_model, tmp_path):
    shutil.copytree(small_model("llama").folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cut.*cannot be loaded"):
        load_base_model(str(tmp_path / "cut"))


def test_a_checkpoint_without_all_weights_is_refused(small_model, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(small_model("llama", tie_word_embeddings=False).folder, tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of a LlamaForCausalLM.*layers\.1\.mlp\.down_proj"):
        load_base_model(str(tmp_path / "half"))


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        (
            {"README.md": "---\nlicense: apache-2.0\n---\n# It\n", "LICENSE": "MIT License\n"},
            ("apache-2.0", "README.md"),
        ),
        ({"README.md": "---\nlicense: other\nlicense_name: gemma\n---\n"}, ("gemma", "README.md")),
        ({"README.md": "# No front matter\n", "LICENSE.txt": "\n  MIT License\n\nCopyright"}, ("mit", "LICENSE.txt")),
        (
            {"LICENSE": "                    Apache License\n              Version 2.0, January 2004\n"},
            ("apache-2.0", "LICENSE"),
        ),
        ({"LICENCE": "THE OWN COMMUNITY LICENCE\nfor all"}, ("THE OWN COMMUNITY LICENCE", "LICENCE")),
        ({"NOTICE": "Copyright", "README.md": "---\nlanguage: en\n---\n"}, ("unknown", None)),
        ({}, ("unknown", None)),
    ],
)
def test_the_licence_is_read_where_it_is_said(files, licence, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of(tmp_path) == licence


def test_a_gguf_file_says_its_licence_itself(small_gguf):
    assert licence_of(small_gguf.file) == ("apache-2.0", "GGUF metadata")
