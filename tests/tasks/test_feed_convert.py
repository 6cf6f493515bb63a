import csv
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editing.facts import FactChange, LocalityPrompt, Operation, PortabilityPrompt
from editing.inverse import InverseRelations
from tasks.bench import _one_a_subject
from tasks.errors import FeedError
from tasks.feed.convert import Conversion, convert_feed, read_templates
from tasks.feed.formats import FORMATS
from tasks.feed.reading import read_feed, validate_feed
from tasks.feed.rules import Reason
from tasks.feed.schema import COLUMNS

AT = datetime(2020, 1, 1, tzinfo=UTC)
DATA = Path(os.environ.get("ERRATA_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def convert(path: Path, records: Any, **options: Any) -> tuple[list[FactChange], Conversion]:
    source = path / "records.json"
    source.write_text(json.dumps(records), encoding="utf-8")
    conversion = Conversion(source, at=AT, **options)
    return list(conversion), conversion


def test_zsre_in_mend_fields_with_easyedit_portability(tmp_path: Path) -> None:
    record = {
        "subject": "Le Point",
        "src": "What language is Le Point written in?",
        "pred": "French",
        "rephrase": "In which language does le point come out?",
        "alt": " Pointe-French",
        "answers": ["French"],
        "loc": "nq question: who sang la vie en rose",
        "loc_ans": "Édith Piaf",
        "cond": "French >> Pointe-French || ...",
        "portability": {"Recalled Relation": "...", "New Question": "...", "New Answer": "..."},
    }
    known = record | {"alt": "french"}
    (change,), conversion = convert(tmp_path, [record, known, record | {"alt": ""}])
    assert change.target == "Pointe-French"
    assert change.target_old == "French"
    assert change.prompt == change.relation == "What language is {} written in?"
    assert change.rephrases == ("In which language does {} come out?",)
    assert change.locality == (LocalityPrompt(prompt="who sang la vie en rose", answer="Édith Piaf"),)
    assert (change.source, change.effective_at, change.observed_at) == ("ZsRE", AT, AT)
    report = conversion.report
    assert (report.read, report.converted) == (3, 1)
    assert report.repaired["stray spaces"] == report.repaired["'nq question: ' removed"] == 1
    assert report.repaired["subject written differently in prompt"] == 1
    assert change.portability == (PortabilityPrompt(prompt="...", answer="..."),)
    assert report.left_out == {}
    assert [(skip.record, skip.reason) for skip in report.skipped] == [
        (1, "target is the old object already"),
        (2, "target is empty"),
    ]


def test_counterfact_as_rome_publishes_it(tmp_path: Path) -> None:
    record = {
        "case_id": 0,
        "pararel_idx": 1,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Danielle Darrieux",
        },
        "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native", "A native of, Danielle Darrieux spoke"],
        "neighborhood_prompts": ["The mother tongue of Léon Blum is", "The native language of Montesquieu is"],
        "attribute_prompts": ["x"],
        "generation_prompts": ["y"],
    }
    (change,), conversion = convert(tmp_path, [record])
    assert change.key == ("danielle darrieux", "p103")
    assert (change.prompt, change.target, change.target_old) == ("The mother tongue of {} is", "English", "French")
    assert change.rephrases == ("Shayna does this. {}, a native", "A native of, {} spoke")
    assert change.locality[0] == LocalityPrompt(prompt="The mother tongue of Léon Blum is", answer="French")
    assert conversion.report.left_out == {"field 'attribute_prompts'": 1, "field 'generation_prompts'": 1}


def test_counterfact_in_flat_fields(tmp_path: Path) -> None:
    record = {
        "case_id": 2,
        "prompt": "Toko Yasuda, the",
        "target_new": "piano",
        "subject": "Toko Yasuda",
        "ground_truth": "guitar",
        "rephrase_prompt": "Toko Yasuda is incredible at",
        "locality_prompt": "John Lennon performs on the",
        "locality_ground_truth": "guitar",
    }
    (change,), conversion = convert(tmp_path, [record, record | {"subject": "Someone Else"}])
    assert (change.prompt, change.target_old) == ("{}, the", "guitar")
    assert change.locality == (LocalityPrompt(prompt="John Lennon performs on the", answer="guitar"),)
    assert conversion.report.skipped_reasons == {"subject is not in the prompt": 1}


