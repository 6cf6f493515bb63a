"""What every editor promises, on a tiny random model of every architecture."""

import copy
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from editing.editors import get_editor
from editing.editors.base import continuation_from
from editing.editors.both import BothState
from editing.errors import ConfigError, StateError
from editing.facts import EditBatch
from editing.models import ARCHITECTURES, wrap_model
from editing.tokenisation import encode_prompts, encode_with_targets

METHODS = ("coachhook", "recipe", "both")
HOOKED = [("coachhook", {"scope": scope}) for scope in ("leverage", "calibrated", "sequence", "always")]
CASES = [*HOOKED, ("recipe", {}), ("both", {})]
named = pytest.mark.parametrize(("method", "settings"), CASES, ids=lambda part: str(part))
each = pytest.mark.parametrize("method", METHODS)


@torch.no_grad()
def alone(base, texts):
    return [base.model(**encode_prompts(base.tokenizer, [text])).logits[0] for text in texts]


def answers(base, prompts):
    encoded = encode_prompts(base.tokenizer, prompts)
    out = base.model.generate(**encoded, max_new_tokens=1, do_sample=False, pad_token_id=0)
    return [base.tokenizer.decode(row[-1]).strip() for row in out]


@torch.no_grad()
@named
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_scored_is_served(tiny_base, edited, perturbed, asked, model_type, method, settings):
    base, editor = tiny_base(model_type), get_editor(method)
    if method == "both":
        parts = {part: edited(part, 1, model_type, trained=False) for part in editor.parts}
        state = BothState(config=edited("both", 0, model_type, trained=False).config, parent=None, **parts)
    else:
        state = edited(method, 1, model_type, trained=method == "coachhook", **settings)
    state = perturbed(base, state)
    plain = alone(base, asked)
    near = {"atol": 2e-4, "rtol": 1e-3}
    with editor.attach(base, state):
        expected = alone(base, asked)
        for side in ("left", "right"):
            encoded = encode_prompts(base.tokenizer, asked * 13, padding_side=side)
            positions = (encoded["attention_mask"].cumsum(1) - 1).clamp(min=0)
            logits = base.model(**encoded, position_ids=positions).logits
            for row, want in enumerate(expected * 13):
                torch.testing.assert_close(logits[row][encoded["attention_mask"][row].bool()], want, **near)
        joint = encode_with_targets(
            base.tokenizer, asked, [" Ada Moss", " Vance", " Dov Stern leads", " Hale", " Eastvale"]
        )
        starts = joint.target_mask.int().argmax(1)
        with continuation_from(starts):
            scored = base.model(input_ids=joint.input_ids, attention_mask=joint.attention_mask).logits
        for row, start in enumerate(starts.tolist()):
            cache, at = None, 0
            ids = joint.input_ids[row][joint.attention_mask[row].bool()]
            for piece in (ids[:start], *ids[start:].split(1)):
                out = base.model(input_ids=piece[None], past_key_values=cache, use_cache=True)
                cache, at = out.past_key_values, at + len(piece)
                torch.testing.assert_close(out.logits[0], scored[row, at - len(piece) : at], **near)
        for texts in (asked, asked[:1]):
            encoded = encode_prompts(base.tokenizer, texts)
            width = encoded["input_ids"].shape[1]
            steps = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            cached = base.model.generate(**encoded, **steps)
            with continuation_from(width):
                uncached = base.model.generate(**encoded, **steps, use_cache=False)
            assert cached.tolist() == uncached.tolist()
    assert max(float((a - b).abs().max()) for a, b in zip(expected, plain, strict=True)) > 1e-2
    for before, after in zip(plain, alone(base, asked), strict=True):
        assert torch.equal(before, after)


def _generation_cases():
    """Hooks on every architecture; a trained encoder costs seconds, so most of its architectures are slow tests."""
    for method, settings in CASES:
        for model_type in sorted(ARCHITECTURES):
            quick = method == "coachhook" or model_type in ("gpt2", "llama")
            marks = () if quick else pytest.mark.slow
            yield pytest.param(method, settings, model_type, marks=marks, id=f"{method}-{settings}-{model_type}")


