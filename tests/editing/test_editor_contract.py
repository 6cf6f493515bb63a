"""What every editor promises, on a tiny random model of every architecture."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from editing.editors import get_editor
from editing.editors.base import continuation_from
from editing.errors import ConfigError, EditRefusedError, StateError
from editing.facts import EditBatch
from editing.models import ARCHITECTURES, wrap_model
from editing.models.trace import output_of
from editing.statistics import compute_second_moments
from editing.tokenisation import encode_prompts, encode_with_targets

EDITOR = get_editor("coachhook")
SCOPES = ("calibrated", "sequence", "always")
QUICK = {
    "layers": [1, 2],
    "max_steps": 60,
    "learning_rate": 0.5,
    "clamp": 20.0,
    "weight_decay": 0.0,
    "kl_factor": 0.0,
    "moment_weight": 1e-3,
    "stop_loss": 0.2,
}
PROMPTS = [
    "The mayor of Arden is",
    "Arden",
    "In the year of the flood, people of Corvia and of old Belmont elected",
    "Who leads Dunmore?",
    "Cleo Vance leads",
]


@pytest.fixture(scope="module")
def moments(tiny_base, corpus):
    kept = {}

    def of(model_type):
        if model_type not in kept:
            kept[model_type] = compute_second_moments(tiny_base(model_type), corpus, [1, 2], n_background=400)
        return kept[model_type]

    return of


@pytest.fixture(scope="module")
def batches(fact):
    def ask(subject, target, relation="mayor", prompt="The mayor of {}"):
        return fact(subject, target, relation, prompt)

    return (
        EditBatch(
            (ask("Arden", "Vance"), ask("Belmont", "Stern"), ask("Dunmore", "Hale", "seat", "At the seat of {}"))
        ),
        EditBatch((ask("Corvia", "Moss"), ask("Eastvale", "Hale"))),
        EditBatch((ask("Arden", "Moss"), ask("Belmont", "Vance", "governor", "The governor of {}"))),
    )


@pytest.fixture(scope="module")
def edited(tiny_base, moments, batches):
    """State after the first `n` batches."""
    kept = {}

    def after(n, model_type="gpt2", **settings):
        name = (n, model_type, json.dumps(settings, sort_keys=True))
        if name not in kept:
            base = tiny_base(model_type)
            if n == 0:
                kept[name] = EDITOR.start(base, {**QUICK, **settings}, moments(model_type))
            else:
                kept[name] = EDITOR.apply(base, after(n - 1, model_type, **settings), batches[n - 1]).state
        return kept[name]

    return after


def perturbed(base, state):
    """The state with every weight moved and thresholds that let about half of all tokens through."""
    generator = torch.Generator().manual_seed(7)
    layers = {
        layer: dataclasses.replace(
            content, weight=content.weight + 0.05 * torch.randn(content.weight.shape, generator=generator)
        )
        for layer, content in state.layers.items()
    }
    state = dataclasses.replace(state, layers=layers)
    for layer in layers:
        decisions = []
        with EDITOR.attach(base, state, decisions=decisions):
            for prompt in PROMPTS:
                base.model(**encode_prompts(base.tokenizer, [prompt]))
        scores = torch.cat([d.scores[0] for d in decisions if d.layer == layer]) if decisions else torch.zeros(2)
        ordered = scores.sort().values[len(scores) // 4 : 3 * len(scores) // 4 + 2]
        gap = int(ordered.diff().argmax())
        alpha = float((ordered[gap] + ordered[gap + 1]) / 2)
        layers[layer] = dataclasses.replace(layers[layer], alpha=alpha)
        state = dataclasses.replace(state, layers=dict(layers))
    return state


def alone(base, texts):
    return [base.model(**encode_prompts(base.tokenizer, [text])).logits[0] for text in texts]


@torch.no_grad()
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_scored_is_served(tiny_base, edited, model_type, scope):
    base = tiny_base(model_type)
    state = perturbed(base, edited(1, model_type, scope=scope))
    plain = alone(base, PROMPTS)
    near = {"atol": 2e-4, "rtol": 1e-3}
    with EDITOR.attach(base, state):
        expected = alone(base, PROMPTS)
        for side in ("left", "right"):
            encoded = encode_prompts(base.tokenizer, PROMPTS * 13, padding_side=side)
            positions = (encoded["attention_mask"].cumsum(1) - 1).clamp(min=0)
            logits = base.model(**encoded, position_ids=positions).logits
            for row, want in enumerate(expected * 13):
                torch.testing.assert_close(logits[row][encoded["attention_mask"][row].bool()], want, **near)
        answers = [" Ada Moss", " Vance", " Dov Stern leads", " Hale", " Eastvale"]
        joint = encode_with_targets(base.tokenizer, PROMPTS, answers)
        starts = joint.target_mask.int().argmax(1)
        with continuation_from(starts):
            scored = base.model(input_ids=joint.input_ids, attention_mask=joint.attention_mask).logits
        for row, start in enumerate(starts.tolist()):
            cache = None
            ids = joint.input_ids[row][joint.attention_mask[row].bool()]
            for piece in (ids[:start], *ids[start:].split(1)):
                out = base.model(input_ids=piece[None], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                at = cache.get_seq_length()
                torch.testing.assert_close(out.logits[0], scored[row, at - len(piece) : at], **near)
        for texts in (PROMPTS, PROMPTS[:1]):
            encoded = encode_prompts(base.tokenizer, texts)
            width = encoded["input_ids"].shape[1]
            steps = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            cached = base.model.generate(**encoded, **steps)
            with continuation_from(width):
                uncached = base.model.generate(**encoded, **steps, use_cache=False)
            assert cached.tolist() == uncached.tolist()
    assert max(float((a - b).abs().max()) for a, b in zip(expected, plain, strict=True)) > 1e-2
    for before, after in zip(plain, alone(base, PROMPTS), strict=True):
        assert torch.equal(before, after)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["calibrated", "sequence"])
def test_decisions_do_not_depend_on_padding_or_batch_mates(tiny_base, edited, scope):
    base = tiny_base("llama")
    state = perturbed(base, edited(1, "llama", scope=scope))
    single, padded = [], []
    with EDITOR.attach(base, state, decisions=single):
        alone(base, PROMPTS)
    encoded = encode_prompts(base.tokenizer, PROMPTS)
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


@torch.no_grad()
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_edits_hold_in_generation(tiny_base, edited, batches, model_type, scope):
    base = tiny_base(model_type)
    state = edited(1, model_type, scope=scope)
    encoded = encode_prompts(base.tokenizer, [fact.question for fact in batches[0].facts])
    wanted = [fact.target for fact in batches[0].facts]
    decisions = []
    with EDITOR.attach(base, state, decisions=decisions):
        out = base.model.generate(**encoded, max_new_tokens=1, do_sample=False, pad_token_id=0)
    answers = [base.tokenizer.decode(row[-1]).strip() for row in out]
    if scope == "sequence":  # the threshold lets a token of every prompt through, not always the lookup token
        assert all(decision.fired.any(1).all() for decision in decisions)
    else:
        assert answers == wanted


def test_the_base_is_restored_bit_for_bit_also_after_an_exception(tiny_base, edited):
    base = tiny_base("gpt2")
    before = alone(base, PROMPTS)
    with pytest.raises(RuntimeError, match="on purpose"), EDITOR.attach(base, edited(1)):
        raise RuntimeError("on purpose")
    for was, now in zip(before, alone(base, PROMPTS), strict=True):
        assert torch.equal(was, now)
    assert base.down_projection(1)._forward_hooks == {}
    assert wrap_model(base.model, base.tokenizer, model_id="again").fingerprint == base.fingerprint


def test_one_state_at_a_time_on_a_model_object(tiny_base, edited, batches):
    base = tiny_base("gpt2")
    with EDITOR.attach(base, edited(1)):
        with pytest.raises(StateError, match="another state is attached"), EDITOR.attach(base, edited(2)):
            pass
        with pytest.raises(StateError, match="another state is attached"):
            EDITOR.apply(base, edited(1), batches[1])
    with EDITOR.attach(base, edited(2)):
        pass


@torch.no_grad()
@pytest.mark.parametrize("scope", ["calibrated", "sequence"])
def test_where_nothing_fires_the_output_is_the_bases_bit_for_bit(tiny_base, edited, scope):
    base = tiny_base("mistral")
    state = edited(1, "mistral", scope=scope)
    closed = {layer: dataclasses.replace(content, alpha=float("inf")) for layer, content in state.layers.items()}
    before = alone(base, PROMPTS)
    with EDITOR.attach(base, dataclasses.replace(state, layers=closed)):
        for was, now in zip(before, alone(base, PROMPTS), strict=True):
            assert torch.equal(was, now)


RELOAD = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import build_base
from editing.editors import get_editor
from editing.tokenisation import encode_prompts
torch.use_deterministic_algorithms(True)
base = build_base({model_type!r})
editor = get_editor("coachhook")
state = editor.load(Path({folder!r}), base)
with torch.no_grad(), editor.attach(base, state):
    logits = [base.model(**encode_prompts(base.tokenizer, [text])).logits[0] for text in {prompts!r}]
torch.save((state.digest, logits), Path({folder!r}) / "seen.pt")
"""


