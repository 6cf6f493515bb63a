"""The published formats of fact edits: how each is recognised, and what of a record makes a fact change."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from editing.errors import FactError
from editing.facts import SLOT, FactChange, LocalityPrompt, Operation, PortabilityPrompt, fold
from tasks.feed.schema import COLUMNS

Record = Mapping[str, Any]

_NQ_PREFIX = "nq question: "
_LETTER = re.compile("[0-9A-Za-z\u00c0-\u02af\u0370-\u052f]")  # of the scripts that part words with spaces
_HOLDER = re.compile(r"(?P<name>.+?) \|(?:S: (?P<start>[+-]\S+))?(?: ?\|?E: (?P<end>[+-]\S+))?(?: ?\|?P: .*)?")
_DYKNOW_RELATIONS = {"athletes_byPayment": "team", "companies_byRevenue": "chief executive officer"}


class SkipRecordError(ValueError):
    """A record from which no fact change can be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record (counted from 0) that gave nothing, and why."""

    record: int
    reason: str


@dataclass(slots=True)
class ConversionReport:
    """What a conversion did: records read, changes made, what was repaired, left out or skipped."""

    read: int = 0
    converted: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def skipped_reasons(self) -> Counter[str]:
        """How many records were skipped, by reason."""
        return Counter(item.reason for item in self.skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a record does not say itself: `at` dates the undated, and is when everything was observed."""

    at: datetime
    source: str
    source_rank: int
    report: ConversionReport

    def text(self, value: object) -> str:
        """`value` without outer spaces; empty for what is no text."""
        if not isinstance(value, str):
            return ""
        stripped = value.strip()
        if stripped != value:
            self.report.repaired["stray spaces"] += 1
        return stripped

    def slotted(self, prompt: str, subject: str) -> str | None:
        """`prompt` with one slot in the subject's place; None when the subject is not in it."""
        if prompt.count(SLOT) == 1:
            return prompt
        places = _places(subject, prompt)
        if not places:
            subject, prompt = " ".join(subject.split()), " ".join(prompt.split())
            places = _places(subject.lower(), prompt.lower()) if len(prompt) == len(prompt.lower()) else []
            if not places:
                return None
            self.report.repaired["subject written differently in prompt"] += 1
        if len(places) > 1:
            self.report.repaired["subject more than once in prompt"] += 1
        return prompt[: places[0]] + SLOT + prompt[places[0] + len(subject) :]

    def rephrased(self, prompts: Iterable[object], subject: str) -> tuple[str, ...]:
        """Rephrases with a slot where the subject stands in them, empty ones left out."""
        texts = [text for text in map(self.text, prompts) if text]
        return tuple(dict.fromkeys(self.slotted(text, subject) or text for text in texts))

    def localities(self, pairs: Iterable[tuple[object, object]]) -> tuple[LocalityPrompt, ...]:
        """Locality prompts from (prompt, answer or list of answers or of alias lists) pairs; the first name counts."""
        asked = self._asked("locality", pairs)
        return tuple(dict.fromkeys(LocalityPrompt(prompt=prompt, answer=answers[0]) for prompt, answers in asked))

    def portabilities(self, pairs: Iterable[tuple[object, object]]) -> tuple[PortabilityPrompt, ...]:
        """Portability prompts from pairs as those of `localities`, with every answer and name."""
        asked = self._asked("portability", pairs)
        return tuple(dict.fromkeys(PortabilityPrompt.of(prompt, answers) for prompt, answers in asked))

    def _asked(self, kind: str, pairs: Iterable[tuple[object, object]]) -> Iterator[tuple[str, list[str]]]:
        for given, named in pairs:
            prompt, answers = self.text(given), [text for text in map(self.text, _all_texts(named)) if text]
            if prompt.startswith(_NQ_PREFIX):
                self.report.repaired["'nq question: ' removed"] += 1
                prompt = prompt.removeprefix(_NQ_PREFIX).strip()
            if prompt and answers:
                yield prompt, answers
            else:
                self.report.left_out[f"{kind} prompt without an answer"] += 1

    def leave_out(self, record: Record, *names: str) -> None:
        """Count the fields of a record that have no place in a feed."""
        for name in names:
            if record.get(name):
                self.report.left_out[f"field {name!r}"] += 1

    def fact(
        self,
        *,
        subject: str,
        target: str,
        prompt: str,
        relation: str | None = None,
        target_old: str = "",
        effective_at: datetime | None = None,
        **fields: Any,
    ) -> FactChange:
        """An assertion; without a relation the prompt's template stands for it.

        Raises `SkipRecordError` when it has no target, changes nothing, or its subject is not in the prompt.
        """
        if not target:
            raise SkipRecordError("target is empty")
        if fold(target) == fold(target_old):
            raise SkipRecordError("target is the old object already")
        slotted = self.slotted(prompt, subject)
        if slotted is None:
            raise SkipRecordError("subject is not in the prompt")
        return FactChange(
            subject=subject,
            relation=relation or slotted,
            target=target,
            target_old=target_old or None,
            prompt=slotted,
            effective_at=effective_at or self.at,
            observed_at=self.at,
            source=self.source,
            source_rank=self.source_rank,
            **fields,
        )