@torch.no_grad()
@pytest.mark.parametrize(("method", "settings", "model_type"), _generation_cases())
def test_edits_hold_in_generation(tiny_base, edited, batches, method, settings, model_type):
    base, editor = tiny_base(model_type), get_editor(method)
    state = edited(method, 1, model_type, **settings)
    questions = [fact.question for fact in batches[0].facts]
    if settings.get("scope") == "sequence":  # its threshold lets a token of every prompt through, not always the lookup
        decisions = []
        with editor.attach(base, state, decisions=decisions):
            answers(base, questions)
        assert all(decision.fired.any(1).all() for decision in decisions)
    else:
        with editor.attach(base, state):
            assert answers(base, questions) == [fact.target for fact in batches[0].facts]


@each
def test_the_base_is_restored_bit_for_bit_also_after_an_exception(tiny_base, edited, asked, method):
    base, editor = tiny_base("gpt2"), get_editor(method)
    before = alone(base, asked)
    with pytest.raises(RuntimeError, match="on purpose"), editor.attach(base, edited(method, 1)):
        raise RuntimeError("on purpose")
    for was, now in zip(before, alone(base, asked), strict=True):
        assert torch.equal(was, now)
    for module in base.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert wrap_model(base.model, base.tokenizer, model_id="again").fingerprint == base.fingerprint


@each
@pytest.mark.parametrize("other", METHODS)
def test_one_state_at_a_time_on_a_model_object(tiny_base, edited, method, other):
    base, editor, second = tiny_base("gpt2"), get_editor(method), edited(other, 2)
    with (
        editor.attach(base, edited(method, 1)),
        pytest.raises(StateError, match="another state is attached"),
        get_editor(other).attach(base, second),
    ):
        pass
    with editor.attach(base, edited(method, 2)):
        pass


def _silenced(state):
    """The state with thresholds that nothing reaches."""
    if isinstance(state, BothState):
        return dataclasses.replace(state, coachhook=_silenced(state.coachhook), recipe=_silenced(state.recipe))
    if state.method == "recipe":
        config = dataclasses.replace(state.config, gate="fixed", fixed_score=1e9)
        return dataclasses.replace(state, config=config)
    closed = {layer: dataclasses.replace(content, alpha=float("inf")) for layer, content in state.layers.items()}
    gate = state.gate and dataclasses.replace(state.gate, thresholds=torch.full_like(state.gate.thresholds, 1e9))
    return dataclasses.replace(state, layers=closed, gate=gate)


@torch.no_grad()
@pytest.mark.parametrize(("method", "settings"), [case for case in CASES if case[1] != {"scope": "always"}])
def test_where_nothing_fires_the_output_is_the_bases_bit_for_bit(tiny_base, edited, asked, method, settings):
    base = tiny_base("llama")
    encoded = encode_prompts(base.tokenizer, asked)
    before, batch_before = alone(base, asked), base.model(**encoded).logits
    with get_editor(method).attach(base, _silenced(edited(method, 1, "llama", **settings))):
        for was, now in zip(before, alone(base, asked), strict=True):
            assert torch.equal(was, now)
        assert torch.equal(base.model(**encoded).logits, batch_before)


RELOAD = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import build_base
from editing.editors import get_editor
from editing.tokenisation import encode_prompts
from safetensors.torch import save_file
torch.use_deterministic_algorithms(True)
base = build_base("llama")
digests, seen = {{}}, {{}}
for method in {methods!r}:
    editor = get_editor(method)
    state = editor.load(Path({folder!r}) / method, base)
    with torch.no_grad(), editor.attach(base, state):
        logits = [base.model(**encode_prompts(base.tokenizer, [text])).logits[0] for text in {prompts!r}]
    digests[method] = state.digest
    seen |= {{f"{{method}}.{{place}}": each.contiguous() for place, each in enumerate(logits)}}
