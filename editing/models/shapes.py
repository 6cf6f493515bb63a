"""Shapes of well-known models, so that a plan needs no download."""

from __future__ import annotations

from editing.models.costs import ModelShape

NAMED_SHAPES: dict[str, ModelShape] = {
    "smollm2-135m": ModelShape(
        layers=30,
        width=576,
        inner=1536,
        vocabulary=49_152,
        heads=9,
        kv_heads=3,
        parameters=134_515_008,
        tied=True,
    ),
    "gpt2-xl": ModelShape(
        layers=48,
        width=1600,
        inner=6400,
        vocabulary=50_257,
        heads=25,
        kv_heads=25,
        parameters=1_557_611_200,
        tied=True,
    ),
    "gpt-j-6b": ModelShape(
        layers=28,
        width=4096,
        inner=16_384,
        vocabulary=50_400,
        heads=16,
        kv_heads=16,
        parameters=6_050_882_784,
        tied=False,
    ),
    "llama-2-7b": ModelShape(
        layers=32,
        width=4096,
        inner=11_008,
        vocabulary=32_000,
        heads=32,
        kv_heads=32,
        parameters=6_738_415_616,
        tied=False,
    ),
    "llama-3-8b": ModelShape(
        layers=32,
        width=4096,
        inner=14_336,
        vocabulary=128_256,
        heads=32,
        kv_heads=8,
        parameters=8_030_261_248,
        tied=False,
    ),
}
