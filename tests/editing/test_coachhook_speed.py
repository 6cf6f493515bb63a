import dataclasses

import pytest

from editing.bench.coachhook_speed import CONTEXTS, example_config, example_facts, gpt2_small_shape, measure_speed
from editing.editors.coachhook import CoachHookConfig
from editing.errors import ConfigError


def test_both_ways_end_at_the_same_loss(tiny_base):
    config = CoachHookConfig(layers=(1, 2), contexts=CONTEXTS[:2], max_steps=3, stop_loss=0.0)
    result = measure_speed(tiny_base("gpt2"), example_facts(4), config, batch=4, alone=2)
    assert result["loss_difference"] < 0.02
    assert result["speedup"] > 1
    assert {"speedup", "floor_ratio", "inference_ratio"} <= set(result)
    assert example_config(tiny_base("gpt2")).layers == (0, 1)
    with pytest.raises(ConfigError, match="give more"):
        measure_speed(tiny_base("gpt2"), example_facts(4), config, batch=8, alone=2)


@pytest.mark.speed
def test_speed_on_gpt2_smalls_shape():
    base = gpt2_small_shape()
    result = measure_speed(base, config=dataclasses.replace(example_config(base), max_steps=10), alone=2)
    assert result["loss_difference"] < 0.02
    assert result["speedup"] >= 8
    assert result["inference_ratio"] <= 1.3
