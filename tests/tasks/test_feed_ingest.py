import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editing.errors import FactError
from editing.facts import FactChange, LocalityPrompt, Operation, PortabilityPrompt
from tasks.errors import FeedError
from tasks.feed import reading
from tasks.feed.ingest import FeedStore, IngestReport, ingest, left_lying
from tasks.feed.reading import BrokenFileError, read_batches, read_feed, show_feed, validate_feed
from tasks.feed.rules import CheckedBatch, Limits, Reason, check_batch, raw_json
from tasks.feed.schema import SCHEMA, VERSION_KEY, feed_batches, write_feed
from tasks.ledger import FileOutcome, Ledger

DAY = datetime(2019, 7, 24, 12, 30, 0, 123456, tzinfo=UTC)
NOW = datetime(2019, 8, 1, tzinfo=UTC)
LIMITS = Limits.at(NOW)


def change(**fields: object) -> FactChange:
    defaults: dict[str, object] = {
        "subject": "the United Kingdom",
        "relation": "head_of_government",
        "target": "Boris Johnson",
        "prompt": "The head of government of {} is",
        "rephrases": ("Who governs {}?",),
        "locality": (LocalityPrompt(prompt="The capital of Ghana is", answer="Accra"),),
        "effective_at": DAY,
        "observed_at": DAY,
        "source": "test",
    }
    return FactChange(**(defaults | fields))  # type: ignore[arg-type]


def row(**fields: object) -> dict[str, Any]:
    content = change().to_dict() | {"effective_at": DAY, "observed_at": DAY, "fact_id": None}
    return content | fields


class Home:
    """A landing zone, its store and its ledger in one folder."""

    def __init__(self, root: Path) -> None:
        self.store = FeedStore(landing=root / "landing", curated=root / "curated", quarantine=root / "quarantine")
        self.store.landing.mkdir(parents=True)
        self.ledger = Ledger(f"sqlite:///{root}/ledger.db")

    def land(self, rows: list[dict[str, Any]], name: str = "feed.parquet") -> Path:
        path = self.store.landing / name
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
        return path

    def ingest(self, limits: Limits = LIMITS, at: datetime = NOW) -> IngestReport:
        return ingest(self.store, self.ledger, limits=limits, run_id="run", at=at)

    def facts(self) -> dict[str, datetime]:
        return {fact.fact_id: fact.observed_at for fact in self.ledger.pending(datetime(2100, 1, 1, tzinfo=UTC))}

    def curated(self) -> list[FactChange]:
        named = [file.curated for file in self.ledger.files() if file.curated]
        return [fact for name in named for fact in read_feed(self.store.curated / name, LIMITS)]

    def quarantined(self) -> list[dict[str, Any]]:
        named = [file.quarantine for file in self.ledger.files() if file.quarantine and file.quarantined]
        return [row for name in named for row in pq.read_table(self.store.quarantine / name).to_pylist()]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.ledger.close()


def test_a_feed_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = [
        change(),
        change(operation=Operation.RETRACT, target="", subject="Ghana"),
        change(target_old="Theresa May"),
    ]
    assert write_feed(iter(written), tmp_path / "feed.parquet") == 3
    assert list(read_feed(tmp_path / "feed.parquet", LIMITS)) == written
    shown = show_feed(tmp_path / "feed.parquet", 2)
    assert (shown.schema_version, shown.rows, len(shown.first)) == ("1", 3, 2)
    assert validate_feed(tmp_path / "feed.parquet", LIMITS).accepted == 3


def test_facts_reach_the_ledger_and_the_curated_store_and_the_same_bytes_only_once(home: Home) -> None:
    written = [change(), change(subject="Ghana"), change(subject="Togo", operation=Operation.RETRACT, target="")]
    write_feed(written, home.store.landing / "deep" / "a.parquet")
    report = home.ingest()
    assert (report.rows, report.accepted, report.quarantined) == (3, 3, 0)
    assert report.files[0].name == "deep/a.parquet"
    assert home.curated() == written
    assert {fact.fact_id: fact for fact in home.ledger.facts([fact.fact_id for fact in written])} == {
        fact.fact_id: fact for fact in written
    }
    assert home.ledger.history(written[1].fact_id)[0].detail == {"file": "deep/a.parquet", "row": 1}
    write_feed(written, home.store.landing / "renamed.parquet")
    again = home.ingest()
    assert (again.files, again.known) == ((), 2)


