"""The repository of RECIPE: an append-only log, what holds in it, its search, and what it costs on disk."""

import dataclasses
import json
import os
import random
import time
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from editing.editors import get_editor
from editing.editors.recipe.index import IndexPart, one_thread, score_directions
from editing.editors.recipe.repository import MAX_SEGMENTS, Repository
from editing.editors.recipe.segments import Segment
from editing.errors import StateError
from editing.facts import EditBatch

EDITOR = get_editor("recipe")
WIDTH, PROMPT = 32, (3, 16)


@pytest.fixture(scope="module")
def rows(fact):
    """`rows(numbers, seed)`: a segment of facts about these subjects, clustered as representations are."""
    centres = np.random.default_rng(1).normal(size=(40, WIDTH))

    def make(numbers, seed=0):
        draw = np.random.default_rng([seed, *list(numbers)[:1]])
        vectors = centres[[number % 40 for number in numbers]] + 0.5 * draw.normal(size=(len(numbers), WIDTH))
        facts = [fact(f"Place {number}", f"name {seed}") for number in numbers]
        return Segment.of(facts, torch.tensor(vectors, dtype=torch.float32), torch.randn(len(numbers), *PROMPT))

    return make


def near(repository, seed=0):
    """Queries beside the rows of these facts, as questions are."""
    draw = np.random.default_rng(seed)

    def of(facts):
        wanted = {fact.fact_id for fact in facts}
        known = [
            (fact_id, vector)
            for segment in repository.segments
            for fact_id, vector in zip(segment.table["fact_id"].to_pylist(), segment.knowledge, strict=True)
        ]
        found = torch.stack([vector for fact_id, vector in known if fact_id in wanted])
        return found + 0.2 * torch.from_numpy(draw.normal(size=found.shape)).float()

    return of


def test_a_newer_row_supersedes_and_its_retraction_brings_the_older_back(rows):
    log = Repository().append(rows(range(5))).append(rows([1, 3], seed=1))
    assert [fact.target for fact in log.facts()] == ["name 0"] * 3 + ["name 1"] * 2
    newer = log.fact_at(5)
    assert (newer.subject, newer.target) == ("Place 1", "name 1")
    back = log.retract([newer.fact_id])
    assert [(fact.subject, fact.target) for fact in back.facts()][:2] == [("Place 0", "name 0"), ("Place 1", "name 0")]
    assert len(log.facts()) == len(back.facts()) == 5
    gone = back.retract([log.fact_at(1).fact_id])
    assert "Place 1" not in [fact.subject for fact in gone.facts()]
    assert gone.append(rows([1])).facts()[-1].subject == "Place 1"
    with pytest.raises(StateError, match=f"facts {newer.fact_id} are not in the state"):
        gone.retract([newer.fact_id])


def test_any_sequence_of_appends_and_retractions_holds_what_a_plain_log_holds(rows):
    rng = random.Random(3)
    log, plain = Repository(), []
    for step in range(60):
        if plain and rng.random() < 0.3:
            target = rng.choice([fact for fact, gone in plain if not gone] or [None])
            if target is None:
                continue
            log = log.retract([target.fact_id])
            plain = [(fact, gone or fact.fact_id == target.fact_id) for fact, gone in plain]
        else:
            segment = rows(sorted(rng.sample(range(8), 3)), seed=step)
            log = log.append(segment)
            plain += [(fact, False) for fact in segment.facts(range(len(segment)))]
        held = {fact.key: fact for fact, gone in plain if not gone}
        last = {fact.fact_id for fact in held.values()}
        assert set(log.fact_ids()) == last
        assert [fact.fact_id for fact in log.facts()] == list(log.fact_ids())


def test_search_is_exact_up_to_the_limit_and_finds_only_what_holds(rows):
    log = Repository().append(rows(range(200))).append(rows(range(50), seed=1))
    log = log.retract([log.fact_at(7).fact_id, log.fact_at(240).fact_id]).indexed(300, 0.98, near(log))
    assert log.parts == ()
    queries = torch.randn(30, WIDTH)
    scores, found = log.search(queries, 3)
    everything = torch.cat([segment.knowledge for segment in log.segments])
    truth = (queries @ everything.T).masked_fill(~torch.from_numpy(log.live), -torch.inf).topk(3)
    assert found.tolist() == truth.indices.tolist()
    np.testing.assert_allclose(scores, truth.values.numpy(), rtol=1e-5)
    nothing = log.retract(log.fact_ids()).retract([])
    while nothing.fact_ids():
        nothing = nothing.retract(nothing.fact_ids())
    scores, found = nothing.search(queries, 2)
    assert (found == -1).all()
    assert np.isneginf(scores).all()


