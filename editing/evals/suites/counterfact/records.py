"""CounterFact's records, in ROME's or EasyEdit's fields, and the records as fact changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from editing.evals.suites.files import Record, need, numbered_records
from editing.evals.suites.zsre import EPOCH
from editing.facts import SLOT, FactChange, LocalityPrompt


@dataclass(frozen=True, slots=True)
class CounterFactRecord:
    """One record, whatever its fields were called. `template` has a subject slot, or is None where none is known.

    `true_id` and `new_id` name the objects in the reference texts; empty where the record has no ids.
    """

    subject: str
    relation: str
    template: str | None
    prompt: str
    true: str
    new: str
    paraphrases: tuple[str, ...]
    neighbourhood: tuple[str, ...]
    generation: tuple[str, ...] = ()
    true_id: str = ""
    new_id: str = ""


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
        generation=tuple(record.get("generation_prompts") or ()),
        true_id=str(rewrite["target_true"].get("id") or ""),
        new_id=str(rewrite["target_new"].get("id") or ""),
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


def read(path: Path, split: str | None = None) -> list[CounterFactRecord]:
    """Every record of a CounterFact file or split.

    Raises `SuiteError` naming the record and the field that is missing.
    """
    return [
        (_read_rome if "requested_rewrite" in record else _read_easyedit)(record, file, place)
        for record, file, place in numbered_records(path, split)
    ]


def change_of(record: CounterFactRecord) -> FactChange | None:
    """The record as a fact change to its counterfactual object.

    None when its prompt does not name the subject, or the new object is the true one.
    """
    if record.template is None or record.new == record.true:
        return None
    return FactChange(
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


def fact_changes(path: Path, *, split: str | None = None) -> list[FactChange]:
    """*Edit mode*: the records as fact changes, those left out that are none (`change_of`)."""
    return [change for change in map(change_of, read(path, split)) if change is not None]
