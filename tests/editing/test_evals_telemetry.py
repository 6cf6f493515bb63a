import math
from datetime import UTC, datetime

import pytest

from editing.editors import get_editor
from editing.errors import ConfigError, EditRefusedError
from editing.evals.canaries import CanaryLimits, canaries, require_healthy
from editing.evals.requests import prompt_ids
from editing.evals.retention import AgePoint, Asked, forgetting_curve, wilson
from editing.evals.telemetry import asked_kinds, reach, readings
from editing.facts import EditBatch, FactChange, LocalityPrompt
from editing.statistics import compute_second_moments
from editing.tokenisation import encode_prompts

QUICK = {
    "layers": [1, 2],
    "max_steps": 60,
    "learning_rate": 0.5,
    "clamp": 20.0,
    "weight_decay": 0.0,
    "preservation": 0.0,
    "kl_factor": 0.0,
    "moment_weight": 1e-3,
    "stop_loss": 0.2,
}
FACT = FactChange(
    subject="Arden",
    relation="mayor",
    target="Vance",
    prompt="The mayor of {}",
    rephrases=("Now the mayor of {}",),
    locality=(
        LocalityPrompt(prompt="The president of Arden is", answer="Dov Stern"),
        LocalityPrompt(prompt="The mayor of Belmont is", answer="Ben Hale"),
    ),
    effective_at=datetime(2020, 1, 1, tzinfo=UTC),
    observed_at=datetime(2020, 1, 1, tzinfo=UTC),
    source="test",
)


@pytest.fixture(scope="module", params=["leverage", "calibrated", "sequence", "always"])
def edited(request, tiny_base, corpus):
    base, editor = tiny_base("gpt2"), get_editor("coachhook")
    moments = compute_second_moments(base, corpus, QUICK["layers"], n_background=200)
    applied = editor.apply(base, editor.start(base, {**QUICK, "scope": request.param}, moments), EditBatch((FACT,)))
    return base, applied


def test_the_edit_prompt_is_reached_and_what_is_reported_is_what_is_served(edited):
    base, applied = edited
    prompts = [FACT.question, *FACT.paraphrases, *(item.prompt for item in FACT.locality), "In"]
    found = readings(base, applied.state, prompts, batch_size=3)
    ids = prompt_ids(base, prompts)
    assert [reading.tokens for reading in found] == [len(row) for row in ids]
    assert found[0].touched >= 1
    assert found[0].margin >= 0
    for prompt, reading in zip(prompts, found, strict=True):
        decisions = []
        inputs = encode_prompts(base.tokenizer, [prompt])
        with get_editor("coachhook").attach(base, applied.state, decisions=decisions):
            served = base.model(**inputs).logits
        same = (served == base.model(**inputs).logits).all().item()
        assert same == (reading.touched == 0)
        if decisions:
            assert (reading.score >= 1) == any(decision.fired.any() for decision in decisions)


def test_reach_adds_up_by_kind(edited):
    base, applied = edited
    kinds = asked_kinds([FACT])
    rows = {kind: reach(kind, readings(base, applied.state, kinds[kind], batch_size=2)) for kind in kinds}
    assert set(rows) == {"edit prompts", "rephrases", "same subject", "other subjects"}
    assert rows["edit prompts"].hits == 1
    assert 0 < rows["edit prompts"].tokens <= 1
    assert rows["edit prompts"].scalars()["edit prompts/hits"] == 1
    if applied.state.config.scope == "always":
        assert all((row.tokens, row.margin) == (1, None) for row in rows.values())
        assert "edit prompts/margin" not in rows["edit prompts"].scalars()
    else:
        assert all(row.low <= row.margin <= row.high for row in rows.values())
        gauges = get_editor("coachhook").gauges(applied.state)
        if (gate := applied.state.gate) is None:
            assert gauges == {f"alpha, layer {n}": layer.alpha for n, layer in applied.state.layers.items()}
        else:
            assert gauges == {"highest r": float(gate.thresholds.max()), "mean r": float(gate.thresholds.mean())}


def test_a_state_is_healthy_within_the_limits_and_a_batch_beyond_them_is_refused(edited):
    base, applied = edited
    found = require_healthy(base, applied.state, applied.canaries, CanaryLimits(perplexity_ratio=1e9))
    assert found["not_finite"] == 0
    assert found["perplexity_ratio"] == found["perplexity_edited"] / found["perplexity_base"]
    assert found["weight_change"] == max(v for k, v in applied.canaries.items() if k.endswith("relative_change")) > 0
    measured = canaries(base, applied.state, {})
    assert measured["perplexity_base"] > 1
    assert measured["weight_change"] == 0
    with pytest.raises(EditRefusedError, match=r"weight_change is .* above its limit of 1e-06"):
        require_healthy(base, applied.state, applied.canaries, CanaryLimits(perplexity_ratio=1e9, weight_change=1e-6))
    worse = {**applied.canaries, "perplexity_edited": 3 * applied.canaries["perplexity_base"]}
    with pytest.raises(EditRefusedError, match=r"perplexity_ratio is 3 .* raise batch_canaries.perplexity_ratio"):
        require_healthy(base, applied.state, worse, CanaryLimits())
    layer = applied.state.layers[1]
    layer.weight[0, 0] = math.nan
    try:
        with pytest.raises(EditRefusedError, match="1 values of the state are not finite"):
            require_healthy(base, applied.state, applied.canaries, CanaryLimits())
    finally:
        layer.weight[0, 0] = 0.0


@pytest.mark.parametrize("limits", [{"perplexity_ratio": 0.9}, {"perplexity_ratio": math.nan}, {"weight_change": -1}])
def test_limits_that_no_batch_could_keep_are_refused(limits):
    with pytest.raises(ConfigError, match="canary limit"):
        CanaryLimits(**limits)


def test_the_forgetting_curve_counts_by_age():
    asked = [Asked(0, True), Asked(0, True), Asked(6, False), Asked(7, True), Asked(400, False), Asked(9999, True)]
    curve = forgetting_curve(asked)
    assert [(p.from_days, p.to_days, p.asked, round(p.answered, 3)) for p in curve] == [
        (0, 7, 3, 0.667),
        (7, 30, 1, 1.0),
        (365, 730, 1, 0.0),
        (2190, None, 1, 1.0),
    ]
    assert isinstance(curve[0], AgePoint)
    assert all(point.low <= point.answered <= point.high for point in curve)
    with pytest.raises(ValueError, match="3 days before"):
        forgetting_curve([Asked(-3, True)])


def test_wilsons_interval():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # tables of the score interval
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1
    for n in range(1, 200):
        for right in (0, n // 3, n):
            low, high = wilson(right, n)
            assert 0 <= low <= right / n <= high <= 1