def test_knowedit_fields_of_recent_facts_and_of_zsre(tmp_path: Path) -> None:
    recent = {
        "subject": "Alfhild Tamm",
        "prompt": "The gender of Alfhild Tamm is",
        "target_new": "female",
        "portability": {
            "Reasoning": [{"prompt": "p", "ground_truth": [["a"]]}],
            "Logical_Generalization": [{"prompt": "q", "ground_truth": [["a", "A ", "b"], [], ["c", "d"]]}],
        },
        "locality": {
            "Relation_Specificity": [{"prompt": "Alfhild Tamm was born in", "ground_truth": [[], ["Tveta", "T"]]}],
            "Forgetfulness": [{"prompt": "nobody knows", "ground_truth": []}],
        },
    }
    zsre = {
        "subject": "IAAF Combined Events Challenge",
        "target_new": "decathlon",
        "prompt": "Which sport does the IAAF Combined Events Challenge belong to?",
        "ground_truth": ["athletics"],
        "rephrase_prompt": "What sport is IAAF Combined Events Challenge?",
        "cond": "...",
        "locality": {"Relation_Specificity": [{"prompt": "q", "ground_truth": ["an answer"]}]},
        "portability": None,
    }
    (first, second), conversion = convert(tmp_path, [recent, zsre])
    assert conversion.format.name == "knowedit"
    assert first.locality == (LocalityPrompt(prompt="Alfhild Tamm was born in", answer="Tveta"),)
    assert first.target_old is None
    assert second.rephrases == ("What sport is {}?",)
    assert (second.target_old, second.locality[0].answer) == ("athletics", "an answer")
    assert first.portability == (
        PortabilityPrompt(prompt="p", answer="a"),
        PortabilityPrompt(prompt="q", answer="a", aliases=("b", "c", "d")),
    )
    assert conversion.report.left_out == {"locality prompt without an answer": 1}


def test_the_edits_of_a_conflict_follow_each_other(tmp_path: Path) -> None:
    def edit(old: str, new: str) -> dict[str, Any]:
        return {
            "relation": {
                "id": "P22",
                "prompt": "The father of {} is",
                "query": "Who is the father of {}?",
                "label": "f",
            },
            "subject": {"id": "Q1", "label": "Thomas Jensen"},
            "object": {"id": "Q2", "label": old},
            "new_object": {"id": "Q3", "label": new},
        }

    (first, second), _ = convert(
        tmp_path, [{"triples": [], "type": "coverage", "edits": [edit("A", "B"), edit("B", "C")]}]
    )
    assert first.key == second.key
    assert second.effective_at - first.effective_at == timedelta(seconds=1)
    assert (second.target_old, second.target, second.rephrases) == ("B", "C", ("Who is the father of {}?",))


REVERSED = InverseRelations({"P22": "P40", "P25": "P40", "P185": "P184", "P800": "P170"})


def test_a_reverse_conflict_is_seen_where_its_relations_are_declared_inverse(tmp_path: Path) -> None:
    """Records in the published form, of our own making: the second edit says otherwise of the first's new object."""

    def edit(relation: str, subject: str, old: str, new: str) -> dict[str, Any]:
        names = {"father": ("P22", "The father of {} is"), "child": ("P40", "The child of {} is")}
        ident, prompt = names[relation]
        return {
            "relation": {"id": ident, "prompt": prompt, "query": f"Who is the {relation} of {{}}?", "label": relation},
            "subject": {"id": "Q1", "label": subject},
            "object": {"id": "Q2", "label": old},
            "new_object": {"id": "Q3", "label": new},
        }

    def record(*edits: dict[str, Any]) -> dict[str, Any]:
        return {"rule": "P22>P40", "triples": [], "prerequisites": [], "type": "reverse", "edits": list(edits)}

    (tmp_path / "records.json").write_text(
        json.dumps(
            [
                record(edit("father", "Ada", "Ben", "Cleo"), edit("child", "Cleo", "Ada", "Dov")),
                record(edit("father", "Eve", "Finn", "Gus"), edit("child", "Gus", "Hal", "Eve")),
            ]
        )
    )
    feed = tmp_path / "feed.parquet"
    convert_feed(tmp_path / "records.json", feed, at=AT)
    assert validate_feed(feed).problems == ()
    found = validate_feed(feed, inverse=REVERSED)
    assert (found.rows, found.accepted) == (4, 3)
    (problem,) = found.problems
    assert (problem.row, problem.reason) == (0, Reason.CONTRADICTION)
    assert problem.sentence.startswith("'Ada' / 'P22': 'Cleo' contradicts 'Cleo' / 'P40': 'Dov'")
    assert (
        "row 1) through the inverse relations 'P22' and 'P40'; the other goes in by newer effective" in problem.sentence
    )


def test_dyknow_becomes_a_dated_history(tmp_path: Path) -> None:
    content = {
        "countries_byGDP": {
            "Ghana": {
                "President of Ghana": {
                    "questions": {
                        "generic": "The head of state in Ghana is",
                        "rephrased_1": "The Ghanaian president is",
                    },
                    "answers": [
                        "Nana Akufo-Addo |S: +2017-01-07T00:00:00Z",
                        "John Mahama |S: +2012-07-24T00:00:00Z |E: +2017-01-07T00:00:00Z",
                        "John Mahama |S: +2013-00-00T00:00:00Z |E: +2017-01-07T00:00:00Z",
                        "Nobody |E: +1936-01-20T00:00:00Z",
                    ],
                }
            }
        },
        "athletes_byPayment": {
            "Retired Player": {
                "questions": {"generic": "The current team of Retired Player is"},
                "answers": [
                    "Club |S: +2003-00-00T00:00:00Z |E: +2009-05-00T00:00:00Z",
                    "Utopia national football team |S: +2003-00-00T00:00:00Z |P: +2021-06-27T00:00:00Z",
                ],
            }
        },
    }
    (mahama, akufo, club, retired), conversion = convert(tmp_path, content)
    assert (mahama.target, mahama.effective_at) == ("John Mahama", datetime(2012, 7, 24, tzinfo=UTC))
    assert (akufo.target, akufo.target_old, akufo.relation) == ("Nana Akufo-Addo", "John Mahama", "President of Ghana")
    assert akufo.rephrases == ("The Ghanaian president is",)
    assert (club.target, club.effective_at, club.relation) == ("Club", datetime(2003, 1, 1, tzinfo=UTC), "team")
    assert (retired.operation, retired.target) == (Operation.RETRACT, "Club")
    assert retired.effective_at == datetime(2009, 5, 1, tzinfo=UTC)
    assert conversion.report.repaired["consecutive holders of one name joined"] == 1
    assert conversion.report.left_out == {"holder without a start": 1, "national team": 1}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=15, deadline=None)
