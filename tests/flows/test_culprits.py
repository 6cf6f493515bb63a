"""Nights with planted poison: what stays out, what goes in, and what is said about it."""

from datetime import UTC, datetime

import pytest

from flows.night import NightConfig, night
from tasks.feed.schema import write_feed
from tasks.night.culprits import search_of
from tasks.workspace import open_workspace

JANUARY, FEBRUARY = (datetime(2018, month, 28, tzinfo=UTC) for month in (1, 2))
RIVERS = "zsre.question.generated"
RELIABILITY = "edits.reliability.generated"


@pytest.fixture
def good(change):
    """Three changes of mayor that do no harm."""
    return [
        change("Arden", "Finn Oake", "2018-01-04"),
        change("Belmont", "Cleo Vance", "2018-01-06"),
        change("Corvia", "Eve Lark", "2018-01-07"),
    ]


@pytest.fixture
def poison(change):
    """A row whose columns are mixed up: its subject stands in front of every town, so every river becomes one."""
    return change(
        "The river in",
        "Grey",
        "2018-01-05",
        prompt="{} Arden is the",
        relation="river",
        rephrases=(),
        locality=(),
        target_old="Amber",
    )


def run(*changes, as_of=JANUARY):
    space = open_workspace()
    write_feed(changes, space.settings.landing / f"{as_of:%B}.parquet")
    return space, night(NightConfig(as_of=as_of))


def test_poison_is_quarantined_and_the_rest_promoted(home, good, poison, monkeypatch):
    monkeypatch.setenv("ERRATA_GATE__POLICY", f'{{"floors": {{"{RIVERS}": 0.8, "{RELIABILITY}": 0.5}}}}')
    space, row = run(*good, poison)
    search = search_of(space, row.key)
    print(search)
    assert (row.verdict, row.applied, row.blamed, row.champion) == ("promote", 3, 1, 1)