def _places(subject: str, prompt: str) -> list[int]:
    """Where `subject` begins in `prompt` as words of its own."""
    places: list[int] = []
    start = prompt.find(subject) if subject else -1
    while start >= 0:
        end = start + len(subject)
        if not (_LETTER.match(prompt[start - 1 : start]) or _LETTER.match(prompt[end : end + 1])):
            places.append(start)
        start = prompt.find(subject, end)
    return places


def _all_texts(answers: object) -> Iterator[object]:
    """Everything in an answer, a list of answers, or a list of alias lists, in order."""
    if isinstance(answers, list | tuple):
        for item in answers:
            yield from _all_texts(item)
    elif answers:
        yield answers


def _first_text(answers: object) -> object:
    """The first of `_all_texts`."""
    return next(_all_texts(answers), None)


def _nested(groups: object) -> Iterator[tuple[object, object]]:
    """(prompt, answers) of KnowEdit's `{kind: [{prompt, ground_truth}]}`."""
    for items in groups.values() if isinstance(groups, Mapping) else ():
        for item in items or ():
            yield item.get("prompt"), item.get("ground_truth")


def read_zsre_mend(record: Record, context: Context) -> Iterator[FactChange]:
    """ZsRE as MEND, ROME and EasyEdit publish it; the edit target is `alt`."""
    ported = record.get("portability") or {}
    target, answers = context.text(record["alt"]), record.get("answers") or []
    if fold(target) in {fold(answer) for answer in answers}:
        raise SkipRecordError("target is the old object already")
    subject = context.text(record["subject"])
    yield context.fact(
        subject=subject,
        target=target,
        target_old=context.text(_first_text(answers)),
        prompt=context.text(record["src"]),
        rephrases=context.rephrased([record.get("rephrase")], subject),
        locality=context.localities([(record["loc"], record.get("loc_ans"))] if record.get("loc") else []),
        portability=context.portabilities([(ported.get("New Question"), ported.get("New Answer"))] if ported else []),
    )


def read_counterfact_rome(record: Record, context: Context) -> Iterator[FactChange]:
    """CounterFact as ROME and MEMIT publish it; a neighbourhood prompt's answer is the true object."""
    context.leave_out(record, "attribute_prompts", "generation_prompts")
    rewrite = record["requested_rewrite"]
    subject, old = context.text(rewrite["subject"]), context.text(rewrite["target_true"]["str"])
    yield context.fact(
        subject=subject,
        relation=context.text(rewrite.get("relation_id")),
        target=context.text(rewrite["target_new"]["str"]),
        target_old=old,
        prompt=context.text(rewrite["prompt"]),
        rephrases=context.rephrased(record.get("paraphrase_prompts") or [], subject),
        locality=context.localities((prompt, old) for prompt in record.get("neighborhood_prompts") or []),
    )


def read_counterfact_easyedit(record: Record, context: Context) -> Iterator[FactChange]:
    """CounterFact in the flat fields of EasyEdit and RECIPE."""
    subject = context.text(record["subject"])
    yield context.fact(
        subject=subject,
        target=context.text(record["target_new"]),
        target_old=context.text(_first_text(record.get("ground_truth"))),
        prompt=context.text(record["prompt"]),
        rephrases=context.rephrased([record.get("rephrase_prompt")], subject),
        locality=context.localities([(record["locality_prompt"], record.get("locality_ground_truth"))]),
    )


