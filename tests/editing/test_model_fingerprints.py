import json
import os
import shutil
import time

import pytest
import torch

from editing.models import fingerprint, load_base_model
from editing.storage import tensors_digest

SPLIT = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
SPLIT |= {"model.layers.3": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}


@pytest.fixture
def folder(small_model, tmp_path):
    """A model's folder whose files were written an hour ago."""
    target = tmp_path / "model"
    shutil.copytree(small_model("llama", tie_word_embeddings=False).folder, target)
    for path in target.iterdir():
        written(path, -3600)
    return target


@pytest.fixture
def hashed(monkeypatch):
    """One entry for each time that all weights were hashed."""
    times = []

    def count(tensors):
        times.append(len(tensors))
        return tensors_digest(tensors)

    for module in (fingerprint, load_base_model.__globals__):
        place = module if isinstance(module, dict) else module.__dict__
        monkeypatch.setitem(place, "tensors_digest", count)
    return times


def written(path, seconds):
    """Make `path` look as if it was written `seconds` from now."""
    at = time.time() + seconds
    os.utime(path, (at, at))


def test_unchanged_files_are_hashed_once(folder, hashed, tmp_path):
    plain = load_base_model(str(folder)).fingerprint
    assert len(hashed) == 1
    for _ in range(3):
        assert load_base_model(str(folder), fingerprints=tmp_path / "seen").fingerprint == plain
    assert len(hashed) == 2
    other = load_base_model(str(folder), dtype="bfloat16", fingerprints=tmp_path / "seen").fingerprint
    assert len(hashed) == 3
    assert other != plain


def test_a_changed_byte_is_seen_when_the_size_stays(folder, hashed, tmp_path):
    before = load_base_model(str(folder), fingerprints=tmp_path / "seen").fingerprint
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    written(weights, -1800)
    after = load_base_model(str(folder), fingerprints=tmp_path / "seen").fingerprint
    assert after != before
    assert after == load_base_model(str(folder)).fingerprint


def test_a_changed_byte_is_seen_when_the_time_of_writing_is_set_back(folder, tmp_path):
    weights = folder / "model.safetensors"
    before, seen = load_base_model(str(folder), fingerprints=tmp_path / "seen").fingerprint, weights.stat()
    with weights.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    os.utime(weights, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert load_base_model(str(folder), fingerprints=tmp_path / "seen").fingerprint != before


def test_a_changed_config_is_seen(folder, tmp_path):
    before = load_base_model(str(folder), fingerprints=tmp_path / "seen").fingerprint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    after = load_base_model(str(folder), fingerprints=tmp_path / "seen").fingerprint
    assert after not in (before, None)
    assert after == load_base_model(str(folder)).fingerprint


def test_files_written_a_moment_ago_are_hashed_again(folder, hashed, tmp_path):
    written(folder / "model.safetensors", 0)
    for _ in range(2):
        load_base_model(str(folder), fingerprints=tmp_path / "seen")
    assert len(hashed) == 2


def test_a_damaged_memory_is_made_again(folder, hashed, tmp_path):
    before = load_base_model(str(folder), fingerprints=tmp_path / "seen").fingerprint
    (kept,) = (tmp_path / "seen").iterdir()
    for damage in ("", "[1]", '{"weights": "0"}'):
        kept.write_text(damage)
        assert load_base_model(str(folder), fingerprints=tmp_path / "seen").fingerprint == before
    assert len(hashed) == 4


def test_a_gguf_file_is_remembered_too(small_gguf, hashed, tmp_path):
    file = tmp_path / "small.gguf"
    shutil.copyfile(small_gguf.file, file)
    written(file, -3600)
    first, second = (load_base_model(str(file), fingerprints=tmp_path / "seen").fingerprint for _ in range(2))
    assert first == second
    assert len(hashed) == 1


@pytest.mark.parametrize("tied", [False, True])
def test_offloaded_weights_have_the_same_identity(small_model, tied, tmp_path):
    pytest.importorskip("accelerate", reason="weights are placed by accelerate")
    folder = str(small_model("llama", tie_word_embeddings=tied).folder)
    whole = load_base_model(folder)
    for device_map in (SPLIT, {"": "disk"}):
        spread = load_base_model(folder, device_map=device_map, fingerprints=tmp_path / "seen")
        assert spread.model.get_parameter("model.layers.3.mlp.down_proj.weight").device.type == "meta"
        assert spread.fingerprint == whole.fingerprint
        assert torch.equal(spread.down_weight(3), whole.down_weight(3))
        assert spread.device == torch.device("cpu")
        ids = torch.arange(2, 12)[None]
        torch.testing.assert_close(spread.model(ids.to(spread.device)).logits, whole.model(ids).logits)
