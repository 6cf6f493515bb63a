import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from editing.errors import SuiteError
from editing.evals.scorer import open_scorer
from editing.evals.scoring import teacher_forced
from editing.evals.suite import evaluate, fitting
from editing.evals.suites import SUITES, counterfact, gsm8k, load_suite, mmlu, zsre
from editing.evals.suites.hub import fetch_dataset

ALMANAC = Path(__file__).resolve().parents[2] / "editing/almanac/data/suites"
DATA = Path(os.environ.get("ERRATA_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
published = pytest.mark.skipif(not DATA.is_dir(), reason=f"no published data at {DATA}; set ERRATA_DATA")

MEND = {
    "subject": "Arden",
    "src": "Who leads Arden? ",
    "rephrase": "Arden is led by",
    "alt": " Ben Hale",
    "answers": ["Ada Moss", "A. Moss"],
    "loc": "nq question: who leads belmont",
    "loc_ans": "Ben Hale",
}
KNOWEDIT = {
    "subject": "Arden",
    "prompt": "Who leads Arden?",
    "rephrase_prompt": "Arden is led by",
    "target_new": "Ben Hale",
    "ground_truth": ["Ada Moss", "A. Moss"],
    "locality": {"Relation_Specificity": [{"prompt": "who leads belmont", "ground_truth": [["Ben Hale", "B. Hale"]]}]},
    "portability": {},
}
ROME = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mayor of {} is",
        "relation_id": "P6",
        "target_new": {"str": "Ben Hale", "id": "Q1"},
        "target_true": {"str": "Ada Moss", "id": "Q2"},
        "subject": "Arden",
    },
    "paraphrase_prompts": ["Arden is led by", "In Arden rules"],
    "neighborhood_prompts": ["The mayor of Corvia is"],
}
EASYEDIT = {
    "case_id": 7,
    "prompt": "The mayor of Arden is",
    "target_new": "Ben Hale",
    "subject": "Arden",
    "ground_truth": "Ada Moss",
    "rephrase_prompt": "Arden is led by",
    "locality_prompt": "The mayor of Corvia is",
    "locality_ground_truth": "Ada Moss",
}


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_zsre_means_the_same_in_every_published_shape(tmp_path):
    ours = load_suite("zsre", write(tmp_path / "mend.json", [MEND, MEND]))
    theirs = load_suite("zsre", write(tmp_path / "knowedit.json", [KNOWEDIT]))
    assert [(p.metric, p.prompt, p.answers) for p in ours.items] == [
        ("question", "Who leads Arden?", ("Ada Moss", "A. Moss")),
        ("rephrase", "Arden is led by", ("Ada Moss", "A. Moss")),
        ("unrelated", "who leads belmont", ("Ben Hale",)),
    ]
    assert ours.digest == theirs.digest
    (change,) = zsre.fact_changes(tmp_path / "knowedit.json")
    assert (change.prompt, change.question, change.target) == ("Who leads {}?", "Who leads Arden?", "Ben Hale")
    assert change.locality[0].answer == "Ben Hale"
    useless = [{**MEND, "alt": ""}, {**MEND, "alt": "ada  moss"}, {**MEND, "subject": "Elsewhere"}]
    assert zsre.fact_changes(write(tmp_path / "useless.json", useless)) == []


def test_zsre_keeps_every_name_of_an_answer_that_follows(tmp_path):
    ported = {"Reasoning": [{"prompt": "It is led by", "ground_truth": [["Ada Moss", "A. Moss"], ["Ben Hale"]]}]}
    (change,) = zsre.fact_changes(write(tmp_path / "knowedit.json", [KNOWEDIT | {"portability": ported}]))
    assert [item.answers for item in change.portability] == [("Ada Moss", "A. Moss", "Ben Hale")]


def test_counterfact_means_the_same_in_every_published_shape(tmp_path):
    rome, easy = write(tmp_path / "rome.json", [ROME]), write(tmp_path / "easy.json", [EASYEDIT])
    ids = {item.item_id for item in load_suite("counterfact", rome).items}
    assert {item.item_id for item in load_suite("counterfact", easy).items} < ids
    assert len(ids) == 4
    for path in (rome, easy):
        (change,) = counterfact.fact_changes(path)
        assert (change.question, change.target, change.target_old) == ("The mayor of Arden is", "Ben Hale", "Ada Moss")
        assert change.locality[0].prompt == "The mayor of Corvia is"


