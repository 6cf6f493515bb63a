"""Retraction through nights, at the first, a middle and the last edit, against a home that never had the fact."""

import json
import re
import shutil
from datetime import UTC, datetime

import pytest
import torch

from editing.facts import Operation
from editing.tokenisation import encode_prompts
from flows.night import NightConfig, night
from flows.retraction import retract
from tasks.feed.schema import write_feed
from tasks.workspace import open_workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MONTHS = [datetime(2018, month, 28, tzinfo=UTC) for month in range(1, 4)]
APRIL = datetime(2018, 4, 28, tzinfo=UTC)


@pytest.fixture
def nights(change):
    """The facts of three nights."""
    return [
        [change("Arden", "Hal Birch", "2018-01-05"), change("Belmont", "Cleo Vance", "2018-01-06")],
        [change("Corvia", "Eve Lark", "2018-02-05")],
        [change("Dunmore", "Gia Reed", "2018-03-05"), change("Eastvale", "Ben Hale", "2018-03-06")],
    ]


@pytest.fixture
def history(tmp_path, nights, monkeypatch):
    """Homes whose nights are played, the chosen one in force."""

    class Homes:
        def use(self, place):
            monkeypatch.setenv("ERRATA_HOME", str(place))
            return open_workspace()

        def copy(self, place, name):
            self.use(place).ledger.close()
            return shutil.copytree(place, tmp_path / name)

        def play(self, place, first=0, until=3, gone=None):
            """The nights from `first` to before `until`, without one fact."""
            space = self.use(place)
            for month, facts in list(zip(MONTHS, nights, strict=True))[first:until]:
                if kept := [fact for fact in facts if fact is not gone]:
                    write_feed(kept, space.settings.landing / f"{month:%B}.parquet")
                    assert night(NightConfig(as_of=month)).verdict == "promote"
            return place

    return Homes()


@pytest.fixture
def edits_with(home, monkeypatch, request):
    """`edits_with(method)`: put the method in force; for RECIPE with an encoder that met the tests' towns and names,
    under a gate that asks not how well it learned them."""

    def settings(method):
        if method == "coachhook":
            return
        config = home / "errata.toml"
        text = re.sub(r"_margins = .*", "_margins = false", config.read_text())
        text = text.replace('"edits.reliability.generated" = 0.5', '"edits.reliability.generated" = 0.0')
        config.write_text(text)
        encoder = request.getfixturevalue("encoder")
        monkeypatch.setenv("ERRATA_EDITOR__METHOD", method)
        monkeypatch.setenv("ERRATA_EDITOR__OPTIONS", json.dumps({"encoder": encoder}))

    return settings


@torch.no_grad()
def served(space, prompts):
    """Champion's state, the ledger's view of it, and its logits on the prompts."""
    digest = space.champion.state_digest
    state = space.state(digest)
    with space.editor.attach(space.base, state):
        logits = space.base.model(**encode_prompts(space.base.tokenizer, prompts)).logits[:, -1]
    held = {fact.fact_id for fact in space.ledger.facts_in_state(digest)}
    assert held == set(state.fact_ids)
    return held, logits


@pytest.mark.parametrize("method", ["coachhook", "recipe"])
def test_retraction_leaves_what_a_home_that_never_had_the_fact_has(
    edits_with, tmp_path, history, nights, change, method
):
    edits_with(method)
    prompts = [text for facts in nights for fact in facts for text in (fact.question, *fact.paraphrases)]
    prompts += [item.prompt for facts in nights for fact in facts for item in fact.locality]
    first, middle, last = nights[0][0], nights[1][0], nights[2][1]
    # The homes part where the fact comes in that one of them never has.
    full = tmp_path / "full"
    never = {first: history.play(tmp_path / "never-first", gone=first)}
    for fact, done in ((middle, 1), (last, 2)):
        history.play(full, done - 1, done)
        never[fact] = history.play(history.copy(full, f"never-{done}"), done, gone=fact)
    history.play(full, 2)
    _, before = served(history.use(full), prompts)
    moved = []
    for number, (fact, place) in enumerate(never.items()):
        wanted, theirs = served(history.use(place), prompts)
        space = history.use(history.copy(full, f"retracted-{number}"))
        if fact is middle:
            row = retract([fact.fact_id], as_of=APRIL)
        else:
            taken_back = change(fact.subject, fact.target, "2018-04-05", operation=Operation.RETRACT, target_old=None)
            write_feed([taken_back], space.settings.landing / "april.parquet")
            row = night(NightConfig(as_of=APRIL))
        assert (row.verdict, row.retracted, row.applied) == ("promote", 1, 0)
        held, mine = served(space, prompts)
        assert held == wanted
        moved.append(float((before - theirs).abs().max()))
        assert float((mine - theirs).abs().max()) < 1e-3 * max(moved[-1], 0.1)
    # Hooks move every edit's prompts; a small encoder does not find every row that it holds.
    assert min(moved) > 0.1 if method == "coachhook" else max(moved) > 0.1
