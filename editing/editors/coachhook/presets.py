"""Which layers to edit where nobody has said: those of the papers, else by relative depth."""

from __future__ import annotations

# By `config.model_type` and number of blocks. GPT-2 XL and GPT-J: CoachHooK (arXiv 2403.05330); Llama of 32 blocks: the
# layers that published settings of MEMIT name for it.
PUBLISHED: dict[tuple[str, int], tuple[int, ...]] = {
    ("gpt2", 48): (13, 14, 15, 16, 17),
    ("gptj", 28): (3, 4, 5, 6, 7, 8),
    ("llama", 32): (4, 5, 6, 7, 8),
}
DEPTH = 0.25  # where the first edited layer lies, measured on SmolLM2-135M: docs/real-model.md
EDITED = 3


def preset_layers(model_type: str, blocks: int) -> tuple[int, ...]:
    """Ascending layers to edit in a model of this architecture with so many blocks, at least one and never the last."""
    if found := PUBLISHED.get((model_type, blocks)):
        return found
    first = min(int(DEPTH * blocks), max(0, blocks - 2))
    return tuple(range(first, max(first + 1, min(first + EDITED, blocks - 1))))
