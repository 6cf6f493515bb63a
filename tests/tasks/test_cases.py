"""The inputs of public reports that went wrong, each with what is right; they are not part of the repository."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from editing.errors import SuiteError
from editing.evals.suites import load_suite, zsre
from editing.facts import FactChange, PortabilityPrompt
from tasks.feed.convert import Conversion, convert_feed
from tasks.feed.reading import validate_feed
from tasks.feed.rules import Reason

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
AT = datetime(2024, 5, 1, tzinfo=UTC)
APRIL = datetime(2024, 4, 3, tzinfo=UTC)

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"the reported inputs are not at {CASES}")


def converted(name: str) -> tuple[list[FactChange], Conversion]:
    conversion = Conversion(CASES / name, at=AT)
    return list(conversion), conversion


def test_the_report_as_json(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flows.cli.app import app

    arguments = ["feed", "convert", str(CASES / "convert_json_crash.jsonl"), str(tmp_path / "y.parquet"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["converted"] == 1
    assert report["repaired"]["stray spaces"] == 1


def test_dates() -> None:
    changes, _ = converted("epoch_ms_read_as_1712.jsonl")
    assert [change.effective_at for change in changes] == [APRIL] * 4
    (only,), conversion = converted("date_out_of_range_crash.jsonl")
    assert only.subject == "Ada Oak"
    assert "outside the years" in conversion.report.skipped[0].reason


def test_numbers() -> None:
    (only,), conversion = converted("rank_infinity_crash.jsonl")
    assert only.subject == "Ada Oak"
    assert "source_rank inf" in conversion.report.skipped[0].reason
    (population, founded), _ = converted("numeric_target_called_empty.jsonl")
    assert (population.target, population.target_old) == ("48210", "47000")
    assert (founded.target, founded.target_old) == ("1984", "1979")
    (change,), conversion = converted("numeric_answers_lost.json")
    assert change.target_old == "1979"
    assert change.locality[0].answer == "48210"
    assert change.portability == (PortabilityPrompt(prompt="Port Avella turned ten in", answer="1994"),)
    assert not conversion.report.left_out


def test_known_fields_in_other_shapes_are_kept() -> None:
    (change,), conversion = converted("knowedit_list_shaped_lost.json")
    assert change.target_old == "王甲"
    assert change.rephrases == ("谁写了{}？", "{}是谁写的？")
    assert [item.answer for item in change.locality] == ["赵丙"]
    assert [item.answer for item in change.portability] == ["《星河志》"]
    assert not conversion.report.left_out
    (change,), _ = converted("knowedit_second_rephrase_field_lost.json")
    assert change.rephrases == ("Home of {}:", "Where is {} at home?", "{} resides in")
    (change,), _ = converted("counterfact_easyedit_rephrase_list_lost.json")
    assert change.rephrases == ("{} is twinned with", "Twin of {}:")
    assert [(item.prompt, item.answer) for item in change.locality] == [
        ("The twin town of Oslo is", "Van"),
        ("The twin town of Rome is", "Paris"),
    ]


def test_mquake() -> None:
    (change,), conversion = converted("mquake_crash_wording.json")
    assert conversion.format.name == "mquake"
    assert (change.key.relation, change.target, change.target_old) == ("p27", "Peru", "Chad")
    assert change.rephrases == ("What is the country of citizenship of {}?",)
    assert change.portability[0].answers == ("Lima", "City of Kings")
    assert set(conversion.report.left_out) == {"field 'answer'"}
    with pytest.raises(SuiteError, match="MQuAKE"):
        load_suite("counterfact", CASES / "mquake_crash_wording.json")


def test_braces() -> None:
    (setter, author), _ = converted("literal_braces_taken_for_slot.jsonl")
    assert setter.question == 'Braces is set as {"k": {}} by'
    assert setter.prompt == '{} is set as {"k": \\{}} by'
    assert (author.prompt, author.question) == ("The author of {} is", "The author of x{}y is")
    (change,) = zsre.fact_changes(CASES / "zsre_suite_braces.json")
    assert (change.question, change.subject_start) == ("Rex writes {} for the", 0)


def test_one_notion_of_equal(tmp_path: Path) -> None:
    (first, second), _ = converted("nfc_nfd_two_keys.jsonl")
    assert first.key == second.key
    assert first.prompt == second.prompt == "{} plays for"
    convert_feed(CASES / "same_object_missed.jsonl", tmp_path / "y.parquet", at=AT)
    assert [problem.reason for problem in validate_feed(tmp_path / "y.parquet").problems] == [Reason.SAME_OBJECT] * 3
    changes, conversion = converted("target_among_old_accepted_easyedit.json")
    assert not changes
    assert conversion.report.skipped_reasons == {"target is the old object already": 1}


def test_what_arrow_and_pandas_infer(tmp_path: Path) -> None:
    found = validate_feed(CASES / "locality_list_null_rejected.parquet")
    assert not found.problems
    assert found.accepted == found.rows > 0
    found = validate_feed(CASES / "pandas_index_rejected.parquet")
    assert not found.problems
    assert found.ignored == ("__index_level_0__",)
    changes, conversion = converted("pandas_index_rejected.parquet")
    assert len(changes) == found.rows
    assert conversion.report.left_out["field '__index_level_0__'"] == found.rows


def test_csv_dialects(tmp_path: Path) -> None:
    (change,), _ = converted("semicolon.csv")
    assert (change.target, change.target_old) == ("Nora Quill", "Tom Reed")
    convert_feed(CASES / "crlf_in_cell_quarantined.csv", tmp_path / "y.parquet", at=AT)
    found = validate_feed(tmp_path / "y.parquet")
    assert (found.accepted, found.problems) == (1, ())


def test_suites_read_what_is_clear() -> None:
    suite = load_suite("gsm8k", CASES / "gsm8k_u2028.jsonl", shots=0)
    assert len(suite) == 1
    assert not load_suite("zsre", CASES / "zsre_suite_null_locality_group.json").excluded
    (change,) = zsre.fact_changes(CASES / "zsre_suite_null_locality_group.json")
    assert change.prompt == "Nigeria borders {} whose leader is"
    asked = load_suite("zsre", CASES / "zsre_suite_rephrase_list.json").items
    assert [item.prompt for item in asked if item.metric == "rephrase"] == ["a", "b"]  # type: ignore[attr-defined]
    compared = load_suite("counterfact", CASES / "counterfact_suite_ground_truth_list.json")
    assert {item.expected for item in compared.items} == {"y"}


@pytest.mark.parametrize(
    ("suite", "name", "said"),
    [
        ("gsm8k", "gsm8k_int_answer_crash.jsonl", "record 0 .* has no '####': '3'"),
        ("gsm8k", "gsm8k_no_number.jsonl", "record 0 .* has no number behind '####'"),
        ("mmlu", "mmlu_AB", "row 1 of .* has the answer 'AB'"),
        ("mmlu", "mmlu_empty_answer", "record 0 of .* has the answer ''"),
    ],
)
def test_suites_name_the_record_that_they_cannot_read(suite: str, name: str, said: str) -> None:
    with pytest.raises(SuiteError, match=said):
        load_suite(suite, CASES / name, shots=0)


def test_a_question_with_two_answers_is_not_asked() -> None:
    suite = load_suite("gsm8k", CASES / "gsm8k_same_question_two_answers.jsonl", shots=0)
    assert (len(suite), suite.excluded) == (0, {"question with different answers": 2})
