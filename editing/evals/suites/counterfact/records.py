"""CounterFact's records, in ROME's or EasyEdit's fields, and the records as fact changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from editing.errors import SuiteError
from editing.evals.suites.files import Record, numbered_records, object_field, text_field, texts_field
from editing.evals.suites.zsre import EPOCH
from editing.facts import FactChange, LocalityPrompt, fold
from editing.templates import count_slots, escape, fill, slotted


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
    if isinstance(record["requested_rewrite"], list):
        raise SuiteError(
            f"record {place} of {path} has a list of rewrites, as MQuAKE does; `errata feed convert` reads MQuAKE, "
            "this suite CounterFact's records"
        )
    rewrite = object_field(record, "requested_rewrite", path, place)
    subject, written = (text_field(rewrite, name, path, place) for name in ("subject", "prompt"))
    new, true = (object_field(rewrite, name, path, place) for name in ("target_new", "target_true"))
    template = written if count_slots(written) == 1 else _template(written, subject)
    return CounterFactRecord(
        subject=subject,
        relation=rewrite.get("relation_id") or template or written,
        template=template,
        prompt=written if template is None else fill(template, subject),
        true=text_field(true, "str", path, place),
        new=text_field(new, "str", path, place),
        paraphrases=texts_field(record, ["paraphrase_prompts"], path, place),
        neighbourhood=texts_field(record, ["neighborhood_prompts"], path, place),
        generation=texts_field(record, ["generation_prompts"], path, place),
        true_id=str(true.get("id") or ""),
        new_id=str(new.get("id") or ""),
    )


def _template(prompt: str, subject: str) -> str | None:
    made = slotted(prompt, subject)
    return made.template if made else None


def _first(record: Record, name: str, path: Path, place: int) -> str:
    """The first name of an object, which is the one that competes."""
    if name not in record:
        text_field(record, name, path, place)
    return next(iter(texts_field(record, [name], path, place)), "")


def _read_easyedit(record: Record, path: Path, place: int) -> CounterFactRecord:
    subject, prompt = (text_field(record, name, path, place) for name in ("subject", "prompt"))
    template = _template(prompt, subject)
    return CounterFactRecord(
        subject=subject,
        relation=template or prompt,
        template=template,
        prompt=prompt,
        true=_first(record, "ground_truth", path, place),
        new=_first(record, "target_new", path, place),
        paraphrases=texts_field(record, ["rephrase_prompt", "rephrase"], path, place),
        neighbourhood=texts_field(record, ["locality_prompt"], path, place),
    )


def read_counted(path: Path, split: str | None = None) -> tuple[list[CounterFactRecord], Counter[str]]:
    """Every record of a CounterFact file or split, and how many were left out by what they leave empty.

    Raises `SuiteError` naming the record and the field that is missing or in no known shape, and where none is left.
    """
    records: list[CounterFactRecord] = []
    excluded: Counter[str] = Counter()
    for record, file, place in numbered_records(path, split):
        found = (_read_rome if "requested_rewrite" in record else _read_easyedit)(record, file, place)
        empty = [name for name in ("subject", "prompt", "true", "new") if not getattr(found, name)]
        if empty:
            excluded[f"empty {empty[0]}"] += 1
        else:
            records.append(found)
    if not records:
        raise SuiteError(f"{path} has no record that can be asked: {dict(excluded)}")
    return records, excluded


def read(path: Path, split: str | None = None) -> list[CounterFactRecord]:
    """The records of `read_counted`."""
    return read_counted(path, split)[0]


def change_of(record: CounterFactRecord) -> FactChange | None:
    """The record as a fact change to its counterfactual object.

    None when its prompt does not name the subject, or the new object is the true one.
    """
    if record.template is None or fold(record.new) == fold(record.true):
        return None
    return FactChange(
        subject=record.subject,
        relation=record.relation,
        target=record.new,
        target_old=record.true,
        prompt=record.template,
        rephrases=tuple(map(escape, record.paraphrases)),
        locality=tuple(LocalityPrompt(prompt=prompt, answer=record.true) for prompt in record.neighbourhood),
        effective_at=EPOCH,
        observed_at=EPOCH,
        source="counterfact",
    )


def fact_changes(path: Path, *, split: str | None = None) -> list[FactChange]:
    """*Edit mode*: the records as fact changes, those left out that are none (`change_of`)."""
    return [change for change in map(change_of, read(path, split)) if change is not None]