def test_an_index_is_measured_merged_and_searched_with_the_rows_behind_it(rows):
    log, covered = Repository(), []
    for night in range(8):
        log = log.append(rows(range(300 * night, 300 * (night + 1))))
        log = log.indexed(500, 0.98, near(log))
        covered.append([(part.start, part.end) for part in log.parts])
    assert covered[1] == [(0, 600)]
    assert covered[3] == [(0, 1200)]
    assert covered[7] == [(0, 2400)]
    log = log.append(rows(range(100), seed=1))
    assert all(part.recall >= 0.98 and part.probes < part.lists for part in log.parts)
    queries = near(log)(log.facts(range(2300, 2500)))
    scores, found = log.search(queries)
    everything = torch.cat([segment.knowledge for segment in log.segments])
    truth = (queries @ everything.T).masked_fill(~torch.from_numpy(log.live), -torch.inf).max(1)
    assert (found[:, 0] == truth.indices.numpy()).mean() >= 0.97
    right = found[:, 0] == truth.indices.numpy()
    np.testing.assert_allclose(scores[right, 0], truth.values.numpy()[right], rtol=1e-5)
    assert log.live[found].all()


def test_an_index_is_the_same_every_time(rows):
    segment = rows(range(600))
    built = [IndexPart.build(segment.knowledge.numpy(), 0, segment.knowledge[:50].numpy(), 0.9) for _ in range(2)]
    assert built[0].digest == built[1].digest


def half_heard(rows: int, queries: int, heard: int = 6, width: int = 48):
    """Rows that differ alike in all directions, and queries that ask about `heard` of these; each has its row."""
    generator = np.random.default_rng(0)
    knowledge_NR = generator.standard_normal((rows, width)).astype(np.float32)
    queries_BR = 0.02 * generator.standard_normal((queries, width)).astype(np.float32)
    queries_BR[:, :heard] += knowledge_NR[generator.choice(rows, queries, replace=False), :heard]
    return knowledge_NR, queries_BR


def test_directions_are_those_in_which_scores_differ():
    knowledge_NR, queries_BR = half_heard(2_000, 300)
    rows_RD, queries_RD = score_directions(knowledge_NR, queries_BR[:200], 6)
    asked_BR = queries_BR[200:]

    def told(onto_rows, onto_queries):
        """Of the scores' variance over the rows, the share that the products tell."""
        left_BN = asked_BR @ knowledge_NR.T - (asked_BR @ onto_queries) @ (knowledge_NR @ onto_rows).T
        return 1 - left_BN.var(1).mean() / (asked_BR @ knowledge_NR.T).var(1).mean()

    principal_RD = np.linalg.eigh(np.cov(knowledge_NR, rowvar=False))[1][:, -6:]
    assert told(rows_RD, queries_RD) > 0.99
    assert told(principal_RD, principal_RD) < 0.5


def test_an_index_looks_into_few_lists_where_questions_tell_little_of_the_rows():
    knowledge_NR, queries_BR = half_heard(4_000, 400)
    part = IndexPart.build(knowledge_NR, 0, queries_BR[:200], 0.98)
    assert part.probes <= part.lists / 4
    everyone = faiss.IDSelectorAll()
    found = part.search(queries_BR[200:], 1, everyone)
    truth = (queries_BR[200:] @ knowledge_NR.T).argmax(1)
    assert (found == truth[:, None]).any(1).mean() >= 0.97


@pytest.mark.parametrize("queries", [1, 2, 3])
def test_an_index_of_few_rows_and_questions_finds_them(queries):
    knowledge_NR, queries_BR = half_heard(3, queries)
    part = IndexPart.build(knowledge_NR, 10, queries_BR, 1.0)
    assert part.recall == 1.0
    best = part.search(queries_BR, 3, faiss.IDSelectorAll())
    assert [sorted(row for row in rows if row >= 0) for rows in best.tolist()] == [[10, 11, 12]] * queries


