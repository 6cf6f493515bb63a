"""The Almanac's history as a bench replays it: every real change, and all that must stay."""

from __future__ import annotations

from editing.almanac.feed import nightly_changes
from editing.almanac.world import BELIEF, HORIZON, World
from editing.bench.replay import History

PHRASINGS_ASKED = 2  # of each unedited fact


def almanac_history(world: World) -> History:
    """All nights to the horizon, and every fact that never changes, asked in two phrasings."""
    unedited = [
        (fact.subject, prompt, fact.object)
        for fact in world.steady_facts
        for prompt in world.relations[fact.relation].prompts(fact.subject)[:PHRASINGS_ASKED]
    ]
    return History(nights=nightly_changes(world, BELIEF, HORIZON), unedited=unedited)
