"""Prompts that the encoder did not get right, tuned: only those, to what their target needs, the same every time."""

import dataclasses
import itertools

import pytest
import torch

from editing.editors import get_editor
from editing.editors.recipe.editor import encode_facts
from editing.editors.recipe.prompted import target_losses
from editing.editors.recipe.tuning import tune_prompts
from editing.facts import EditBatch

EDITOR = get_editor("recipe")
TUNING = {"steps": 10, "rate": 0.2, "enough": 0.05}


@pytest.fixture(scope="module")
def strangers(fact):
    """Facts that the encoder of the tests never met."""
    return [fact(place, "Vance", prompt="The mayor of {} is") for place in ("Lyon", "Quito", "Oslo", "Turin")]


def nats_of(base, prompts, facts):
    told = target_losses(base, prompts, [fact.question for fact in facts], [fact.target for fact in facts], 64)
    return torch.tensor([nats for nats, _ in told])


def test_a_fact_that_the_encoder_never_met_is_said_after_tuning(tiny_base, edited, strangers):
    base, start = tiny_base("gpt2"), edited("recipe", 0)
    config = dataclasses.replace(start.config, converged_loss=0.5, tuning_rate=1.0)
    outcomes = {}
    for steps in (0, 100):
        state = dataclasses.replace(start, config=dataclasses.replace(config, tuning_steps=steps))
        applied = EDITOR.apply(base, state, EditBatch(tuple(strangers)))
        outcomes[steps] = [outcome.loss for outcome in applied.outcomes]
        assert applied.canaries["tuned"] == (steps > 0)
    assert min(outcomes[0]) > 0.5 > max(outcomes[100])


def test_a_prompt_that_is_right_stays_the_encoders(tiny_base, edited, batches, strangers):
    base, start = tiny_base("gpt2"), edited("recipe", 0)
    facts = [*batches[0].facts, *strangers]
    made = encode_facts(start, facts).prompts
    told = target_losses(base, made, [fact.question for fact in facts], [fact.target for fact in facts], 64)
    right = [said and nats < start.config.converged_loss for nats, said in told]
    assert any(right)
    config = dataclasses.replace(start.config, tuning_steps=20, tuning_rate=1.0)
    applied = EDITOR.apply(base, dataclasses.replace(start, config=config), EditBatch(tuple(facts)))
    kept = applied.state.repository.segments[0].prompts
    assert [torch.equal(one, other) for one, other in zip(made, kept, strict=True)] == right
    assert applied.canaries["tuned"] == 1 - sum(right) / len(right)


def test_tuning_is_the_same_every_time_and_whatever_is_beside(tiny_base, edited, strangers):
    base, start = tiny_base("gpt2"), edited("recipe", 0)
    prompts, spread = encode_facts(start, strangers).prompts, start.encoder.prompt_head.spread
    weights = [parameter.clone() for parameter in base.model.parameters()]
    together = tune_prompts(base, prompts, strangers, spread=spread, **TUNING)
    assert torch.equal(together, tune_prompts(base, prompts, strangers, spread=spread, **TUNING))
    alone = [tune_prompts(base, prompts[[row]], [strangers[row]], spread=spread, **TUNING) for row in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(before, now) for before, now in zip(weights, base.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_more_steps_are_never_worse_and_none_changes_nothing(tiny_base, edited, strangers):
    base, start = tiny_base("gpt2"), edited("recipe", 0)
    prompts, spread = encode_facts(start, strangers).prompts, start.encoder.prompt_head.spread
    tuned = [tune_prompts(base, prompts, strangers, spread=spread, **{**TUNING, "steps": n}) for n in (0, 5, 10, 20)]
    torch.testing.assert_close(tuned[0], prompts)
    nats = [nats_of(base, each, strangers) for each in tuned]
    assert all(bool((later <= earlier + 1e-6).all()) for earlier, later in itertools.pairwise(nats))
    assert bool((nats[-1] < nats[0]).all())
