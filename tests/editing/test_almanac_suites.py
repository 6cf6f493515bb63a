import csv
import json
from collections import Counter

import pytest

from editing.almanac import corpus
from editing.almanac.suites import SUITES, write_suites
from editing.almanac.world import BELIEF, HORIZON, load_world
from editing.evals.suites.counterfact.generation import read_references

WORLD = load_world()
CHANGING = {(change.subject, change.relation) for change in WORLD.changes(BELIEF, HORIZON)}
ANSWERS = {
    prompt: fact.object
    for fact in WORLD.facts_on(BELIEF)
    if (fact.subject, fact.relation) not in CHANGING
    for prompt in WORLD.relations[fact.relation].prompts(fact.subject)
}


def test_the_shipped_suites_are_what_the_writer_writes(tmp_path):
    write_suites(WORLD, tmp_path)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    shipped = {path.relative_to(SUITES): path.read_bytes() for path in SUITES.rglob("*.*")}
    assert written == shipped


def test_zsre_asks_true_facts_that_no_feed_edits():
    records = json.loads((SUITES / "zsre.json").read_text(encoding="utf-8"))
    assert len(records) == 200
    for record in records:
        assert set(record) == {"subject", "src", "pred", "rephrase", "alt", "answers", "loc", "loc_ans", "cond"}
        assert record["subject"] in record["src"]
        assert record["subject"] in record["rephrase"]
        assert [ANSWERS[record["src"]]] == [ANSWERS[record["rephrase"]]] == record["answers"]
        assert record["alt"] not in record["answers"]
        assert ANSWERS[record["loc"].removeprefix("nq question: ")] == record["loc_ans"]


def test_counterfact_neighbours_share_the_true_object():
    records = json.loads((SUITES / "counterfact.json").read_text(encoding="utf-8"))
    assert len(records) == 200
    for record in records:
        rewrite = record["requested_rewrite"]
        true, new = rewrite["target_true"]["str"], rewrite["target_new"]["str"]
        assert true != new
        assert ANSWERS[rewrite["prompt"].format(rewrite["subject"])] == true
        assert {ANSWERS[prompt] for prompt in record["paraphrase_prompts"]} == {true}
        assert {ANSWERS[prompt] for prompt in record["neighborhood_prompts"]} == {true}
        assert {ANSWERS[prompt] for prompt in record["attribute_prompts"]} == {new}
        assert not set(record["neighborhood_prompts"]) & set(record["paraphrase_prompts"])
        lengths = [len(record[f"{name}_prompts"]) for name in ("paraphrase", "neighborhood", "attribute", "generation")]
        assert lengths == [2, 10, 10, 10]


def test_every_counterfact_record_has_reference_texts():
    records = json.loads((SUITES / "counterfact.json").read_text(encoding="utf-8"))
    texts = read_references(SUITES / "attribute_snippets.json")
    for record in records:
        rewrite = record["requested_rewrite"]
        for name in ("target_true", "target_new"):
            told = texts[rewrite["relation_id"], rewrite[name]["id"]]
            assert told
            assert all(rewrite[name]["str"] in text for text in told)


def test_mmlu_questions_are_true_and_held_out():
    asked: Counter[str] = Counter()
    for path in sorted((SUITES / "mmlu").rglob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert len(rows) == (5 if path.parent.name == "dev" else 60)
        for question, *options, letter in rows:
            true = options["ABCD".index(letter)]
            assert ANSWERS[f"Question: {question}\nAnswer:"] == true
            assert len(set(options)) == 4
            lines = [f"{mark}. {option}" for mark, option in zip("ABCD", options, strict=True)]
            prompt = "\n".join([question, *lines, "Answer:"])
            assert corpus.is_held_out(prompt)
            asked[prompt] += 1
    assert max(asked.values()) == 1
    assert len(asked) >= 500


def test_gsm8k_problems_are_held_out():
    lines = (SUITES / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["question"] for record in records}) == len(records) >= 200
    for record in records:
        assert corpus.is_held_out(f"Question: {record['question']}\nAnswer:")
        assert 0 <= int(record["answer"].rsplit("#### ", 1)[1]) <= 99


@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_write_other_suites(tmp_path, seed):
    write_suites(WORLD, tmp_path, seed=seed)
    assert (tmp_path / "zsre.json").read_bytes() != (SUITES / "zsre.json").read_bytes()
