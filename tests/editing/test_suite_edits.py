import json

import pytest

from editing.bench.suite_edits import bench_suite
from editing.editors import get_editor
from editing.errors import SuiteError
from editing.statistics import compute_second_moments

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
ZSRE = {
    "subject": "Arden",
    "src": "The mayor of Arden",
    "rephrase": "Now the mayor of Arden",
    "alt": "Vance",
    "answers": ["Ada Moss"],
    "loc": "nq question: who leads Belmont",
    "loc_ans": "Ben Hale",
    "portability": {"Recalled Relation": "", "New Question": "The name of Arden's mayor is", "New Answer": "Vance"},
}
ROME = {
    "requested_rewrite": {
        "prompt": "The mayor of {}",
        "relation_id": "P6",
        "target_new": {"str": "Vance", "id": ""},
        "target_true": {"str": "Ada Moss", "id": ""},
        "subject": "Arden",
    },
    "paraphrase_prompts": ["Now the mayor of Arden"],
    "neighborhood_prompts": ["The mayor of Corvia", "The mayor of Belmont"],
    "generation_prompts": ["The mayor of Arden"],
}
BELMONT = {
    **ROME,
    "requested_rewrite": {**ROME["requested_rewrite"], "subject": "Belmont"},
    "paraphrase_prompts": ["Now the mayor of Belmont"],
    "neighborhood_prompts": ["The mayor of Corvia"],
}


@pytest.fixture(scope="module")
def start(tiny_base, corpus):
    base = tiny_base("gpt2")
    moments = compute_second_moments(base, corpus, QUICK["layers"], n_background=200)
    return base, get_editor("coachhook").start(base, QUICK, moments)


def bench(start, tmp_path, name, records, **more):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(records))
    how = {"records": 10, "batch_size": 5, "scoring_batch_size": 8, **more}
    return bench_suite(*start, name, path, **how)


def test_zsre_records_are_applied_and_scored(start, tmp_path):
    found = bench(start, tmp_path, "zsre", [ZSRE])
    assert [fact.target for fact in found.facts] == ["Vance"]
    assert (found.base.method, found.edited.model_digest) == (None, found.state.digest)
    base, edited = found.base.scalars(), found.edited.scalars()
    assert base["edits.reliability.teacher_forced"] == 0
    assert edited["edits.reliability.teacher_forced"] == 1
    assert base["edits.locality.teacher_forced"] == 1
    assert "edits.portability.generated" in edited
    assert edited.keys() == base.keys()


def test_counterfact_records_are_applied_and_scored(start, tmp_path):
    found = bench(start, tmp_path, "counterfact", [ROME, BELMONT, ROME], generation=1)
    assert {fact.subject for fact in found.facts} == {"Arden", "Belmont"}
    scores = found.edited.scalars()
    assert scores["counterfact_edits.efficacy_success.likelihood"] == 1
    assert scores["counterfact_edits.efficacy_magnitude.likelihood"] > 0.5
    assert "counterfact_edits.generation_entropy.sampled" in scores
    assert "counterfact_edits.harmonic_score.likelihood" in scores
    record = found.edited.suites["counterfact_edits"]
    assert record.excluded == {"contradicted by another edit": 1}  # Belmont is nobody's neighbour: it was edited too


def test_a_suite_without_edits_is_refused(start, tmp_path):
    with pytest.raises(SuiteError, match="'mmlu' has no edits of its own; zsre and counterfact have"):
        bench(start, tmp_path, "mmlu", [])
