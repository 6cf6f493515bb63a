"""Prompts with expected answers, scored in every protocol: what edits, ZsRE and locality have in common.

`teacher_forced`: the share of the answer's tokens that are the argmax, given the answer so far; where a
probe says so, of the answer among several that has the greatest share.
`generated`: whether greedy decoding gives the answer (`scoring.exact_match`).
`wild`: whether what the model writes up to its own stop, as it is served, is the answer and nothing else
(`scoring.whole_match`; the WILD protocol, arXiv 2502.11177). It needs a prompt form in which answers end.
They are never mixed under one name. A probe of locality expects the base's own frozen output
instead of an answer known from outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from editing.errors import SuiteError
from editing.evals.report import ItemOutcome
from editing.evals.requests import target_lengths
from editing.evals.scorer import Scorer
from editing.evals.scoring import ANSWER_SLACK, NEWLINE, TeacherForced, cut, exact_match, whole_match
from editing.evals.suite import Suite
from editing.facts import fold

TEACHER_FORCED = "teacher_forced"
GENERATED = "generated"
WILD = "wild"
WILD_TOKENS = 64  # an answer that has not ended by then is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One prompt. `answers[0]` is teacher-forced, with `any_forced` the one of them that fares best; any of them
    counts when generated.

    With `as_base` the expectation is what the unedited base gives: its argmax at each token of
    `answers[0]`, and its generated text.
    """

    item_id: str
    metric: str
    prompt: str
    answers: tuple[str, ...]
    group: str = ""
    as_base: bool = False
    any_forced: bool = False

    @property
    def expected(self) -> str:
        """The first answer."""
        return self.answers[0]


@dataclass(frozen=True, slots=True)
class FrozenOutput:
    """What the base said: argmax ids where the answer's tokens stand, its greedy text, and, in a form in which
    answers end, that text to its own stop."""

    predicted_ids: tuple[int, ...]
    text: str
    whole: str | None = None


Frozen = Mapping[str, FrozenOutput]


def _ask(scorer: Scorer, probes: Sequence[Probe]) -> list[tuple[TeacherForced, str, str | None]]:
    """Of each probe its answer read, the text generated for it, and that text to its own stop where answers end."""
    prompts = [probe.prompt for probe in probes]
    forced = list(scorer.teacher_forced(prompts, [probe.answers[0] for probe in probes]))
    alternatives = [(i, answer) for i, probe in enumerate(probes) for answer in probe.answers[1:]]
    budgets = [len(result.target_ids) for result in forced]
    lengths = target_lengths(scorer.base, [prompts[i] for i, _ in alternatives], [a for _, a in alternatives])
    for (i, _), length in zip(alternatives, lengths, strict=True):
        budgets[i] = max(budgets[i], length)
    others = [(i, answer) for i, answer in alternatives if probes[i].any_forced]
    told = scorer.teacher_forced([prompts[i] for i, _ in others], [answer for _, answer in others]) if others else []
    for (i, _), result in zip(others, told, strict=True):
        forced[i] = max(forced[i], result, key=lambda item: _agreed(item, item.target_ids))
    if scorer.base.form.end:
        wholes = scorer.generate(prompts, [max(WILD_TOKENS, budget + ANSWER_SLACK) for budget in budgets], stop=())
        return [(read, cut(whole, NEWLINE), whole) for read, whole in zip(forced, wholes, strict=True)]
    texts = scorer.generate(prompts, [budget + ANSWER_SLACK for budget in budgets])
    return [(read, text, None) for read, text in zip(forced, texts, strict=True)]


def _agreed(forced: TeacherForced, wanted_ids: Sequence[int]) -> float:
    """The share of tokens where the model's choice is the wanted one."""
    return sum(a == b for a, b in zip(forced.predicted_ids, wanted_ids, strict=True)) / len(wanted_ids)


def freeze(scorer: Scorer, probes: Iterable[Probe]) -> dict[str, FrozenOutput]:
    """The base's outputs on the probes that expect them, by item id. Raises `SuiteError` on an edited model."""
    if scorer.state is not None:
        raise SuiteError(f"state {scorer.model_digest[:12]} is attached; locality is frozen from the base alone")
    wanted = [probe for probe in probes if probe.as_base]
    answers = _ask(scorer, wanted) if wanted else []
    return {
        probe.item_id: FrozenOutput(forced.predicted_ids, text, whole)
        for probe, (forced, text, whole) in zip(wanted, answers, strict=True)
    }


def score_probes(
    scorer: Scorer, suite: str, probes: Sequence[Probe], frozen: Frozen | None = None
) -> list[ItemOutcome]:
    """An outcome for every probe and protocol.

    Raises `SuiteError` when a probe expects the base's output and `frozen` has none for it.
    """
    outcomes = []
    for probe, (forced, text, whole) in zip(probes, _ask(scorer, probes) if probes else [], strict=True):
        wanted_ids, wanted_text, wanted_whole = forced.target_ids, probe.answers[0], probe.answers[0]
        right = any(exact_match(text, answer) for answer in probe.answers)
        whole_right = whole is not None and any(whole_match(whole, answer) for answer in probe.answers)
        if probe.as_base:
            said = (frozen or {}).get(probe.item_id)
            if said is None:
                raise SuiteError(f"no frozen base output for {probe.prompt!r} ({probe.item_id}); freeze the base first")
            wanted_ids, wanted_text, wanted_whole = said.predicted_ids, said.text, said.whole or ""
            right = fold(text) == fold(said.text)
            whole_right = whole is not None and fold(whole) == fold(wanted_whole)
        agreed = _agreed(forced, wanted_ids)
        expected_text, got_text = scorer.base.tokenizer.batch_decode([list(wanted_ids), list(forced.predicted_ids)])
        in_the_wild = [(WILD, wanted_whole, whole, float(whole_right))] if whole is not None else []
        for protocol, expected, got, score in (
            (TEACHER_FORCED, expected_text, got_text, agreed),
            (GENERATED, wanted_text, text, float(right)),
            *in_the_wild,
        ):
            outcomes.append(
                ItemOutcome(
                    suite=suite,
                    metric=probe.metric,
                    protocol=protocol,
                    item_id=probe.item_id,
                    prompt=probe.prompt,
                    expected=expected.strip(),
                    got=got.strip(),
                    score=score,
                    binary=protocol != TEACHER_FORCED,
                    group=probe.group,
                )
            )
    return outcomes


@dataclass(frozen=True, kw_only=True)
class ProbeSuite(Suite):
    """Probes in every protocol; `frozen` holds the base's outputs for those that expect them."""

    items: tuple[Probe, ...]
    frozen: Frozen = field(default_factory=dict)

    def content(self) -> Any:
        """The probes, and what the base said."""
        wanted = {probe.item_id for probe in self.items}
        return [
            [asdict(probe) for probe in self.items],
            {key: asdict(output) for key, output in self.frozen.items() if key in wanted},
        ]

    def stratum(self, item: Any) -> str:
        """The probe's metric."""
        return str(item.metric)

    def metric_sizes(self) -> dict[str, int]:
        """Probes by metric, for each protocol that any model has."""
        counts = Counter(probe.metric for probe in self.items)
        return {f"{self.name}.{m}.{p}": n for m, n in counts.items() for p in (TEACHER_FORCED, GENERATED)}

    def score(self, scorer: Scorer) -> list[ItemOutcome]:
        """An outcome for every probe and protocol."""
        return score_probes(scorer, self.name, self.items, self.frozen)
