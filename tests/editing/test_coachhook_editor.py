"""What is CoachHooK's own beside the contract of all editors: decisions, replayed solves, its refusals."""

import dataclasses

import pytest
import torch

from editing.editors import get_editor
from editing.errors import ConfigError, EditRefusedError, StateError
from editing.facts import EditBatch
from editing.models.trace import output_of
from editing.statistics import compute_second_moments
from editing.tokenisation import encode_prompts

EDITOR = get_editor("coachhook")


@pytest.fixture(scope="module")
def hooked(edited):
    def after(n, model_type="gpt2", **settings):
        return edited("coachhook", n, model_type, **settings)

    return after


@torch.no_grad()
@pytest.mark.parametrize("scope", ["leverage", "calibrated", "sequence"])
def test_decisions_do_not_depend_on_padding_or_batch_mates(tiny_base, hooked, perturbed, asked, scope):
    base = tiny_base("llama")
    state = perturbed(base, hooked(1, "llama", scope=scope))
    single, padded = [], []
    with EDITOR.attach(base, state, decisions=single):
        for prompt in asked:
            base.model(**encode_prompts(base.tokenizer, [prompt]))
    encoded = encode_prompts(base.tokenizer, asked)
    with EDITOR.attach(base, state, decisions=padded):
        base.model(**encoded, position_ids=(encoded["attention_mask"].cumsum(1) - 1).clamp(min=0))
    assert [d.layer for d in padded] == [1, 2]
    fired = [bool(d.fired.any()) and not bool(d.fired.all()) for d in single]
    assert any(fired)
    for decision in padded:
        ones = [d for d in single if d.layer == decision.layer]
        for row, one in enumerate(ones):
            real = encoded["attention_mask"][row].bool()
            assert decision.fired[row][real].tolist() == one.fired[0].tolist()
            torch.testing.assert_close(decision.scores[row][real], one.scores[0], atol=1e-3, rtol=1e-3)


def test_nothing_is_applied_inside_an_attachment(tiny_base, hooked, batches):
    base = tiny_base("gpt2")
    with EDITOR.attach(base, hooked(1)), pytest.raises(StateError, match="another state is attached"):
        EDITOR.apply(base, hooked(1), batches[1])


def test_a_state_without_statistics_is_served_not_extended(tiny_base, hooked, corpus, batches, tmp_path):
    base = tiny_base("gpt2")
    EDITOR.save(hooked(1), tmp_path)
    with pytest.raises(StateError, match="without statistics"):
        EDITOR.apply(base, EDITOR.load(tmp_path, base), batches[1])
    other = compute_second_moments(base, corpus, [1, 2], n_background=3)
    with pytest.raises(StateError, match="statistics differ"):
        EDITOR.load(tmp_path, base, other)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("state.safetensors", lambda raw: raw[:-10], "damaged"),
        ("state.safetensors", lambda raw: raw[:-4] + b"\x00\x00\x80?", "altered"),
        ("state.safetensors", lambda raw: b"", "damaged"),
        ("state.json", lambda raw: raw.replace(b"Vance", b"Moss!"), "altered"),
        (
            "state.json",
            lambda raw: raw.replace(b'"fact_ids": [\n  "', b'"fact_ids": [\n  "0'),
            "fact_ids in",
        ),
        ("state.json", lambda raw: raw.replace(b'"alpha"', b'"alfa"'), "alpha"),
    ],
)
def test_damaged_files_are_refused(tiny_base, hooked, tmp_path, name, damage, message):
    EDITOR.save(hooked(1), tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match=message):
        EDITOR.load(tmp_path, tiny_base("gpt2"))


