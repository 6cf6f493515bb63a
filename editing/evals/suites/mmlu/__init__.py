"""MMLU: multiple choice by option likelihood. See the README beside this file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from editing.errors import SuiteError
from editing.evals.report import ItemOutcome
from editing.evals.scorer import Scorer
from editing.evals.suite import Suite, distinct, stable_id
from editing.evals.suites.files import (
    Record,
    chosen_form,
    load_spec,
    need,
    optional_text,
    read_records,
    read_rows,
    split_of,
    text_field,
    visible_files,
)
from editing.published import text_of

SPEC = load_spec(__file__)
VERSION: str = SPEC["version"]
OPTION_LIKELIHOOD = "option_likelihood"
METRIC = f"mmlu.accuracy.{OPTION_LIKELIHOOD}"
LETTERS = "ABCD"
SPLITS = ("test", "val", "validation")  # the first that is there is evaluated
SHOTS_SPLIT = "dev"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its four choices; `answer` is the index of the right one."""

    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MmluItem:
    """A question as the model reads it: header, shots and all."""

    item_id: str
    subject: str
    question: str
    prompt: str
    choices: tuple[str, ...]
    answer: int

    @property
    def expected(self) -> str:
        """The right choice."""
        return self.choices[self.answer]


def _letter(given: str, question: str, place: str) -> int:
    letter = given.strip()
    if letter not in tuple(LETTERS):
        raise SuiteError(f"question {question[:60]!r} in {place} has the answer {given!r}; it should be one of A to D")
    return LETTERS.index(letter)


def _from_row(subject: str, row: list[str], path: Path, number: int) -> Question:
    question, *choices, letter = row
    index = _letter(letter, question, f"row {number} of {path}")
    return Question(subject, question.strip(), tuple(c.strip() for c in choices), index)


def _from_record(record: Record, path: Path, place: int) -> Question:
    where = f"record {place} of {path}"
    need(record, "question", path, place)
    question, subject = text_field(record, "question", path, place), optional_text(record, "subject", path, place)
    given, answer = need(record, "choices", path, place), record.get("answer")
    choices = tuple(text_of(choice).strip() for choice in given) if isinstance(given, list) else ()
    if len(choices) != len(LETTERS):
        raise SuiteError(f"question {question[:60]!r} in {where} has not {len(LETTERS)} choices: {given!r:.80}")
    if isinstance(answer, str):
        index = _letter(answer, question, where)
    elif text_of(answer) in ("0", "1", "2", "3"):
        index = int(text_of(answer))
    else:
        raise SuiteError(
            f"question {question[:60]!r} in {where} has the answer {answer!r}; it should be 0 to 3 or A to D"
        )
    return Question(subject or path.parent.name, question, choices, index)


def _read_split(path: Path, split: str | None) -> Iterator[Question]:
    for file in [path] if path.is_file() else visible_files(path):
        suffix = file.suffix.lower()
        if suffix not in (".csv", ".parquet", ".jsonl") or split_of(file) != split:
            continue
        if suffix == ".csv":
            subject = file.stem.removesuffix(f"_{split}")
            yield from (_from_row(subject, row, file, n) for n, row in enumerate(read_rows(file, 6), start=1))
        else:
            yield from (_from_record(record, file, place) for place, record in enumerate(read_records(file)))


def _evaluated(path: Path, split: str | None) -> list[Question]:
    for name in (split,) if split else (*SPLITS, None):
        questions = list(_read_split(path, name))
        if questions:
            return questions
    raise SuiteError(
        f"no MMLU questions in {path} (split {split or ' or '.join(SPLITS)}); "
        "expected SUBJECT_SPLIT.csv files, flat or in folders by split, or the hub's columns as Parquet or JSON lines"
    )


def _render(form: Mapping[str, Any], question: Question) -> str:
    """The question with its options, up to where the answer's letter goes."""
    options = dict(zip(LETTERS, question.choices, strict=True))
    return form["question"].format(question=question.question, **options)


@dataclass(frozen=True, kw_only=True)
class MmluSuite(Suite):
    """Each question's four letters compete; the likeliest is the answer.

    `header` opens every prompt (`{subject}`), `shots` are the questions shown before, by subject.
    """

    items: tuple[MmluItem, ...]
    header: str
    shots: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)

    def content(self) -> Any:
        """The items with their whole prompts."""
        return [asdict(item) for item in self.items]

    def metric_sizes(self) -> dict[str, int]:
        """One metric over all questions."""
        return {METRIC: len(self.items)}

    def room_for(self, item: Any) -> tuple[list[str], int]:
        """The prompt with a letter; nothing is written."""
        return [f"{item.prompt} {LETTERS[0]}"], 0

    def score(self, scorer: Scorer) -> list[ItemOutcome]:
        """Right or wrong for every question, with its subject as group."""
        prompts = [item.prompt for item in self.items for _ in LETTERS]
        read = scorer.teacher_forced(prompts, list(LETTERS) * len(self.items))
        outcomes = []
        for place, item in enumerate(self.items):
            options = [result.logprob for result in read[place * len(LETTERS) : (place + 1) * len(LETTERS)]]
            chosen = options.index(max(options))
            outcomes.append(
                ItemOutcome(
                    suite=self.name,
                    metric="accuracy",
                    protocol=OPTION_LIKELIHOOD,
                    item_id=item.item_id,
                    prompt=item.prompt,
                    expected=f"{LETTERS[item.answer]}. {item.expected}",
                    got=f"{LETTERS[chosen]}. {item.choices[chosen]}",
                    score=float(chosen == item.answer),
                    binary=True,
                    group=item.subject,
                )
            )
        return outcomes


def load(
    path: Path, *, shots: int = SPEC["shots"], form: str | Record = "standard", split: str | None = None
) -> MmluSuite:
    """The questions of a folder or file; the first `shots` of each subject's dev split go before them.

    `form` is one named in `suite.toml` or a mapping with `header` and `question`. Without a
    `split`, test is taken, or else val. Raises `SuiteError` when there are no questions or too few
    shots for a subject.
    """
    layout = chosen_form(SPEC, form)
    questions = _evaluated(path, split)
    examples: dict[str, list[Question]] = {}
    for question in _read_split(path, SHOTS_SPLIT) if shots else ():
        examples.setdefault(question.subject, []).append(question)
    shown = {subject: tuple(found[:shots]) for subject, found in examples.items()}
    opening = {
        subject: "".join(f"{_render(layout, example)} {LETTERS[example.answer]}\n\n" for example in found)
        for subject, found in shown.items()
    }
    items = []
    for question in questions:
        if (found := len(shown.get(question.subject, ()))) < shots:
            raise SuiteError(
                f"{question.subject} has {found} dev questions in {path}, {shots} shots were asked for; "
                "add its dev split or ask for fewer shots"
            )
        header = layout["header"].format(subject=question.subject.replace("_", " "))
        item_id = f"{question.subject}:{stable_id(question.question, *question.choices)}"
        items.append(
            MmluItem(
                item_id=item_id,
                subject=question.subject,
                question=question.question,
                prompt=header + opening.get(question.subject, "") + _render(layout, question),
                choices=question.choices,
                answer=question.answer,
            )
        )
    kept, excluded = distinct(items)
    return MmluSuite(
        name="mmlu",
        version=f"{VERSION}-{shots}shot",
        items=kept,
        excluded=excluded,
        header=layout["header"],
        shots=shown,
    )
