"""ZsRE: questions about facts, in MEND's, EasyEdit's or KnowEdit's fields. See the README beside this file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from editing.evals.probes import Probe, ProbeSuite
from editing.evals.suite import stable_id
from editing.evals.suites.files import Record, load_spec, need, numbered_records
from editing.facts import SLOT, FactChange, LocalityPrompt, PortabilityPrompt, fold

SPEC = load_spec(__file__)
VERSION: str = SPEC["version"]
NQ_PREFIX = "nq question: "
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ZsreRecord:
    """One record, whatever its fields were called: every text stripped, empty texts left out."""

    subject: str
    question: str
    rephrase: str
    edit_target: str
    answers: tuple[str, ...]
    locality: tuple[LocalityPrompt, ...]
    portability: tuple[PortabilityPrompt, ...]


def _texts(value: object) -> tuple[str, ...]:
    """`value` as a flat tuple of texts: a text, a list of them, or a list of alias lists."""
    if isinstance(value, str):
        return (value.strip(),) if value.strip() else ()
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(text for item in value for text in _texts(item)))
    return ()


def _locality(record: Record) -> Iterator[LocalityPrompt]:
    if "loc" in record:
        prompts = [(record["loc"].removeprefix(NQ_PREFIX), record.get("loc_ans"))]
    else:
        groups = (record.get("locality") or {}).values()
        prompts = [(item.get("prompt", ""), item.get("ground_truth")) for group in groups for item in group]
    for prompt, answer in prompts:
        answers = _texts(answer)
        if prompt.strip() and answers:
            yield LocalityPrompt(prompt=prompt.strip(), answer=answers[0])


def _portability(record: Record) -> Iterator[PortabilityPrompt]:
    """EasyEdit's one question, or KnowEdit's by kind."""
    block = record.get("portability") or {}
    pairs = [(block["New Question"], block.get("New Answer"))] if "New Question" in block else []
    for group in () if pairs else block.values():
        pairs += [(item.get("prompt"), item.get("ground_truth")) for item in group or ()]
    for prompt, answer in pairs:
        answers = _texts(answer)
        if prompt and answers:
            yield PortabilityPrompt.of(prompt.strip(), answers)


def read(path: Path, split: str | None = None) -> list[ZsreRecord]:
    """Every record of a ZsRE file or split. Raises `SuiteError` naming the record and the field that is missing."""
    records = []
    for record, file, place in numbered_records(path, split):
        mend = "src" in record
        records.append(
            ZsreRecord(
                subject=need(record, "subject", file, place).strip(),
                question=need(record, "src" if mend else "prompt", file, place).strip(),
                rephrase=(record.get("rephrase" if mend else "rephrase_prompt") or "").strip(),
                edit_target=(record.get("alt" if mend else "target_new") or "").strip(),
                answers=_texts(need(record, "answers" if mend else "ground_truth", file, place)),
                locality=tuple(_locality(record)),
                portability=tuple(_portability(record)),
            )
        )
    return records


def load_regression(path: Path, *, split: str | None = None) -> ProbeSuite:
    """*Regression mode*: nothing of the suite is edited; the answers it records are still to be given.

    Metrics `question`, `rephrase` and `unrelated` (the locality questions), in both protocols.
    """
    probes: dict[str, Probe] = {}

    def add(metric: str, prompt: str, answers: tuple[str, ...]) -> None:
        if prompt and answers:
            item_id = f"{metric}:{stable_id(prompt, *answers)}"
            probes.setdefault(item_id, Probe(item_id=item_id, metric=metric, prompt=prompt, answers=answers))

    for record in read(path, split):
        add("question", record.question, record.answers)
        add("rephrase", record.rephrase, record.answers)
        for local in record.locality:
            add("unrelated", local.prompt, (local.answer,))
    return ProbeSuite(name="zsre", version=VERSION, items=tuple(probes.values()))


def fact_changes(path: Path, *, split: str | None = None) -> list[FactChange]:
    """*Edit mode*: each record as a fact change to its edit target, for `edits.edit_suite` to score.

    Left out: records without a target, whose target is already an answer, or whose question does
    not name the subject.
    """
    changes = []
    for record in read(path, split):
        known = fold(record.edit_target) in {fold(answer) for answer in record.answers}
        if not record.edit_target or known or record.subject not in record.question:
            continue
        changes.append(
            FactChange(
                subject=record.subject,
                relation=record.question.replace(record.subject, SLOT, 1),
                target=record.edit_target,
                target_old=record.answers[0],
                prompt=record.question.replace(record.subject, SLOT, 1),
                rephrases=(record.rephrase,) if record.rephrase else (),
                locality=record.locality,
                portability=record.portability,
                effective_at=EPOCH,
                observed_at=EPOCH,
                source="zsre",
            )
        )
    return changes