@given(st.data())
@pytest.mark.parametrize("form", FORMATS)
def test_no_record_stops_a_conversion(tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject) -> None:
    fields = st.fixed_dictionaries(dict.fromkeys(sorted(FORMATS[form].fields), json_values))
    records = data.draw(st.lists(fields | json_values, min_size=1, max_size=4))
    _, conversion = convert(tmp_path_factory.mktemp("fuzz"), records, format=form)
    report = conversion.report
    assert report.read == len(records)
    assert report.converted or report.skipped


ROW = {
    "subject": "Ghana",
    "relation": "capital",
    "target": "Accra",
    "prompt": "The capital of Ghana is",
    "rephrases": '["{} is governed from"]',
    "locality": '[{"prompt": "The capital of Togo is", "answer": "Lomé"}]',
    "effective_at": "2019-07-24T02:00:00+02:00",
    "source": "gazette",
    "source_rank": "2",
}


PORTED = [{"prompt": "p", "answer": "a", "aliases": ["b", "c"]}, {"prompt": "q", "answer": "d"}]


def test_rows_of_our_own_columns_from_csv_and_json_lines(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerow(ROW)
        file.write("too,few\n")
    lines = [json.dumps(ROW | {"rephrases": ["{} is governed from"], "effective_at": "2019-07-24"}), "{", "[1]"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    from_csv, from_lines = (Conversion(tmp_path / name, at=AT) for name in ("rows.csv", "rows.jsonl"))
    (first,), (second,) = list(from_csv), list(from_lines)
    assert first.fact_id == second.fact_id
    assert first.prompt == "The capital of {} is"
    assert first.effective_at == datetime(2019, 7, 24, tzinfo=UTC)
    assert (first.observed_at, first.source, first.source_rank) == (AT, "gazette", 2)
    assert from_lines.report.repaired["effective_at without a zone, took UTC"] == 1
    assert len(from_csv.report.skipped) == 1
    assert [skip.record for skip in from_lines.report.skipped] == [1, 2]


def test_a_feed_converts_into_itself(tmp_path: Path) -> None:
    changes, _ = convert(
        tmp_path,
        [
            ROW | {"rephrases": [], "locality": [], "portability": PORTED},
            ROW | {"operation": "retract", "locality": "[]"},
        ],
    )
    convert_feed(tmp_path / "records.json", tmp_path / "feed.parquet", at=AT)
    assert list(Conversion(tmp_path / "feed.parquet")) == changes == list(read_feed(tmp_path / "feed.parquet"))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"operation": "insert"}, "insert"),
        ({"prompt": "no slot"}, "0 subject slots"),
        ({"rephrases": "{}"}, "JSON array"),
        ({"effective_at": "yesterday"}, "yesterday"),
        ({"fact_id": "1"}, "content's hash"),
        ({"objct": "x"}, "column 'objct' is unknown"),
        ({"target": "\ud800"}, "lone surrogate"),
    ],
)
def test_a_row_that_cannot_be_one_is_skipped_with_its_reason(tmp_path: Path, broken: dict[str, str], said: str) -> None:
    changes, conversion = convert(tmp_path, [ROW | broken])
    assert not changes
    assert said in conversion.report.skipped[0].reason


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (1_560_000_000, datetime(2019, 6, 8, 13, 20, tzinfo=UTC)),
        (1_560_000_000_000, datetime(2019, 6, 8, 13, 20, tzinfo=UTC)),
        ("1560000000000000", datetime(2019, 6, 8, 13, 20, tzinfo=UTC)),
        (1_560_000_000_000_000_000, datetime(2019, 6, 8, 13, 20, tzinfo=UTC)),
        (1.56e9, datetime(2019, 6, 8, 13, 20, tzinfo=UTC)),
        (20190608, datetime(2019, 6, 8, tzinfo=UTC)),
        (" 2019-06-08T15:20:00+02:00 ", datetime(2019, 6, 8, 13, 20, tzinfo=UTC)),
        (2019, None),
        ("99999999", None),
        ("8/6/2019", None),
        ("9999-12-31T23:00:00-05:00", None),
        (True, None),
        (1e30, None),
    ],
)
def test_a_time_is_what_it_says_or_its_row_is_skipped(tmp_path: Path, written: object, meant: datetime | None) -> None:
    changes, conversion = convert(tmp_path, [ROW | {"effective_at": written}, ROW])
    assert [change.effective_at for change in changes[:-1]] == ([meant] if meant else [])
    assert [skip.record for skip in conversion.report.skipped] == ([] if meant else [0])