def test_counterfact_success_and_magnitude_follow_the_mode(tiny_base, tmp_path):
    base, path = tiny_base("gpt2"), write(tmp_path / "rome.json", [ROME])
    reports = {}
    for name in ("counterfact", "counterfact_edits"):
        suite = load_suite(name, path)
        with open_scorer(base) as scorer:
            reports[name] = evaluate(scorer, [suite])
        assert suite.metric_sizes() == {key: m.n for key, m in reports[name].metrics.items()}
    kept, edited = reports["counterfact"].metrics, reports["counterfact_edits"].metrics
    for before, after in (("rewrite", "efficacy"), ("paraphrase", "paraphrase")):
        for what, total in (("success", 1), ("magnitude", 0)):
            was = kept[f"counterfact.{before}_{what}.likelihood"]
            now = edited[f"counterfact_edits.{after}_{what}.likelihood"]
            assert was.n == now.n
            assert was.value + now.value == pytest.approx(total)
    assert (
        kept["counterfact.neighbourhood_success.likelihood"]
        == edited["counterfact_edits.neighbourhood_success.likelihood"]
    )
    true, new = (r.mean_logprob for r in teacher_forced(base, ["The mayor of Arden is"] * 2, ["Ada Moss", "Ben Hale"]))
    assert kept["counterfact.rewrite_success.likelihood"].value == float(true > new)
    rates = [edited[f"counterfact_edits.{m}_success.likelihood"].value for m in ("efficacy", "paraphrase")]
    rates.append(edited["counterfact_edits.neighbourhood_success.likelihood"].value)
    harmonic = 3 / sum(1 / r for r in rates) if all(rates) else 0.0
    scalars = reports["counterfact_edits"].scalars()
    assert scalars["counterfact_edits.harmonic_score.likelihood"] == pytest.approx(harmonic)
    assert not any("harmonic" in name for name in reports["counterfact"].scalars())


ROWS = {
    "dev": [["What is\n1+1?", "1", "2", "3", "4", "B"], ["2+2?", "4", "5", "6", "7", "A"]],
    "test": [["3+3?", "5", "6", "7", "8", "B"], ["4+4?", "8", "9", "0", "1", "A"]],
}


def write_mmlu(folder, flat=False):
    for split, rows in ROWS.items():
        path = folder / ("" if flat else split) / f"high_school_sums_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return folder


def write_hub(folder):
    folder.mkdir(parents=True)
    for split, rows in ROWS.items():
        columns = {
            "question": [row[0] for row in rows],
            "subject": ["high_school_sums"] * len(rows),
            "choices": [row[1:5] for row in rows],
            "answer": ["ABCD".index(row[5]) for row in rows],
        }
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_mmlu_reads_every_layout_and_writes_the_standard_prompt(tmp_path):
    suites = [
        load_suite("mmlu", path, shots=2)
        for path in (write_mmlu(tmp_path / "dirs"), write_mmlu(tmp_path / "flat", True), write_hub(tmp_path / "hub"))
    ]
    assert len({suite.digest for suite in suites}) == 1
    assert [item.expected for item in suites[0].items] == ["6", "8"]
    assert suites[0].items[0].prompt == (
        "The following are multiple choice questions (with answers) about high school sums.\n\n"
        "What is\n1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
        "2+2?\nA. 4\nB. 5\nC. 6\nD. 7\nAnswer: A\n\n"
        "3+3?\nA. 5\nB. 6\nC. 7\nD. 8\nAnswer:"
    )
    bare = load_suite("mmlu", tmp_path / "flat", shots=0, form="bare")
    assert bare.items[0].prompt == "3+3?\nA. 5\nB. 6\nC. 7\nD. 8\nAnswer:"
    assert (bare.version, suites[0].version) == ("1-0shot", "1-2shot")
    with pytest.raises(SuiteError, match=r"has 2 dev questions.*5 shots"):
        load_suite("mmlu", tmp_path / "flat")
    with pytest.raises(SuiteError, match="no prompt form 'fancy' in mmlu; it has bare, standard"):
        load_suite("mmlu", tmp_path / "flat", form="fancy")
    with pytest.raises(SuiteError, match="no MMLU questions"):
        load_suite("mmlu", tmp_path, split="val")


def test_mmlu_answers_with_the_likeliest_letter(tiny_base, tmp_path):
    base, suite = tiny_base("gpt2"), load_suite("mmlu", write_mmlu(tmp_path), shots=0)
    with open_scorer(base) as scorer:
        report = evaluate(scorer, [suite])
    outcomes = report.items(mmlu.METRIC)
    for item in suite.items:
        logprobs = [r.logprob for r in teacher_forced(base, [item.prompt] * 4, list("ABCD"))]
        chosen = "ABCD"[logprobs.index(max(logprobs))]
        assert outcomes[item.item_id].got.startswith(f"{chosen}. ")
        assert outcomes[item.item_id].score == float(chosen == "ABCD"[item.answer])
    assert list(report.groups(mmlu.METRIC)) == ["high_school_sums"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [(["3+3?", "5", "6", "7", "B"], "row 1 of .* has 5 fields"), (["q", "1", "2", "3", "4", "E"], "one of A to D")],
)
def test_a_broken_question_is_named(tmp_path, row, complaint):
    path = tmp_path / "sums_test.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerow(row)
    with pytest.raises(SuiteError, match=complaint):
        load_suite("mmlu", tmp_path, shots=0)