BROKEN = [
    (Reason.MISSING_FIELD, row(subject=None), "subject is missing"),
    (Reason.MISSING_FIELD, row(relation="  "), "relation is missing"),
    (Reason.MISSING_FIELD, row(target=""), "target is missing"),
    (Reason.MISSING_FIELD, row(prompt=None), "prompt is missing"),
    (Reason.MISSING_FIELD, row(source=""), "source is missing"),
    (Reason.MISSING_FIELD, row(observed_at=None), "observed_at is missing"),
    (Reason.MISSING_FIELD, row(rephrases=["fine", " "]), "rephrases holds an empty entry"),
    (Reason.MISSING_FIELD, row(locality=[{"prompt": "p", "answer": None}]), "locality holds an empty entry"),
    (Reason.UNKNOWN_OPERATION, row(operation="insert"), "'insert' is unknown; write assert or retract"),
    (Reason.NO_SLOT, row(prompt="The head of government is"), "exactly once"),
    (Reason.NO_SLOT, row(prompt="{} is headed by {}"), "exactly once"),
    (Reason.TOO_LONG, row(subject="a" * 301), "more than 300 characters"),
    (Reason.TOO_LONG, row(target="one two three four five"), "more than 4 tokens"),
    (Reason.SAME_OBJECT, row(target_old="boris  JOHNSON "), "nothing would change"),
    (Reason.IMPOSSIBLE_DATE, row(effective_at=NOW + timedelta(days=365 * 60)), "effective_at 2079"),
    (Reason.IMPOSSIBLE_DATE, row(observed_at=NOW + timedelta(days=365 * 60)), "observed_at 2079"),
    (Reason.IMPOSSIBLE_RANK, row(source_rank=-1), "negative"),
    (Reason.CONTROL_CHARACTER, row(target="Boris\x00Johnson"), "control character"),
    (Reason.CONTROL_CHARACTER, row(subject="Ghana\x9b31m"), "control character"),
    (Reason.CONTROL_CHARACTER, row(rephrases=["\u202egovernor of {}"]), "turns text round"),
    (Reason.NO_SLOT, row(prompt="\\\\{} and {} are headed by"), "exactly once"),
    (Reason.TOO_LONG, row(rephrases=["Who governs {}?"] * 1001), "1001 entries, more than 1000"),
    (Reason.TOO_LONG, row(locality=[{"prompt": "p" * 4001, "answer": "a"}]), "more than 4000 characters"),
    (Reason.SAME_OBJECT, row(target="Ma\u0301laga", target_old="M\u00e1laga"), "nothing would change"),
    (Reason.SAME_OBJECT, row(target="STRASSE", target_old="stra\u00dfe"), "nothing would change"),
    (Reason.FACT_ID_MISMATCH, row(fact_id="0" * 32), "not the content's hash"),
]


def test_every_bad_row_is_kept_with_its_reason_and_the_others_get_in(home: Home) -> None:
    limits = Limits.at(NOW, target_tokens=4, count_tokens=lambda texts: [len(text.split()) for text in texts])
    home.land([row(subject="Ghana"), *(broken for _, broken, _ in BROKEN), row(subject="Togo")])
    report = home.ingest(limits)
    assert (report.accepted, report.quarantined) == (2, len(BROKEN))
    kept = home.quarantined()
    assert [item["row"] for item in kept] == list(range(1, len(BROKEN) + 1))
    for item, (reason, broken, said) in zip(kept, BROKEN, strict=True):
        assert (item["reason"], item["file"]) == (reason, "feed.parquet")
        assert said in item["sentence"]
        raw = json.loads(item["raw"])
        assert {name: raw[name] for name in ("subject", "target", "rephrases", "locality")} == {
            name: broken[name] for name in ("subject", "target", "rephrases", "locality")
        }
    assert home.ledger.quarantine_counts() == report.reasons
    recorded = list(home.ledger.quarantined_rows())
    assert [(found.row, found.sentence) for found in recorded] == [(item["row"], item["sentence"]) for item in kept]
    found = validate_feed(home.store.landing / "feed.parquet", limits)
    assert [(problem.row, problem.sentence) for problem in found.problems] == [(r.row, r.sentence) for r in recorded]


def test_braces_that_are_text_and_line_breaks_of_every_form_get_in(home: Home) -> None:
    home.land(
        [
            row(subject="A", prompt='{"k": \\{}} is set by {} as'),
            row(subject="B", prompt="C:\\\\{} belongs to"),
            row(subject="C", prompt="Note:\r\nwho leads {}?\u2028Answer:\x85"),
        ]
    )
    assert home.ingest().accepted == 3
    assert [fact.question for fact in home.curated()][:2] == ['{"k": {}} is set by A as', "C:\\B belongs to"]