def test_many_small_appends_stay_few_segments_and_rewrite_little(rows):
    """Each night costs its own rows but for a few, and all nights together a small multiple of the rows."""
    nights, log, written = 600, Repository(), []
    segments = [rows([night]) for night in range(nights)]
    for segment in segments:
        known = {segment.digest for segment in log.segments}
        log = log.append(segment)
        written.append(sum(len(segment) for segment in log.segments if segment.digest not in known))
        assert len(log.segments) <= MAX_SEGMENTS
    assert [fact.subject for fact in log.facts()] == [f"Place {night}" for night in range(nights)]
    assert sum(rows > 1 for rows in written) <= nights / (MAX_SEGMENTS - np.log2(nights)) + 1
    assert sum(written) <= nights * (2 + np.log2(nights / MAX_SEGMENTS))


def test_a_large_segment_is_not_rewritten_for_small_ones(rows):
    large = rows(range(500))
    log = Repository().append(large)
    for night in range(3 * MAX_SEGMENTS):
        log = log.append(rows([1000 + night, 2000 + night]))
    assert log.segments[0] is large
    for night in range(60):
        log = log.append(rows([3000 + night]))
        log = log.append(rows(range(5000 + 20 * night, 5020 + 20 * night)))
    assert log.segments[0] is not large  # what came behind has outgrown it
    assert len(log) == 500 + 6 * MAX_SEGMENTS + 60 * 21


def test_faiss_runs_on_one_thread_and_is_given_back():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        with one_thread():
            assert faiss.omp_get_max_threads() == 1
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


# On disk


@pytest.fixture(scope="module")
def large(tiny_base, edited, fact):
    """`large(n)`: a state of `n` facts of random representations."""
    base = tiny_base("gpt2")
    start = edited("recipe", 0)

    def of(n):
        facts = [fact(f"Town {number}", "Vance", prompt="The mayor of {} town is") for number in range(n)]
        generator = torch.Generator().manual_seed(n)
        shape = (start.encoder.config.prompt_tokens, start.encoder.lm_width)
        segment = Segment.of(
            facts,
            torch.randn(n, start.encoder.config.width, generator=generator),
            torch.randn(n, *shape, generator=generator),
        )
        return base, dataclasses.replace(start, repository=Repository((segment,)))

    return of


