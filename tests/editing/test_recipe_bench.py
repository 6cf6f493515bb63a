from datetime import date
from pathlib import Path

import pytest
import torch

from editing.almanac.filler import filling_facts, filling_stream
from editing.almanac.world import load_world
from editing.bench.prompt_space import prompt_space
from editing.bench.recipe import Crowd, bench_lifelong, bench_recipe, best_threshold, gated_configs
from editing.bench.recipe_speed import measure_adding, measure_recipe_speed
from editing.bench.replay import History
from editing.editors.recipe import EncoderConfig, MetaEdit, RecipeConfig, RecipeEncoder
from editing.errors import ConfigError

WORLD = load_world()
METRICS = {"reliability", "generality", "locality"}


class Validation:
    """A source that is only asked for its validation."""

    def __init__(self, facts):
        self.edits = [
            MetaEdit(
                statement_prompt=fact.question,
                target=fact.target,
                queries=(fact.question, *fact.paraphrases),
                locality=(f"{fact.subject} is a",),
            )
            for fact in facts
        ]

    def validation(self):
        return self.edits

    def draw(self, rng, n):
        raise NotImplementedError


@pytest.fixture(scope="module")
def base(tiny_base):
    return tiny_base("gpt_neox")


@pytest.fixture(scope="module")
def config(base, tmp_path_factory):
    """An encoder that was never trained: enough for what the benches do, not for how well."""
    folder = tmp_path_factory.mktemp("encoder")
    shape = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 128}
    RecipeEncoder.create(base, EncoderConfig(backbone_config=shape, width=32)).freeze().save(folder)
    return RecipeConfig(encoder=str(folder), exact_rows=1_500)


def test_replay_has_the_keys_of_coachhooks(base, config):
    facts = filling_facts(WORLD, 6)
    unedited = [("Nowhere", "The capital of Nowhere is", "none")]
    history = History(nights={date(2018, 1, 31): facts[:3], date(2018, 2, 28): facts[3:]}, unedited=unedited)
    configs = gated_configs(base, config, Validation(facts))
    found = bench_recipe(base, history, (), configs, batch_size=2)
    assert set(found["by_variant"]) == {"sentinel", "no_sentinel", "fixed_threshold"}
    assert set(found["generated"]) == set(found["teacher_forced"]) == METRICS
    assert found["generated"] == found["by_variant"]["sentinel"]["generated"]
    assert found["sizes"] == {"reliability": 6, "generality": 42, "locality": 1}
    assert found["config"]["gate"] == "sentinel"
    # Without a gate something is always retrieved, for what must stay as well.
    assert found["by_variant"]["no_sentinel"]["state"]["gate"] == "none"


def test_lifelong_counts(base, config):
    facts = filling_facts(WORLD, 40)
    history = History(nights={date(2018, 1, 31): facts}, unedited=[("X", "The capital of X is", "none")])
    configs = gated_configs(base, config, Validation(facts[:10]))
    rows = bench_lifelong(base, Crowd(facts=facts, kept=history.kept()), configs, counts=(1, 10, 100))
    assert [(row["variant"], row["edits"]) for row in rows] == [
        (name, count) for count in (1, 10) for name in ("sentinel", "no_sentinel", "fixed_threshold")
    ]
    assert all(set(row["generated"]) == METRICS for row in rows)


def test_the_fixed_threshold_parts_right_from_wrong():
    class Encoder:
        """Scores set by hand: own knowledge 3 and 2, locality prompts 1 and 2.5."""

        def knowledge(self, texts):
            return torch.eye(2)

        def query(self, texts):
            return torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.5]])[: len(texts)]

        def scores(self, queries, knowledge):
            return queries @ knowledge.T

    edits = [
        MetaEdit(statement_prompt=name, target="x", queries=(name,), locality=(f"not {name}",)) for name in ("a", "b")
    ]

    class Source:
        def validation(self):
            return edits

    assert best_threshold(Encoder(), Source()) == 2.0


def test_speed_on_a_small_repository(base, config):
    small = {"sizes": (2_000, 4_000), "added": 80, "crowd": 200, "trials": 1, "shapes": False}
    found = measure_recipe_speed(base, config, filling_stream(WORLD), layers=(1,), **small)
    assert set(found["adding"]) == {"encoded", "applied", "saved"}
    assert all(way["speedup"] > 1 for way in found["adding"].values())
    assert found["add_speedup"] == found["adding"]["encoded"]["speedup"]
    assert [row["rows"] for row in found["retrieval"]] == [2_000, 4_000]
    assert found["retrieval_ms_2k"] > 0
    assert 0 <= found["recall"] <= 1
    assert set(found["inference"][base.model_id]) >= {"base_seconds", "coachhook_seconds", "recipe_seconds"}
    assert found["opening"]["bytes"] > 4_000 * 32 * 4
    assert found["append_bytes"] < found["opening"]["bytes"] / 20
    assert found["open_s_4k"] > 0
    assert found["append_ms"] > 0


def test_too_few_facts_to_time():
    with pytest.raises(ConfigError, match="too few"):
        measure_adding(None, None, filling_facts(WORLD, 10))


def test_prompt_tokens_among_words(base, config):
    encoder = RecipeEncoder.load(Path(config.encoder), base)
    space = prompt_space(base, encoder, ["The capital of Chad is Oslo", "a b"], words=50)
    assert space.words_N2.shape == (50, 2)
    assert space.prompts_NP2.shape == (2, 3, 2)
    assert 0 < space.explained[1] <= space.explained[0] <= 1
    assert space.norm_ratio > 0
