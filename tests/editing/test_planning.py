import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPTJConfig, LlamaConfig

from editing import statistics
from editing.errors import ConfigError
from editing.models.costs import PASS_TOKENS, ModelShape
from editing.models.shapes import NAMED_SHAPES
from editing.planning import Rates, Workload, measure_rates, plan, plan_costs

SMOLLM2 = Path(os.environ.get("ERRATA_DATA", ".")) / "smollm2"  # a folder with the model in float32
RATES = Rates(wide=1e11, narrow=5e10, products=1e11, exact=5e10, stream=1e10, elements=1e9)

CONFIGS = {
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "gpt-j-6b": GPTJConfig(),
    "llama-2-7b": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    ),
    "llama-3-8b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
}


@pytest.mark.parametrize("name", NAMED_SHAPES)
def test_named_shapes_are_those_of_the_models(name):
    told, counted = NAMED_SHAPES[name], ModelShape.of_config(CONFIGS[name])
    assert (told.layers, told.width, told.inner, told.vocabulary) == (
        counted.layers,
        counted.width,
        counted.inner,
        counted.vocabulary,
    )
    assert (told.kv_width, told.parameters, told.tied) == (counted.kv_width, counted.parameters, counted.tied)


def test_the_passes_that_memory_is_told_of_are_those_of_the_statistics():
    assert PASS_TOKENS == statistics.TOKENS_PER_PASS


def test_more_work_costs_more_and_a_larger_model_as_well():
    small = plan_costs(NAMED_SHAPES["smollm2-135m"], RATES, Workload(facts=100))
    more = plan_costs(NAMED_SHAPES["smollm2-135m"], RATES, Workload(facts=200, statistics_tokens=200_000))
    assert more["editing"].seconds == pytest.approx(2 * small["editing"].seconds, rel=0.01)
    assert more["statistics"].seconds == pytest.approx(2 * small["statistics"].seconds)
    assert more["editing"].memory == small["editing"].memory  # batches are as large as before
    assert more["editing"].disk > small["editing"].disk
    large = plan_costs(NAMED_SHAPES["llama-3-8b"], RATES, Workload(facts=100))
    for work, cost in small.items():
        assert large[work].memory > 5 * cost.memory, work
        assert large[work].seconds > 5 * cost.seconds, work
    halved = plan_costs(NAMED_SHAPES["llama-3-8b"], RATES, Workload(facts=100), dtype="bfloat16")
    assert large["serving"].memory - halved["serving"].memory > NAMED_SHAPES["llama-3-8b"].parameters * 2


def test_recipe_needs_no_statistics_and_the_unknown_is_named():
    costs = plan_costs(NAMED_SHAPES["gpt2-xl"], RATES, Workload(facts=1000), method="recipe")
    assert set(costs) == {"editing", "evals", "serving"}
    assert costs["editing"].disk >= 1000 * 4 * 3 * 1600
    with pytest.raises(ConfigError, match="'rome'"):
        plan_costs(NAMED_SHAPES["gpt2-xl"], RATES, Workload(facts=1), method="rome")
    with pytest.raises(ConfigError, match="'int8'"):
        measure_rates(NAMED_SHAPES["gpt2-xl"], "int8")


def test_a_plan_measures_this_machine_and_is_plain_json(tiny_base):
    found = plan(ModelShape.of_config(tiny_base("llama").model.config), Workload(facts=3))
    assert json.loads(json.dumps(found)) == found
    assert min(found["rates"].values()) > 0
    assert found["memory"] == max(cost["memory"] for cost in found["costs"].values())


MEASURED = """
import json, resource, sys, time
from editing.bench.coachhook_speed import example_facts
from editing.editors import get_editor
from editing.facts import EditBatch
from editing.models import load_base_model
from editing.models.costs import ModelShape
from editing.planning import Workload, measure_rates, plan_costs
from editing.statistics import compute_second_moments

folder, work = sys.argv[1:]
base = load_base_model(folder)
words = " ".join(f"{fact.question} {fact.target}." for fact in example_facts(400)).split()
texts = [" ".join(words[at : at + 150]) for at in range(0, len(words) - 150, 40)]
tokens = 8192 if work == "statistics" else 500
rates = measure_rates(ModelShape.of_config(base.model.config), "float32", time.process_time)
if work == "editing":
    statistics = compute_second_moments(base, texts, [5, 6, 7], max_tokens=tokens)
    config = {"layers": [5, 6, 7], "max_steps": 3, "stop_loss": 0.0, "moment_weight": 1000.0, "moment_ridge": 0.01}
    state = get_editor("coachhook").start(base, config, statistics)
began = time.process_time()
if work == "statistics":
    compute_second_moments(base, texts, [5, 6, 7], max_tokens=tokens)
elif work == "editing":
    get_editor("coachhook").apply(base, state, EditBatch(tuple(example_facts(20))))
else:
    prompt = base.tokenizer("The capital of France is the city of", return_tensors="pt")
    base.model.generate(**prompt, max_new_tokens=32, min_new_tokens=32, do_sample=False)
spent = time.process_time() - began
load = Workload(facts=20, top=7, statistics_tokens=tokens, steps=4, prompt_tokens=24, answer_tokens=32)
cost = plan_costs(ModelShape.of_config(base.model.config), rates, load)[work]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"memory": [cost.memory, peak], "seconds": [cost.seconds, spent]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="no folder smollm2 with the model in float32 under ERRATA_DATA")
@pytest.mark.parametrize("work", ["statistics", "editing", "serving"])
def test_a_plan_is_within_a_quarter_of_what_is_measured(work):
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(SMOLLM2), work],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(run.stdout.splitlines()[-1])
    for what, (planned, measured) in found.items():
        assert planned == pytest.approx(measured, rel=0.25), (what, found)