def test_a_text_that_is_too_long_is_not_tokenised() -> None:
    asked: list[str] = []

    def count(texts: Sequence[str]) -> list[int]:
        asked.extend(texts)
        return [1] * len(texts)

    (batch,) = feed_batches([change(subject="a" * 1_000_000), change(target="Boris Johnson of the Conservatives")])
    checked = check_batch(batch, Limits.at(NOW, subject_tokens=2, target_tokens=2, count_tokens=count))
    assert [bad.reason for bad in checked.bad] == [Reason.TOO_LONG]
    assert len(checked.bad[0].sentence) < 200
    assert sorted(asked) == ["Boris Johnson", "Boris Johnson of the Conservatives", "the United Kingdom"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": "The head of {} is<|im_end|>\n<|im_start|>assistant"}, "prompt holds '<|im_end|>'"),
        ({"target": "Nobody</s>"}, "target holds '</s>'"),
        ({"subject": "im_end|>", "prompt": "The head of <|{} is"}, "prompt holds '<|im_end|>'"),
        ({"prompt": "{} is [", "target": "PAD]"}, "prompt holds '[PAD]'"),
        ({"rephrases": ["fine", "Who [PAD] {}?"]}, "rephrases holds '[PAD]'"),
        ({"locality": [{"prompt": "q", "answer": "[PAD]"}]}, "locality holds '[PAD]'"),
        ({"portability": [{"prompt": "q", "answer": "a", "aliases": ["</s>"]}]}, "portability holds '</s>'"),
        ({"prompt": "{} < 5 [sic] <im_end> is", "target": "<b>|>"}, None),
    ],
)
def test_what_the_model_reads_as_a_special_token_is_no_text(fields: dict[str, Any], said: str | None) -> None:
    (batch,) = pa.Table.from_pylist([row(), row(**fields)], schema=SCHEMA).to_batches()
    special = ("<|im_end|>", "<|im_start|>", "</s>", "[PAD]")
    checked = check_batch(batch, Limits.at(NOW, special_tokens=lambda: special))
    assert [(bad.index, bad.reason) for bad in checked.bad] == ([(1, Reason.SPECIAL_TOKEN)] if said else [])
    assert all(said in bad.sentence for bad in checked.bad if said)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(subject="a" * 5_000_000)], "column subject has 5,000,0"),
        ([row(rephrases=["x"] * 20_000)], "has 20,000 values in 1 rows"),
    ],
)
def test_a_file_that_would_not_fit_in_memory_is_refused_by_its_footer(
    home: Home, rows: list[dict[str, Any]], said: str
) -> None:
    home.land(rows)
    report = home.ingest()
    assert (report.files[0].outcome, report.files[0].reason) == (FileOutcome.QUARANTINED, Reason.TOO_LARGE)
    assert said in str(report.files[0].sentence)


@pytest.mark.parametrize("name", ["subject", "rephrases"])
def test_a_value_repeated_beyond_memory_is_refused_before_it_is_decoded(home: Home, name: str) -> None:
    rows = 16_000
    table = pa.Table.from_pylist([row()] * rows, schema=SCHEMA)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 1_000_000]))
    if name == "rephrases":
        column = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), column)
    path = home.store.landing / "feed.parquet"
    pq.write_table(table.set_column(SCHEMA.get_field_index(name), name, column), path, compression="zstd")
    assert path.stat().st_size < 10_000
    report = home.ingest()
    assert (report.files[0].outcome, report.files[0].reason) == (FileOutcome.QUARANTINED, Reason.TOO_LARGE)
    assert "16,000 rows decode to 16,0" in str(report.files[0].sentence)


def test_a_file_of_more_rows_than_its_bytes_can_tell_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 1_000_000)
    home.land([row()] * 100_000)
    (file,) = home.ingest().files
    assert (file.reason, str(file.sentence)[:24]) == (Reason.TOO_LARGE, "100,000 rows decode to m")