PROBLEM = {"question": "Ann has 2 and gets 3. How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"}


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("2 + 3 = 5\n#### 5", "5", "5"),
        ("#### 1,005.", "1005", "1005"),
        ("so 7 #### -3 and 9", "-3", "9"),
        ("the total is $18.", gsm8k.INVALID, "18"),
        ("none at all", gsm8k.INVALID, gsm8k.INVALID),
        ("#### $5", gsm8k.INVALID, "5"),
    ],
)
def test_the_named_filters_read_the_answer(text, strict, flexible):
    assert gsm8k.extract(text, "strict-match") == strict
    assert gsm8k.extract(text, "flexible-extract") == flexible


def test_gsm8k_prompts_shots_and_scores(tiny_base, tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    suite = load_suite("gsm8k", tmp_path, shots=0, form="bare")
    assert suite.items[0].prompt == "Question: Ann has 2 and gets 3. How many?\nAnswer:"
    assert suite.items[0].expected == "1005"
    with open_scorer(tiny_base("gpt2")) as scorer:
        report = evaluate(scorer, [suite])
    assert {name: m.n for name, m in report.metrics.items()} == suite.metric_sizes()
    shown = load_suite("gsm8k", tmp_path, shots=1, shots_from=tmp_path / "test.jsonl")
    assert shown.items[0].prompt.count("#### 1,005\n\nQuestion:") == 1
    assert shown.digest != suite.digest
    with pytest.raises(SuiteError, match="5 shots were asked for and no training file has 0"):
        load_suite("gsm8k", tmp_path)
    (tmp_path / "test.jsonl").write_text(json.dumps({**PROBLEM, "answer": "5"}))
    with pytest.raises(SuiteError, match=r"record 0 .* has no '####'"):
        load_suite("gsm8k", tmp_path, shots=0)


def test_unreadable_data_is_named(tmp_path):
    with pytest.raises(SuiteError, match="no suite 'glue'; the suites are zsre"):
        load_suite("glue", tmp_path)
    with pytest.raises(SuiteError, match="has none; name the file"):
        load_suite("zsre", tmp_path)
    with pytest.raises(SuiteError, match=r"record 1 of .* has no 'answers'"):
        load_suite("zsre", write(tmp_path / "a.json", [MEND, {name: MEND[name] for name in MEND if name != "answers"}]))
    with pytest.raises(SuiteError, match="cannot be read"):
        load_suite("zsre", tmp_path / "missing.json")
    with pytest.raises(SuiteError, match="does not hold a list of records"):
        load_suite("zsre", write(tmp_path / "b.json", {"a": 1}))
    broken = write(
        tmp_path / "c.json", [{**ROME, "requested_rewrite": ROME["requested_rewrite"] | {"target_true": None}}]
    )
    with pytest.raises(SuiteError, match="an empty 'target_true'"):
        load_suite("counterfact", broken)


def test_one_empty_value_leaves_one_record_out(tmp_path):
    suite = load_suite("zsre", write(tmp_path / "a.json", [MEND, {**MEND, "answers": []}, {**MEND, "subject": None}]))
    assert suite.excluded == {"empty answers": 1, "empty subject": 1}
    assert len(suite) == 3
    suite = load_suite("counterfact", write(tmp_path / "b.json", [EASYEDIT, {**EASYEDIT, "ground_truth": ""}]))
    assert suite.excluded == {"empty true": 1}
    with pytest.raises(SuiteError, match=r"no record that can be asked: .'empty true': 1"):
        load_suite("counterfact", write(tmp_path / "c.json", [{**EASYEDIT, "ground_truth": ""}]))


@pytest.mark.parametrize(
    ("suite", "record", "said"),
    [
        ("zsre", {**MEND, "src": ["a"]}, r"'src' in record 0 of .* is no text: \['a'\]"),
        (
            "zsre",
            {**KNOWEDIT, "locality": {"a": ["p"]}},
            "'locality' in record 0 of .* is no prompt with an answer: 'p'",
        ),
        ("zsre", {**KNOWEDIT, "rephrase_prompt": {"a": 1}}, "'rephrase_prompt' in record 0 .* is no text"),
        ("counterfact", {**ROME, "requested_rewrite": "text"}, "'requested_rewrite' in record 0 .* is no object"),
        ("counterfact", {**ROME, "requested_rewrite": [{}]}, "a list of rewrites, as MQuAKE"),
        ("counterfact", {**EASYEDIT, "target_new": True}, "'target_new' in record 0 .* is no text: True"),
        ("gsm8k", {"question": "q", "answer": ["#### 3"]}, "'answer' in record 0 .* is no text"),
        ("gsm8k", {"question": "q", "answer": "#### three"}, "record 0 .* has no number behind '####'"),
        ("mmlu", {"question": "q", "choices": "abcd", "answer": 1}, "has not 4 choices"),
        ("mmlu", {"question": "q", "choices": list("wxyz"), "answer": 4}, "has the answer 4"),
        ("mmlu", {"question": "q", "choices": list("wxyz"), "answer": "BC"}, "has the answer 'BC'"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_with_its_value(tmp_path, suite, record, said):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(record))
    options = {"shots": 0} if suite in ("mmlu", "gsm8k") else {}
    with pytest.raises(SuiteError, match=said):
        load_suite(suite, path, **options)


def test_what_is_clear_in_another_shape_is_read(tmp_path):
    record = {
        **KNOWEDIT,
        "rephrase_prompt": ["Arden is led by", "Who heads Arden?"],
        "ground_truth": 7,
        "locality": None,
    }
    suite = load_suite("zsre", write(tmp_path / "a.json", [record]))
    assert [(p.metric, p.prompt, p.answers) for p in suite.items] == [
        ("question", "Who leads Arden?", ("7",)),
        ("rephrase", "Arden is led by", ("7",)),
        ("rephrase", "Who heads Arden?", ("7",)),
    ]
    record = {**KNOWEDIT, "subject": "Niger", "prompt": "Nigeria and {} border Niger, led by", "rephrase_prompt": "{}?"}
    (change,) = zsre.fact_changes(write(tmp_path / "b.json", [record]))
    assert change.question == record["prompt"]
    assert change.subject_start == record["prompt"].index("Niger,")
    assert change.paraphrases == ("{}?",)


def test_lines_are_parted_by_line_feeds_alone_and_hidden_files_are_passed_over(tmp_path):
    rows = [{"question": f"{name}\u2028\x85\x0cHow many?", "answer": "#### 3"} for name in "ab"]
    text = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "test.JSONL").write_text(text, encoding="utf-8")
    (tmp_path / "._test.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "test.jsonl").write_bytes(b"\x00")
    assert len(load_suite("gsm8k", tmp_path, shots=0)) == 2
    write_mmlu(tmp_path / "mmlu", flat=True)
    (tmp_path / "mmlu" / "._high_school_sums_test.csv").write_bytes(b"\x00\x05\x16\x07")
    assert len(load_suite("mmlu", tmp_path / "mmlu", shots=0)) == 2


def test_a_question_with_two_answers_is_asked_in_neither(tmp_path):
    rows = [("q", "3"), ("q", "4"), ("r", "5"), ("r", "5"), ("s", "6")]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({"question": q, "answer": f"#### {a}"}) for q, a in rows))
    suite = load_suite("gsm8k", tmp_path, shots=0)
    assert [item.question for item in suite.items] == ["r", "s"]
    assert suite.excluded == {"question with different answers": 2, "repeated question": 1}


def test_the_prompts_of_a_counterfact_record_name_it(tiny_base, tmp_path):
    suite = load_suite(
        "counterfact", write(tmp_path / "rome.json", [ROME, {**ROME, "neighborhood_prompts": ["q", "r"]}])
    )
    with open_scorer(tiny_base("gpt2")) as scorer:
        report = evaluate(scorer, [suite])
    records = {outcome.prompt: outcome.record for outcome in report.outcomes}
    assert records["q"] == records["r"] == records["The mayor of Arden is"] != ""


def test_an_item_that_is_too_long_is_left_out_and_counted(tiny_base, tmp_path):
    base = tiny_base("gpt2")
    room = base.model.config.max_position_embeddings
    long = {**MEND, "src": f"{'x ' * room}Who leads Arden?", "rephrase": "", "loc": ""}
    probes = load_suite("zsre", write(tmp_path / "a.json", [MEND, long]))
    problems = [PROBLEM, {**PROBLEM, "question": "y " * room}]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, problems)))
    sums = load_suite("gsm8k", tmp_path / "test.jsonl", shots=0, form="bare", max_new_tokens=8)
    with open_scorer(base) as scorer:
        report = evaluate(scorer, [probes, sums])
    for name, suite in (("zsre", probes), ("gsm8k", sums)):
        assert report.suites[name].excluded == {"too long for the model": 1}
        assert report.suites[name].items == len(suite) - 1
    assert fitting(probes, base).digest == report.suites["zsre"].digest


