"""The Almanac's history, replayed: what really happened after 2018-01-01, night by night, through the nightly flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from editing.almanac.feed import evening, nightly_changes
from editing.almanac.world import BELIEF, load_world
from editing.evals.scoring import exact_match
from editing.facts import FactChange
from flows.night import NightConfig, night
from tasks.ask import ask
from tasks.feed.schema import write_feed
from tasks.night.summary import NOTHING, NightSummary, finished_nights
from tasks.settings import ALMANAC, SettingsError
from tasks.workspace import Workspace, open_workspace

LAST_DAY = date(2023, 12, 31)
TOLD = 3
# The relations whose changes people know best come first.
FAMOUS = ("head_of_government", "head_of_state", "chief_executive", "organisation_head", "team")


@dataclass(frozen=True, slots=True)
class Answer:
    """A question about a changed fact, what the base says to it, and what the champion says."""

    question: str
    before: str
    after: str
    truth: str

    @property
    def right(self) -> bool:
        """Whether the champion gives the new answer."""
        return exact_match(self.after, self.truth)


@dataclass(frozen=True, slots=True)
class ReplayedNight:
    """A night of the replay: its date, the changes that its feed brought, its row, and who holds the office now."""

    date: date
    changes: tuple[FactChange, ...]
    summary: NightSummary
    answers: tuple[Answer, ...]


def history() -> dict[date, list[FactChange]]:
    """Every night with changes, and the changes, from the Almanac's belief to the end of its world."""
    return nightly_changes(load_world(), BELIEF, LAST_DAY)


def replay(nights: int | None) -> Iterator[ReplayedNight]:
    """Run the first `nights` nights (None: all), each from its own feed file. Finished ones are not run again.

    Raises `SettingsError` when the workspace is another model's: its champion would be edited.
    """
    space = open_workspace()
    if space.settings.model.id != ALMANAC:
        raise SettingsError(
            f"model.id is {space.settings.model.id!r}, the replay edits the Almanac; run it with another ERRATA_HOME "
            "and ERRATA_MODEL__ID=almanac"
        )
    done = {row.night: row for row in finished_nights(space.ledger) if row.verdict != NOTHING}
    for day, changes in list(history().items())[:nights]:
        summary = done.get(day.isoformat())
        if summary is None:
            write_feed(changes, space.settings.landing / f"almanac-{day}.parquet")
            summary = night(NightConfig(as_of=evening(day)))
        yield ReplayedNight(day, tuple(changes), summary, answers(space, changes))


def answers(space: Workspace, changes: Sequence[FactChange]) -> tuple[Answer, ...]:
    """What base and champion say to the edit prompts of `changes`."""
    questions = [change.question for change in changes]
    before, after = ask(space, questions, "base"), ask(space, questions, "champion")
    truth = [change.target for change in changes]
    return tuple(map(Answer, questions, before, after, truth))


def highlights(replayed: Sequence[ReplayedNight]) -> list[Answer]:
    """The three changes that a person would enjoy most: well-known offices, the champion right, no subject twice."""
    told = [
        (FAMOUS.index(change.relation) if change.relation in FAMOUS else len(FAMOUS), change, answer)
        for item in replayed
        for change, answer in zip(item.changes, item.answers, strict=True)
        if answer.right and answer.before != answer.after
    ]
    chosen: dict[str, Answer] = {}
    for _, change, answer in sorted(told, key=lambda row: (row[0], row[1].effective_at)):
        chosen.setdefault(change.subject, answer)
    return list(chosen.values())[:TOLD]