@pytest.mark.parametrize(
    ("rank", "meant"), [("3", 3), (3.0, 3), ("3.0", 3), (2**63 - 1, 2**63 - 1), (2.5, None), (-1, None), (2**63, None)]
)
def test_a_rank_is_a_whole_number_or_its_row_is_skipped(tmp_path: Path, rank: object, meant: int | None) -> None:
    (tmp_path / "records.json").write_text(json.dumps([ROW | {"source_rank": rank}, ROW | {"subject": "Capital"}]))
    conversion = Conversion(tmp_path / "records.json", at=AT)
    found = [change.source_rank for change in conversion]
    assert found[:-1] == ([] if meant is None else [meant])


def test_the_slot_stands_where_the_subject_stood(tmp_path: Path) -> None:
    rows = [
        ROW | {"prompt": 'In {"a": {}} the capital of Ghana is', "rephrases": "[]"},
        ROW | {"subject": "f{}", "prompt": "The author of f{} is", "rephrases": '["Of {} and f{} the author is"]'},
        ROW | {"prompt": "The capital of {} is", "rephrases": "[]"},
    ]
    (first, second, third), _ = convert(tmp_path, rows)
    assert first.question == 'In {"a": {}} the capital of Ghana is'
    assert (second.question, second.paraphrases) == ("The author of f{} is", ("Of {} and f{} the author is",))
    assert third.prompt == "The capital of {} is"
    convert_feed(tmp_path / "records.json", tmp_path / "feed.parquet", at=AT)
    assert list(Conversion(tmp_path / "feed.parquet")) == [first, second, third]
    assert validate_feed(tmp_path / "feed.parquet").problems == ()


def test_what_a_record_has_and_a_fact_can_carry_is_kept_and_the_rest_counted(tmp_path: Path) -> None:
    record = {
        "subject": "Arden",
        "prompt": "Nigeria's town Arden, not Ardenne, is led by",
        "target_new": ["Ben Hale", "B. Hale"],
        "ground_truth": [["Ada Moss"], ["A. Moss"]],
        "rephrase": ["Before Arden was Old Arden. Arden is led by", 7],
        "locality": {"a": None, "b": [{"prompt": ["p", "q"], "ground_truth": ["x", 5]}], "c": ["no shape"]},
        "portability": [{"prompt": "r", "answer": "y", "aliases": ["z"]}],
        "notes": "said on the radio",
        "weight": 0,
    }
    (change,), conversion = convert(tmp_path, [record])
    assert change.prompt == "Nigeria's town {}, not Ardenne, is led by"
    assert change.rephrases == ("Before Arden was Old Arden. {} is led by", "7")
    assert [(item.prompt, item.answer) for item in change.locality] == [("p", "x"), ("q", "5")]
    assert change.portability == (PortabilityPrompt(prompt="r", answer="y", aliases=("z",)),)
    assert conversion.report.left_out == {
        "other name of the target": 1,
        "other name of the old object": 1,
        "entry of 'locality' in an unknown shape": 1,
        "field 'notes'": 1,
        "field 'weight'": 1,
    }


def test_mquake_gives_a_fact_for_each_rewrite(tmp_path: Path) -> None:
    def rewrite(subject: str, new: str) -> dict[str, Any]:
        return {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": new, "id": "Q1"},
            "target_true": {"str": "Chad", "id": "Q2"},
            "subject": subject,
            "question": f"Where is {subject} a citizen?",
        }

    record = {
        "case_id": 1,
        "requested_rewrite": [rewrite("Ada", "Peru"), rewrite("Ben", "Mali")],
        "questions": ["one?", "two?"],
        "new_answer": "Lima",
        "new_answer_alias": ["City of Kings"],
        "single_hops": [{"question": "three?"}],
    }
    (first, second), conversion = convert(tmp_path, [record, record | {"requested_rewrite": {"prompt": "p"}}])
    assert (first.target, first.target_old, first.rephrases) == ("Peru", "Chad", ("Where is {} a citizen?",))
    assert first.portability == ()
    assert [item.prompt for item in second.portability] == ["one?", "two?"]
    assert second.portability[0].answers == ("Lima", "City of Kings")
    assert conversion.report.left_out == {"locality prompt without an answer": 1}
    assert conversion.report.skipped[0].reason.startswith("requested_rewrite is no list")