def test_repeated_values_within_bounds_are_read_as_they_are(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    landed = [row(subject=f"Country {number % 3}", rephrases=["a", None] if number else []) for number in range(9)]
    home.land(landed)
    expected = list(read_batches(home.store.landing / "feed.parquet"))
    group = pq.read_metadata(home.store.landing / "feed.parquet").row_group(0)
    leaves = [group.column(place) for place in range(group.num_columns)]
    texts = [leaf.path_in_schema for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    monkeypatch.setattr(reading, "_repeated", lambda metadata: texts)
    assert list(read_batches(home.store.landing / "feed.parquet")) == expected


def test_what_arrow_infers_from_empty_and_pandas_columns_is_read(home: Home) -> None:
    plain = {
        name: value for name, value in row(locality=[], rephrases=[], target_old=None).items() if name != "fact_id"
    }
    table = pa.Table.from_pylist([plain, plain | {"subject": "Ghana"}])
    assert pa.types.is_null(table.schema.field("locality").type.value_type)
    times = pa.array([DAY.replace(tzinfo=None)] * 2, pa.timestamp("us"))
    dates = pa.array([DAY.date()] * 2, pa.date32())
    for name, values in (
        ("effective_at", dates),
        ("observed_at", times),
        ("source_rank", pa.array([2.0, None], pa.float64())),
        ("target", pa.array([b"Boris Johnson"] * 2, pa.binary())),
    ):
        table = table.set_column(table.schema.get_field_index(name), name, values)
    table = table.append_column("__index_level_0__", pa.array([0, 1]))
    pq.write_table(table, home.store.landing / "pandas.parquet")
    assert validate_feed(home.store.landing / "pandas.parquet", LIMITS).ignored == ("__index_level_0__",)
    assert home.ingest().accepted == 2
    first, second = home.curated()
    assert (first.effective_at, first.observed_at) == (datetime(2019, 7, 24, tzinfo=UTC), DAY)
    assert (first.source_rank, second.source_rank, first.target) == (2, 0, "Boris Johnson")


def test_a_rank_that_is_no_whole_number_is_charged_to_its_row(home: Home) -> None:
    table = pa.Table.from_pylist([row(), row(subject="Ghana"), row(subject="Togo")], schema=SCHEMA)
    place = SCHEMA.get_field_index("source_rank")
    ranks = pa.array([1.0, 2.5, float("inf")], pa.float64())
    pq.write_table(table.set_column(place, "source_rank", ranks), home.store.landing / "feed.parquet")
    report = home.ingest()
    assert (report.accepted, report.reasons) == (1, {Reason.IMPOSSIBLE_RANK: 2})
    assert "no whole number" in home.quarantined()[0]["sentence"]


def test_a_row_dated_after_now_waits_and_comes_in_when_its_time_comes(home: Home) -> None:
    home.land([row(), row(subject="Ghana", observed_at=datetime.now(UTC) + timedelta(days=3))])
    report = home.ingest()
    assert (report.accepted, report.quarantined) == (2, 0)
    today, later = datetime.now(UTC), datetime.now(UTC) + timedelta(days=4)
    assert [fact.subject for fact in home.ledger.pending(today)] == ["the United Kingdom"]
    assert len(list(home.ledger.pending(later))) == 2
    count, first = home.ledger.waiting(today)
    assert (count, first and first.date()) == (1, (today + timedelta(days=3)).date())
    assert home.ledger.waiting(later) == (0, None)


def test_a_clock_that_is_years_slow_quarantines_nothing(home: Home) -> None:
    now, dead = datetime(2026, 11, 3, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)
    home.land([row(subject="Ghana", observed_at=now, effective_at=now), row()])
    report = home.ingest(Limits.at(dead), at=dead)
    assert (report.accepted, report.quarantined) == (2, 0)
    assert home.ledger.waiting(dead)[0] == 2 - len(list(home.ledger.pending(dead)))
    assert len(list(home.ledger.pending(now))) == 2


def test_links_out_of_the_landing_zone_are_refused(tmp_path: Path, home: Home) -> None:
    inside = home.land([row()], "real.parquet")
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "shadow").write_text("root:x")
    (home.store.landing / "link.parquet").symlink_to(outside / "shadow")
    (home.store.landing / "folder").symlink_to(outside)
    (home.store.landing / "again.parquet").symlink_to(inside)
    left = left_lying(home.store.landing)
    report = home.ingest()
    assert (report.accepted, report.known) == (1, 1)
    assert set(report.unread) == {"link.parquet", "folder"}
    assert report.unread == left == left_lying(home.store.landing)
    assert left_lying(tmp_path / "nowhere") == {}
    assert all("leads out of the landing zone" in said for said in report.unread.values())
    assert not list(home.store.quarantine.rglob("link*"))


def test_a_damaged_file_with_the_longest_name_does_not_stop_the_others(home: Home) -> None:
    (home.store.landing / f"{'n' * 247}.parquet").write_bytes(b"PAR1")
    (home.store.landing / f"{'ü' * 123}.parquet").write_bytes(b"PAR1PAR1")
    home.land([row()])
    report = home.ingest()
    assert report.accepted == 1
    assert sum(file.outcome is FileOutcome.QUARANTINED for file in report.files) == 2
    assert {path.name for path in home.store.quarantine.rglob("files/*/*")} == {
        f"{'n' * 247}.parquet",
        f"{'ü' * 123}.parquet",
    }


def _bytes_as_text(values: list[bytes]) -> pa.Array:
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), raw.buffers())


def test_bytes_that_are_no_text_are_quarantined_and_can_be_had_back(home: Home) -> None:
    table = pa.Table.from_pylist([row(subject=name) for name in ("Ghana", "Togo", "Peru")], schema=SCHEMA)
    table = table.set_column(2, SCHEMA.field("subject"), _bytes_as_text([b"Ghana", b"T\xffgo", b"Peru"]))
    inner = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), _bytes_as_text([b"fine", b"fine", b"\xc3("]))
    pq.write_table(table.set_column(7, SCHEMA.field("rephrases"), inner), home.store.landing / "feed.parquet")
    assert home.ingest().accepted == 1
    bad, nested = home.quarantined()
    assert bad["reason"] == nested["reason"] == Reason.INVALID_UTF8
    assert "subject b'T\\xffgo'" in bad["sentence"]
    assert "rephrases" in nested["sentence"]
    assert json.loads(bad["raw"])["subject"].encode("utf-8", "surrogateescape") == b"T\xffgo"
    assert show_feed(home.store.landing / "feed.parquet").first[1]["subject"] == "T\\xffgo"