def test_every_suite_has_a_readme_that_names_its_version():
    for package in (zsre, counterfact, mmlu, gsm8k):
        text = Path(package.__file__).with_name("README.md").read_text()
        assert f"(version {package.VERSION})" in text


def test_the_almanac_suites_are_read():
    bare = {"mmlu": {"shots": 0, "form": "bare"}, "gsm8k": {"shots": 0, "form": "bare"}}
    paths = {
        name: ALMANAC / {"mmlu": "mmlu", "gsm8k": "gsm8k"}.get(name, f"{name.split('_')[0]}.json") for name in SUITES
    }
    suites = {name: load_suite(name, path, **bare.get(name, {})) for name, path in paths.items()}
    assert len(suites["mmlu"]) >= 500
    assert len(suites["gsm8k"]) >= 200
    assert len(zsre.fact_changes(paths["zsre"])) > 150
    assert len(counterfact.fact_changes(paths["counterfact"])) > 150
    assert {suite.name for suite in suites.values()} == set(SUITES)


def test_gsm8k_takes_its_shots_from_the_training_split_beside_it(tmp_path):
    for split, names in (("train", "abcdef"), ("test", "xyz")):
        rows = [{"question": f"{name}?", "answer": f"so\n#### {place}"} for place, name in enumerate(names)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}-00000-of-00001.parquet")
    suite = load_suite("gsm8k", tmp_path)
    assert suite.version == "1-5shot"
    assert [item.question for item in suite.items] == ["x?", "y?", "z?"]
    assert suite.items[0].prompt.startswith("Question: a?\nAnswer: so\n#### 0\n\nQuestion: b?")
    assert suite.items[0].prompt.count("####") == 5
    assert [item.question for item in load_suite("gsm8k", tmp_path, shots=0, split="train").items][:2] == ["a?", "b?"]
    with pytest.raises(SuiteError, match="8 shots were asked for and no training file has 6"):
        load_suite("gsm8k", tmp_path, shots=8)
    with pytest.raises(SuiteError, match="of split 'val'"):
        load_suite("gsm8k", tmp_path, shots=0, split="val")