@torch.no_grad()
@pytest.mark.parametrize(("model_type", "scope"), [("qwen3", "calibrated")])
def test_a_saved_state_serves_the_same_in_a_fresh_process(tiny_base, edited, tmp_path, model_type, scope):
    base = tiny_base(model_type)
    state = perturbed(base, edited(1, model_type, scope=scope))
    digest = EDITOR.save(state, tmp_path)
    script = RELOAD.format(
        tests=str(Path(__file__).parent), model_type=model_type, folder=str(tmp_path), prompts=PROMPTS
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=280)
    seen, logits = torch.load(tmp_path / "seen.pt")
    assert seen == digest == state.digest
    with EDITOR.attach(base, state):
        for mine, theirs in zip(alone(base, PROMPTS), logits, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_save_and_load_keep_everything_and_yesterday_can_be_extended(tiny_base, edited, moments, batches, tmp_path):
    base = tiny_base("gpt2")
    EDITOR.save(edited(1), tmp_path)
    loaded = EDITOR.load(tmp_path, base, moments("gpt2"))
    assert loaded.fact_ids == edited(1).fact_ids
    assert EDITOR.apply(base, loaded, batches[1]).state.digest == edited(2).digest
    served = EDITOR.load(tmp_path, base)
    with pytest.raises(StateError, match="without statistics"):
        EDITOR.apply(base, served, batches[1])


def test_what_does_not_belong_is_refused_by_name(tiny_base, edited, moments, corpus, tmp_path):
    base = tiny_base("gpt2")
    EDITOR.save(edited(1), tmp_path / "good")
    other = compute_second_moments(base, corpus, [1, 2], n_background=3)
    with pytest.raises(StateError, match="base fingerprint differs"):
        EDITOR.load(tmp_path / "good", dataclasses.replace(base, fingerprint="0" * 64))
    with pytest.raises(StateError, match="tokenizer hash differs"):
        EDITOR.load(tmp_path / "good", dataclasses.replace(base, tokenizer_hash="0" * 64))
    with pytest.raises(StateError, match="statistics differ"):
        EDITOR.load(tmp_path / "good", base, other)
    with pytest.raises(StateError, match="base fingerprint differs"), EDITOR.attach(tiny_base("llama"), edited(1)):
        pass
    with pytest.raises(StateError, match=r"state\.json is missing"):
        EDITOR.load(tmp_path, base)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("state.safetensors", lambda raw: raw[:-10], "damaged"),
        ("state.safetensors", lambda raw: raw[:-4] + b"\x00\x00\x80?", "altered"),
        ("state.safetensors", lambda raw: b"", "damaged"),
        ("state.json", lambda raw: raw[: len(raw) // 2], "not JSON"),
        ("state.json", lambda raw: raw.replace(b"Vance", b"Moss!"), "altered"),
        ("state.json", lambda raw: raw.replace(b'"format": 1', b'"format": 99'), "format 99"),
        ("state.json", lambda raw: raw.replace(b'"alpha"', b'"alfa"'), "alpha"),
        ("state.json", lambda raw: raw.replace(b'"method": "coachhook"', b'"method": "other"'), "method 'other'"),
    ],
)
def test_damaged_files_are_refused(tiny_base, edited, tmp_path, name, damage, message):
    EDITOR.save(edited(1), tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match=message):
        EDITOR.load(tmp_path, tiny_base("gpt2"))


APPLY = """
import sys
from datetime import UTC, datetime
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import TEXTS, build_base
from editing.editors import get_editor
from editing.facts import EditBatch, FactChange
from editing.statistics import compute_second_moments
base = build_base("gpt2")
editor = get_editor("coachhook")
state = editor.start(base, {config!r}, compute_second_moments(base, TEXTS, [1, 2], n_background=400))
for facts in {facts!r}:
    state = editor.apply(base, state, EditBatch(tuple(FactChange.from_dict(fact) for fact in facts))).state
print(state.digest)
"""


def test_two_processes_make_the_same_state(edited, batches):
    script = APPLY.format(
        tests=str(Path(__file__).parent),
        config={**QUICK},
        facts=[[fact.to_dict() for fact in batch.facts] for batch in batches[:2]],
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, timeout=280, capture_output=True, text=True)
    assert run.stdout.strip() == edited(2).digest


def weights_of(state):
    return {layer: content.weight for layer, content in state.layers.items()}


@pytest.mark.parametrize(
    ("scope", "nights"), [("calibrated", 2), ("sequence", 2), ("calibrated", 1), ("sequence", 1), ("always", 1)]
)
def test_retract_equals_never_applied(tiny_base, edited, batches, scope, nights):
    """In a well-conditioned setting: `QUICK` would magnify the last bit of a target by the batch after next."""
    base = tiny_base("gpt2")
    settings = {"scope": scope, "alpha_weight": 1.0, "moment_weight": 1.0, "learning_rate": 0.1}
    gone, state = batches[0].facts[1], edited(nights, **settings)
    retracted = EDITOR.retract(base, state, [gone.fact_id])
    never = EDITOR.apply(base, edited(0, **settings), EditBatch((batches[0].facts[0], batches[0].facts[2]))).state
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


def test_retracting_the_newer_fact_restores_the_older_one(tiny_base, edited, batches):
    base = tiny_base("gpt2")
    older, newer = batches[0].facts[0], batches[2].facts[0]
    state = edited(3)
    assert newer.fact_id in state.fact_ids
    assert older.fact_id not in state.fact_ids
    retracted = EDITOR.retract(base, state, [newer.fact_id])
    assert older.fact_id in retracted.fact_ids
    assert newer.fact_id not in retracted.fact_ids
    encoded = encode_prompts(base.tokenizer, [older.question])
    for served, answer in ((state, newer.target), (retracted, older.target)):
        with torch.no_grad(), EDITOR.attach(base, served):
            assert base.tokenizer.decode(base.model(**encoded).logits[0, -1].argmax()).strip() == answer


def test_retracting_everything_leaves_the_start(tiny_base, edited):
    base = tiny_base("gpt2")
    state = edited(2)
    empty = EDITOR.retract(base, state, state.fact_ids)
    assert empty.facts == ()
    for mine, theirs in _pairs(empty, edited(0)):
        assert torch.equal(mine, theirs)
    with pytest.raises(StateError, match="not in the state"):
        EDITOR.retract(base, state, ["feedbeef"])


def test_apply_leaves_yesterday_alone_and_reports(tiny_base, edited, batches):
    base = tiny_base("gpt2")
    yesterday = edited(1)
    before, digest = {n: t.clone() for n, t in yesterday.tensors().items()}, yesterday.digest
    told = []
    applied = EDITOR.apply(base, yesterday, batches[1], progress=lambda *at: told.append(at))
    assert all(torch.equal(before[n], t) for n, t in yesterday.tensors().items())
    assert (applied.state.parent, yesterday.digest) == (digest, digest)
    assert [outcome.fact_id for outcome in applied.outcomes] == [fact.fact_id for fact in batches[1].facts]
    assert all(outcome.converged and outcome.loss < 0.2 for outcome in applied.outcomes)
    assert applied.canaries["perplexity_edited"] > 0
    assert applied.canaries["layer_1_relative_change"] > 0
    assert {stage.split()[0] for stage, _, _ in told} == {"targets", "layers"}
    json.dumps(applied.state.describe())


def test_a_key_solved_again_leaves_its_old_value_behind(edited, moments):
    """The accumulated moment holds each context once, so the tenth edit of a subject weighs what the first did."""
    state = edited(3)
    assert len(set(state.solved_texts)) == len(state.solved_texts) == 6
    for layer, content in state.layers.items():
        start = edited(0).layers[layer].moment.double()
        solved = content.solved.double()
        torch.testing.assert_close(content.moment.double(), start + solved.T @ solved, rtol=1e-4, atol=1e-5)


def test_a_subject_edited_again_and_again_stays_within_reach(tiny_base, edited, fact):
    base = tiny_base("gpt2")
    state, reach = edited(0, clamp=2.0, stop_loss=0.0), []
    for target in ("Vance", "Stern", "Hale", "Moss"):
        state = EDITOR.apply(base, state, EditBatch((fact("Arden", target, prompt="The mayor of {}"),))).state
        reach.append(float(state.batches[-1].targets[0].values.norm()))
    encoded = encode_prompts(base.tokenizer, ["The mayor of Arden"])
    unedited = float(output_of(base.model, base.blocks[2], **encoded)[0, -1].norm())
    assert max(reach) <= 3.01 * unedited


def test_an_ill_conditioned_batch_is_refused_with_its_estimate(tiny_base, moments, batches):
    base = tiny_base("gpt2")
    state = EDITOR.start(base, {**QUICK, "max_condition": 2.0}, moments("gpt2"))
    with pytest.raises(EditRefusedError, match=r"condition estimate .* exceeds max_condition 2"):
        EDITOR.apply(base, state, batches[0])


def test_a_state_that_is_not_finite_is_neither_made_nor_saved(tiny_base, edited, tmp_path):
    state = edited(1)
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
        ({"layers": [1], "lambda": 3}, "no setting lambda"),
        ({"layers": [1], "contexts": []}, "bare prompt"),
    ],
)
def test_contradicting_settings_are_refused(tiny_base, moments, settings, message):
    with pytest.raises(ConfigError, match=message):
        EDITOR.start(tiny_base("gpt2"), settings, moments("gpt2"))


def test_a_method_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match="'grace' is unknown; use one of coachhook"):
        get_editor("grace")


def test_states_of_earlier_formats_load_for_ever(tiny_base):
    """The golden folder was written once, by the first version of its format, and is never written again."""
    folder = Path(__file__).parent / "golden" / "coachhook_format_1"
    identity = json.loads((folder / "state.json").read_text())["base"]
    base = dataclasses.replace(
        tiny_base("gpt2"), fingerprint=identity["fingerprint"], tokenizer_hash=identity["tokenizer_hash"]
    )
    state = EDITOR.load(folder, base)
    assert [(fact.subject, fact.target) for fact in state.facts] == [("Arden", "Vance"), ("Belmont", "Stern")]
    with EDITOR.attach(base, state):
        alone(base, PROMPTS)


@torch.no_grad()
def test_a_half_precision_base_serves_a_copy_and_keeps_the_masters(tiny_base, edited):
    base = tiny_base("llama")
    state = edited(1, "llama")
    half = dataclasses.replace(base, model=copy.deepcopy(base.model).to(torch.bfloat16))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    with EDITOR.attach(half, state):
        logits = alone(half, PROMPTS)
    assert all(torch.isfinite(each).all() and each.dtype == torch.bfloat16 for each in logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())
