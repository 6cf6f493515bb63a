"""ZsRE: questions about facts, in MEND's, EasyEdit's or KnowEdit's fields. See the README beside this file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from editing.errors import SuiteError
from editing.evals.probes import Probe, ProbeSuite
from editing.evals.suite import stable_id
from editing.evals.suites.files import (
    Record,
    asked_field,
    load_spec,
    numbered_records,
    optional_text,
    text_field,
    texts_field,
)
from editing.facts import FactChange, LocalityPrompt, PortabilityPrompt, fold
from editing.templates import escape, slotted

SPEC = load_spec(__file__)
VERSION: str = SPEC["version"]
NQ_PREFIX = "nq question: "
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ZsreRecord:
    """One record, whatever its fields were called: every text stripped, empty texts left out."""

    subject: str
    question: str
    rephrases: tuple[str, ...]
    edit_target: str
    answers: tuple[str, ...]
    locality: tuple[LocalityPrompt, ...]
    portability: tuple[PortabilityPrompt, ...]


def _locality(record: Record, path: Path, place: int) -> Iterator[LocalityPrompt]:
    if prompt := optional_text(record, "loc", path, place).removeprefix(NQ_PREFIX):
        for answer in texts_field(record, ["loc_ans"], path, place)[:1]:
            yield LocalityPrompt(prompt=prompt, answer=answer)
    for prompt, answers in asked_field(record, "locality", path, place):
        yield LocalityPrompt(prompt=prompt, answer=answers[0])


def _read(record: Record, path: Path, place: int) -> ZsreRecord:
    mend = "src" in record
    return ZsreRecord(
        subject=text_field(record, "subject", path, place),
        question=text_field(record, "src" if mend else "prompt", path, place),
        rephrases=texts_field(record, ["rephrase_prompt", "rephrase"], path, place),
        edit_target=next(iter(texts_field(record, ["alt" if mend else "target_new"], path, place)), ""),
        answers=_answers(record, "answers" if mend else "ground_truth", path, place),
        locality=tuple(_locality(record, path, place)),
        portability=tuple(
            PortabilityPrompt.of(prompt, answers) for prompt, answers in asked_field(record, "portability", path, place)
        ),
    )


def _answers(record: Record, name: str, path: Path, place: int) -> tuple[str, ...]:
    if name not in record:
        text_field(record, name, path, place)
    return texts_field(record, [name], path, place)


def read_counted(path: Path, split: str | None = None) -> tuple[list[ZsreRecord], Counter[str]]:
    """Every record of a ZsRE file or split, and how many were left out by what they leave empty.

    Raises `SuiteError` naming the record and the field that is missing or in no known shape, and where none is left.
    """
    records: list[ZsreRecord] = []
    excluded: Counter[str] = Counter()
    for record, file, place in numbered_records(path, split):
        found = _read(record, file, place)
        empty = [name for name in ("subject", "question", "answers") if not getattr(found, name)]
        if empty:
            excluded[f"empty {empty[0]}"] += 1
        else:
            records.append(found)
    if not records:
        raise SuiteError(f"{path} has no record that can be asked: {dict(excluded)}")
    return records, excluded


def read(path: Path, split: str | None = None) -> list[ZsreRecord]:
    """The records of `read_counted`."""
    return read_counted(path, split)[0]


def load_regression(path: Path, *, split: str | None = None) -> ProbeSuite:
    """*Regression mode*: nothing of the suite is edited; the answers it records are still to be given.

    Metrics `question`, `rephrase` and `unrelated` (the locality questions), in both protocols.
    """
    probes: dict[str, Probe] = {}

    def add(metric: str, prompt: str, answers: tuple[str, ...]) -> None:
        if prompt and answers:
            item_id = f"{metric}:{stable_id(prompt, *answers)}"
            probes.setdefault(item_id, Probe(item_id=item_id, metric=metric, prompt=prompt, answers=answers))

    records, excluded = read_counted(path, split)
    for record in records:
        add("question", record.question, record.answers)
        for rephrase in record.rephrases:
            add("rephrase", rephrase, record.answers)
        for local in record.locality:
            add("unrelated", local.prompt, (local.answer,))
    return ProbeSuite(name="zsre", version=VERSION, items=tuple(probes.values()), excluded=dict(excluded))


def fact_changes(path: Path, *, split: str | None = None) -> list[FactChange]:
    """*Edit mode*: each record as a fact change to its edit target, for `edits.edit_suite` to score.

    Left out: records without a target, whose target is already an answer, or whose question does
    not name the subject.
    """
    changes = []
    for record in read(path, split):
        known = fold(record.edit_target) in {fold(answer) for answer in record.answers}
        asked = slotted(record.question, record.subject)
        if not record.edit_target or known or asked is None:
            continue
        changes.append(
            FactChange(
                subject=record.subject,
                relation=asked.template,
                target=record.edit_target,
                target_old=record.answers[0],
                prompt=asked.template,
                rephrases=tuple(map(escape, record.rephrases)),
                locality=record.locality,
                portability=record.portability,
                effective_at=EPOCH,
                observed_at=EPOCH,
                source="zsre",
            )
        )
    return changes
