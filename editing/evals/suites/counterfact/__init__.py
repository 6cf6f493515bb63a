"""CounterFact: the true object against a counterfactual one, in ROME's or EasyEdit's fields. See the README.

`records` reads the published fields, `generation` scores whole texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from editing.evals.report import ItemOutcome
from editing.evals.requests import prompt_ids
from editing.evals.scorer import Scorer
from editing.evals.scoring import Sampling
from editing.evals.suite import Suite, stable_id
from editing.evals.suites.counterfact.generation import (
    References,
    inverse_frequencies,
    ngram_entropy,
    read_references,
    similarity,
)
from editing.evals.suites.counterfact.records import CounterFactRecord, change_of, fact_changes, read, read_counted
from editing.evals.suites.files import load_spec

__all__ = [
    "NEIGHBOURHOOD",
    "SPEC",
    "VERSION",
    "CounterFactRecord",
    "CounterFactSuite",
    "change_of",
    "fact_changes",
    "load_edited",
    "load_regression",
    "read",
    "suite_of",
]

SPEC = load_spec(__file__)
VERSION: str = SPEC["version"]
LIKELIHOOD, SAMPLED = "likelihood", "sampled"
REWRITE, PARAPHRASE, NEIGHBOURHOOD = "rewrite", "paraphrase", "neighbourhood"
EFFICACY = "efficacy"  # what the papers call the rewrite prompt's success once the rewrite is applied
ENTROPY, CONSISTENCY = "generation_entropy", "generation_consistency"


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterFactItem:
    """One prompt and the two objects that compete for it; `record` names the record that it is of."""

    item_id: str
    kind: str
    prompt: str
    true: str
    new: str
    group: str
    record: str = ""

    @property
    def expected(self) -> str:
        """The true object."""
        return self.true


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationItem:
    """One record's prompts to go on from, and texts about things that have the object it should be about."""

    item_id: str
    prompts: tuple[str, ...]
    expected: str
    references: tuple[str, ...]
    group: str

    @property
    def kind(self) -> str:
        """The stratum of texts."""
        return "generation"

    @property
    def prompt(self) -> str:
        """The first of the prompts, which speaks for them."""
        return self.prompts[0]


@dataclass(frozen=True, kw_only=True)
class CounterFactSuite(Suite):
    """Per prompt: which object is likelier, and by how much; `edited` says which of the two should be.

    Likelihood is exp of the mean token log-probability, as in ROME's evaluation. The texts of a
    `GenerationItem` are scored by entropy, and by likeness to its references under `frequencies`,
    the inverse document frequencies of all reference texts.
    """

    items: tuple[CounterFactItem | GenerationItem, ...]
    edited: bool
    frequencies: Mapping[str, float] = field(default_factory=dict)

    def content(self) -> Any:
        """The mode, the items, and how texts are drawn and scored."""
        texts = [SPEC["generation"], dict(self.frequencies)] if self._texts else []
        items = [{key: value for key, value in asdict(item).items() if key != "record"} for item in self.items]
        return [self.edited, items, *texts]

    @property
    def _prompts(self) -> list[CounterFactItem]:
        return [item for item in self.items if isinstance(item, CounterFactItem)]

    @property
    def _texts(self) -> list[GenerationItem]:
        return [item for item in self.items if isinstance(item, GenerationItem)]

    def _metric(self, kind: str) -> str:
        return EFFICACY if self.edited and kind == REWRITE else kind

    def stratum(self, item: Any) -> str:
        """The kind of prompt."""
        return str(item.kind)

    def metric_sizes(self) -> dict[str, int]:
        """Prompts by kind, once for success and once for magnitude; records by what is said of their texts."""
        counts = Counter(self._metric(item.kind) for item in self._prompts)
        sizes = {
            f"{self.name}.{kind}_{what}.{LIKELIHOOD}": n
            for kind, n in counts.items()
            for what in ("success", "magnitude")
        }
        referred = sum(bool(item.references) for item in self._texts)
        texts = {ENTROPY: len(self._texts), CONSISTENCY: referred}
        return sizes | {f"{self.name}.{what}.{SAMPLED}": n for what, n in texts.items() if n}

    def room_for(self, item: Any) -> tuple[list[str], int]:
        """The prompt with either object, or the prompts that texts begin with; those go on to a set length."""
        if isinstance(item, GenerationItem):
            return list(item.prompts), 1
        return [f"{item.prompt} {text}" for text in (item.true, item.new)], 0

    def score(self, scorer: Scorer) -> list[ItemOutcome]:
        """Success and magnitude of every prompt, entropy and consistency of every record's texts."""
        return [*self._score_prompts(scorer), *self._score_texts(scorer)]

    def _score_texts(self, scorer: Scorer) -> list[ItemOutcome]:
        items, spec = self._texts, SPEC["generation"]
        prompts = [prompt for item in items for prompt in item.prompts]
        budgets = [max(1, spec["length"] - len(ids)) for ids in prompt_ids(scorer.base, prompts)]
        texts = iter(scorer.sample(prompts, budgets, Sampling(spec["top_k"], spec["seed"])) if prompts else ())
        weights = {int(n): weight for n, weight in spec["ngrams"].items()}
        outcomes = []
        for item in items:
            whole = [f"{prompt} {next(texts)}" for prompt in item.prompts]
            scores = {ENTROPY: sum(ngram_entropy(text, weights) for text in whole) / len(whole)}
            if item.references:
                scores[CONSISTENCY] = similarity(" ".join(whole), " ".join(item.references), self.frequencies)
            for metric, score in scores.items():
                outcomes.append(
                    ItemOutcome(
                        suite=self.name,
                        metric=metric,
                        protocol=SAMPLED,
                        item_id=item.item_id,
                        prompt=item.prompt,
                        expected=item.expected,
                        got=whole[0],
                        score=score,
                        binary=False,
                        group=item.group,
                    )
                )
        return outcomes

    def _score_prompts(self, scorer: Scorer) -> list[ItemOutcome]:
        items = self._prompts
        prompts = [item.prompt for item in items for _ in range(2)]
        objects = [text for item in items for text in (item.true, item.new)]
        likelihoods = [math.exp(result.mean_logprob) for result in scorer.teacher_forced(prompts, objects)]
        outcomes = []
        for item, p_true, p_new in zip(items, likelihoods[::2], likelihoods[1::2], strict=True):
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
                        record=item.record,
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
                    record=stable_id(record.prompt, record.true, record.new),
                )


