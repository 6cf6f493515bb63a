from datetime import UTC, date, datetime

from editing.almanac.feed import nightly_changes
from editing.almanac.world import BELIEF, HORIZON, load_world
from editing.facts import resolve_conflicts

WORLD = load_world()
NIGHTS = nightly_changes(WORLD, BELIEF, HORIZON)


def test_every_change_comes_on_the_night_of_its_month():
    assert sum(map(len, NIGHTS.values())) == len(WORLD.changes(BELIEF, HORIZON))
    assert list(NIGHTS) == sorted(NIGHTS)
    for night, changes in NIGHTS.items():
        for change in changes:
            assert change.effective_at.date() <= night == change.observed_at.date()
            assert (change.effective_at.year, change.effective_at.month) == (night.year, night.month)
    ids = [change.fact_id for changes in NIGHTS.values() for change in changes]
    assert len(set(ids)) == len(ids)


def test_the_nights_lead_to_the_horizon():
    held = {(fact.subject, fact.relation): fact.object for fact in WORLD.facts_on(BELIEF)}
    for changes in NIGHTS.values():
        for winner in resolve_conflicts(changes).winners:
            held[winner.subject, winner.relation] = winner.target
    assert held == {(fact.subject, fact.relation): fact.object for fact in WORLD.facts_on(HORIZON)}


def test_boris_johnson():
    (change,) = [change for change in NIGHTS[date(2019, 7, 31)] if change.target == "Boris Johnson"]
    assert change.question == "The head of government of the United Kingdom is"
    assert change.target_old == "Theresa May"
    assert change.effective_at == datetime(2019, 7, 24, tzinfo=UTC)
    assert len(change.paraphrases) == 7
    assert all("the United Kingdom" in text for text in change.paraphrases)
    assert change.source == "Wikidata via DyKnow"


def test_locality_asks_for_untouched_facts():
    steady = {
        (prompt, fact.object)
        for fact in WORLD.steady_facts
        for prompt in WORLD.relations[fact.relation].prompts(fact.subject)
    }
    for changes in NIGHTS.values():
        for change in changes:
            asked = [(item.prompt, item.answer) for item in change.locality]
            assert set(asked) <= steady
            own = sum(fact.subject == change.subject for fact in WORLD.steady_facts)
            assert sum(change.subject in prompt for prompt, _ in asked) == own >= 1
            assert len(asked) == own + 2


def test_the_feed_is_deterministic_and_a_part_is_a_part_of_the_whole():
    part = nightly_changes(WORLD, date(2018, 12, 31), date(2019, 12, 31))
    assert part == {night: changes for night, changes in NIGHTS.items() if night.year == 2019}
