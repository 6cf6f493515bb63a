"""What a RECIPE version costs in MLflow's store and on disk, and the champion compacted and rolled back."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch

from editing.editors.recipe import EncoderConfig, RecipeEncoder
from editing.editors.recipe.repository import Repository
from editing.editors.recipe.segments import Segment
from editing.errors import StateError
from editing.facts import Operation
from flows.canary import canary
from flows.compaction import compact
from flows.night import NightConfig, night
from flows.promotion import rollback
from tasks.ask import ask
from tasks.champion.change import plan_compaction
from tasks.champion.choose import ChoiceError
from tasks.ledger import AliasMove, VersionRecord
from tasks.registry import CHAMPION
from tasks.workspace import open_workspace

BACKBONE = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
ROWS = 10_000


@pytest.fixture
def recipe(home, monkeypatch, tmp_path):
    """A workspace that edits with RECIPE: the best row always answers, by an encoder never trained, every night
    is promoted, and every fact counts as learned: which of them are hangs on the rounding of the processor."""
    base = open_workspace().base
    shape = EncoderConfig(backbone_config=BACKBONE, width=256, max_length=48)
    encoder = RecipeEncoder.create(base, shape)
    encoder.query_head.load_state_dict(encoder.knowledge_head.state_dict())
    encoder.freeze().save(tmp_path / "encoder")
    monkeypatch.setenv("ERRATA_EDITOR__METHOD", "recipe")
    monkeypatch.setattr("tasks.night.record.not_learned", lambda space, work, report: {})
    options = {"encoder": str(tmp_path / "encoder"), "gate": "none"}
    monkeypatch.setenv("ERRATA_EDITOR__OPTIONS", json.dumps(options))
    policy = (
        (home / "errata.toml")
        .read_text()
        .replace('"edits.reliability.generated" = 0.5', '"edits.reliability.generated" = 0')
    )
    (home / "errata.toml").write_text(re.sub(r"_margins = .*", "_margins = false", policy))
    monkeypatch.setenv("ERRATA_BATCH_CANARIES__PERPLEXITY_RATIO", "1e9")
    return open_workspace()


@pytest.fixture
def large(recipe, change):
    """The workspace with a champion of `ROWS` facts, and the index that it has when they came by night."""
    space = recipe
    facts = [change(f"Town {n}", "Ada Moss", "2017-06-01", target_old=None) for n in range(ROWS)]
    start = space.start()
    generator = torch.Generator().manual_seed(0)
    shape = (start.encoder.config.prompt_tokens, start.encoder.lm_width)
    segment = Segment.of(
        facts, torch.randn(ROWS, 256, generator=generator), torch.randn(ROWS, *shape, generator=generator)
    )
    config = start.config
    repository = Repository((segment,)).indexed(
        config.exact_rows, config.recall, lambda some: start.encoder.query([fact.question for fact in some])
    )
    state = replace(start, repository=repository)
    space.keep(state)
    now = datetime(2018, 1, 1, tzinfo=UTC)
    tags = {"errata.base_fingerprint": space.base.fingerprint}
    with space.registry.night_run("first", title="first") as run:
        space.registry.register(run.run_id, space.state_folder(state.digest), digest=state.digest, tags=tags)
    space.ledger.record_version(
        VersionRecord(
            version=1,
            state_digest=state.digest,
            parent_digest=None,
            base_fingerprint=space.base.fingerprint,
            method="recipe",
            verdict="promote",
            night=now,
            run_id="first",
            at=now,
        )
    )
    space.ledger.record_alias_move(
        AliasMove(alias=CHAMPION, from_version=None, to_version=1, who="night", why="first", at=now)
    )
    space.registry.point(CHAMPION, 1)
    return space


def inodes(folder):
    return {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_a_night_of_ten_facts_on_ten_thousand_writes_ten_facts(large, change, feed, monkeypatch):
    space = large
    monkeypatch.setenv("ERRATA_CANARY__AFTER_PROMOTION", "true")
    monkeypatch.setenv("ERRATA_EDITOR__BATCH_SIZE", "4")
    home = space.settings.home
    whole = sum(path.stat().st_size for path in space.state_folder(space.champion.state_digest).rglob("*.*"))
    feed(space, "january", *(change(f"Village {n}", "Hal Birch", "2018-01-05", target_old=None) for n in range(10)))
    before = inodes(home)
    row = night(NightConfig(as_of=datetime(2018, 1, 28, tzinfo=UTC)))
    assert (row.applied, row.champion) == (10, 2), row
    new = sum(size for inode, size in inodes(home).items() if inode not in before)
    assert whole > 15_000_000
    # Reports, tables, plots and three batches' segments: hardly more than the same night without the ten thousand.
    assert new < whole / 10
    version = space.registry.get(2)
    state = space.load(space.registry.fetch(version), version.digest)
    assert len(state.fact_ids) == ROWS + 10


@pytest.fixture
def nights(recipe, change, feed):
    """Three nights: two facts, one that supersedes and one more, and a third that takes one back."""
    space = recipe
    first = change("Belmont", "Cleo Vance", "2018-01-06")
    feed(space, "1", change("Arden", "Hal Birch", "2018-01-05"), first)
    assert night(NightConfig(as_of=datetime(2018, 1, 28, tzinfo=UTC))).champion == 1
    feed(space, "2", change("Arden", "Gia Reed", "2018-02-05"), change("Corvia", "Eve Lark", "2018-02-07"))
    assert night(NightConfig(as_of=datetime(2018, 2, 28, tzinfo=UTC))).champion == 2
    gone = change("Belmont", "Cleo Vance", "2018-03-06", operation=Operation.RETRACT, target_old=None)
    feed(space, "3", gone, change("Farholt", "Ben Hale", "2018-03-07"))
    assert night(NightConfig(as_of=datetime(2018, 3, 28, tzinfo=UTC))).champion == 3
    return space


PROMPTS = ["The mayor of Arden is", "The mayor of Corvia is", "Who leads Farholt? It is"]


@pytest.mark.slow
def test_the_champion_is_compacted_served_and_rolled_back(nights, change, feed, monkeypatch):
    space = nights
    monkeypatch.setenv("ERRATA_CANARY__AFTER_PROMOTION", "true")
    before = space.state(space.champion.state_digest)
    answers = ask(space, PROMPTS)
    found = compact(reason="many small files", who="ada")
    assert (found.of, found.version, found.differing) == (3, 4, 0)
    assert found.asked > len(before.fact_ids)
    assert (found.before["rows"], found.before["retracted_rows"], found.before["segments"]) == (5, 1, 3)
    assert (found.after["rows"], found.after["retracted_rows"], found.after["segments"]) == (4, 0, 1)
    assert found.after["bytes"] < found.before["bytes"]
    assert found.after["files"] == found.before["files"] - 4

    # Served, checked by the canary, with the same facts and answers, and the reason in the ledger.
    assert space.registry.get(CHAMPION).number == space.champion.version == 4
    assert canary().serving == 4
    state = space.state(space.champion.state_digest)
    assert (state.fact_ids, ask(space, PROMPTS)) == (before.fact_ids, answers)
    held = [space.ledger.facts_in_state(digest) for digest in (before.digest, state.digest)]
    assert held[0] == held[1]
    move = space.ledger.alias_moves(CHAMPION)[-1]
    assert (move.who, move.why.split(";")[0], move.to_version) == ("ada", "compact: many small files", 4)
    assert "version 4 is version 3 compacted" in move.why
    assert compact().version is None  # nothing to gain

    # A night goes on from it: what a fact had superseded comes back when that is taken back.
    feed(space, "4", change("Arden", "Gia Reed", "2018-04-05", operation=Operation.RETRACT, target_old=None))
    assert night(NightConfig(as_of=datetime(2018, 4, 28, tzinfo=UTC))).champion == 5
    assert "Hal Birch" in [fact.target for fact in space.state(space.champion.state_digest).facts]

    rollback(to="3", reason="only to see", who="ada")
    assert ask(space, PROMPTS) == answers
    again = compact(who="ada")
    assert (again.of, again.version, space.champion.version) == (3, 4, 4)
    rollback()
    assert space.champion.version == 3


def test_what_would_answer_otherwise_is_not_registered(nights, monkeypatch):
    space = nights
    from editing.editors.recipe import Recipe

    def shuffled(self, base, state):
        small = compacted(self, base, state)
        (segment,) = small.repository.segments
        moved = Segment.made(segment.knowledge.flip(0), segment.prompts, segment.table)
        return replace(small, repository=Repository((moved,)))

    compacted = Recipe.compact
    monkeypatch.setattr(Recipe, "compact", shuffled)
    with pytest.raises(StateError, match=r"version 3 compacted would answer \d+ of \d+ prompts by another fact"):
        compact()
    assert [version.number for version in space.registry.versions()] == [1, 2, 3]
    assert space.champion.version == 3


def test_a_champion_that_moved_meanwhile_is_left_alone(nights):
    with pytest.raises(ChoiceError, match="the champion became version 3 while version 2 was compacted"):
        plan_compaction.fn(2, 4, "", "ada")


def test_without_a_champion_there_is_nothing_to_compact(recipe):
    with pytest.raises(ChoiceError, match="the base serves"):
        compact()