def read_knowedit(record: Record, context: Context) -> Iterator[FactChange]:
    """KnowEdit's fields (ZsRE, recent facts and others): locality and portability by kind, answers as alias lists."""
    subject, target = context.text(record["subject"]), context.text(_first_text(record["target_new"]))
    rephrases = record.get("rephrase_prompt") or record.get("rephrase") or []
    yield context.fact(
        subject=subject,
        target=target,
        target_old=context.text(_first_text(record.get("ground_truth"))),
        prompt=context.text(record["prompt"]),
        rephrases=context.rephrased([rephrases] if isinstance(rephrases, str) else rephrases, subject),
        locality=context.localities(_nested(record.get("locality"))),
        portability=context.portabilities(_nested(record.get("portability"))),
    )


def read_conflictedit(record: Record, context: Context) -> Iterator[FactChange]:
    """ConflictEdit (coverage and reverse): the edits of a stream in their order, a second apart."""
    for position, edit in enumerate(record["edits"]):
        relation = edit["relation"]
        subject = context.text(edit["subject"]["label"])
        yield context.fact(
            subject=subject,
            relation=context.text(relation.get("id")),
            target=context.text(edit["new_object"]["label"]),
            target_old=context.text(edit["object"]["label"]),
            prompt=context.text(relation["prompt"]),
            rephrases=context.rephrased([relation.get("query")], subject),
            effective_at=context.at + timedelta(seconds=position),
        )


def dyknow_records(content: Record) -> Iterator[Record]:
    """DyKnow's nested domains as one record for every fact with its holders."""
    for domain, elements in content.items():
        for element, inner in elements.items():
            properties = {"": inner} if "questions" in inner else inner
            for name, fact in properties.items():
                yield {"domain": domain, "element": element, "property": name, **fact}


def read_dyknow(record: Record, context: Context) -> Iterator[FactChange]:
    """DyKnow: every dated holder from the first to the last, and a retraction where the last one left."""
    subject = context.text(record["element"])
    domain: str = record["domain"]
    relation = record["property"] or _DYKNOW_RELATIONS.get(domain, domain)
    templates = context.rephrased(record["questions"].values(), subject)
    asked = next((template for template in templates if SLOT in template), None)
    if asked is None:
        raise SkipRecordError("subject is not in the prompt")
    rephrases = tuple(template for template in templates if template != asked)
    holders = _holders(record, context)
    before = ""
    for holder in holders:
        yield context.fact(
            subject=subject,
            relation=relation,
            target=holder.name,
            target_old=before,
            prompt=asked,
            rephrases=rephrases,
            effective_at=holder.start,
        )
        before = holder.name
    ends = [holder.end for holder in holders if holder.end is not None]
    if ends and len(ends) == len(holders):
        yield FactChange(
            operation=Operation.RETRACT,
            subject=subject,
            relation=relation,
            target=before,
            prompt=asked,
            effective_at=max(ends),
            observed_at=context.at,
            source=context.source,
            source_rank=context.source_rank,
        )


@dataclass(frozen=True, slots=True)
class _Holder:
    name: str
    start: datetime
    end: datetime | None


def _holders(record: Record, context: Context) -> list[_Holder]:
    """Holders by start, club teams only, consecutive ones of one name joined."""
    dated: list[_Holder] = []
    for answer in record["answers"]:
        match = _HOLDER.fullmatch(answer)
        if match is None or match["start"] is None:
            context.report.left_out["holder without a start"] += 1
        elif record["domain"].startswith("athletes") and re.search(r"\bnational\b", match["name"]):
            context.report.left_out["national team"] += 1
        else:
            start, end = _wikidata_time(match["start"], context), match["end"]
            dated.append(_Holder(context.text(match["name"]), start, _wikidata_time(end, context) if end else None))
    joined: list[_Holder] = []
    for holder in sorted(dated, key=lambda holder: (holder.start, holder.end is None, holder.end or holder.start)):
        if joined and fold(joined[-1].name) == fold(holder.name):
            context.report.repaired["consecutive holders of one name joined"] += 1
            joined[-1] = _Holder(joined[-1].name, joined[-1].start, joined[-1].end and holder.end)
        else:
            joined.append(holder)
    return joined