def test_single_hops_that_no_rewrite_of_mquake_concerns_are_locality(tmp_path: Path) -> None:
    def hop(question: str, answer: str, *aliases: str) -> dict[str, Any]:
        return {"question": question, "cloze": question, "answer": answer, "answer_alias": list(aliases)}

    record = {
        "case_id": 1,
        "requested_rewrite": [
            {
                "prompt": "{} is married to",
                "relation_id": "P26",
                "target_new": {"str": "Cleo Ash", "id": "Q3"},
                "target_true": {"str": "Ben Elm", "id": "Q2"},
                "subject": "Ada Oak",
                "question": "Who is Ada Oak married to?",
            }
        ],
        "questions": ["Where does the spouse of Ada Oak live?"],
        "answer": "Oslo",
        "new_answer": "Rome",
        "new_answer_alias": ["Roma"],
        "single_hops": [hop("Who is Ada Oak married to?", "Ben Elm"), hop("Where does Ben Elm live?", "Oslo")],
        "new_single_hops": [
            hop("Who is Ada Oak married to?", "Cleo Ash"),
            hop("Where does Cleo Ash live?", "Rome", "Roma"),
        ],
        "orig": {"triples": [["Q1", "P26", "Q2"]]},
    }
    (change,), conversion = convert(tmp_path, [record])
    assert change.portability[0].answers == ("Rome", "Roma")
    assert change.locality == (
        LocalityPrompt(prompt="Where does Ben Elm live?", answer="Oslo"),
        LocalityPrompt(prompt="Where does Cleo Ash live?", answer="Rome"),
    )
    assert conversion.report.left_out == {"field 'answer'": 1, "field 'orig'": 1}


def test_wikibio_goes_on_with_a_sentence(tmp_path: Path) -> None:
    record = {
        "text": "This is a passage about nora quill. Nora Quill is a glazier.",
        "labels": "She was trained in Ghent.",
        "concept": "nora quill",
        "locality": {"Relation_Specificity": [{"prompt": "nora quill trade", "ground_truth": ["glazier"]}]},
    }
    (change,), conversion = convert(tmp_path, [record])
    assert (conversion.format.name, change.source) == ("knowedit-wikibio", "WikiBio")
    assert (change.subject, change.target) == ("nora quill", "She was trained in Ghent.")
    assert change.prompt == change.relation == "This is a passage about {}. Nora Quill is a glazier."
    assert change.locality == (LocalityPrompt(prompt="nora quill trade", answer="glazier"),)
    assert not conversion.report.left_out


def test_cknowedit_names_no_subject_so_the_prompt_is_it(tmp_path: Path) -> None:
    record = {
        "prompt": "请给下面的字注音：茕茕",
        "target_old": "nìng nìng",
        "target_new": "qióng qióng",
        "portability": [{"prompt": "请给下面的字注音：茕独", "answer": "qióng dú"}],
        "locality": [{"prompt": "请给下面的字注音：独", "answer": "dú"}],
        "rephrase": ["茕茕怎么读？", "请注音：茕茕。"],
        "knowledge_type": "拼音",
    }
    (change,), conversion = convert(tmp_path, [record])
    assert conversion.format.name == "cknowedit"
    assert change.question == change.subject == record["prompt"]
    assert (change.prompt, change.relation, change.target_old) == ("{}", "answer", "nìng nìng")
    assert change.rephrases == ("茕茕怎么读？", "请注音：茕茕。")
    assert (change.portability[0].answer, change.locality[0].answer) == ("qióng dú", "dú")
    assert conversion.report.left_out == {"field 'knowledge_type'": 1}


def test_wikibigedit_as_published_and_as_its_pipeline_writes_it(tmp_path: Path) -> None:
    shared = {"tag": "new", "subject": "Port Avella", "loc": "Where is Oslo?", "loc_ans": "Norway"} | {
        "rephrase": "Who governs Port Avella?",
        "mhop": "Where was the mayor of Port Avella born?",
        "mhop_ans": "Ghent",
    }
    published = shared | {
        "update": "Who is mayor of Port Avella?",
        "ans": "Tom Reed",
        "personas": "Ahoy, Port Avella's?",
    }
    pipeline = shared | {"src": published["update"], "alt": "Tom Reed", "genv2_mixed": "Ahoy, Port Avella's?"}
    found = []
    for record, name in ((published, "wikibigedit"), (pipeline, "wikibigedit-src")):
        (change,), conversion = convert(tmp_path, [record])
        assert conversion.format.name == name
        assert not conversion.report.left_out
        found.append(change)
    assert found[0].fact_id == found[1].fact_id
    assert (found[0].prompt, found[0].target) == ("Who is mayor of {}?", "Tom Reed")
    assert found[0].rephrases == ("Who governs {}?", "Ahoy, {}'s?")
    assert found[0].locality == (LocalityPrompt(prompt="Where is Oslo?", answer="Norway"),)
    assert found[0].portability == (PortabilityPrompt(prompt=shared["mhop"], answer="Ghent"),)


def ripple(prompt: str, relation: str, *about: tuple[str, str], old: str | None = None) -> dict[str, Any]:
    """A record of RippleEdits with questions `about` its subject, each with its answer."""

    def test(asked: str, answer: str, **fields: Any) -> dict[str, Any]:
        query = {"prompt": asked, "answers": [{"value": answer, "aliases": [f"{answer} II"]}], "query_type": "regular"}
        query |= {"subject_id": "Q1", "relation": "X", "target_ids": ["Q9"], "phrase": None} | fields
        return {"test_queries": [query], "test_condition": "OR", "condition_queries": [query]}

    edit = {"prompt": prompt, "subject_id": "Q1", "relation": relation, "target_id": "Q2"}
    return {
        "example_type": "popular",
        "edit": edit | ({"original_fact": {"prompt": old}} if old else {}),
        "Relation_Specificity": [test(*pair) for pair in about],
        "Logical_Generalization": [],
        "Subject_Aliasing": [test("The place of birth of A. Oak is", "Rome", phrase="The place of birth of A. Oak is")],
        "Compositionality_I": [
            test("The head of state of the place of birth of Ada Oak is", "Bo", query_type="two_hop")
        ],
        "Compositionality_II": [],
        "Forgetfulness": [],
    }


