import importlib.util
import sys

import pytest

from editing.almanac.suites import SUITES
from editing.almanac.world import MODEL
from editing.errors import SuiteError
from editing.evals.harness import agreements
from editing.evals.scorer import open_scorer
from editing.evals.suites import load_suite
from editing.models import load_base_model

BARE = {"shots": 0, "form": "bare"}
installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra lm-eval is not installed")


@pytest.fixture(scope="module")
def almanac():
    return load_base_model(str(MODEL))


@installed
@pytest.mark.parametrize(
    ("name", "options", "right"),
    [
        ("mmlu", BARE, (0.9, 1.0)),
        ("mmlu", {"shots": 3}, (0.2, 0.95)),  # the field's form, which this model was not trained on
        ("gsm8k", BARE, (0.9, 1.0)),
        ("gsm8k", {"shots": 2, "shots_from": SUITES / "gsm8k" / "test.jsonl", "max_new_tokens": 24}, (0.0, 0.9)),
    ],
)
def test_the_harness_reads_the_same_prompts_and_gives_the_same_scores(almanac, name, options, right):
    suite = load_suite(name, SUITES / name, **options).sample(40)
    with open_scorer(almanac) as scorer:
        rows = agreements(scorer, suite)
    assert {row.metric for row in rows} == set(suite.metric_sizes())
    for row in rows:
        assert row.complete, row
        assert row.items == len(suite)
        assert row.ours == row.harness
    assert right[0] <= rows[-1].ours <= right[1]


@installed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmlu", "gsm8k"])
def test_whole_suites_agree_item_by_item(almanac, name):
    suite = load_suite(name, SUITES / name, **BARE)
    with open_scorer(almanac) as scorer:
        rows = agreements(scorer, suite)
    assert [(row.items, row.same_prompts, row.same_scores) for row in rows] == [(len(suite),) * 3] * len(rows)


@installed
def test_an_item_that_disagrees_is_named(almanac):
    suite = load_suite("gsm8k", SUITES / "gsm8k", **BARE).sample(8)
    with open_scorer(almanac) as scorer:
        scorer.generate = lambda prompts, budget, **more: ["#### -1" for _ in prompts]
        rows = agreements(scorer, suite)
    for row in rows:
        assert not row.complete
        assert (row.ours, row.same_prompts, row.same_scores) == (0.0, 8, 0)
        assert row.differing[0] in {item.item_id for item in suite.items}


def test_what_the_harness_cannot_do_is_said(almanac, monkeypatch):
    with open_scorer(almanac) as scorer:
        with pytest.raises(SuiteError, match="no task like suite 'zsre'; it has mmlu and gsm8k"):
            agreements(scorer, load_suite("zsre", SUITES / "zsre.json"))
        monkeypatch.setitem(sys.modules, "lm_eval", None)
        with pytest.raises(SuiteError, match=r"errata\[lm-eval\]"):
            agreements(scorer, load_suite("gsm8k", SUITES / "gsm8k", **BARE))