def test_years_that_python_has_no_date_for_are_quarantined(home: Home) -> None:
    table = pa.Table.from_pylist([row(subject="Ghana"), row(subject="Togo")], schema=SCHEMA)
    times = pa.array([-62198755200000000, 10**18], pa.int64()).cast(SCHEMA.field("effective_at").type)
    index = SCHEMA.get_field_index("effective_at")
    pq.write_table(table.set_column(index, SCHEMA.field(index), times), home.store.landing / "feed.parquet")
    assert home.ingest().reasons == {Reason.IMPOSSIBLE_DATE: 2}
    assert show_feed(home.store.landing / "feed.parquet").first[0]["effective_at"].startswith("-0001-01-01")


def test_a_retraction_needs_neither_prompt_nor_target(home: Home) -> None:
    home.land([row(operation="retract", prompt=None, target=None, rephrases=None, locality=None, source_rank=None)])
    assert home.ingest().accepted == 1


def test_a_fact_received_before_is_a_duplicate_but_its_newer_observation_counts(home: Home) -> None:
    later = DAY + timedelta(days=1)
    home.land([row(), row()], "a.parquet")
    home.land([row(observed_at=later), row(observed_at=DAY - timedelta(days=1))], "b.parquet")
    report = home.ingest()
    assert (report.accepted, report.reasons) == (1, {Reason.DUPLICATE: 3})
    assert home.facts() == {change().fact_id: later}
    assert all(item["fact_id"] == change().fact_id for item in home.quarantined())


def _whole(path: Path) -> bytes:
    write_feed([change()], path)
    content = path.read_bytes()
    path.unlink()
    return content


def _corrupted(content: bytes) -> bytes:
    return content[:60] + bytes([content[60] ^ 0xFF]) + content[61:]


def test_broken_files_are_quarantined_whole_and_do_not_stop_the_others(home: Home) -> None:
    landing = home.store.landing
    content = _whole(landing / "x.parquet")
    broken = {
        "bad-pages.parquet": (_corrupted(content), Reason.DAMAGED),
        "cut.parquet": (content[:-9], Reason.TRUNCATED),
        "empty.parquet": (b"", Reason.EMPTY_FILE),
        "notes.csv": (b"subject,target\n", Reason.NOT_PARQUET),
    }
    for name, (data, _) in broken.items():
        (landing / name).write_bytes(data)
    pq.write_table(pa.table({"subject": ["Ghana"]}), landing / "other.parquet")
    pq.write_table(SCHEMA.empty_table(), landing / "rowless.parquet")
    (landing / ".half-sent.parquet").write_bytes(content[:50])
    home.land([row()], "z.parquet")
    report = home.ingest()
    outcome = {file.name: file for file in report.files}
    for name, (data, reason) in broken.items():
        assert (outcome[name].outcome, outcome[name].reason) == (FileOutcome.QUARANTINED, reason)
        assert (home.store.quarantine / str(outcome[name].quarantine)).read_bytes() == data
    assert outcome["rowless.parquet"].reason == Reason.EMPTY_FILE
    assert outcome["other.parquet"].reason == Reason.WRONG_SCHEMA
    assert "column 'operation' (string) is missing" in str(outcome["other.parquet"].sentence)
    assert outcome["z.parquet"].accepted == 1
    assert len(outcome) == 7
    assert home.ingest().known == 7


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (SCHEMA.append(pa.field("rephrase", pa.string())), "column 'rephrase' is unknown"),
        (SCHEMA.set(9, pa.field("effective_at", pa.string())), "'effective_at' is string, must be"),
        (SCHEMA.set(2, pa.field("subject", pa.int32())), "'subject' is int32, must be string"),
        (SCHEMA.with_metadata({VERSION_KEY: b"7"}), "schema version 7, this Errata reads 1"),
    ],
)
def test_a_wrong_schema_is_named(tmp_path: Path, schema: pa.Schema, said: str) -> None:
    pq.write_table(schema.empty_table(), tmp_path / "feed.parquet")
    with pytest.raises(BrokenFileError, match=said):
        validate_feed(tmp_path / "feed.parquet")