def test_rippleedits_is_parted_into_subject_and_object(tmp_path: Path) -> None:
    record = ripple(
        "The place of birth of Ada Oak is Rome.",
        "PLACE_OF_BIRTH",
        ("The name of the mother of Ada Oak is", "Eve Oak"),
        old="The place of birth of Ada Oak is Oslo.",
    )
    (change,), conversion = convert(tmp_path, [record])
    assert conversion.format.name == "rippleedits"
    assert change.key == ("ada oak", "place of birth")
    assert (change.prompt, change.target, change.target_old) == ("The place of birth of {} is", "Rome", "Oslo")
    assert change.locality == (LocalityPrompt(prompt="The name of the mother of Ada Oak is", answer="Eve Oak"),)
    assert [item.answers for item in change.portability] == [("Rome", "Rome II"), ("Bo", "Bo II")]
    assert conversion.report.left_out == {"field 'condition_queries'": 3}


@pytest.mark.parametrize(
    ("prompt", "relation", "about", "subject", "target"),
    [
        ("The name of the field of work of Ada of Oak is glass.", "FIELD_OF_WORK", "Ada of Oak", "Ada of Oak", "glass"),
        ("The name of the author of What is Glass is Bo.", "AUTHOR", "What is Glass", "What is Glass", "Bo"),
        (
            "The name of the sports team which Bo Elm is a member of is Is FC.",
            "MEMBER_OF_SPORTS_TEAM",
            "",
            "Bo Elm",
            "Is FC",
        ),
        ("The number of children Bo Elm has is 3.", "NUMBER_OF_CHILDREN", "Bo Elm", "Bo Elm", "3"),
        ("The gender of Bo Elm is female.", "SEX_OR_GENDER", "Bo Elm", "Bo Elm", "female"),
        ("The name of the position held by Bo Elm is mayor.", "POSITION_HELD", "", "Bo Elm", "mayor"),
        (
            "The Long Walk is followed by The Short Walk.",
            "FOLLOWED_BY",
            "The Long Walk",
            "The Long Walk",
            "The Short Walk",
        ),
        ("The name of the country which Ald is the capital of is Aldland.", "CAPITAL_OF", "Ald", "Ald", "Aldland"),
        ("The name of the award Bo Elm won is the Glass Prize.", "AWARD_RECEIVED", "", "Bo Elm", "the Glass Prize"),
        ("The name of the spouse of Bo Elm is Cleo.", "SPOUSE", "Someone Else", None, None),
        ("Bo Elm lives with Cleo.", "SPOUSE", "", None, None),
    ],
)
def test_what_a_sentence_of_rippleedits_is_about(
    tmp_path: Path, prompt: str, relation: str, about: str, subject: str | None, target: str | None
) -> None:
    asked = [(f"The date of birth of {about} is", "1970")] if about else []
    changes, conversion = convert(tmp_path, [ripple(prompt, relation, *asked)])
    assert [(change.subject, change.target) for change in changes] == ([(subject, target)] if subject else [])
    assert all(change.question + f" {change.target}." == prompt for change in changes)
    assert [skip.reason[:26] for skip in conversion.report.skipped] == (
        [] if subject else ["its subject cannot be told"]
    )


def test_wikifactdiff_asserts_what_is_new_and_takes_back_what_is_obsolete(tmp_path: Path) -> None:
    def record(*objects: tuple[str, str]) -> dict[str, Any]:
        return {
            "subject": {"id": "Q1", "label": "Port Avella", "description": "a town"},
            "relation": {"id": "P6", "label": "head of government", "description": ""},
            "update_prompt": "The mayor of Port Avella is ____",
            "generalization_prompts": ["Port Avella is governed by ____.", "____ governs Port Avella."],
            "subject_is_ph_new": False,
            "relation_is_temp_func": True,
            "is_replace": True,
            "subject_popularity": 0.5,
            "objects": [{"id": "Q2", "label": label, "decision": said} for label, said in objects],
            "neighborhood": [
                {
                    "subject": {"id": "Q3", "label": "Ghent"},
                    "objects": [
                        {"object": {"label": "Eve Oak"}, "prompt": "The mayor of Ghent is ____", "dist": 0.1},
                        {"object": {"label": "Bo Elm"}, "prompt": "The mayor of Ghent is ____", "dist": 0.1},
                    ],
                },
                {"subject": {"label": "Oslo"}, "objects": [{"label": "Jo", "prompt": "The mayor of Oslo is ____"}]},
            ],
        }

    replaced = record(("Tom Reed", "obsolete"), ("Nora Quill", "new"), ("Cy Fir", "new"), ("Di Yew", "static"))
    (new, back), conversion = convert(tmp_path, [replaced, record(("Tom Reed", "obsolete"))])
    assert conversion.format.name == "wikifactdiff"
    assert (new.operation, new.target, new.target_old) == (Operation.ASSERT, "Nora Quill", "Tom Reed")
    assert (new.prompt, new.rephrases) == ("The mayor of {} is", ("{} is governed by",))
    assert [(item.prompt, item.answer) for item in new.locality] == [
        ("The mayor of Ghent is", "Eve Oak"),
        ("The mayor of Oslo is", "Jo"),
    ]
    assert (back.operation, back.target, back.key) == (Operation.RETRACT, "Tom Reed", new.key)
    assert [fact.fact_id for fact in _one_a_subject([back, new])] == [new.fact_id]
    assert conversion.report.left_out == {
        "other new object": 1,
        "static object": 1,
        "prompt that goes on after its blank": 2,
        "other object of a neighbour": 2,
    }


