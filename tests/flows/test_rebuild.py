"""A ledger that is gone beside versions in MLflow: refused, and made again."""

import shutil
from datetime import UTC, datetime

import pytest

from editing.facts import Operation
from flows.canary import canary
from flows.night import NightConfig, night
from flows.promotion import rollback
from tasks.ask import ask
from tasks.errors import LedgerError
from tasks.ledger import EventKind, Ledger
from tasks.night.summary import finished_nights
from tasks.rebuild import rebuild_ledger
from tasks.registry import CHAMPION, RegistryError
from tasks.status import night_history, status_of
from tasks.workspace import Workspace, _open, open_workspace

MARCH = datetime(2018, 3, 28, tzinfo=UTC)
ASKED = ["The mayor of Arden is", "The mayor of Belmont is", "The mayor of Corvia is"]


def lose_ledger(space) -> tuple[Ledger, Workspace]:
    """The ledger moved away, and the workspace as another process would open it."""
    space.ledger.close()
    kept = space.settings.home / "kept.db"
    for suffix in ("", "-wal", "-shm"):
        path = space.settings.home / f"ledger.db{suffix}"
        if path.exists():
            path.rename(f"{kept}{suffix}")
    _open.cache_clear()
    return Ledger(f"sqlite:///{kept}"), open_workspace()


def of_fact(ledger, fact_id):
    """What happened to a fact in versions: kinds, and what they say, without times."""
    return [(e.kind, e.state_digest, e.detail) for e in ledger.history(fact_id) if e.state_digest is not None]


def test_a_lost_ledger_is_refused_and_made_again(two_nights, change, feed):
    space = two_nights
    older = change("Corvia", "Ada Moss", "2018-01-02")  # stays out: a newer one holds
    bad = change("Dunmore", "Eve Lark", "2018-02-20", target_old="Eve Lark")
    back = change("Belmont", "", "2018-03-02", operation=Operation.RETRACT, target_old=None)
    late = change("Eastvale", "Dov Stern", "2018-06-01")
    feed(space, "march", older, bad, back, late, change("Dunmore", "Ada Moss", "2018-03-01"))
    assert night(NightConfig(as_of=MARCH)).champion == 3
    before, answers = status_of(space), ask(space, ASKED)
    original, space = lose_ledger(space)

    # Whoever would write or answer by an empty ledger says what is wrong, and the alias stays.
    for command in (
        lambda: night(NightConfig(as_of=MARCH)),
        canary,
        rollback,
        lambda: status_of(space),
        lambda: night_history(space),
        lambda: ask(space, ASKED),
    ):
        with pytest.raises(LedgerError, match=r"knows no version; nothing was changed.*`errata ledger rebuild`"):
            command()
    assert space.registry.get(CHAMPION).number == 3

    made = rebuild_ledger(space)
    ledger = space.ledger
    assert (made.versions, made.nights, made.champion, made.challenger) == ((1, 2, 3), 3, 3, None)
    plain = [
        (v.version, v.state_digest, v.parent_digest, v.method, v.verdict, v.night, v.report)
        for v in original.versions()
    ]
    assert plain == [
        (v.version, v.state_digest, v.parent_digest, v.method, v.verdict, v.night, v.report) for v in ledger.versions()
    ]
    files = {
        file.digest: (file.name, file.size, file.rows, file.accepted, file.quarantined) for file in original.files()
    }
    assert files == {
        file.digest: (file.name, file.size, file.rows, file.accepted, file.quarantined) for file in ledger.files()
    }
    assert list(ledger.quarantined_rows()) == list(original.quarantined_rows())
    for version in original.versions():
        assert ledger.facts_in_state(version.state_digest) == original.facts_in_state(version.state_digest)
    facts = original.matching("")
    assert ledger.matching("") == facts
    for fact in facts:
        assert of_fact(ledger, fact.fact_id) == of_fact(original, fact.fact_id)
        assert ledger.sightings(fact.fact_id)[0][:4] == original.sightings(fact.fact_id)[0][:4]
    suite = [[row for row in each.answers(plain[0][1]) if row.suite == "zsre"] for each in (ledger, original)]
    assert suite[0] == suite[1] != []
    rows = [
        {
            name: value
            for name, value in row.to_dict().items()
            if name not in ("seconds", "timing", "reach", "gauges", "decided", "quarantined", "waiting")
        }
        for each in (ledger, original)
        for row in finished_nights(each)
    ]
    assert rows[:3] == rows[3:]
    moves = [(m.alias, m.from_version, m.to_version, m.who) for m in ledger.alias_moves()]
    assert moves == [(CHAMPION, None, 1, "night"), (CHAMPION, 1, 2, "night"), (CHAMPION, 2, 3, "night")]
    # What was decided without editing is decided again; all else is as it was.
    after = status_of(space)
    assert after["champion"] == before["champion"]
    assert ledger.status(older.fact_id, space.champion.state_digest) is EventKind.RECEIVED
    assert ask(space, ASKED) == answers
    assert any("superseded, known or refused" in line for line in made.lost)

    with pytest.raises(LedgerError, match=r"is not empty \(.*3 versions.*nothing was changed"):
        rebuild_ledger(space)

    # Life goes on: the landing zone holds nothing new, a fact is taken back, the champion is checked and goes back.
    assert canary().sound
    feed(space, "april", change("Farholt", "Hal Birch", "2018-04-05"))
    row = night(NightConfig(as_of=datetime(2018, 4, 28, tzinfo=UTC)))
    assert (row.applied, row.superseded, row.quarantined, row.champion) == (1, 1, 0, 4)
    assert rollback(reason="to see").to == 3
    assert ask(space, ASKED) == answers


def test_what_a_rebuilt_ledger_does_not_know_is_not_promoted(two_nights):
    space = two_nights
    rollback(reason="it was wrong")
    _, space = lose_ledger(space)
    shutil.rmtree(space.settings.curated)
    made = rebuild_ledger(space)
    assert (made.champion, made.files) == (1, 2)
    assert any("which are not in" in line for line in made.lost)
    assert {file.name for file in space.ledger.files()} == {"version 1 of errata", "version 2 of errata"}
    # The facts of version 2 wait again; that it was taken back is not known, so that it does not come back by itself.
    row = night(NightConfig(as_of=datetime(2018, 2, 28, tzinfo=UTC)))
    assert (row.verdict, row.version, row.champion) == ("hold", 2, 1)
    assert "since the ledger was rebuilt" in row.decided


def test_an_older_ledger_and_a_lost_mlflow_are_told(two_nights):
    space = two_nights
    home = space.settings.home
    first = space.ledger.versions()[0]
    kept, space = lose_ledger(space)
    space.ledger.record_version(first)  # as a copy of before the second night knows it
    with pytest.raises(LedgerError, match=r"champion at version 2 .* knows 1 others alone; .* move it aside and run"):
        night(NightConfig(as_of=MARCH))
    with pytest.raises(LedgerError, match="is not empty"):
        rebuild_ledger(space)
    assert space.registry.get(CHAMPION).number == 2

    kept.close()
    lose_ledger(space)[0].close()
    shutil.move(home / "mlflow" / "mlflow.db", home / "aside.db")
    lost = Ledger(f"sqlite:///{home / 'ledger.db'}")
    lost.record_version(first)
    lost.close()
    for command in (lambda: night(NightConfig(as_of=MARCH)), canary, rollback):
        with pytest.raises(RegistryError, match=r"MLflow at .* has no version of 'errata', .* knows 1; .* put a copy"):
            command()
    assert not (home / "mlflow" / "mlflow.db").exists()
