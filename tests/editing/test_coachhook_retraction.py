"""Retraction against a state that never had the fact, where the retracted hook meets the later subjects' prompts."""

import pytest
import torch

from editing.editors import get_editor
from editing.facts import EditBatch
from editing.statistics import compute_second_moments
from editing.tokenisation import encode_prompts

EDITOR = get_editor("coachhook")
QUICK = {
    "layers": [1, 2],
    "max_steps": 40,
    "learning_rate": 0.1,
    "clamp": 20.0,
    "weight_decay": 0.0,
    "kl_factor": 0.0,
    "moment_weight": 1.0,
    "stop_loss": 0.2,
}
WIDE = {"scope": "calibrated", "alpha_weight": 0.0, "background_quantile": 0.1}  # lets most tokens through


@pytest.fixture(scope="module")
def history(fact):
    """Five batches of two; the fourth names a subject of the first again."""

    def ask(subject, target, relation="mayor", prompt="The mayor of {}"):
        return fact(subject, target, relation, prompt)

    return [
        (ask("Arden", "Vance"), ask("Belmont", "Stern")),
        (ask("Corvia", "Moss"), ask("Dunmore", "Hale")),
        (ask("Eastvale", "Hale"), ask("Fenwick", "Vance")),
        (ask("Belmont", "Moss", "governor", "The governor of {}"), ask("Garth", "Stern")),
        (ask("Holm", "Moss"), ask("Ivers", "Hale")),
    ]


def apply_all(base, state, batches):
    for facts in batches:
        if facts:
            state = EDITOR.apply(base, state, EditBatch(tuple(facts))).state
    return state


def apart(one, other):
    return max(float((a.weight - other.layers[layer].weight).abs().max()) for layer, a in one.layers.items())


@pytest.mark.parametrize("settings", [WIDE, {"scope": "always"}, {"scope": "sequence"}, {}], ids=str)
def test_retract_equals_never_applied_at_the_first_a_middle_and_the_last_edit(tiny_base, corpus, history, settings):
    base = tiny_base("gpt2")
    start = EDITOR.start(base, {**QUICK, **settings}, compute_second_moments(base, corpus, [1, 2], n_background=400))
    state = apply_all(base, start, history)
    later = [target for record in state.batches[1:] for target in record.targets]
    assert any(not target.untouched for target in later)
    for place in ((0, 0), (2, 1), (4, 0)):
        gone = history[place[0]][place[1]]
        never = apply_all(base, start, [[fact for fact in facts if fact is not gone] for facts in history])
        retracted = EDITOR.retract(base, state, [gone.fact_id])
        assert retracted.fact_ids == never.fact_ids
        assert apart(retracted, never) < 1e-3 * apart(state, never)
        for layer, content in never.layers.items():
            alpha = retracted.layers[layer].alpha
            assert alpha == content.alpha or alpha == pytest.approx(content.alpha, rel=1e-3)
        encoded = encode_prompts(base.tokenizer, [fact.question for facts in history for fact in facts])
        with torch.no_grad(), EDITOR.attach(base, retracted):
            mine = base.model(**encoded).logits
        with torch.no_grad(), EDITOR.attach(base, never):
            theirs = base.model(**encoded).logits
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_only_targets_that_a_hook_met_are_optimised_again(tiny_base, corpus, history):
    base = tiny_base("gpt2")
    start = EDITOR.start(base, QUICK, compute_second_moments(base, corpus, [1, 2], n_background=400))
    state = apply_all(base, start, history)
    kept = {id(target.values): target for record in state.batches for target in record.targets}
    gone = history[2][0]
    retracted = EDITOR.retract(base, state, [gone.fact_id])
    again = [t for record in retracted.batches for t in record.targets if id(t.values) not in kept]
    touched = {t.subject for record in state.batches for t in record.targets if not t.untouched}
    assert {target.subject for target in again} <= touched