@torch.no_grad()
def test_a_key_alone_does_not_make_a_token_the_subject_of_an_edit(tiny_base, hooked):
    """A token with the very key of an edited one is left alone until the text has told that edit's subject."""
    base, state = tiny_base("gpt2"), hooked(1)
    gate, layer = state.gate, state.config.layers[0]

    def fired(*passes):
        decisions, cache = [], None
        with EDITOR.attach(base, state, decisions=decisions):
            for ids in passes:
                cache = base.model(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values
        seen = [decision for decision in decisions if decision.layer == layer]
        return [
            (gate.subjects[int(decision.keys[0, place])], place)
            for decision in seen
            for place in decision.fired[0].nonzero()[:, 0].tolist()
        ]

    ids = encode_prompts(base.tokenizer, ["The mayor of Arden"])["input_ids"]
    last = ids.shape[1] - 1
    assert fired(ids) == [("arden", last)]
    assert fired(ids[:, :-1], ids[:, -1:]) == [("arden", 0)]
    (row,) = (row for row, subject in enumerate(gate.subjects) if subject == "arden")
    names = tuple("Upper Arden" if index == row else name for index, name in enumerate(gate.names))
    state = dataclasses.replace(state, gate=dataclasses.replace(gate, names=names))
    assert fired(ids) == []
    assert fired(ids[:, :-1], ids[:, -1:]) == []
    state = dataclasses.replace(state, gate=dataclasses.replace(gate, names=("",) * len(names)))
    assert fired(ids) == [("arden", last)]


def weights_of(state):
    return {layer: content.weight for layer, content in state.layers.items()}


@pytest.mark.parametrize(
    ("scope", "nights"),
    [
        ("leverage", 2),
        ("leverage", 1),
        ("calibrated", 2),
        ("sequence", 2),
        ("calibrated", 1),
        ("sequence", 1),
        ("always", 1),
    ],
)
def test_retract_equals_never_applied(tiny_base, hooked, batches, scope, nights):
    """In a well-conditioned setting: the suite's would magnify the last bit of a target by the batch after next."""
    base = tiny_base("gpt2")
    settings = {"scope": scope, "alpha_weight": 1.0, "moment_weight": 1.0, "learning_rate": 0.1}
    gone, state = batches[0].facts[1], hooked(nights, **settings)
    retracted = EDITOR.retract(base, state, [gone.fact_id])
    never = EDITOR.apply(base, hooked(0, **settings), EditBatch((batches[0].facts[0], batches[0].facts[2]))).state
    if nights == 2:
        never = EDITOR.apply(base, never, batches[1]).state
    assert retracted.fact_ids == never.fact_ids
    assert gone.fact_id not in retracted.fact_ids
    assert retracted.parent == state.digest
    moved = max(float((a - b).abs().max()) for a, b in _pairs(state, never))
    apart = max(float((a - b).abs().max()) for a, b in _pairs(retracted, never))
    assert apart < 0.01 * moved
    for layer in never.layers:
        mine, theirs = retracted.layers[layer].alpha, never.layers[layer].alpha
        assert mine == theirs or mine == pytest.approx(theirs, rel=0.01)


def _pairs(one, other):
    return zip(weights_of(one).values(), weights_of(other).values(), strict=True)


def test_retracting_everything_leaves_the_weights_of_the_start(tiny_base, hooked):
    state = hooked(2)
    empty = EDITOR.retract(tiny_base("gpt2"), state, state.fact_ids)
    for mine, theirs in _pairs(empty, hooked(0)):
        assert torch.equal(mine, theirs)


def test_apply_leaves_every_tensor_of_yesterday_alone_and_reports(tiny_base, hooked, batches):
    yesterday, told = hooked(1), []
    before = {name: tensor.clone() for name, tensor in yesterday.tensors().items()}
    applied = EDITOR.apply(tiny_base("gpt2"), yesterday, batches[1], progress=lambda *at: told.append(at))
    assert all(torch.equal(before[name], tensor) for name, tensor in yesterday.tensors().items())
    assert all(outcome.loss < 0.2 for outcome in applied.outcomes)
    assert applied.canaries["perplexity_edited"] > 0
    assert applied.canaries["layer_1_relative_change"] > 0
    assert {stage.split()[0] for stage, _, _ in told} == {"targets", "layers"}


def test_a_key_solved_again_leaves_its_old_value_behind(hooked, moments):
    """The accumulated moment holds each context once, so the tenth edit of a subject weighs what the first did."""
    state = hooked(3)
    assert len(set(state.solved_texts)) == len(state.solved_texts) == 6
    for layer, content in state.layers.items():
        start = hooked(0).layers[layer].moment.double()
        solved = content.solved.double()
        torch.testing.assert_close(content.moment.double(), start + solved.T @ solved, rtol=1e-4, atol=1e-5)


def test_a_subject_edited_again_and_again_stays_within_reach(tiny_base, hooked, fact):
    base = tiny_base("gpt2")
    state, reach = hooked(0, clamp=2.0, stop_loss=0.0), []
    for target in ("Vance", "Stern", "Hale", "Moss"):
        state = EDITOR.apply(base, state, EditBatch((fact("Arden", target, prompt="The mayor of {}"),))).state
        reach.append(float(state.batches[-1].targets[0].values.norm()))
    encoded = encode_prompts(base.tokenizer, ["The mayor of Arden"])
    unedited = float(output_of(base.model, base.blocks[2], **encoded)[0, -1].norm())
    assert max(reach) <= 3.01 * unedited


def test_an_ill_conditioned_batch_is_refused_with_its_estimate(tiny_base, moments, batches, config_of):
    base = tiny_base("gpt2")
    state = EDITOR.start(base, {**config_of("coachhook"), "max_condition": 2.0}, moments("gpt2"))
    with pytest.raises(EditRefusedError, match=r"condition estimate .* exceeds max_condition 2"):
        EDITOR.apply(base, state, batches[0])


def test_a_state_that_is_not_finite_is_neither_made_nor_saved(tiny_base, hooked, tmp_path):
    state = hooked(1)
    broken = dataclasses.replace(state.layers[1], weight=state.layers[1].weight * float("nan"))
    with pytest.raises(StateError, match=r"layers\.1\.weight"):
        EDITOR.save(dataclasses.replace(state, layers={**state.layers, 1: broken}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": []}, "at least one layer"),
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": [1], "scope": "token"}, "calibrated, sequence, always"),
        ({"layers": [1], "clamp": -1}, "clamp -1 is outside"),
        ({"layers": [1], "contexts": []}, "bare prompt"),
    ],
)
def test_contradicting_settings_are_refused(tiny_base, moments, settings, message):
    with pytest.raises(ConfigError, match=message):
        EDITOR.start(tiny_base("gpt2"), settings, moments("gpt2"))