save_file(seen, Path({folder!r}) / "seen.safetensors", metadata=digests)
"""


def test_saved_states_serve_the_same_in_a_fresh_process(tiny_base, edited, perturbed, asked, tmp_path):
    base = tiny_base("llama")
    states = {method: perturbed(base, edited(method, 1, "llama")) for method in METHODS}
    digests = {method: get_editor(method).save(state, tmp_path / method) for method, state in states.items()}
    script = RELOAD.format(tests=str(Path(__file__).parent), methods=METHODS, folder=str(tmp_path), prompts=asked)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=280)
    with safe_open(tmp_path / "seen.safetensors", "pt") as file:
        told, seen = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert told == digests
    for method in METHODS:
        assert digests[method] == states[method].digest
        logits = [seen[f"{method}.{place}"] for place in range(len(asked))]
        with get_editor(method).attach(base, states[method]):
            for mine, theirs in zip(alone(base, asked), logits, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@each
def test_save_and_load_keep_everything_and_yesterday_can_be_extended(
    tiny_base, edited, moments, batches, tmp_path, method
):
    base, editor = tiny_base("gpt2"), get_editor(method)
    assert editor.save(edited(method, 1), tmp_path) == edited(method, 1).digest
    loaded = editor.load(tmp_path, base, moments("gpt2"))
    assert loaded.facts == edited(method, 1).facts
    assert loaded.fact_ids == edited(method, 1).fact_ids
    assert editor.apply(base, loaded, batches[1]).state.digest == edited(method, 2).digest


@each
def test_what_does_not_belong_is_refused_by_name(tiny_base, edited, tmp_path, method):
    base, editor = tiny_base("gpt2"), get_editor(method)
    editor.save(edited(method, 1), tmp_path / "good")
    with pytest.raises(StateError, match="base fingerprint differs"):
        editor.load(tmp_path / "good", dataclasses.replace(base, fingerprint="0" * 64))
    with pytest.raises(StateError, match="tokenizer hash differs"):
        editor.load(tmp_path / "good", dataclasses.replace(base, tokenizer_hash="0" * 64))
    with (
        pytest.raises(StateError, match="base fingerprint differs"),
        editor.attach(tiny_base("llama"), edited(method, 1)),
    ):
        pass
    with pytest.raises(StateError, match=r"state\.json is missing"):
        editor.load(tmp_path, base)


@each
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "not JSON"),
        (lambda raw: raw.replace(b'"format": 1', b'"format": 99'), "format 99"),
        (lambda raw: raw.replace(b'"parent"', b'"paren"'), "parent"),
        (lambda raw: raw.replace(b'"parent": "', b'"parent": "0'), "altered"),
        (
            lambda raw: raw.replace(b'"parent"', b'"said": 1, "parent"'),
            "written: said in its record",
        ),
        (lambda raw: raw.replace(b'"method": "', b'"method": "no'), "holds method 'no"),
    ],
)
def test_a_damaged_record_is_refused(tiny_base, edited, tmp_path, method, damage, message):
    editor = get_editor(method)
    editor.save(edited(method, 1), tmp_path)
    path = tmp_path / "state.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match=message):
        editor.load(tmp_path, tiny_base("gpt2"))


APPLY = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import TEXTS, build_base
from editing.editors import get_editor
from editing.facts import EditBatch, FactChange
from editing.statistics import compute_second_moments
base = build_base("gpt2")
moments = compute_second_moments(base, TEXTS, [1, 2], n_background=400)
for method, config in {configs!r}.items():
    editor = get_editor(method)
    state = editor.start(base, config, moments)
    for facts in {facts!r}:
        state = editor.apply(base, state, EditBatch(tuple(FactChange.from_dict(fact) for fact in facts))).state
    print(state.digest)
"""


def test_two_processes_make_the_same_states(edited, batches, config_of):
    script = APPLY.format(
        tests=str(Path(__file__).parent),
        configs={method: config_of(method) for method in METHODS},
        facts=[[fact.to_dict() for fact in batch.facts] for batch in batches[:2]],
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, timeout=280, capture_output=True, text=True)
    assert run.stdout.split() == [edited(method, 2).digest for method in METHODS]