def test_rounds_of_conflictedit_and_what_a_composite_presupposes(tmp_path: Path) -> None:
    def edit(ident: str, prompt: str, subject: str, old: str, new: str) -> dict[str, Any]:
        relation = {"id": ident, "prompt": prompt, "query": f"Who? {prompt}", "label": "r"}
        labels = {"subject": subject, "object": old, "new_object": new}
        return {"relation": relation} | {name: {"id": "Q1", "label": label} for name, label in labels.items()}

    genre = edit("P136", "The genre of {} is", "Glass Song", "rap", "opera")
    round_trip = {"type": "1-2@P136", "edit": genre, "true_objects": [{"label": "rap"}, {"label": "jazz"}]}
    (change,), conversion = convert(tmp_path, [round_trip])
    assert (conversion.format.name, change.relation) == ("conflictedit-round", "P136")
    assert (change.target, change.target_old, change.question) == ("opera", "rap", "The genre of Glass Song is")
    assert conversion.report.left_out == {"field 'true_objects'": 1}

    stays = edit("P40", "The child of {} is", "Ada Oak", "Bo Oak", "")
    mother, spouse = (
        edit("P25", "The mother of {} is", "Bo Oak", "Eve Elm", "Di Yew"),
        edit("P26", "The spouse of {} is", "Ada Oak", "Eve Elm", "Jo Fir"),
    )
    composite = {"rule": "P40&P25>P26", "triples": [stays, mother, spouse], "prerequisites": [0], "type": "composite"}
    (first, second), conversion = convert(tmp_path, [composite | {"edits": [mother, spouse]}])
    assert not first.locality
    assert second.locality == (LocalityPrompt(prompt="The child of Ada Oak is", answer="Bo Oak"),)
    assert not conversion.report.left_out


@pytest.mark.parametrize(
    ("name", "text", "format"),
    [
        ("t.csv", "Subject,Predicate,Object\nGhana,capital,Accra\nGhana,head_of_state,Jo Fir\n", None),
        ("t.tsv", "head\trelation\ttail\nGhana\tcapital\tAccra\nGhana\thead_of_state\tJo Fir\n", None),
        ("t.tsv", "Ghana\tcapital\tAccra\nGhana\thead_of_state\tJo Fir\n", "triples"),
        ("t.json", '[["Ghana", "capital", "Accra"], ["Ghana", "head_of_state", "Jo Fir"]]', None),
        ("t.jsonl", '{"s": "Ghana", "p": "capital", "o": "Accra"}\n["Ghana", "head_of_state", "Jo Fir"]\n', None),
    ],
)
def test_triples_take_their_relations_template_or_a_default_that_is_shown(
    tmp_path: Path, name: str, text: str, format: str | None
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "templates.toml").write_text('capital = "{} is governed from"\n')
    templates = read_templates(tmp_path / "templates.toml")
    conversion = Conversion(tmp_path / name, at=AT, format=format, templates=templates)
    capital, head = conversion
    assert (capital.question, capital.target, capital.relation) == ("Ghana is governed from", "Accra", "capital")
    assert (head.prompt, head.target, head.source) == ("The head of state of {} is", "Jo Fir", "triples")
    assert (
        conversion.report.repaired["no template for relation 'head_of_state', took 'The head of state of {} is'"] == 1
    )


def test_triples_keep_what_stands_beside_them(tmp_path: Path) -> None:
    record = {"subject": "capital", "relation": "seat of", "object": 7, "effective_at": "2019-01-02", "note": "x"}
    (change, told), conversion = convert(tmp_path, [record, record | {"prompt": "The seat of capital has number"}])
    assert (change.question, change.target, change.effective_at.year) == ("The seat of of capital is", "7", 2019)
    assert told.prompt == "The seat of {} has number"
    assert conversion.report.left_out == {"field 'note'": 2}