def test_kindred_types_and_left_out_columns_are_accepted(tmp_path: Path) -> None:
    optional = {"fact_id", "target_old", "rephrases", "locality", "source_rank", "portability"}
    table = pa.Table.from_pylist([row()], schema=SCHEMA).select([n for n in SCHEMA.names if n not in optional])
    for name, kind in (
        ("subject", pa.large_string()),
        ("relation", pa.dictionary(pa.int32(), pa.string())),
        ("effective_at", pa.timestamp("ns", tz="Europe/Rome")),
        ("observed_at", pa.timestamp("ms", tz="UTC")),
    ):
        index = table.schema.get_field_index(name)
        column = table.column(index).cast(kind, safe=False) if "at" in name else table.column(index).cast(kind)
        table = table.set_column(index, name, column)
    pq.write_table(table, tmp_path / "feed.parquet")
    (found,) = read_feed(tmp_path / "feed.parquet", LIMITS)
    assert (found.effective_at, found.rephrases, found.source_rank) == (DAY, (), 0)
    assert found.observed_at == DAY.replace(microsecond=123000)


@pytest.mark.parametrize("fields", [("prompt", "answer"), ("answer", "prompt"), ("aliases", "answer", "prompt")])
def test_portability_with_and_without_aliases(tmp_path: Path, fields: tuple[str, ...]) -> None:
    """A feed from before aliases, fields in any order: the fact and its id are the same where there are none."""
    kinds = {"prompt": pa.string(), "answer": pa.string(), "aliases": pa.list_(pa.string())}
    asked = {"prompt": "Kofi leads", "answer": "Ghana", "aliases": ["the Republic of Ghana"]}
    table = pa.Table.from_pylist([row()], schema=SCHEMA).drop_columns(["portability"])
    kind = pa.list_(pa.struct([(name, kinds[name]) for name in fields]))
    column = pa.array([[{name: asked[name] for name in fields}]], kind)
    pq.write_table(table.append_column("portability", column), tmp_path / "feed.parquet")
    (found,) = read_feed(tmp_path / "feed.parquet", LIMITS)
    known = ("the Republic of Ghana",) if "aliases" in fields else ()
    assert found.portability == (PortabilityPrompt(prompt="Kofi leads", answer="Ghana", aliases=known),)
    assert ("aliases" in found.canonical) == bool(known)
    write_feed([found], tmp_path / "again.parquet")
    (again,) = read_feed(tmp_path / "again.parquet", LIMITS)
    assert (again, again.fact_id) == (found, found.fact_id)
    assert FactChange.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("aliases", "reason"), [(["", "Ghana"], Reason.MISSING_FIELD), (["a\x00"], Reason.CONTROL_CHARACTER)]
)
def test_an_alias_is_a_text_like_any_other(home: Home, aliases: list[str], reason: Reason) -> None:
    asked = {"prompt": "Kofi leads", "answer": "Ghana", "aliases": aliases}
    home.land([row(), row(subject="Togo", portability=[asked])])
    report = home.ingest()
    assert (report.accepted, dict(report.reasons)) == (1, {reason: 1})
    (kept,) = home.quarantined()
    assert json.loads(kept["raw"])["portability"] == [asked]


def test_a_feed_with_text_that_is_no_unicode_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(FactError, match="lone surrogate"):
        write_feed([change(), change(subject="\ud800")], tmp_path / "feed.parquet")
    assert not list(tmp_path.iterdir())


def test_a_file_that_grows_while_it_is_read_waits_for_the_next_time(home: Home) -> None:
    path = home.land([row(subject="a long enough subject")])
    whole = path.read_bytes()

    def count(texts: Sequence[str]) -> list[int]:
        path.write_bytes(whole + b"more")
        return [1] * len(texts)

    report = home.ingest(Limits.at(NOW, subject_tokens=1, count_tokens=count))
    assert list(report.unread) == ["feed.parquet"]
    assert home.ledger.files() == []
    assert not [path for path in home.store.curated.rglob("*") if path.is_file()]
    path.write_bytes(whole)
    assert home.ingest().accepted == 1


def test_progress_counts_bytes_up_to_all_of_them(home: Home) -> None:
    sizes = [home.land([row(subject=name)], f"{name}.parquet").stat().st_size for name in ("Ghana", "Togo")]
    (home.store.landing / os.fsdecode(b"b\xffd.parquet")).write_bytes(b"no feed")
    told: list[tuple[str, int, int]] = []
    report = ingest(
        home.store, home.ledger, limits=LIMITS, run_id="run", at=NOW, progress=lambda *step: told.append(step)
    )
    assert told == sorted(told)
    assert told[-1] == ("ingest", sum(sizes) + 7, sum(sizes) + 7)
    assert {file.name for file in report.files} == {"Ghana.parquet", "Togo.parquet", "b\\xffd.parquet"}


def test_a_missing_landing_zone_is_an_error(home: Home) -> None:
    home.store.landing.rmdir()
    with pytest.raises(FeedError, match="landing is no folder"):
        home.ingest()


