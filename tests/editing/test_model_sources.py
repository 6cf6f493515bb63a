import time

import pytest
import torch

from editing.errors import ModelError
from editing.models import load_base_model
from editing.models.sources import find_source, looks_like_path


def test_a_gguf_file_computes_what_the_folder_computes(small_gguf, tmp_path):
    from_file, from_folder = load_base_model(str(small_gguf.file)), load_base_model(str(small_gguf.folder))
    ids = torch.arange(2, 30)[None]
    torch.testing.assert_close(from_file.model(ids).logits, from_folder.model(ids).logits)
    text = "Who leads Arden? 1580<|end|>"
    assert from_file.tokenizer(text)["input_ids"] == from_folder.tokenizer(text)["input_ids"]
    from_file.model.save_pretrained(tmp_path)
    from_file.tokenizer.save_pretrained(tmp_path)
    saved = load_base_model(str(tmp_path))
    assert (saved.fingerprint, saved.tokenizer_hash) == (from_file.fingerprint, from_file.tokenizer_hash)
