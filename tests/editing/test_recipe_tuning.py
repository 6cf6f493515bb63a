"""Prompts that the encoder did not get right, tuned: only those, to what their target needs, the same every time."""

import dataclasses
import itertools

import pytest
import torch

from editing.editors import get_editor
from editing.editors.recipe.editor import encode_facts
from editing.editors.recipe.prompted import AskedRows, target_losses
from editing.editors.recipe.tuning import Tuning, tune_prompts
from editing.facts import EditBatch

EDITOR = get_editor("recipe")


def tuning(state, steps=10):
    return Tuning(steps=steps, rate=0.2, enough=0.05, spread=state.encoder.spread)


@pytest.fixture(scope="module")
def strangers(fact):
    """Facts that the encoder of the tests never met."""
    return [fact(place, "Vance", prompt="The mayor of {} is") for place in ("Lyon", "Quito", "Oslo", "Turin")]


def told_of(base, prompts, facts):
    return target_losses(base, prompts, [fact.question for fact in facts], [fact.target for fact in facts], 64)


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
    made = encode_facts(base, start, facts).prompts
    told = told_of(base, made, facts)
    right = [said and nats < start.config.converged_loss for nats, said in told]
    assert any(right)
    config = dataclasses.replace(start.config, tuning_steps=20, tuning_rate=1.0)
    applied = EDITOR.apply(base, dataclasses.replace(start, config=config), EditBatch(tuple(facts)))
    kept = applied.state.repository.segments[0].prompts
    assert [torch.equal(one, other) for one, other in zip(made, kept, strict=True)] == right
    assert applied.canaries["tuned"] == 1 - sum(right) / len(right)


def test_tuning_is_the_same_every_time_and_whatever_is_beside(tiny_base, edited, strangers):
    base, start = tiny_base("gpt2"), edited("recipe", 0)
    prompts = encode_facts(base, start, strangers).prompts
    weights = [parameter.clone() for parameter in base.model.parameters()]
    together = tune_prompts(base, prompts, strangers, tuning(start))
    assert torch.equal(together, tune_prompts(base, prompts, strangers, tuning(start)))
    alone = [tune_prompts(base, prompts[[row]], [strangers[row]], tuning(start)) for row in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(before, now) for before, now in zip(weights, base.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_more_steps_are_never_worse_and_none_changes_nothing(tiny_base, edited, strangers):
    base, start = tiny_base("gpt2"), edited("recipe", 0)
    prompts = encode_facts(base, start, strangers).prompts
    tuned = [tune_prompts(base, prompts, strangers, tuning(start, n)) for n in (0, 5, 10, 20)]
    torch.testing.assert_close(tuned[0], prompts)
    told = [told_of(base, each, strangers) for each in tuned]
    for earlier, later in itertools.pairwise(told):
        for (nats, said), (nats_then, said_then) in zip(earlier, later, strict=True):
            assert said_then > said or (said_then == said and nats_then <= nats + 1e-6)
    assert all(last < first for (first, _), (last, _) in zip(told[0], told[-1], strict=True))


def test_a_prompt_that_says_its_target_is_not_lost_for_one_with_a_lower_loss(tiny_base, edited, fact):
    base, start = tiny_base("gpt2"), edited("recipe", 0)
    width = base.model.get_input_embeddings().embedding_dim
    prompts = 0.5 * torch.randn(8000, 3, width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        next_token = AskedRows.ends(base, ["The mayor of Lyon is"] * len(prompts)).logits(base, prompts).argmax(-1)
    words = [base.tokenizer.decode(token) for token in next_token]
    kept = [row for row, word in enumerate(words) if word[0] == " " and word[1:].isalpha()]
    facts = [fact("Lyon", words[row].strip(), prompt="The mayor of {} is") for row in kept]
    assert len(facts) > 5
    assert all(said for _, said in told_of(base, prompts[kept], facts))
    for rate in (0.5, 5.0):
        one_step = dataclasses.replace(tuning(start, 1), rate=rate)
        assert all(said for _, said in told_of(base, tune_prompts(base, prompts[kept], facts, one_step), facts))


@pytest.mark.parametrize("method", ["recipe", "both"])
@pytest.mark.parametrize("steps", [0, 7])
def test_a_state_read_back_names_all_its_options(tiny_base, moments, config_of, tmp_path, method, steps):
    base, editor = tiny_base("gpt2"), get_editor(method)
    options = config_of(method)
    (options if method == "recipe" else options["recipe"])["tuning_steps"] = steps
    state = editor.start(base, options, moments("gpt2"))
    editor.save(state, tmp_path)
    read = editor.load(tmp_path, base, moments("gpt2"))
    told = read.config.to_dict()
    assert (read.digest, told) == (state.digest, state.config.to_dict())
    assert (told if method == "recipe" else told["recipe"])["tuning_steps"] == steps