@pytest.mark.parametrize("gone", [1, 2])
@each
def test_what_was_retracted_answers_as_if_never_applied(tiny_base, edited, batches, asked, method, gone):
    """Hooks are compared weight by weight in their own tests; here the gentler settings of a trained model count."""
    base, editor = tiny_base("gpt2"), get_editor(method)
    gentle = {"moment_weight": 1.0, "learning_rate": 0.1}
    settings = {"coachhook": gentle, "recipe": {}}.get(method)
    if settings is None:
        settings = {"coachhook": {**edited("both", 0).config.coachhook.to_dict(), **gentle}}
    fact, state = batches[0].facts[gone], edited(method, 2, **settings)
    retracted = editor.retract(base, state, [fact.fact_id])
    kept = tuple(other for other in batches[0].facts if other is not fact)
    never = editor.apply(base, edited(method, 0, **settings), EditBatch(kept)).state
    never = editor.apply(base, never, batches[1]).state
    assert retracted.fact_ids == never.fact_ids
    assert fact.fact_id not in retracted.fact_ids
    assert retracted.parent == state.digest
    prompts = [*asked, *(each.question for batch in batches for each in batch.facts)]
    with editor.attach(base, retracted):
        mine = alone(base, prompts)
    with editor.attach(base, never):
        for one, other in zip(mine, alone(base, prompts), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@each
def test_retracting_the_newer_fact_restores_the_older_one(tiny_base, edited, batches, method):
    base, editor = tiny_base("gpt2"), get_editor(method)
    older, newer = batches[0].facts[0], batches[2].facts[0]
    state = edited(method, 3)
    assert newer.fact_id in state.fact_ids
    assert older.fact_id not in state.fact_ids
    retracted = editor.retract(base, state, [newer.fact_id])
    assert older.fact_id in retracted.fact_ids
    assert newer.fact_id not in retracted.fact_ids
    for served, answer in ((state, newer.target), (retracted, older.target)):
        with editor.attach(base, served):
            assert answers(base, [older.question]) == [answer]


@each
def test_a_compacted_state_is_the_same_to_whoever_asks_or_takes_back(
    tiny_base, edited, batches, asked, tmp_path, method
):
    base, editor = tiny_base("gpt2"), get_editor(method)
    state = editor.retract(base, edited(method, 3), [batches[0].facts[2].fact_id])
    small = editor.compact(base, state)
    assert small.fact_ids == state.fact_ids
    assert editor.compact(base, small) is small
    assert editor.save(small, tmp_path) == editor.load(tmp_path, base).digest == small.digest
    prompts = [*asked, *(fact.question for batch in batches for fact in batch.facts)]
    with editor.attach(base, state):
        before = alone(base, prompts)
    with editor.attach(base, small):
        for one, other in zip(before, alone(base, prompts), strict=True):
            assert torch.equal(one, other)
    if method == "recipe":  # CoachHooK's is the very state
        newer = batches[2].facts[0].fact_id
        back = [editor.retract(base, each, [newer]).fact_ids for each in (state, small)]
        assert back[0] == back[1] != small.fact_ids


@each
def test_retracting_everything_leaves_the_base(tiny_base, edited, asked, method):
    base, editor = tiny_base("gpt2"), get_editor(method)
    state = edited(method, 2)
    plain = alone(base, asked)
    empty = editor.retract(base, state, state.fact_ids)
    assert empty.facts == ()
    with editor.attach(base, empty):
        for was, now in zip(plain, alone(base, asked), strict=True):
            assert torch.equal(was, now)
    with pytest.raises(StateError, match="feedbeef are not in the state"):
        editor.retract(base, state, ["feedbeef"])


@each
def test_apply_leaves_yesterday_alone_and_reports(tiny_base, edited, batches, tmp_path, method):
    base, editor = tiny_base("gpt2"), get_editor(method)
    yesterday = edited(method, 1)
    digest, told = yesterday.digest, []
    applied = editor.apply(base, yesterday, batches[1], progress=lambda *at: told.append(at))
    editor.save(yesterday, tmp_path)
    assert editor.load(tmp_path, base).digest == digest == applied.state.parent
    assert [outcome.fact_id for outcome in applied.outcomes] == [fact.fact_id for fact in batches[1].facts]
    assert all(outcome.converged and outcome.loss < 2.0 for outcome in applied.outcomes)
    assert applied.canaries
    assert told
    json.dumps([applied.state.describe(), dict(applied.canaries)])


@each
def test_a_prompt_is_explained(tiny_base, edited, batches, method):
    base, editor = tiny_base("gpt2"), get_editor(method)
    seat = batches[0].facts[2]
    told = editor.explain(base, edited(method, 2), seat.question)
    assert told.method == method
    assert told.answered_by == seat
    assert seat in [candidate.fact for candidate in told.candidates]
    if method != "recipe":
        assert {token.layer for token in told.tokens} == {1, 2}
    if method != "coachhook":
        assert told.candidates[0].score > told.limit
        assert editor.explain(base, edited(method, 0), seat.question).answered_by is None


@each
@pytest.mark.parametrize("after", ["nothing", "a batch", "taking all back"])
def test_an_explanation_is_json_in_every_state(tiny_base, edited, asked, method, after):
    base, editor = tiny_base("gpt2"), get_editor(method)
    state = edited(method, 0 if after == "nothing" else 1)
    if after == "taking all back":
        state = editor.retract(base, state, state.fact_ids)
    for prompt in asked:
        told = editor.explain(base, state, prompt)
        content = dataclasses.asdict(dataclasses.replace(told, answered_by=None, candidates=()))
        json.dumps([content, [candidate.score for candidate in told.candidates]], allow_nan=False)
        # None: nothing is edited, so that no score reaches a threshold and no token takes the hook.
        assert all((token.threshold is None) == (after != "a batch") for token in told.tokens)
        assert not any(token.fired for token in told.tokens if token.threshold is None)


@each
def test_the_scope_tells_what_fires(tiny_base, edited, batches, method):
    base, editor = tiny_base("gpt2"), get_editor(method)
    state = edited(method, 1)
    rows = [(tuple(base.tokenizer(text)["input_ids"]), ()) for text in [f.question for f in batches[0].facts]]
    rows.append((tuple(base.tokenizer("People of old elected")["input_ids"]), ()))
    readings = editor.read_scope(base, state, rows, batch_size=2)
    assert [reading.tokens for reading in readings] == [len(prompt) for prompt, _ in rows]
    assert all((reading.touched > 0) == (reading.lead >= 0) for reading in readings)
    *asked, _ = readings
    assert all(0 < reading.touched <= reading.tokens for reading in asked)
    if method == "recipe":
        assert [reading.fact_id for reading in asked] == [fact.fact_id for fact in batches[0].facts]
    assert editor.read_scope(base, state, [], batch_size=2) == []
    assert all(math.isfinite(value) for value in editor.gauges(state).values())


@each
def test_an_unknown_setting_is_refused(tiny_base, moments, config_of, method):
    with pytest.raises(ConfigError, match="no setting lambda"):
        get_editor(method).start(tiny_base("gpt2"), {**config_of(method), "lambda": 3}, moments("gpt2"))


def test_a_method_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match="'grace' is unknown; use one of both, coachhook, recipe"):
        get_editor("grace")