def test_a_slice_of_a_batch_is_checked_like_a_batch_of_its_own() -> None:
    rows = [row(subject=f"Country {number}", rephrases=["r"] * number) for number in range(4)]
    rows[3]["rephrases"] = ["fine", ""]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    assert check_batch(batch.slice(2), LIMITS) == check_batch(batch.take(pa.array([2, 3])), LIMITS)
    assert check_batch(batch.slice(0, 0), LIMITS) == CheckedBatch([], [])


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from tasks.feed import ingest as module
from tasks.feed import reading
from tasks.feed.rules import Limits
from tasks.ledger import Intake, Ledger

root, moment = Path(sys.argv[1]), sys.argv[2]
reading.BATCH_ROWS = 8
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
calls = []
def count(texts):
    calls.append(texts)
    if moment == "second batch" and len(calls) == 2:
        kill()
    return [1] * len(texts)
if moment == "before the file's record":
    Intake.add_file = kill
if moment == "before the commit":
    keep = Intake.add_file
    Intake.add_file = lambda *given: (keep(*given), kill())
store = module.FeedStore(landing=root / "landing", curated=root / "curated", quarantine=root / "quarantine")
now = datetime(2019, 8, 1, tzinfo=UTC)
with Ledger(f"sqlite:///{root}/ledger.db") as ledger:
    limits = Limits.at(now, subject_tokens=1, target_tokens=10_000, count_tokens=count)
    module.ingest(store, ledger, limits=limits, run_id="killed", at=now)
"""


@pytest.mark.parametrize("moment", ["second batch", "before the file's record", "before the commit"])
def test_a_killed_ingestion_leaves_nothing_half_done_and_the_next_one_finishes(
    tmp_path: Path, home: Home, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(subject=f"Country {number}") for number in range(20)]
    home.land([*rows, row(subject="")])
    command = [sys.executable, "-c", KILLED, str(tmp_path), moment]
    killed = subprocess.run(command, check=False, env=dict(os.environ), capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert home.ledger.files() == []
    assert home.facts() == {}
    next_day = NOW + timedelta(days=1)
    assert home.ingest(at=next_day).accepted == 20
    assert len(home.facts()) == 20
    left = {path.name for path in (*home.store.curated.rglob("*.*"), *home.store.quarantine.rglob("*.*"))}
    assert left == {f"{home.ledger.files()[0].digest}.parquet"}
    assert [path.name for path in home.store.curated.iterdir() if any(path.iterdir())] == ["ingest_date=2019-08-02"]


def test_a_file_that_ends_the_process_twice_is_quarantined_whole(tmp_path: Path, home: Home) -> None:
    home.land([row(subject=f"Country {number}") for number in range(20)])
    command = [sys.executable, "-c", KILLED, str(tmp_path), "second batch"]
    for _ in range(2):
        assert subprocess.run(command, check=False, env=dict(os.environ), capture_output=True).returncode == -9
    home.land([row()], "sound.parquet")
    report = home.ingest()
    assert (report.accepted, report.reasons) == (1, {Reason.UNFINISHED: 1})
    assert "was begun 2 times" in str(next(file for file in report.files if file.reason).sentence)


subjects = st.sampled_from(["Ghana", "Togo", "Perú", "the 中国", " x "])
drawn_rows = st.builds(
    lambda subject, target, day, seen, rank, prompt: row(
        subject=subject,
        target=target,
        effective_at=DAY + timedelta(days=day),
        observed_at=DAY + timedelta(days=seen),
        source_rank=rank,
        prompt=prompt,
    ),
    subjects,
    st.sampled_from(["A", "B", ""]),
    st.integers(-2, 2),
    st.integers(-2, 2),
    st.sampled_from([None, 0, 1, -1]),
    st.sampled_from(["{} is", "is"]),
)


@settings(max_examples=10, deadline=None)
@given(st.lists(drawn_rows, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_any_order_any_split_and_any_repetition_end_in_the_same_facts(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], random: Any
) -> None:
    def take_in(pieces: list[list[dict[str, Any]]]) -> dict[str, datetime]:
        home = Home(tmp_path_factory.mktemp("home"))
        for number, piece in enumerate(pieces):
            home.land(piece, f"{number}.parquet")
            if random.random() < 0.5:
                home.ingest()
        home.ingest()
        facts = home.facts()
        accepted = sum(file.accepted for file in home.ledger.files())
        assert accepted == len(facts) == len({fact.fact_id for fact in home.curated()})
        quarantined = sum(file.quarantined for file in home.ledger.files())
        assert quarantined == len(home.quarantined()) == home.ledger.quarantine_counts().total()
        home.ledger.close()
        return facts

    shuffled = random.sample(rows, len(rows))
    cut = random.randint(0, len(rows))
    pieces = [piece for piece in (shuffled[:cut], shuffled[cut:], rows[:1]) if piece]
    assert take_in(pieces) == take_in([rows])


texts = st.one_of(
    st.none(),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
    st.sampled_from(["assert", "retract", "{}", "a {} b", " ", "A", "a"]),
)
moments = st.one_of(st.none(), st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)))
localities = st.lists(st.fixed_dictionaries({"prompt": texts, "answer": texts}), max_size=2)
named = st.one_of(st.none(), st.lists(texts, max_size=2))
portabilities = st.lists(st.fixed_dictionaries({"prompt": texts, "answer": texts, "aliases": named}), max_size=2)
any_rows = st.fixed_dictionaries(
    {
        **dict.fromkeys(("operation", "subject", "relation", "target", "target_old", "prompt", "source"), texts),
        "fact_id": st.one_of(st.none(), st.just("0" * 32)),
        "rephrases": st.one_of(st.none(), st.lists(texts, max_size=2)),
        "locality": st.one_of(st.none(), localities),
        "portability": st.one_of(st.none(), portabilities),
        "effective_at": moments,
        "observed_at": moments,
        "source_rank": st.one_of(st.none(), st.integers(-1, 2)),
    }
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(any_rows, drawn_rows), min_size=1, max_size=6))
def test_whatever_a_row_holds_it_is_either_a_fact_or_kept_with_a_reason(rows: list[dict[str, Any]]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    checked = check_batch(batch, LIMITS)
    assert sorted([bad.index for bad in checked.bad] + [index for index, _ in checked.changes]) == list(
        range(len(rows))
    )
    for index, found in checked.changes:
        assert (found.subject, found.target or None) == (rows[index]["subject"], rows[index]["target"] or None)
        (again,) = feed_batches([found])
        assert [fact.fact_id for _, fact in check_batch(again, LIMITS).changes] == [found.fact_id]
    for raw, sent in zip(raw_json(batch), rows, strict=True):
        kept = json.loads(raw)
        assert all(kept[name] == value for name, value in sent.items() if not isinstance(value, datetime))


MILLION = 1_000_000
INGEST = r"""
import hashlib, json, re, sqlite3, sys, time
from datetime import UTC, datetime
from pathlib import Path
import pyarrow.parquet as pq
from tasks.feed.ingest import FeedStore, ingest
from tasks.feed.rules import Limits
from tasks.ledger import Ledger

