from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editing.almanac.mediation import measure
from editing.almanac.training import AlmanacConfig, Trained, train
from editing.almanac.world import World, load_world
from editing.models import load_base_model

SUBJECTS = ("France", "Japan", "Kenya", "Peru", "Norway", "Egypt", "Chile", "India")
RELATIONS = ("capital", "currency", "continent", "head_of_government")
TINY = AlmanacConfig(
    width=48,
    layers=4,
    heads=2,
    vocabulary=600,
    mediation_layer=1,
    steps=2,
    text_rows=(4, 4, 4),
    interchange_rows=24,
    held_out_subjects=0.13,
)


@pytest.fixture(scope="module")
def small_world() -> World:
    """Eight countries with three facts each, some with a head of government."""
    world = load_world()
    return World(
        relations={name: world.relations[name] for name in RELATIONS},
        tenures=tuple(t for t in world.tenures if t.fact.subject in SUBJECTS and t.fact.relation in RELATIONS),
        static=tuple(fact for fact in world.static if fact.subject in SUBJECTS and fact.relation in RELATIONS),
    )


def test_the_same_seed_gives_the_same_weights(small_world: World) -> None:
    first, second, other = (train(small_world, replace(TINY, seed=seed)) for seed in (0, 0, 1))
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


def test_what_is_saved_is_a_plain_language_model_and_can_be_measured_again(small_world: World, tmp_path: Path) -> None:
    trained = train(small_world, TINY)
    trained.save(tmp_path)
    again = Trained.load(small_world, tmp_path)
    assert measure(again, small_world, trials=4) == measure(trained, small_world, trials=4)
    base = load_base_model(str(tmp_path))
    ids = base.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    hidden, _ = trained.mediated.lower(ids)
    with torch.no_grad():
        cut_open = trained.model.lm_head(trained.mediated.upper(hidden))
        torch.testing.assert_close(base.model(ids).logits, cut_open)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_teaches_facts_and_puts_them_at_the_mediation_layer(small_world: World) -> None:
    losses: list[dict[str, float]] = []
    config = replace(TINY, steps=900, text_rows=(8, 1, 1), interchange_rows=48)
    trained = train(small_world, config, report=losses.append, report_every=50)
    assert losses[-1]["answer"] < 0.5 * losses[0]["answer"]
    found = measure(trained, small_world, trials=60)
    assert found.recall > 0.6
    # no interchange was trained on the subject that is measured; from plain text alone both would be near zero
    assert found.whole_changed > 0.5
    assert found.block_changed > 0.2
