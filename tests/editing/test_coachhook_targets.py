import dataclasses
import itertools

import pytest
import torch

from editing.bench.published import optimise_alone
from editing.editors.coachhook import CoachHookConfig, targets
from editing.editors.coachhook.prompts import KEPT_TOKENS, Row, make_groups
from editing.editors.coachhook.scope import Hooks
from editing.editors.coachhook.targets import optimise_targets, plan
from editing.facts import LocalityPrompt
from editing.models import ARCHITECTURES

CONFIG = CoachHookConfig(layers=(1, 2), max_steps=12, learning_rate=0.2, clamp=3.0, stop_loss=0.02)


@pytest.fixture
def facts(fact):
    return [
        fact("Arden", "Cleo Vance", locality=(LocalityPrompt(prompt="Arden trades with", answer="Corvia"),)),
        fact("Arden", "Ada Moss", "mother", "In a house, the mother of old {} was"),
        fact("Belmont", "Dov Stern"),
        fact("Dunmore", "Ben Hale", prompt="{} elected"),
        fact("Corvia and Eastvale", "Ada"),
    ]


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_batched_deltas_are_those_of_full_passes_one_at_a_time(tiny_base, facts, model_type):
    base = tiny_base(model_type)
    groups = make_groups(base, facts, [], CONFIG)
    together = optimise_targets(base, Hooks(base, {}, CONFIG), groups, CONFIG)
    for group, mine in zip(groups, together, strict=True):
        alone = optimise_alone(base, group, CONFIG)
        assert mine.losses == pytest.approx(alone.losses, abs=2e-3)
        torch.testing.assert_close(mine.delta, alone.delta, atol=2e-3, rtol=2e-2)


def test_subjects_that_are_done_leave_and_the_others_do_not_notice(tiny_base, facts):
    base = tiny_base("llama")
    config = dataclasses.replace(CONFIG, max_steps=40, stop_loss=0.0)
    groups = make_groups(base, facts, [], config)
    hooks = Hooks(base, {}, config)
    # The stop lies where the losses that random weights reach are furthest apart, so that some are done and some not.
    reached = sorted(max(result.losses) for result in optimise_targets(base, hooks, groups, config))
    below, above = max(itertools.pairwise(reached), key=lambda pair: pair[1] - pair[0])
    config = dataclasses.replace(config, stop_loss=(below + above) / 2)
    together = optimise_targets(base, hooks, groups, config)
    assert {result.converged for result in together} == {True, False}
    for group, mine in zip(groups, together, strict=True):
        torch.testing.assert_close(mine.delta, optimise_alone(base, group, config).delta, atol=2e-3, rtol=2e-2)


def test_memory_is_planned_told_and_halved_when_it_runs_out(tiny_base, facts, monkeypatch):
    base = tiny_base("gpt2")
    groups = make_groups(base, facts, [], CONFIG)
    whole = optimise_targets(base, Hooks(base, {}, CONFIG), groups, CONFIG)
    batches, largest = plan(base, groups, 2, limit=1)
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3]
    assert len(batches) == 4
    assert largest > 1
    real, sizes = targets._optimise, []

    def scarce(base, hooks, groups, config):
        sizes.append(len(groups))
        if len(groups) > 1:
            raise torch.OutOfMemoryError("scarce")
        return real(base, hooks, groups, config)

    monkeypatch.setattr(targets, "_optimise", scarce)
    told = []
    halved = optimise_targets(base, Hooks(base, {}, CONFIG), groups, CONFIG, lambda *at: told.append(at))
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    assert told[0][0].startswith("targets (about ")
    assert told[-1][1:] == (4, 4)
    for mine, other in zip(whole, halved, strict=True):
        torch.testing.assert_close(mine.delta, other.delta, atol=2e-3, rtol=2e-2)


def test_facts_of_one_subject_share_a_delta_and_superseded_ones_leave(tiny_base, fact):
    base = tiny_base("gpt2")
    old, other, far = fact("Arden", "Ada Moss"), fact("Arden", "Ben Hale", "mother"), fact("Belmont", "Ada Moss")
    new = fact("ARDEN", "Cleo Vance")
    (group,) = make_groups(base, [new], [old, other, far], CONFIG)
    assert group.facts == (new, other)


