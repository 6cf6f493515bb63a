from datetime import date

import pytest

from editing.almanac.world import MODEL
from flows.replay import Answer, ReplayedNight, highlights, history, replay
from tasks.settings import SettingsError
from tasks.workspace import open_workspace


def test_history_is_what_happened():
    nights = history()
    assert list(nights) == sorted(nights)
    assert sum(map(len, nights.values())) >= 100
    johnson = next(change for change in nights[date(2019, 7, 31)] if change.subject == "the United Kingdom")
    assert (johnson.target_old, johnson.target) == ("Theresa May", "Boris Johnson")


def test_highlights_are_right_different_and_famous():
    nights = history()
    told = []
    for day, changes in list(nights.items())[:20]:
        answers = [Answer(c.question, c.target_old or "", c.target, c.target) for c in changes]
        answers[0] = Answer(changes[0].question, "someone", "someone", changes[0].target)
        told.append(ReplayedNight(day, tuple(changes), None, tuple(answers)))
    chosen = highlights(told)
    assert len(chosen) == 3
    assert all(answer.right and answer.before != answer.after for answer in chosen)
    assert all("head of government" in answer.question for answer in chosen)


def test_another_models_workspace_is_left_alone(home):
    with pytest.raises(SettingsError, match="ERRATA_HOME"):
        next(replay(1))
    assert not list(open_workspace().settings.landing.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason="the Almanac's model is not in this checkout")
def test_the_almanac_learns_who_holds_the_office_now(tmp_path, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", server)
    first, second = replay(2)
    assert first.summary.applied == len(first.changes)
    assert second.summary.retention is not None
    for night in (first, second):
        assert night.summary.verdict == "promote"
        assert all(answer.right for answer in night.answers)
    again = list(replay(2))
    assert [night.summary for night in again] == [first.summary, second.summary]