def _texts(
    records: Sequence[CounterFactRecord], generation: int | None, references: References, edited: bool
) -> Iterator[GenerationItem]:
    asked = [record for record in records if record.generation]
    for record in asked[:generation]:
        wanted, wanted_id = (record.new, record.new_id) if edited else (record.true, record.true_id)
        yield GenerationItem(
            item_id=f"generation:{stable_id(*record.generation, wanted)}",
            prompts=record.generation,
            expected=wanted,
            references=tuple(references.get((record.relation, wanted_id), ())),
            group=record.relation,
        )


def suite_of(
    records: Sequence[CounterFactRecord],
    *,
    edited: bool,
    generation: int | None = None,
    references: str | Path | None = None,
    excluded: Mapping[str, int] | None = None,
) -> CounterFactSuite:
    """The suite of these records in either mode; the options are those of the loaders, `excluded` records left out."""
    texts = read_references(Path(references)) if references is not None else {}
    items: list[CounterFactItem | GenerationItem] = [*_items(records), *_texts(records, generation, texts, edited)]
    return CounterFactSuite(
        name="counterfact_edits" if edited else "counterfact",
        version=VERSION,
        items=tuple({item.item_id: item for item in items}.values()),
        excluded=dict(excluded or {}),
        edited=edited,
        frequencies=inverse_frequencies(text for group in texts.values() for text in group),
    )


def load_regression(
    path: Path, *, generation: int | None = 0, references: str | Path | None = None, split: str | None = None
) -> CounterFactSuite:
    """*Regression mode*: nothing is edited; p(true) is to stay above p(new) on every prompt.

    Texts are drawn for the first `generation` records that have generation prompts (None: all) and
    compared with those of `references`, a file like ROME's `attribute_snippets.json`, about the true object.
    """
    records, excluded = read_counted(path, split)
    return suite_of(records, edited=False, generation=generation, references=references, excluded=excluded)


def load_edited(
    path: Path, *, generation: int | None = None, references: str | Path | None = None, split: str | None = None
) -> CounterFactSuite:
    """*Edit mode*: the records are applied; p(new) is to win on rewrites and paraphrases, p(true) on neighbours.

    Texts are drawn as in regression mode, and compared with those about the new object.
    """
    records, excluded = read_counted(path, split)
    return suite_of(records, edited=True, generation=generation, references=references, excluded=excluded)
