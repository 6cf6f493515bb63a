"""Which units of a batch make a test fail: a search by halving that copes with interactions, within a budget.

The test is an oracle over subsets: does the model with these units pass? The search adds the units
one stretch after the other to what is known to pass. Where a stretch fails, halving finds the
shortest beginning of it that fails; the last unit of that beginning is a suspect, and three
further questions say what it is:

- it fails alone: *harmful*, whatever else goes in;
- it fails with one other unit: a *conflict*. The unit that comes later in the given order gives
  way, unless the other is in a second conflict: then that one is the culprit, and what it drove
  out comes back;
- neither: the units are *too many at once*. What passes goes in, the suspect and everything after
  it waits.

Every subset that is kept was tested as a whole and passed, so the result is sound also where the
oracle is not monotone; only the number of tests and which of two conflicting units gives way depend
on the order. Halving: delta debugging (Zeller and Hildebrandt 2002) and adaptive group testing
(Hwang 1972), with the accumulation of FastDiag (Felfernig et al. 2012).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

Unit = TypeVar("Unit", bound=Hashable)


class Cause(StrEnum):
    """Why a unit is kept out."""

    HARMFUL = "harmful"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Culprit(Generic[Unit]):
    """A unit that is kept out, and the two tests that show it: `without` passed, `without` plus the unit failed.

    `partners` are the units that it cannot be together with; none when it is harmful by itself.
    """

    unit: Unit
    cause: Cause
    without: tuple[Unit, ...]
    partners: tuple[Unit, ...] = ()


class Ending(StrEnum):
    """How a search ended."""

    FOUND = "found"
    TOO_MANY = "too many at once"
    OUT_OF_BUDGET = "out of budget"
    FAILS_WITHOUT = "fails without any of them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(Generic[Unit]):
    """The result: `kept` passes, `culprits` are kept out, `postponed` wait (too many at once, or undecided).

    `tests` counts the oracle's answers.
    """

    ending: Ending
    kept: tuple[Unit, ...]
    culprits: tuple[Culprit[Unit], ...]
    postponed: tuple[Unit, ...]
    tests: int


class _OutOfBudgetError(Exception):
    pass


class _Oracle(Generic[Unit]):
    """The oracle with a memory and a budget; a subset is asked once."""

    def __init__(self, passes: Callable[[tuple[Unit, ...]], bool], budget: int) -> None:
        self._passes, self._budget = passes, budget
        self._answers: dict[frozenset[Unit], bool] = {}

    @property
    def tests(self) -> int:
        return len(self._answers)

    def __call__(self, units: Sequence[Unit]) -> bool:
        subset = frozenset(units)
        if subset not in self._answers:
            if self.tests >= self._budget:
                raise _OutOfBudgetError
            self._answers[subset] = self._passes(tuple(units))
        return self._answers[subset]

    def know_failing(self, units: Sequence[Unit]) -> None:
        self._answers[frozenset(units)] = False
        self._budget += 1  # it was not this search that tested it


def find_culprits(
    groups: Sequence[Sequence[Unit]], passes: Callable[[tuple[Unit, ...]], bool], *, budget: int
) -> Search[Unit]:
    """Find what makes all units together fail, which the caller has seen.

    `groups` are batches of units, both in the order of preference: of two units that fail only
    together the earlier stays. Halving cuts between batches while it can. `passes(units)` is asked
    at most `budget` times, never twice for one set, and must answer the same every time.
    """
    search = _Halving(groups, _Oracle(passes, budget))
    try:
        ending = search.run()
    except _OutOfBudgetError:
        ending = Ending.OUT_OF_BUDGET
    return Search(
        ending=ending,
        kept=tuple(search.kept),
        culprits=tuple(search.culprits),
        postponed=tuple(search.rest),
        tests=search.oracle.tests - 1,
    )


class _Halving(Generic[Unit]):
    def __init__(self, groups: Sequence[Sequence[Unit]], oracle: _Oracle[Unit]) -> None:
        self.oracle = oracle
        self.kept: list[Unit] = []
        self.rest: list[Unit] = [unit for group in groups for unit in group]
        self.culprits: list[Culprit[Unit]] = []
        self._batch = {unit: number for number, group in enumerate(groups) for unit in group}
        self._cleared: set[Unit] = set()  # units that were accused and came back
        oracle.know_failing(self.rest)

    def run(self) -> Ending:
        if not self.oracle([]):
            return Ending.FAILS_WITHOUT
        while not self.oracle([*self.kept, *self.rest]):
            place = self._shortest_failing(self.kept, self.rest)
            suspect, without = self.rest[place], (*self.kept, *self.rest[:place])
            culprit = self._accuse(suspect, without)
            self.kept = list(without)
            if culprit is None:
                self.rest = self.rest[place:]
                return Ending.TOO_MANY
            self.rest = self.rest[place + 1 :]
            self.culprits.append(culprit)
            if culprit.cause is Cause.CONFLICT:
                self._reconsider(culprit.partners[0])
        self.kept += self.rest
        self.rest = []
        return Ending.FOUND

    def _accuse(self, suspect: Unit, without: tuple[Unit, ...]) -> Culprit[Unit] | None:
        """What `suspect`, which fails with `without`, is; None when only the number of units is the matter."""
        if not self.oracle([suspect]):
            return Culprit(suspect, Cause.HARMFUL, without)
        partner = without[self._shortest_failing([suspect], without)]
        if not self.oracle([partner, suspect]):
            return Culprit(suspect, Cause.CONFLICT, without, (partner,))
        return None

    def _reconsider(self, partner: Unit) -> None:
        """A kept unit in its second conflict is the culprit of both; what it drove out comes back."""
        driven_out = [culprit for culprit in self.culprits if culprit.partners == (partner,)]
        if len(driven_out) < 2 or partner in self._cleared:
            return
        back = [culprit.unit for culprit in driven_out]
        without = tuple(unit for unit in self.kept if unit != partner)
        if not self.oracle([*without, *back]):
            self._cleared.add(partner)
            return
        self.culprits = [culprit for culprit in self.culprits if culprit not in driven_out]
        self.kept = [*without, *back]
        if self.oracle([*self.kept, partner]):
            self.kept.append(partner)
        else:
            self.culprits.append(Culprit(partner, Cause.CONFLICT, tuple(self.kept), tuple(back)))

    def _shortest_failing(self, before: Sequence[Unit], units: Sequence[Unit]) -> int:
        """The place of a unit with which `before` plus `units` up to it fails, and passes up to just before it."""
        low, high = 0, len(units)  # `before` + units[:low] passes, + units[:high] fails
        while high - low > 1:
            middle = self._cut(units, low, high)
            if self.oracle([*before, *units[:middle]]):
                low = middle
            else:
                high = middle
        return low

    def _cut(self, units: Sequence[Unit], low: int, high: int) -> int:
        """Where to halve: between two batches if there is a place inside the stretch, as near its middle as possible.

        Batches are weighed as wholes, so that they are halved before any is cut.
        """
        numbers = [self._batch[unit] for unit in units]
        places = [at for at in range(low + 1, high) if numbers[at] != numbers[at - 1]]
        return places[len(places) // 2] if places else (low + high) // 2
