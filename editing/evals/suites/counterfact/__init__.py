"""CounterFact: the true object against a counterfactual one, in ROME's or EasyEdit's fields. See the README."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from editing.evals.report import ItemOutcome
from editing.evals.scorer import Scorer
from editing.evals.suite import Suite, stable_id
from editing.evals.suites.files import Record, need, read_records, single_file
from editing.evals.suites.zsre import EPOCH
from editing.facts import SLOT, FactChange, LocalityPrompt

VERSION = "1"
LIKELIHOOD = "likelihood"
REWRITE, PARAPHRASE, NEIGHBOURHOOD = "rewrite", "paraphrase", "neighbourhood"
EFFICACY = "efficacy"  # what the papers call the rewrite prompt's success once the rewrite is applied


@dataclass(frozen=True, slots=True)
class CounterFactRecord:
    """One record, whatever its fields were called. `template` has a subject slot, or is None where none is known."""

    subject: str
    relation: str
    template: str | None
    prompt: str
    true: str
    new: str
    paraphrases: tuple[str, ...]
    neighbourhood: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterFactItem:
    """One prompt and the two objects that compete for it."""

    item_id: str
    kind: str
    prompt: str
    true: str
    new: str
    group: str

    @property
    def expected(self) -> str:
        """The true object."""
        return self.true


def _read_rome(record: Record, path: Path, place: int) -> CounterFactRecord:
    rewrite = need(record, "requested_rewrite", path, place)
    subject, template = (need(rewrite, name, path, place) for name in ("subject", "prompt"))
    new, true = (need(need(rewrite, name, path, place), "str", path, place) for name in ("target_new", "target_true"))
    return CounterFactRecord(
        subject=subject,
        relation=rewrite.get("relation_id") or template,
        template=template,
        prompt=template.replace(SLOT, subject),
        true=true.strip(),
        new=new.strip(),
        paraphrases=tuple(record.get("paraphrase_prompts") or ()),
        neighbourhood=tuple(record.get("neighborhood_prompts") or ()),
    )


def _read_easyedit(record: Record, path: Path, place: int) -> CounterFactRecord:
    subject, prompt = (need(record, name, path, place) for name in ("subject", "prompt"))
    template = prompt.replace(subject, SLOT, 1) if subject in prompt else None
    return CounterFactRecord(
        subject=subject,
        relation=template or prompt,
        template=template,
        prompt=prompt,
        true=need(record, "ground_truth", path, place).strip(),
        new=need(record, "target_new", path, place).strip(),
        paraphrases=tuple(text for text in (record.get("rephrase_prompt"),) if text),
        neighbourhood=tuple(text for text in (record.get("locality_prompt"),) if text),
    )


def read(path: Path) -> list[CounterFactRecord]:
    """Every record of a CounterFact file. Raises `SuiteError` naming the record and the field that is missing."""
    path = single_file(path)
    return [
        (_read_rome if "requested_rewrite" in record else _read_easyedit)(record, path, place)
        for place, record in enumerate(read_records(path))
    ]


@dataclass(frozen=True, kw_only=True)
class CounterFactSuite(Suite):
    """Per prompt: which object is likelier, and by how much; `edited` says which of the two should be.

    Likelihood is exp of the mean token log-probability, as in ROME's evaluation.
    """

    items: tuple[CounterFactItem, ...]
    edited: bool

    def content(self) -> Any:
        """The mode and the items."""
        return [self.edited, [asdict(item) for item in self.items]]

    def _metric(self, kind: str) -> str:
        return EFFICACY if self.edited and kind == REWRITE else kind

    def stratum(self, item: Any) -> str:
        """The kind of prompt."""
        return str(item.kind)

    def metric_sizes(self) -> dict[str, int]:
        """Prompts by kind, once for success and once for magnitude."""
        counts = Counter(self._metric(item.kind) for item in self.items)
        return {
            f"{self.name}.{kind}_{what}.{LIKELIHOOD}": n
            for kind, n in counts.items()
            for what in ("success", "magnitude")
        }

    def score(self, scorer: Scorer) -> list[ItemOutcome]:
        """Success and magnitude of every prompt."""
        prompts = [item.prompt for item in self.items for _ in range(2)]
        objects = [text for item in self.items for text in (item.true, item.new)]
        likelihoods = [math.exp(result.mean_logprob) for result in scorer.teacher_forced(prompts, objects)]
        outcomes = []
        for item, p_true, p_new in zip(self.items, likelihoods[::2], likelihoods[1::2], strict=True):
            wants_new = self.edited and item.kind != NEIGHBOURHOOD
            margin = p_new - p_true if wants_new else p_true - p_new
            for what, score, binary in (("success", float(margin > 0), True), ("magnitude", margin, False)):
                outcomes.append(
                    ItemOutcome(
                        suite=self.name,
                        metric=f"{self._metric(item.kind)}_{what}",
                        protocol=LIKELIHOOD,
                        item_id=item.item_id,
                        prompt=item.prompt,
                        expected=item.new if wants_new else item.true,
                        got=f"{item.true}: {p_true:.4f}, {item.new}: {p_new:.4f}",
                        score=score,
                        binary=binary,
                        group=item.group,
                    )
                )
        return outcomes

    def derived(self, outcomes: Sequence[ItemOutcome]) -> dict[str, float]:
        """Edit mode only: the harmonic mean of the three success rates, where all three were measured."""
        rates: Mapping[str, list[float]] = {
            f"{self._metric(kind)}_success": [] for kind in (REWRITE, PARAPHRASE, NEIGHBOURHOOD)
        }
        for outcome in outcomes:
            if outcome.metric in rates:
                rates[outcome.metric].append(outcome.score)
        if not self.edited or not all(rates.values()):
            return {}
        means = [sum(scores) / len(scores) for scores in rates.values()]
        harmonic = len(means) / sum(1 / mean for mean in means) if all(means) else 0.0
        return {f"{self.name}.harmonic_score.{LIKELIHOOD}": harmonic}


def _items(records: Sequence[CounterFactRecord]) -> Iterator[CounterFactItem]:
    for record in records:
        for kind, prompts in (
            (REWRITE, (record.prompt,)),
            (PARAPHRASE, record.paraphrases),
            (NEIGHBOURHOOD, record.neighbourhood),
        ):
            for prompt in prompts:
                yield CounterFactItem(
                    item_id=f"{kind}:{stable_id(prompt, record.true, record.new)}",
                    kind=kind,
                    prompt=prompt,
                    true=record.true,
                    new=record.new,
                    group=record.relation,
                )


def _load(path: Path, name: str, edited: bool) -> CounterFactSuite:
    items = {item.item_id: item for item in _items(read(path))}
    return CounterFactSuite(name=name, version=VERSION, items=tuple(items.values()), edited=edited)


def load_regression(path: Path) -> CounterFactSuite:
    """*Regression mode*: nothing is edited; p(true) is to stay above p(new) on every prompt."""
    return _load(path, "counterfact", edited=False)


def load_edited(path: Path) -> CounterFactSuite:
    """*Edit mode*: the records are applied; p(new) is to win on rewrites and paraphrases, p(true) on neighbours."""
    return _load(path, "counterfact_edits", edited=True)


def fact_changes(path: Path) -> list[FactChange]:
    """*Edit mode*: each record as a fact change to its counterfactual object.

    Left out: records whose prompt does not name the subject, and those whose new object is the true one.
    """
    return [
        FactChange(
            subject=record.subject,
            relation=record.relation,
            target=record.new,
            target_old=record.true,
            prompt=record.template,
            rephrases=record.paraphrases,
            locality=tuple(LocalityPrompt(prompt=prompt, answer=record.true) for prompt in record.neighbourhood),
            effective_at=EPOCH,
            observed_at=EPOCH,
            source="counterfact",
        )
        for record in read(path)
        if record.template and record.new != record.true
    ]
