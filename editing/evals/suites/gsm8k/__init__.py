"""GSM8K: word problems, generated, read by a named answer filter. See the README beside this file."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from editing.errors import SuiteError
from editing.evals.probes import GENERATED
from editing.evals.report import ItemOutcome
from editing.evals.scorer import Scorer
from editing.evals.suite import Suite, distinct, stable_id
from editing.evals.suites.files import (
    SHOWN,
    Record,
    chosen_form,
    load_spec,
    need,
    numbered_records,
    split_of,
    text_field,
    visible_files,
)

SPEC = load_spec(__file__)
VERSION: str = SPEC["version"]
MARK = "####"
# Named as in lm-eval's gsm8k task: the pattern, and which of its matches is the answer.
FILTERS = {
    "strict-match": (re.compile(r"#### (-?[0-9.,]+)"), 0),
    "flexible-extract": (re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"), -1),
}
INVALID = "[invalid]"
_IS_NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gsm8kItem:
    """A problem, and as the model reads it, shots and all; `expected` is the number of the reference answer."""

    item_id: str
    question: str
    prompt: str
    expected: str


def normalise(number: str) -> str:
    """A number as answers are compared: without thousands commas, a dollar sign or a final stop."""
    return number.replace(",", "").replace("$", "").strip().removesuffix(".")


def extract(text: str, filter_name: str) -> str:
    """The answer that the named filter finds in `text`, normalised, or `INVALID`."""
    pattern, which = FILTERS[filter_name]
    found = pattern.findall(text)
    if not found:
        return INVALID
    match = found[which]
    return normalise(match if isinstance(match, str) else next(group for group in match if group))


@dataclass(frozen=True, kw_only=True)
class Gsm8kSuite(Suite):
    """Problems, generated once and read by every filter; `shots` are the (question, answer) pairs before each."""

    items: tuple[Gsm8kItem, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    shots: tuple[tuple[str, str], ...]

    def content(self) -> Any:
        """The items with their whole prompts, the budget, the stop texts and the filters."""
        filters = {name: [pattern.pattern, which] for name, (pattern, which) in FILTERS.items()}
        return [[asdict(item) for item in self.items], self.max_new_tokens, list(self.stop), filters]

    def metric_sizes(self) -> dict[str, int]:
        """One metric for every filter."""
        return {f"{self.name}.{name}.{GENERATED}": len(self.items) for name in FILTERS}

    def room_for(self, item: Any) -> tuple[list[str], int]:
        """The prompt, and the budget of new tokens."""
        return [item.prompt], self.max_new_tokens

    def score(self, scorer: Scorer) -> list[ItemOutcome]:
        """Right or wrong for every problem and filter; `got` ends with the number that the filter read."""
        texts = scorer.generate([item.prompt for item in self.items], self.max_new_tokens, stop=self.stop)
        outcomes = []
        for item, text in zip(self.items, texts, strict=True):
            for name in FILTERS:
                number = extract(text, name)
                outcomes.append(
                    ItemOutcome(
                        suite=self.name,
                        metric=name,
                        protocol=GENERATED,
                        item_id=item.item_id,
                        prompt=item.prompt,
                        expected=item.expected,
                        got=f"{text} -> {number}",
                        score=float(number == item.expected),
                        binary=True,
                    )
                )
        return outcomes


def _shots(path: Path, shots: int, shots_from: str | Path | None) -> list[tuple[str, str]]:
    """The first `shots` problems of `shots_from`, or else of the train split beside the evaluated one."""
    if shots == 0:
        return []
    source = Path(shots_from) if shots_from is not None else path
    shown: list[tuple[str, str]] = []
    if shots_from is not None or _has_shots(path):
        split = next((name for name in SHOWN if _has_shots(source, name)), None)
        for record, file, place in numbered_records(source, split):
            question, answer = _read(record, file, place)
            shown.append((question, answer))
            if len(shown) == shots:
                return shown
    raise SuiteError(
        f"{shots} shots were asked for and {shots_from or 'no training file'} has {len(shown)}; "
        "give shots_from=the training split, or shots=0"
    )


def _read(record: Record, file: Path, place: int) -> tuple[str, str]:
    for name in ("question", "answer"):
        need(record, name, file, place)
    question, answer = (text_field(record, name, file, place) for name in ("question", "answer"))
    return question, answer


def _number(answer: str, file: Path, place: int) -> str:
    """The number behind the mark. Raises `SuiteError` where there is no mark, or no number behind it."""
    if MARK not in answer:
        raise SuiteError(f"the answer of record {place} of {file} has no {MARK!r}: {answer[-60:]!r}")
    number = normalise(answer.rsplit(MARK, 1)[1])
    if not _IS_NUMBER.fullmatch(number):
        raise SuiteError(f"the answer of record {place} of {file} has no number behind {MARK!r}: {answer[-60:]!r}")
    return number


def _has_shots(path: Path, split: str | None = None) -> bool:
    """Whether a folder has a split that shots may come from, beside an evaluated one."""
    splits = {split_of(file) for file in visible_files(path)} if path.is_dir() else set()
    return bool(splits & ({split} if split else set(SHOWN))) and len(splits - {None}) > 1


def load(
    path: Path,
    *,
    shots: int = SPEC["shots"],
    shots_from: str | Path | None = None,
    form: str | Record = "standard",
    max_new_tokens: int | None = None,
    split: str | None = None,
) -> Gsm8kSuite:
    """The problems of a file or folder; the first `shots` of the training split go before each.

    The training split is `shots_from`, or the one in the same folder. `form` is one named in
    `suite.toml` or a mapping with `question`, `stop` and `max_new_tokens`. Without a `split`, test is
    taken where there are several. Raises `SuiteError` when an answer has no number, or shots are
    asked for without enough of them.
    """
    layout = chosen_form(SPEC, form)
    shown = _shots(path, shots, shots_from)
    opening = "".join(f"{layout['question'].format(question=question)} {answer}\n\n" for question, answer in shown)
    items = []
    for record, file, place in numbered_records(path, split):
        question, answer = _read(record, file, place)
        items.append(
            Gsm8kItem(
                item_id=stable_id(question),
                question=question,
                prompt=opening + layout["question"].format(question=question),
                expected=_number(answer, file, place),
            )
        )
    kept, excluded = distinct(items)
    return Gsm8kSuite(
        name="gsm8k",
        version=f"{VERSION}-{shots}shot",
        items=kept,
        excluded=excluded,
        max_new_tokens=max_new_tokens or layout["max_new_tokens"],
        stop=tuple(layout["stop"]),
        shots=tuple(shown),
    )
