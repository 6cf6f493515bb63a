"""A model is asked the Almanac's dated facts, edited by what it does not say, rolled back and edited again."""

import pytest

from editing.almanac.beliefs import believed, changes, dated, question
from editing.almanac.world import HORIZON, load_world
from editing.errors import ConfigError
from editing.evals.scoring import exact_match
from flows.catch_up import SECOND, catch_up
from tasks.ask import ask
from tasks.settings import SettingsError
from tasks.workspace import open_workspace


@pytest.mark.slow
def test_two_nights_a_rollback_and_another_night(home, monkeypatch):
    monkeypatch.setenv("ERRATA_GATE__CULPRIT_BUDGET", "12")
    told = []
    found = catch_up(["coachhook", "coachhook"], SECOND + 4, told.append)
    space, world = open_workspace(), load_world()
    now = dated(world, HORIZON)
    said = ask(space, [question(tenure.fact) for tenure in now], "base")
    wrong = changes(world, believed(world, now, said), HORIZON)
    assert len(found.beliefs) == len(now)
    assert len(found.feed) == SECOND + 4 <= len(wrong)
    assert {fact.fact_id for fact in found.feed} <= {fact.fact_id for fact in wrong}
    assert [fact.effective_at for fact in found.feed] == sorted(fact.effective_at for fact in found.feed)

    first, second = found.stages
    assert first.nights[0].facts == 4
    assert SECOND + 1 <= first.nights[1].facts <= SECOND + 5  # what the first night let wait is decided about again
    assert len(second.nights) == 1
    rollbacks = [line for line in told if line.startswith("rolling")]
    assert len(rollbacks) == (first.nights[-1].champion is not None)
    questions = [fact.question for fact in found.feed]
    assert list(second.answers) == ask(space, questions)
    content = found.to_dict()
    assert content["asked"] == len(now)
    assert [row["is_true_now"] for row in content["facts"]] == [fact.target for fact in found.feed]
    right = sum(exact_match(answer, fact.target) for answer, fact in zip(second.answers, found.feed, strict=True))
    assert content["methods"]["coachhook"]["right"] == right
    # Nothing received is lost: every row of the feed is in the ledger, the planted one too.
    known = {fact.fact_id for fact in space.ledger.facts([fact.fact_id for fact in (*found.feed, found.planted)])}
    assert len(known) == SECOND + 5
    with pytest.raises(SettingsError, match="begin with a home of its own"):
        catch_up(["coachhook"])


def test_a_mistyped_method_is_named_before_anything_is_asked(home):
    told = []
    with pytest.raises(ConfigError, match="recpie"):
        catch_up(["coachhook", "recpie"], tell=told.append)
    assert told == []


def test_the_almanacs_own_model_is_sent_to_its_replay(home, monkeypatch):
    monkeypatch.setenv("ERRATA_MODEL__ID", "almanac")
    with pytest.raises(SettingsError, match="errata replay"):
        catch_up()