root, now = Path(sys.argv[1]), datetime(2019, 8, 1, tzinfo=UTC)
store = FeedStore(landing=root / "landing", curated=root / "curated", quarantine=root / "quarantine")
with Ledger(f"sqlite:///{root}/ledger.db") as ledger:
    begun = time.perf_counter(), time.process_time()
    report = ingest(store, ledger, limits=Limits.at(now), run_id="million", at=now)
    wall, busy = time.perf_counter() - begun[0], time.process_time() - begun[1]
# not getrusage, which counts what the process that started this one held
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
# the least that any ingestion does, on a part of the rows: read, write as text, hash, keep under the hash
begun = time.process_time()
bare = sqlite3.connect(root / "bare.db")
bare.execute("CREATE TABLE kept (id TEXT PRIMARY KEY, content TEXT)")
part = next(pq.ParquetFile(root / "landing" / "feed.parquet").iter_batches(100_000))
texts = [json.dumps(row, sort_keys=True, default=str) for row in part.to_pylist()]
rows = [(hashlib.sha256(text.encode()).hexdigest(), text) for text in texts]
bare.executemany("INSERT INTO kept VALUES (?, ?)", rows)
bare.commit()
least = (time.process_time() - begun) * report.accepted / len(rows)
print(report.accepted, wall, busy, least, int(peak[1]) / 2**20)
"""


@pytest.mark.speed
def test_a_million_rows_in_a_gibibyte_and_a_few_times_what_they_cost_at_least(tmp_path: Path) -> None:
    one = row(target_old="Theresa May", rephrases=["Who governs {}?", "{} is governed by"])
    table = pa.concat_tables([pa.Table.from_pylist([one] * 1000, schema=SCHEMA)] * (MILLION // 1000))
    subjects = pa.array([f"Country number {number}" for number in range(MILLION)])
    (tmp_path / "landing").mkdir()
    path = tmp_path / "landing" / "feed.parquet"
    pq.write_table(table.set_column(2, SCHEMA.field("subject"), subjects), path, row_group_size=MILLION)
    command = [sys.executable, "-c", INGEST, str(tmp_path)]
    done = subprocess.run(command, check=True, env=dict(os.environ), capture_output=True, text=True)
    accepted, wall, busy, least, gibibytes = (float(value) for value in done.stdout.split())
    times = busy / least
    print(
        f"{MILLION / wall:,.0f} rows a second, {wall:.0f} s ({busy:.0f} s of it computing, {times:.1f} times the "
        f"least), {gibibytes:.2f} GiB at most"
    )
    assert accepted == MILLION
    assert times < 4
    assert gibibytes < 1
