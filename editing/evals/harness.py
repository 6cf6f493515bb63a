"""The same items through lm-evaluation-harness on the same model object, compared with our own scores item by item.

Needs the extra `lm-eval`. The task files of MMLU and GSM8K that the harness ships build the prompts, filter the
answers and score them; only data, number of shots and header come from our suite. It pads on the right and
passes no attention mask when it reads options, so a state whose scope counts tokens of the sequence may differ there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from editing.errors import SuiteError
from editing.evals.probes import GENERATED
from editing.evals.report import ItemOutcome
from editing.evals.scorer import Scorer
from editing.evals.suite import Suite
from editing.evals.suites.gsm8k import MARK, Gsm8kSuite
from editing.evals.suites.mmlu import METRIC, MmluItem, MmluSuite, Question
from editing.prompts import RAW

_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessItem:
    """What the harness made of one item: the prompt it wrote and whether it counts the answer as right."""

    item_id: str
    prompt: str
    answer: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Our scores of a metric beside the harness's, over the same items.

    `same_prompts` and `same_scores` count items; `differing` are ids of some where the scores differ.
    """

    metric: str
    items: int
    ours: float
    harness: float
    same_prompts: int
    same_scores: int
    differing: tuple[str, ...]
    harness_version: str

    @property
    def complete(self) -> bool:
        """Whether every item has the same prompt and the same score."""
        return self.same_prompts == self.same_scores == self.items


def agreements(scorer: Scorer, suite: Suite) -> list[Agreement]:
    """Score `suite` both ways on the model that is in force; one row for each metric.

    Prompts are raw on both sides, whatever the form in which the model is served: the harness knows none of it.
    Raises `SuiteError` when the harness is not installed or has no task like this suite.
    """
    version, theirs = _scored_by_harness(scorer, suite)
    ours: dict[str, dict[str, ItemOutcome]] = {}
    served = scorer.base
    scorer.base = replace(served, form=RAW)
    try:
        for outcome in suite.score(scorer):
            ours.setdefault(outcome.name, {})[outcome.item_id] = outcome
    finally:
        scorer.base = served
    return [_agreement(name, items, theirs[name], version) for name, items in sorted(ours.items())]


def _agreement(name: str, ours: Mapping[str, ItemOutcome], theirs: Sequence[HarnessItem], version: str) -> Agreement:
    assert sorted(ours) == sorted(item.item_id for item in theirs)
    differing = tuple(item.item_id for item in theirs if item.score != ours[item.item_id].score)
    return Agreement(
        metric=name,
        items=len(ours),
        ours=sum(outcome.score for outcome in ours.values()) / len(ours),
        harness=sum(item.score for item in theirs) / len(theirs),
        same_prompts=sum(item.prompt == ours[item.item_id].prompt for item in theirs),
        same_scores=len(ours) - len(differing),
        differing=differing[:_EXAMPLES],
        harness_version=version,
    )


def _scored_by_harness(scorer: Scorer, suite: Suite) -> tuple[str, dict[str, list[HarnessItem]]]:
    """The harness's version, and its items by our full metric name."""
    if not isinstance(suite, MmluSuite | Gsm8kSuite):
        raise SuiteError(f"lm-evaluation-harness has no task like suite {suite.name!r}; it has mmlu and gsm8k")
    try:
        import lm_eval
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise SuiteError(f"lm-evaluation-harness is missing ({error}); pip install 'errata[lm-eval]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    shipped = Path(lm_eval.__file__).parent / "tasks"
    configs = _mmlu_tasks(suite, shipped) if isinstance(suite, MmluSuite) else _gsm8k_task(suite, shipped)
    tasks = {config["task"]: ConfigurableTask(config=config) for config in configs}
    model = HFLM(
        pretrained=scorer.base.model,
        tokenizer=scorer.base.tokenizer,
        batch_size=scorer.batch_size,
        device=str(scorer.base.device),
    )
    with redirect_stderr(StringIO()):  # its bars
        found = lm_eval.evaluate(model, {"tasks": tasks}, bootstrap_iters=0, log_samples=True)
    items: dict[str, list[HarnessItem]] = {}
    for sample in chain.from_iterable(found["samples"].values()):
        mmlu = isinstance(suite, MmluSuite)
        name = METRIC if mmlu else f"{suite.name}.{sample['filter']}.{GENERATED}"
        item = HarnessItem(
            item_id=sample["doc"]["item_id"],
            prompt=sample["arguments"][0][0],
            answer=str(sample["filtered_resps"]),
            score=float(sample["acc" if mmlu else "exact_match"]),
        )
        items.setdefault(name, []).append(item)
    return lm_eval.__version__, items


def _mmlu_tasks(suite: MmluSuite, shipped: Path) -> Iterator[dict[str, Any]]:
    """The harness's MMLU, one task for each subject, with our questions in it."""
    template = _read(shipped / "mmlu" / "default" / "_default_template_yaml")
    by_subject: dict[str, list[MmluItem]] = {}
    for item in suite.items:
        by_subject.setdefault(item.subject, []).append(item)
    for subject, items in by_subject.items():
        asked = [
            {"item_id": i.item_id, "question": i.question, "choices": list(i.choices), "answer": i.answer}
            for i in items
        ]
        shown = [
            {"item_id": "", "question": q.question, "choices": list(q.choices), "answer": q.answer}
            for q in suite.shots.get(subject, ())
        ]
        header = suite.header.format(subject=subject.replace("_", " "))
        yield _with_data(template, f"mmlu_{subject}", asked, shown, description=header)


def _question(asked: MmluItem | Question) -> dict[str, Any]:
    return {"question": asked.question, "choices": list(asked.choices), "answer": asked.answer}


def _gsm8k_task(suite: Gsm8kSuite, shipped: Path) -> Iterator[dict[str, Any]]:
    """The harness's GSM8K with our problems in it."""
    asked = [{"item_id": i.item_id, "question": i.question, "answer": f"{MARK} {i.expected}"} for i in suite.items]
    shown = [{"item_id": "", "question": question, "answer": answer} for question, answer in suite.shots]
    template = _read(shipped / "gsm8k" / "gsm8k.yaml")
    how = template["generation_kwargs"] | {"until": list(suite.stop), "max_gen_toks": suite.max_new_tokens}
    yield _with_data(template, "gsm8k", asked, shown, generation_kwargs=how)


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _with_data(
    template: Mapping[str, Any], task: str, asked: list[Any], shown: list[Any], **more: Any
) -> dict[str, Any]:
    """A task file with our items to ask and our shots to show, the first ones first."""
    splits = {name: Dataset.from_list(rows) for name, rows in (("test", asked), ("shots", shown)) if rows}
    taken = {k: v for k, v in template.items() if k not in ("dataset_path", "dataset_name", "training_split", "tag")}
    return {
        **taken,
        "task": task,
        "custom_dataset": lambda **_: splits,
        "test_split": "test",
        "fewshot_split": "shots" if shown else None,
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": len(shown),
        **more,
    }