def written(folder: Path, known: set[int]) -> int:
    """Bytes in `folder` that no known file holds."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(stat.st_size for stat in files if stat.st_ino not in known)


def test_appending_writes_the_new_facts_only(large, fact, tmp_path):
    """+100 facts on 100 and on 4,000: the same bytes, and about the same time."""
    more = EditBatch(tuple(fact(f"Village {number}", "Moss") for number in range(100)))
    bytes_written, seconds, whole = [], [], []
    for n in (100, 4_000):
        base, state = large(n)
        EDITOR.save(state, tmp_path / f"{n}")
        state = EDITOR.load(tmp_path / f"{n}", base)
        known = {path.stat().st_ino for path in (tmp_path / f"{n}").rglob("*")}
        whole.append(written(tmp_path / f"{n}", set()))
        began = time.process_time()
        after = EDITOR.apply(base, state, more).state
        EDITOR.save(after, tmp_path / f"{n}-more")
        seconds.append(time.process_time() - began)
        bytes_written.append(written(tmp_path / f"{n}-more", known))
        back = EDITOR.load(tmp_path / f"{n}-more", base)
        assert back.digest == after.digest
        assert len(back.facts) == n + 100
    assert whole[1] > 10 * whole[0]
    assert bytes_written[1] < 1.05 * bytes_written[0]
    assert seconds[1] < 2 * seconds[0] + 0.05


def test_a_folder_that_is_gone_is_written_anew(large, tmp_path):
    base, state = large(50)
    EDITOR.save(state, tmp_path / "one")
    state = EDITOR.load(tmp_path / "one", base)
    os.rename(tmp_path / "one", tmp_path / "elsewhere")
    EDITOR.save(state, tmp_path / "two")
    assert EDITOR.load(tmp_path / "two", base).digest == state.digest


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".safetensors", lambda raw: raw[:-10], "damaged"),
        (".safetensors", lambda raw: raw[:-4] + b"\x00\x00\x80?", "was altered after it was written"),
        (".parquet", lambda raw: raw[: len(raw) // 2], "damaged"),
        (".faiss", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "was altered after it was written"),
        ("encoder.safetensors", lambda raw: raw[:-4] + b"\x00\x00\x80?", "was altered after it was written"),
        ("encoder.json", lambda raw: raw.replace(b'"width": 32', b'"width": 31', 1), "garbles|differs|altered"),
    ],
)
def test_damaged_files_are_refused(large, tmp_path, suffix, damage, message):
    base, state = large(700)
    state = indexed(state)
    EDITOR.save(state, tmp_path)
    path = next(
        path for path in sorted(tmp_path.rglob(f"*{suffix}")) if suffix[0] != "." or path.parent.name != "encoder"
    )
    raw = path.read_bytes()
    path.unlink()  # the file is linked to other folders, which stay as they are
    path.write_bytes(damage(raw))
    with pytest.raises(StateError, match=message):
        EDITOR.load(tmp_path, base)


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet", ".faiss"])
def test_missing_files_are_refused(large, tmp_path, suffix):
    base, state = large(700)
    EDITOR.save(indexed(state), tmp_path)
    next(tmp_path.glob(f"*/*{suffix}")).unlink()
    with pytest.raises(StateError, match="is missing"):
        EDITOR.load(tmp_path, base)


def indexed(state):
    queries = torch.randn(64, state.encoder.config.width, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(state, repository=state.repository.indexed(500, 0.5, lambda facts: queries))


def test_an_index_that_disagrees_with_its_table_is_refused(large, tmp_path):
    base, state = large(700)
    state = indexed(state)
    (part,) = state.repository.parts
    EDITOR.save(state, tmp_path)
    content = json.loads((tmp_path / "state.json").read_text())
    for changes in ({"end": part.end + 5}, {"start": 3}):
        content["index"] = [{**part.describe(), **changes}]
        (tmp_path / "state.json").write_text(json.dumps(content))
        with pytest.raises(StateError, match="disagrees with its table"):
            EDITOR.load(tmp_path, base)


def test_an_encoder_of_another_repository_is_refused(large, tiny_base, recipe_encoder, tmp_path):
    base, state = large(20)
    EDITOR.save(state, tmp_path / "state")
    other = EDITOR.start(base, {"encoder": recipe_encoder("gpt2", trained=False)})
    for path in (tmp_path / "state" / "encoder").iterdir():
        path.unlink()
    other.encoder.save(tmp_path / "state" / "encoder")
    with pytest.raises(StateError, match="does not belong to the repository"):
        EDITOR.load(tmp_path / "state", base)
    with pytest.raises(StateError, match="base fingerprint differs: the encoder was trained for"):
        EDITOR.start(tiny_base("llama"), {"encoder": recipe_encoder("gpt2", trained=False)})


def test_compaction_drops_what_was_taken_back_and_changes_no_answer(tiny_base, edited, batches, asked):
    base, state = tiny_base("gpt2"), edited("recipe", 3)
    gone = EDITOR.retract(base, state, [batches[1].facts[0].fact_id])
    small = EDITOR.compact(base, gone)
    assert small.fact_ids == gone.fact_ids
    assert (len(gone.repository), len(small.repository), len(small.repository.segments)) == (7, 6, 1)
    assert small.parent == gone.digest
    prompts = [fact.question for batch in batches for fact in batch.facts] + asked

    def same(one, other):
        for prompt in prompts:
            mine, theirs = EDITOR.explain(base, one, prompt), EDITOR.explain(base, other, prompt)
            assert (mine.answered_by, mine.limit) == (theirs.answered_by, theirs.limit)
            assert mine.candidates == theirs.candidates

    same(small, gone)
    # What a later fact superseded still comes back when that is retracted.
    newer = batches[2].facts[0].fact_id
    back = EDITOR.retract(base, small, [newer])
    assert batches[0].facts[0].fact_id in back.fact_ids
    same(back, EDITOR.retract(base, gone, [newer]))
    assert EDITOR.compact(base, small) is small
    assert EDITOR.compact(base, edited("recipe", 0)) is edited("recipe", 0)
    while small.fact_ids:
        small = EDITOR.retract(base, small, small.fact_ids)
    assert len(EDITOR.compact(base, small).repository) == 0


def test_compaction_builds_the_index_anew(large):
    base, state = large(700)
    state = dataclasses.replace(state, config=dataclasses.replace(state.config, exact_rows=300, recall=0.5))
    first = EDITOR.retract(base, indexed(state), [state.repository.fact_at(0).fact_id])
    assert [(part.start, part.end) for part in first.repository.parts] == [(0, 700)]
    small = EDITOR.compact(base, first)
    assert [(part.start, part.end) for part in small.repository.parts] == [(0, 699)]
