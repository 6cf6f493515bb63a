"""What a version answered when it was registered, so that whoever loads it later can tell whether it is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TypeVar

from editing.editors.base import EditState
from editing.evals.report import EvalReport, ItemOutcome
from editing.evals.scorer import Scorer
from editing.facts import FactChange
from tasks.ask import MAX_NEW_TOKENS
from tasks.ledger import RecordedAnswer
from tasks.settings import Settings
from tasks.suites import configured_suites
from tasks.workspace import Workspace

FACTS = "facts"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Difference:
    """A prompt that is answered otherwise than at registration."""

    suite: str
    prompt: str
    recorded: str
    given: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many recorded answers of each suite could be asked again, and which came out otherwise."""

    asked: Mapping[str, int]
    differences: tuple[Difference, ...]

    @property
    def compared(self) -> int:
        """Answers of all suites."""
        return sum(self.asked.values())

    @property
    def share(self) -> float:
        """The share of answers that differ in the suite where it is highest."""
        differing = Counter(difference.suite for difference in self.differences)
        return max((differing[suite] / n for suite, n in self.asked.items()), default=0.0)


def record_answers(space: Workspace, digest: str, report: EvalReport) -> None:
    """Write down what the state answers on a sample of its facts, and what it answered on one suite's sample."""
    if space.ledger.answers(digest):
        return
    space.ledger.record_answers([*fact_answers(space, digest), *suite_answers(space, digest, report.outcomes)])


def fact_answers(space: Workspace, digest: str) -> list[RecordedAnswer]:
    """What the state answers on a sample of its facts."""
    facts = drawn_facts(space.state(digest), space.settings.canary.facts)
    prompts = [fact.question for fact in facts]
    with space.scorer(digest) as scorer:
        given = scorer.generate(prompts, MAX_NEW_TOKENS) if prompts else []
    return [
        RecordedAnswer(state_digest=digest, suite=FACTS, item_id=fact.fact_id, prompt=prompt, answer=answer)
        for fact, prompt, answer in zip(facts, prompts, given, strict=True)
    ]


def suite_answers(space: Workspace, digest: str, outcomes: Iterable[ItemOutcome]) -> list[RecordedAnswer]:
    """Of what the state answered when it was evaluated, a sample of one suite."""
    suite = suite_asked(space.settings)
    outcomes = [outcome for outcome in outcomes if outcome.suite == suite]
    items = set(_drawn(sorted({outcome.item_id for outcome in outcomes}), str, space.settings.canary.items))
    return [
        RecordedAnswer(
            state_digest=digest, suite=suite, item_id=_name(outcome), prompt=outcome.prompt, answer=outcome.got
        )
        for outcome in outcomes
        if outcome.item_id in items
    ]


def drawn_facts(state: EditState, n: int) -> list[FactChange]:
    """At most `n` of the facts that a state holds, the same ones whenever they are drawn."""
    return _drawn(state.facts, lambda fact: fact.fact_id, n)


def suite_asked(settings: Settings) -> str:
    """The name of the suite that the sample is taken of."""
    return settings.canary.suite or configured_suites(settings)[0].name


def compare_answers(scorer: Scorer, settings: Settings, recorded: Sequence[RecordedAnswer]) -> Comparison:
    """Ask the scorer's model again; items of a suite that asks otherwise by now are left out."""
    facts = [row for row in recorded if row.suite == FACTS]
    given = scorer.generate([row.prompt for row in facts], MAX_NEW_TOKENS) if facts else []
    pairs = list(zip(facts, given, strict=True))
    again = _suite_answers(scorer, settings, [row for row in recorded if row.suite != FACTS])
    pairs += [
        (row, outcome.got)
        for row in recorded
        if (outcome := again.get((row.suite, row.item_id))) is not None and outcome.prompt == row.prompt
    ]
    differences = tuple(
        Difference(row.suite, row.prompt, row.answer, answer) for row, answer in pairs if answer != row.answer
    )
    return Comparison(Counter(row.suite for row, _ in pairs), differences)


def _suite_answers(
    scorer: Scorer, settings: Settings, recorded: Sequence[RecordedAnswer]
) -> Mapping[tuple[str, str], ItemOutcome]:
    found: dict[tuple[str, str], ItemOutcome] = {}
    wanted = {(row.suite, row.item_id.split(":", 1)[1]) for row in recorded}
    names = {row.suite for row in recorded}
    for suite in configured_suites(settings) if names else []:
        items = tuple(item for item in suite.items if (suite.name, item.item_id) in wanted)
        if items:
            outcomes = replace(suite, items=items).score(scorer)
            found.update({(suite.name, _name(outcome)): outcome for outcome in outcomes})
    return found


def _name(outcome: ItemOutcome) -> str:
    return f"{outcome.metric}.{outcome.protocol}:{outcome.item_id}"


def _drawn(items: Iterable[T], identity: Callable[[T], str], n: int) -> list[T]:
    """At most `n` items, the same ones whenever they are drawn."""
    return sorted(items, key=lambda item: sha256(identity(item).encode()).digest())[:n]
