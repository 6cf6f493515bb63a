"""Both methods in one night, each with its own relations; and a champion of another method than the settings name."""

import json
from datetime import UTC, datetime

import pytest

from flows.compaction import compact
from flows.night import NightConfig, night
from tasks.ask import ask
from tasks.explain import explain
from tasks.settings import SettingsError
from tasks.workspace import open_workspace

MAYOR, RIVER = "The mayor of {} is", "The river in {} is the"
JANUARY, MARCH = datetime(2018, 1, 28, tzinfo=UTC), datetime(2018, 3, 28, tzinfo=UTC)


def river(change, place, name, day):
    return change(place, name, day, relation="river", prompt=RIVER, rephrases=(), locality=(), target_old=None)


@pytest.mark.slow
def test_a_night_with_both_methods(encoder, change, feed, monkeypatch):
    options = {"recipe": {"encoder": encoder}, "routes": {"mayor": "recipe"}, "default": "coachhook"}
    monkeypatch.setenv("ERRATA_EDITOR__METHOD", "both")
    monkeypatch.setenv("ERRATA_EDITOR__OPTIONS", json.dumps(options))
    space = open_workspace()
    mayor, water = change("Belmont", "Hal Birch", "2018-01-05"), river(change, "Dunmore", "Blue", "2018-01-06")
    feed(space, "january", mayor, water)
    row = night(NightConfig(as_of=JANUARY))
    assert (row.applied, row.verdict, row.champion) == (2, "promote", 1), row
    asked = [MAYOR.replace("{}", "Belmont"), RIVER.replace("{}", "Dunmore")]
    assert ask(space, asked, "base") == ["Ben Hale", "Deep"]
    assert ask(space, asked) == ["Hal Birch", "Blue"]
    state = space.state(space.champion.state_digest)
    assert (state.recipe.fact_ids, state.coachhook.fact_ids) == ((mayor.fact_id,), (water.fact_id,))

    told = [explain(space, prompt) for prompt in asked]
    assert [found["edit"]["target"] for found in told] == ["Hal Birch", "Blue"]
    # The mayor's row is answered by its prompt, so no token of it takes a hook; the river's takes the hooks.
    assert not any(token["fired"] for token in told[0]["tokens"])
    assert any(token["fired"] for token in told[1]["tokens"])

    # A later night supersedes in either part, and compacting leaves the hooks as they are.
    feed(space, "march", change("Belmont", "Eve Lark", "2018-03-05"), river(change, "Arden", "Cold", "2018-03-06"))
    row = night(NightConfig(as_of=MARCH))
    assert (row.applied, row.verdict, row.champion) == (2, "promote", 2), row
    answers = ask(space, [*asked, RIVER.replace("{}", "Arden")])
    assert answers == ["Eve Lark", "Blue", "Cold"]
    before = space.state(space.champion.state_digest)
    assert compact().version == 3
    after = space.state(space.champion.state_digest)
    assert (after.coachhook.digest, len(after.recipe.repository.segments)) == (before.coachhook.digest, 1)
    assert ask(space, [*asked, RIVER.replace("{}", "Arden")]) == answers


def test_another_method_than_the_champions_is_refused_by_name(two_nights, change, feed, monkeypatch):
    space = two_nights
    feed(space, "march", change("Farholt", "Ben Hale", "2018-03-05"))
    monkeypatch.setenv("ERRATA_EDITOR__METHOD", "recipe")
    with pytest.raises(
        SettingsError, match=r"editor\.method is 'recipe', the champion was edited with 'coachhook'; set it back, or"
    ):
        night(NightConfig(as_of=MARCH))
    # Nothing moved; what serves is asked and explained by its own method, whatever the settings say.
    space = open_workspace()
    assert (space.champion.version, [version.number for version in space.registry.versions()]) == (2, [1, 2])
    assert ask(space, ["The mayor of Arden is"]) == ["Gia Reed"]
    told = explain(space, "The mayor of Arden is")
    assert (told["method"], told["edit"]["target"]) == ("coachhook", "Gia Reed")
    assert told["tokens"]
    # Set back, the same night goes on.
    monkeypatch.delenv("ERRATA_EDITOR__METHOD")
    row = night(NightConfig(as_of=MARCH))
    assert (row.applied, row.champion) == (1, 3)