def _wikidata_time(text: str, context: Context) -> datetime:
    """`+2018-00-00T00:00:00Z`: an unknown month or day becomes the first."""
    year, month, day = (int(part) for part in text.lstrip("+").split("T")[0].split("-"))
    if not month or not day:
        context.report.repaired["date without month or day"] += 1
    return datetime(year, month or 1, day or 1, tzinfo=UTC)


def read_rows(record: Record, context: Context) -> Iterator[FactChange]:
    """Our own columns as CSV, JSON or JSON lines; lists stand as JSON in a CSV cell.

    `operation` defaults to assert, the times to the conversion's; a time without zone is UTC.
    """
    names = {column.name for column in COLUMNS}
    if unknown := [name for name in record if name not in names]:
        raise SkipRecordError(f"column {unknown[0]!r} is unknown")
    known = {name: value for name, value in record.items() if value not in (None, "")}
    subject, prompt = context.text(known.get("subject")), context.text(known.get("prompt"))
    retracts = known.get("operation") == Operation.RETRACT
    try:
        localities, ported = (_cell(known.get(name)) for name in ("locality", "portability"))
        change = FactChange(
            operation=Operation(known.get("operation", Operation.ASSERT)),
            subject=subject,
            relation=context.text(known.get("relation")),
            target=context.text(known.get("target")),
            target_old=context.text(known.get("target_old")) or None,
            prompt=prompt if retracts else context.slotted(prompt, subject) or prompt,
            rephrases=context.rephrased(_cell(known.get("rephrases")), subject),
            locality=context.localities((item.get("prompt"), item.get("answer")) for item in localities),
            portability=context.portabilities(
                (item.get("prompt"), [item.get("answer"), item.get("aliases")]) for item in ported
            ),
            effective_at=_time(known, "effective_at", context),
            observed_at=_time(known, "observed_at", context),
            source=context.text(known.get("source")) or context.source,
            source_rank=int(known.get("source_rank", context.source_rank)),
        )
    except (FactError, ValueError, AttributeError) as error:
        raise SkipRecordError(str(error)) from error
    if known.get("fact_id", change.fact_id) != change.fact_id:
        raise SkipRecordError("fact_id is not the content's hash; leave it out")
    yield change


def _cell(value: object) -> list[Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if value is not None and not isinstance(value, list):
        raise SkipRecordError(f"{value!r} is no list; write a JSON array")
    return value or []


def _time(record: Record, name: str, context: Context) -> datetime:
    value = record.get(name)
    if value is None:
        context.report.repaired[f"no {name}, took the conversion's"] += 1
        return context.at
    time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    if time.tzinfo is None:
        context.report.repaired[f"{name} without a zone, took UTC"] += 1
        return time.replace(tzinfo=UTC)
    return time


@dataclass(frozen=True, slots=True)
class Format:
    """A published format: the fields that tell it, the source it names, and its reader."""

    name: str
    fields: frozenset[str]
    source: str
    read: Callable[[Record, Context], Iterator[FactChange]]


FORMATS = {
    item.name: item
    for item in (
        Format("zsre-mend", frozenset({"subject", "src", "alt"}), "ZsRE", read_zsre_mend),
        Format("counterfact-rome", frozenset({"requested_rewrite"}), "CounterFact", read_counterfact_rome),
        Format(
            "counterfact-easyedit",
            frozenset({"subject", "prompt", "target_new", "locality_prompt"}),
            "CounterFact",
            read_counterfact_easyedit,
        ),
        Format("knowedit", frozenset({"subject", "prompt", "target_new"}), "KnowEdit", read_knowedit),
        Format("conflictedit", frozenset({"edits"}), "ConflictEdit", read_conflictedit),
        Format("dyknow", frozenset({"element", "questions", "answers"}), "DyKnow", read_dyknow),
        Format("rows", frozenset({"subject", "relation", "target", "prompt"}), "rows", read_rows),
    )
}