@each
def test_states_of_earlier_formats_load_for_ever(tiny_base, asked, method):
    """The golden folder was written once, by the first version of its format, and is never written again."""
    folder = Path(__file__).parent / "golden" / f"{method}_format_1"
    content = json.loads((folder / "state.json").read_text())
    if method == "both":
        content = json.loads((folder / "coachhook" / "state.json").read_text())
    identity = content["base"]
    base = dataclasses.replace(
        tiny_base("gpt2"), fingerprint=identity["fingerprint"], tokenizer_hash=identity["tokenizer_hash"]
    )
    editor = get_editor(method)
    state = editor.load(folder, base)
    assert [(fact.subject, fact.target) for fact in state.facts][:2] == [("Arden", "Vance"), ("Belmont", "Stern")]
    with editor.attach(base, state):
        alone(base, asked)


@each
def test_a_half_precision_base_serves_a_copy_and_keeps_the_masters(tiny_base, edited, asked, method):
    base, editor = tiny_base("llama"), get_editor(method)
    state = edited(method, 1, "llama")
    half = dataclasses.replace(base, model=copy.deepcopy(base.model).to(torch.bfloat16))
    with editor.attach(half, state):
        logits = alone(half, asked)
    assert all(torch.isfinite(each).all() and each.dtype == torch.bfloat16 for each in logits)
    assert dataclasses.replace(state).digest == state.digest