def test_a_locality_prompt_that_asks_what_changes_is_not_kept(tiny_base, fact):
    base = tiny_base("gpt2")
    kept = LocalityPrompt(prompt="Arden trades with", answer="Corvia")
    asked = LocalityPrompt(prompt="the mayor of  Arden is", answer="Ada Moss")
    elsewhere = LocalityPrompt(prompt="Belmont trades with", answer="Corvia")
    config = dataclasses.replace(CONFIG, kl_factor=0.0)
    (group,) = make_groups(base, [fact("Arden", "Ben Hale", locality=(kept, asked, elsewhere))], [], config)
    (row,) = [row for row in group.rows if row.fact < 0]
    ids = base.tokenizer("Arden trades with").input_ids
    said = base.model.generate(torch.tensor([ids]), max_new_tokens=KEPT_TOKENS, do_sample=False, pad_token_id=0)
    assert list(row.ids) == said[0].tolist()  # to the base's own answer, whatever the feed says
    assert row.asked == tuple(range(len(ids), len(row.ids)))


def test_a_locality_prompt_is_kept_for_each_subject_that_it_names_whichever_fact_it_came_with(tiny_base, fact):
    base = tiny_base("gpt2")
    trades = LocalityPrompt(prompt="Arden trades with", answer="Corvia")
    rules = LocalityPrompt(prompt="Who ruled Arden?", answer="Ada Moss")  # told of Belmont as steady, and it changes
    config = dataclasses.replace(CONFIG, kl_factor=0.0)
    tonight = [
        fact("Arden", "Ben Hale", target_old="Ada Moss"),
        fact("Belmont", "Cleo Vance", locality=(trades, rules)),
        fact("Corvia", "Eve Lark"),
    ]
    kept = [[row for row in group.rows if row.fact < 0] for group in make_groups(base, tonight, [], config)]
    assert [len(rows) for rows in kept] == [1, 0, 0]
    assert base.tokenizer.decode(kept[0][0].ids).startswith("Arden trades with")
    (later,) = make_groups(base, tonight[:1], tonight[1:], config)  # nor whether it came tonight
    assert later.rows == make_groups(base, tonight, [], config)[0].rows


@pytest.mark.parametrize(("stop_kept", "done"), [(100.0, True), (1e-9, False)])
def test_an_edit_ends_where_what_is_kept_of_its_subject_is_near_enough(tiny_base, fact, stop_kept, done):
    base = tiny_base("gpt2")
    config = dataclasses.replace(CONFIG, kl_factor=2.0, stop_loss=0.0, stop_kept=stop_kept, max_steps=3)
    groups = make_groups(base, [fact("Arden", "Ben Hale")], [], config)
    (row,) = [row for row in groups[0].rows if row.fact < 0]
    assert base.tokenizer.decode(row.ids).startswith("Arden is a")
    assert 1 <= len(row.asked) <= KEPT_TOKENS
    assert row.weight * len(row.asked) == pytest.approx(2.0)
    (found,) = optimise_targets(base, Hooks(base, {}, config), groups, config)
    config = dataclasses.replace(config, stop_loss=max(found.losses) + 1e-3)  # which the last step reaches
    (found,) = optimise_targets(base, Hooks(base, {}, config), groups, config)
    assert found.converged == optimise_alone(base, groups[0], config).converged == done


def test_a_state_of_the_time_before_stop_kept_keeps_its_digest():
    assert "stop_kept" not in CONFIG.to_state()
    assert dataclasses.replace(CONFIG, stop_kept=0.5).to_state()["stop_kept"] == 0.5


def test_rows_are_bucketed_where_padding_costs_more_than_a_pass():
    def row(columns):
        return Row(tuple(range(columns + 4)), 3, (columns + 3,), 0, 1.0)

    def lengths(rows):
        return [sorted({rows[index].columns for index in bucket}) for bucket in targets.length_buckets(rows)]

    assert lengths([row(5)]) == [[5]]
    assert lengths([row(2)] * 3 + [row(5)] * 3) == [[2, 5]]
    rows = [row(2)] * 100 + [row(5)] + [row(20)] * 100
    assert lengths(rows) == [[2], [5, 20]]
    assert sorted(index for bucket in targets.length_buckets(rows) for index in bucket) == list(range(201))
