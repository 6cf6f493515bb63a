import json
import math

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from editing.errors import SuiteError
from editing.evals.scorer import open_scorer
from editing.evals.suite import evaluate
from editing.evals.suites import load_suite
from editing.evals.suites.counterfact.generation import (
    inverse_frequencies,
    ngram_entropy,
    read_references,
    similarity,
)

RECORD = {
    "requested_rewrite": {
        "prompt": "The mayor of {} is",
        "relation_id": "P6",
        "target_new": {"str": "Ben Hale", "id": "Q1"},
        "target_true": {"str": "Ada Moss", "id": "Q2"},
        "subject": "Arden",
    },
    "paraphrase_prompts": ["Arden is led by"],
    "neighborhood_prompts": ["The mayor of Corvia is"],
    "generation_prompts": ["The mayor of Arden", "In Arden the mayor"],
}
SNIPPETS = [
    {"relation_id": "P6", "target_id": "Q1", "samples": [{"name": "x", "text": "Ben Hale leads the town of Arden."}]},
    {
        "relation_id": "P6",
        "target_id": "Q2",
        "samples": [{"name": "y", "text": "Ada Moss is mayor."}, {"text": "Moss"}],
    },
]


def test_entropy_is_that_of_the_ngrams():
    assert ngram_entropy("a b a b a b", {2: 1.0}) == pytest.approx(-(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4)))
    assert ngram_entropy("a b c d", {2: 1.0, 3: 1.0}) == pytest.approx((math.log2(3) + math.log2(2)) / 2)
    assert ngram_entropy("word", {2: 0.5, 3: 1.5}) == 0
    assert ngram_entropy("no no no no no", {2: 1.0}) == 0


def test_similarity_is_that_of_scikit_learn():
    documents = [sample["text"] for record in SNIPPETS for sample in record["samples"]]
    texts = ["Ben Hale, the mayor of Arden, leads leads", "moss and nothing else", "unknown words only"]
    vectoriser = TfidfVectorizer().fit(documents)
    frequencies = inverse_frequencies(documents)
    assert frequencies == pytest.approx(dict(zip(vectoriser.get_feature_names_out(), vectoriser.idf_, strict=True)))
    for text in texts:
        for document in documents:
            theirs = cosine_similarity(vectoriser.transform([text]), vectoriser.transform([document]))[0, 0]
            assert similarity(text, document, frequencies) == pytest.approx(theirs)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "records.json").write_text(json.dumps([RECORD, {**RECORD, "generation_prompts": []}]))
    (tmp_path / "snippets.json").write_text(json.dumps(SNIPPETS))
    return tmp_path / "records.json", tmp_path / "snippets.json"


@pytest.mark.parametrize(
    ("name", "expected", "n"), [("counterfact", "Ada Moss", 2), ("counterfact_edits", "Ben Hale", 1)]
)
def test_texts_are_compared_with_those_about_the_object_that_should_win(tiny_base, files, name, expected, n):
    path, snippets = files
    suite = load_suite(name, path, generation=None, references=snippets)
    (item,) = (item for item in suite.items if item.kind == "generation")
    assert (item.expected, len(item.references), len(item.prompts)) == (expected, n, 2)
    with open_scorer(tiny_base("gpt2")) as scorer:
        report = evaluate(scorer, [suite])
    assert suite.metric_sizes() == {key: metric.n for key, metric in report.metrics.items()}
    entropy = report.metrics[f"{name}.generation_entropy.sampled"]
    consistency = report.metrics[f"{name}.generation_consistency.sampled"]
    assert (entropy.n, entropy.binary, consistency.n) == (1, False, 1)
    assert entropy.value > 2  # random weights repeat little
    assert 0 <= consistency.value <= 1


def test_without_references_there_is_no_consistency_and_without_generation_no_text(files):
    path, _ = files
    sizes = load_suite("counterfact_edits", path).metric_sizes()
    assert sizes["counterfact_edits.generation_entropy.sampled"] == 1
    assert not any("consistency" in name for name in sizes)
    assert not any("generation" in name for name in load_suite("counterfact", path).metric_sizes())


def test_a_reference_file_that_lacks_texts_is_named(tmp_path):
    path = tmp_path / "snippets.json"
    path.write_text(json.dumps([SNIPPETS[0] | {"samples": [{"name": "x"}]}]))
    with pytest.raises(SuiteError, match=r"a sample of record 0 of .* has no 'text'"):
        read_references(path)
    path.write_text(json.dumps([{"target_id": "Q1", "samples": [{"text": "t"}]}]))
    with pytest.raises(SuiteError, match="has no 'relation_id'"):
        read_references(path)
