"""Three nights on a real model: it is asked the Almanac's dated facts, and what it does not say becomes the feed.

The first method edits in two nights, the second of which brings a row of a faulty export, which the gate has to find.
Then its versions are rolled back to the base, and the next method does everything in one night of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from editing.almanac.beliefs import Belief, believed, changes, dated, question, shifted_row
from editing.almanac.feed import evening
from editing.almanac.world import HORIZON, load_world
from editing.editors import get_editor
from editing.evals.scoring import exact_match
from editing.facts import FactChange
from flows.night import NightConfig, night
from flows.promotion import rollback
from tasks.ask import ask
from tasks.champion.choose import BASE
from tasks.feed.schema import write_feed
from tasks.night.culprits import CulpritSearch, search_of
from tasks.night.summary import NightSummary, finished_nights
from tasks.settings import ALMANAC, SettingsError
from tasks.workspace import method_in_force, open_workspace

METHODS = ("coachhook", "recipe")
SECOND = 8  # changes of the second night: the latest, beside the planted row
FACTS = 40
REASON = "the next method begins at the base"


@dataclass(frozen=True, slots=True)
class Stage:
    """What a method's nights left behind: their rows, the search of each that had one, and its answers in the order of
    the feed."""

    method: str
    nights: tuple[NightSummary, ...]
    searches: tuple[CulpritSearch, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What was asked, what became the feed, the planted row, and each method's stage."""

    beliefs: tuple[Belief, ...]
    feed: tuple[FactChange, ...]
    planted: FactChange
    stages: tuple[Stage, ...]

    def right(self, stage: Stage) -> int:
        """How many facts of the feed a stage's champion answers, beginning with the new value."""
        return self._told(stage.answers)

    def _told(self, answers: Sequence[str]) -> int:
        return sum(exact_match(said, fact.target) for said, fact in zip(answers, self.feed, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, a row for each fact of the feed."""
        by_question = {belief.question: belief for belief in self.beliefs}
        rows = []
        for place, fact in enumerate(self.feed):
            belief = by_question[fact.question]
            rows.append(
                {
                    "question": fact.question,
                    "believed": belief.said,
                    "was_true_until": belief.former and belief.former.end and belief.former.end.isoformat(),
                    "is_true_now": fact.target,
                    **{stage.method: stage.answers[place] for stage in self.stages},
                }
            )
        return {
            "asked": len(self.beliefs),
            "right_before": sum(belief.right for belief in self.beliefs),
            "facts": rows,
            "told_before": self._told([by_question[fact.question].said for fact in self.feed]),
            "planted": {"fact_id": self.planted.fact_id, "question": self.planted.question},
            "methods": {
                stage.method: {
                    "right": self.right(stage),
                    "of": len(self.feed),
                    "nights": [row.to_dict() for row in stage.nights],
                    "searches": [search.sentence for search in stage.searches],
                    "blamed": [blamed.fact_id for search in stage.searches for blamed in search.blamed],
                }
                for stage in self.stages
            },
        }


def catch_up(
    methods: Sequence[str] = METHODS, facts: int = FACTS, tell: Callable[[str], None] = lambda _: None
) -> CaughtUp:
    """Ask, edit, judge, roll back, edit again. `facts` bounds the feed, `tell` hears what is done next.

    Raises `SettingsError` on the Almanac's own model, which knows its table, and in a home where nights were;
    `ConfigError` before anything is asked for a method that does not exist.
    """
    for method in methods:
        get_editor(method)
    space = open_workspace()
    if space.settings.model.id == ALMANAC:
        raise SettingsError(
            "model.id is 'almanac', which has its own history (`errata replay`); import another model "
            "(`errata model import`) and name it in [model] id"
        )
    if finished_nights(space.ledger):
        raise SettingsError(
            f"there were nights in {space.settings.home}; begin with a home of its own: ERRATA_HOME=FOLDER"
        )
    world = load_world()
    now = dated(world, HORIZON)
    tell(f"asking {Path(space.settings.model.id).name} {len(now)} dated facts, in the form that it is served in")
    beliefs = believed(world, now, ask(space, [question(tenure.fact) for tenure in now], BASE))
    feed = sorted(_spread(changes(world, beliefs, HORIZON), facts), key=lambda fact: fact.effective_at)
    planted = shifted_row(HORIZON)
    first, second = feed[:-SECOND], [*feed[-SECOND:], planted]
    stages = []
    for turn, method in enumerate(methods):
        with method_in_force(method):
            space = open_workspace()
            nights = []
            if turn == 0:
                for name, rows in (("first", first), ("second", second)):
                    if rows:
                        tell(f"{method}: a night with {len(rows)} facts")
                        write_feed(rows, space.settings.landing / f"{name}.parquet")
                        nights.append(night(NightConfig(as_of=evening(max(fact.effective_at for fact in rows).date()))))
            else:
                if space.champion is not None:
                    tell(f"rolling version {space.champion.version} back to the base")
                    rollback(to=BASE, reason=REASON)
                tell(f"{method}: a night with all of them")
                nights.append(night(NightConfig(as_of=evening(HORIZON + timedelta(days=turn)))))
            searches = [search for row in nights if (search := search_of(space, row.key)) is not None]
            answers = ask(space, [fact.question for fact in feed])
            stages.append(Stage(method, tuple(nights), tuple(searches), tuple(answers)))
    return CaughtUp(tuple(beliefs), tuple(feed), planted, tuple(stages))


def _spread(feed: Sequence[FactChange], most: int) -> list[FactChange]:
    """At most `most` of the changes, evenly spread."""
    step = max(1.0, len(feed) / most)
    return [feed[math.floor(place * step)] for place in range(min(most, len(feed)))]