def test_a_dataset_in_the_hubs_layout_is_read_like_its_files(tmp_path):
    """`datasets` reads a local folder as it reads one of the hub: README, configuration, a file for each split."""
    hub, kept = write_hub(tmp_path / "data"), tmp_path / "kept"
    files = [{"split": split, "path": f"{split}-00000-of-00001.parquet"} for split in ROWS]
    (hub / "README.md").write_text(f"---\nconfigs: {json.dumps([{'config_name': 'all', 'data_files': files}])}\n---\n")
    folder = fetch_dataset(str(hub), kept, subset="all")
    assert load_suite("mmlu", folder, shots=2).digest == load_suite("mmlu", hub, shots=2).digest
    for file in hub.glob("*.parquet"):
        file.unlink()
    assert fetch_dataset(str(hub), kept, subset="all") == folder  # fetched once
    with pytest.raises(SuiteError, match=r"dataset .* \(some\) cannot be read"):
        fetch_dataset(str(hub), kept, subset="some")
    with pytest.raises(SuiteError, match="check the id, the subset and the network"):
        fetch_dataset(str(tmp_path / "nowhere"), kept)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "data" / "holdout.parquet")
    files = [{"split": "holdout", "path": "*.parquet"}]
    (hub / "README.md").write_text(f"---\nconfigs: {json.dumps([{'config_name': 'all', 'data_files': files}])}\n---\n")
    with pytest.raises(SuiteError, match="has the splits holdout; a suite reads dev, train, test"):
        fetch_dataset(str(hub), kept / "other", subset="all")


@published
def test_the_published_files_are_read():
    assert len(load_suite("zsre", DATA / "zsre")) > 2500
    assert len(zsre.fact_changes(DATA / "zsre")) > 900
    assert len(load_suite("counterfact", DATA / "counterfact")) > 8000
    assert len(counterfact.fact_changes(DATA / "counterfact")) > 2900
    assert len({item.subject for item in load_suite("mmlu", DATA / "mmlu").items}) == 57
    assert len(load_suite("gsm8k", DATA / "gsm8k", shots_from=DATA / "gsm8k/train_first500.jsonl")) == 500