def test_templates_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "templates.json"
    for content, said in (
        ("{", "cannot be read"),
        ("[]", "are no table"),
        ('{"capital": "of {} and {}"}', "'capital'"),
    ):
        path.write_text(content)
        with pytest.raises(FeedError, match=said):
            read_templates(path)
    with pytest.raises(FeedError, match="is rows, whose records have prompts"):
        convert(tmp_path, [ROW], templates={"capital": "{} is"})
    (tmp_path / "three.csv").write_text("Ghana,capital,Accra\nTogo,capital,Lomé\n")
    with pytest.raises(FeedError, match="without a heading are read with the format triples"):
        Conversion(tmp_path / "three.csv")


@pytest.mark.parametrize(("name", "separator"), [("a.CSV", ";"), ("b.tsv", "\t"), ("c.csv", "|"), ("d.csv", ",")])
def test_the_separator_of_a_csv_file_is_found(tmp_path: Path, name: str, separator: str) -> None:
    head, cells = ["", "subject", "relation", "target", "prompt"], ["0", "Ghana", "capital", "Accra, it is", "{} has"]
    with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator).writerows([head, cells])
    conversion = Conversion(tmp_path / name, at=AT)
    (change,) = conversion
    assert (change.subject, change.target) == ("Ghana", "Accra, it is")
    assert conversion.report.left_out == {"field ''": 1}


def test_a_record_that_is_no_unicode_is_skipped_and_the_others_are_written(tmp_path: Path) -> None:
    record = {"subject": "Peru", "prompt": "Peru is in", "target_new": "Asia", "ground_truth": "South America"}
    (tmp_path / "a.jsonl").write_text(
        "not json\n" + json.dumps(record | {"target_new": "\ud800"}) + "\n" + json.dumps(record)
    )
    report = convert_feed(tmp_path / "a.jsonl", tmp_path / "feed.parquet", at=AT)
    assert (report.read, report.converted, [skip.record for skip in report.skipped]) == (3, 1, [0, 1])
    assert json.loads(json.dumps(report.to_dict()))["skipped"][1]["record"] == 1


def test_what_cannot_be_converted_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="known are zsre-mend"):
        Conversion(tmp_path, format="zsre")
    with pytest.raises(FeedError, match="neither a file nor a data set"):
        Conversion("nobody/has-this-data-set")
    with pytest.raises(FeedError, match="no known format; name one of zsre-mend"):
        convert(tmp_path, [{"question": "?"}])
    with pytest.raises(FeedError, match="no records"):
        convert(tmp_path, [])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(FeedError, match=r"broken\.json cannot be read"):
        Conversion(tmp_path / "broken.json")
    (tmp_path / "rows.json").write_text(json.dumps([ROW | {"prompt": "none"}]))
    with pytest.raises(FeedError, match="1 times because: prompt 'none'"):
        convert_feed(tmp_path / "rows.json", tmp_path / "feed.parquet")
    assert not (tmp_path / "feed.parquet").exists()


def test_a_data_set_in_the_hubs_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "hub" / "counterfact"
    (folder / "data").mkdir(parents=True)
    record = {"subject": "Peru", "prompt": "Peru is in", "target_new": "Asia", "ground_truth": "South America"}
    (folder / "data" / "train-00000-of-00001.jsonl").write_text(json.dumps(record) + "\n")
    (change,) = Conversion(str(folder), at=AT, name="mirror", rank=3)
    assert (change.target_old, change.source, change.source_rank) == ("South America", "mirror", 3)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the development data is not at {DATA}; set ERRATA_DATA")
@pytest.mark.parametrize(
    ("path", "form", "converted", "skipped"),
    [
        ("counterfact/counterfact-train-3000.json", "counterfact-easyedit", 3000, 0),
        ("zsre/zsre_mend_train-1k.json", "zsre-mend", 977, 23),
        ("conflicts/conflictedit_coverage_300.json", "conflictedit", 600, 0),
        ("conflicts/conflictedit_reverse_300.json", "conflictedit", 600, 0),
        ("recent/knowedit_wiki_recent_train.json", "knowedit", 570, 0),
        ("dyknow/dyknow_grc_generated.json", "dyknow", None, 0),
    ],
)
def test_published_files_become_feeds_that_ingestion_accepts(
    tmp_path: Path, path: str, form: str, converted: int | None, skipped: int
) -> None:
    report = convert_feed(DATA / path, tmp_path / "feed.parquet", format=form, at=AT)
    assert report.converted == (converted or report.converted)
    assert len(report.skipped) == skipped
    found = validate_feed(tmp_path / "feed.parquet")
    assert (found.rows, found.problems) == (report.converted, ())
    clashes = {"conflicts/conflictedit_coverage_300.json": 1, "conflicts/conflictedit_reverse_300.json": 300}
    assert len(validate_feed(tmp_path / "feed.parquet", inverse=REVERSED).problems) == clashes.get(path, 0)


def test_the_readme_documents_every_column_and_format() -> None:
    text = (Path(__file__).resolve().parents[2] / "tasks" / "feed" / "README.md").read_text(encoding="utf-8")
    for column in COLUMNS:
        needed = "yes" if column.required else "no"
        assert f"| `{column.name}` | `{column.type}` | {needed} | {column.meaning} |" in text
    for name in FORMATS:
        assert f"\n| `{name}` | " in text
