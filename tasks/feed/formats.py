"""The published formats of fact edits: how each is recognised, and what of a record makes a fact change."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from editing.errors import FactError
from editing.facts import SLOT, FactChange, LocalityPrompt, Operation, PortabilityPrompt, fold
from editing.published import Asked, asked_of, is_empty, text_of, texts_of, zipped
from editing.templates import count_slots, escape, slotted
from tasks.feed.schema import COLUMNS, is_index

Record = Mapping[str, Any]

_NQ_PREFIX = "nq question: "
_HOLDER = re.compile(r"(?P<name>.+?) \|(?:S: (?P<start>[+-]\S+))?(?: ?\|?E: (?P<end>[+-]\S+))?(?: ?\|?P: .*)?")
_DYKNOW_RELATIONS = {"athletes_byPayment": "team", "companies_byRevenue": "chief executive officer"}
_ISO = re.compile(r"\d{4}-?\d{2}-?\d{2}([T ].*)?|\d{4}-?W\d{2}.*")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_SINCE_1970 = (  # numbers below the first, how many of the unit make a second, and the unit
    (1e11, 1, "seconds"),
    (1e14, 10**3, "milliseconds"),
    (1e17, 10**6, "microseconds"),
    (1e20, 10**9, "nanoseconds"),
)
_FROM_1973 = 1e8  # smaller numbers could be anything
_LAST_RANK = 2**63 - 1


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

    def to_dict(self) -> dict[str, Any]:
        """The report in plain JSON types."""
        return {
            "read": self.read,
            "converted": self.converted,
            "repaired": dict(self.repaired),
            "left_out": dict(self.left_out),
            "skipped": [asdict(item) for item in self.skipped],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a record does not say itself: `at` dates the undated, and is when everything was observed."""

    at: datetime
    source: str
    source_rank: int
    report: ConversionReport

    def text(self, value: object) -> str:
        """`value`, a text or a number, without outer spaces; empty for anything else."""
        text = text_of(value)
        stripped = text.strip()
        if stripped != text:
            self.report.repaired["stray spaces"] += 1
        return stripped

    def texts(self, value: object) -> list[str]:
        """The texts of a value, a list, or a list of lists of names, empty ones left out."""
        return [text for text in map(self.text, texts_of(value)) if text]

    def slotted(self, text: str, subject: str, *, last: bool = False) -> str | None:
        """The template with a slot where the subject stands in `text`; None where it does not.

        A text without the subject and with one slot is a template already. `last` as in `templates.slotted`.
        """
        made = slotted(text, subject, last=last)
        if made is None:
            return text if count_slots(text) == 1 else None
        if made.differently:
            self.report.repaired["subject written differently in prompt"] += 1
        if made.repeated:
            self.report.repaired["subject more than once in prompt"] += 1
        if SLOT in text:
            self.report.repaired[f"{SLOT} of a prompt taken as text, its slot is where the subject stands"] += 1
        return made.template

    def template(self, text: str, subject: str) -> str | None:
        """`text` where the source writes its slots itself; where it has not one, as `slotted`."""
        return text if count_slots(text) == 1 else self.slotted(text, subject)

    def rephrased(self, prompts: object, subject: str) -> tuple[str, ...]:
        """Rephrases with a slot where the subject last stands in them, empty ones left out."""
        texts = self.texts(prompts)
        return tuple(dict.fromkeys(self.slotted(text, subject, last=True) or escape(text) for text in texts))

    def localities(self, asked: Asked) -> tuple[LocalityPrompt, ...]:
        """Locality prompts with their answers, of which the first name counts."""
        found = self._asked("locality", asked)
        return tuple(dict.fromkeys(LocalityPrompt(prompt=prompt, answer=answers[0]) for prompt, answers in found))

    def portabilities(self, asked: Asked) -> tuple[PortabilityPrompt, ...]:
        """Portability prompts with every answer and name."""
        found = self._asked("portability", asked)
        return tuple(dict.fromkeys(PortabilityPrompt.of(prompt, answers) for prompt, answers in found))

    def _asked(self, kind: str, asked: Asked) -> Iterator[tuple[str, list[str]]]:
        for given, named in asked.pairs:
            prompt, answers = self.text(given), self.texts(named)
            if prompt.startswith(_NQ_PREFIX):
                self.report.repaired["'nq question: ' removed"] += 1
                prompt = prompt.removeprefix(_NQ_PREFIX).strip()
            if prompt and answers:
                yield prompt, answers
            else:
                self.report.left_out[f"{kind} prompt without an answer"] += 1
        if asked.unread:
            self.report.left_out[f"entry of {kind!r} in an unknown shape"] += len(asked.unread)

    def fact(
        self,
        *,
        subject: str,
        target: str,
        prompt: str | None,
        relation: str | None = None,
        old: Iterable[str] = (),
        effective_at: datetime | None = None,
        **fields: Any,
    ) -> FactChange:
        """An assertion; without a relation the prompt's template stands for it.

        `old` are the names of the old object, of which the first is kept. Raises `SkipRecordError` when it has no
        target, the target is one of `old`, or `prompt` is None, for a subject that does not stand in it.
        """
        if not target:
            raise SkipRecordError("target is empty")
        names = list({fold(name): name for name in reversed([*old]) if name}.values())[::-1]
        if fold(target) in map(fold, names):
            raise SkipRecordError("target is the old object already")
        if prompt is None:
            raise SkipRecordError("subject is not in the prompt")
        if names[1:]:
            self.report.left_out["other name of the old object"] += len(names) - 1
        return FactChange(
            subject=subject,
            relation=relation or prompt,
            target=target,
            target_old=names[0] if names else None,
            prompt=prompt,
            effective_at=effective_at or self.at,
            observed_at=self.at,
            source=self.source,
            source_rank=self.source_rank,
            **fields,
        )

    def target(self, value: object) -> str:
        """The first name of the new object; others, for which a fact has no place, are counted."""
        first, *others = self.texts(value) or [""]
        if others:
            self.report.left_out["other name of the target"] += len(others)
        return first


def read_zsre_mend(record: Record, context: Context) -> Iterator[FactChange]:
    """ZsRE as MEND, ROME and EasyEdit publish it; the edit target is `alt`."""
    subject = context.text(record["subject"])
    yield context.fact(
        subject=subject,
        target=context.target(record["alt"]),
        old=context.texts(record.get("answers")),
        prompt=context.slotted(context.text(record["src"]), subject),
        rephrases=context.rephrased([record.get("rephrase"), record.get("rephrase_prompt")], subject),
        locality=context.localities(_beside(record, "locality", "loc", "loc_ans")),
        portability=context.portabilities(asked_of(record.get("portability"))),
    )


def _beside(record: Record, block: str, prompts: str, answers: str) -> Asked:
    """The prompts of a block, and those of two fields side by side."""
    asked = asked_of(record.get(block))
    asked.pairs[:0] = zipped(record.get(prompts), record.get(answers))
    return asked


def read_counterfact_rome(record: Record, context: Context) -> Iterator[FactChange]:
    """CounterFact as ROME and MEMIT publish it; a neighbourhood prompt's answer is the true object."""
    rewrite = record["requested_rewrite"]
    subject, old = context.text(rewrite["subject"]), context.text(rewrite["target_true"]["str"])
    yield context.fact(
        subject=subject,
        relation=context.text(rewrite.get("relation_id")),
        target=context.text(rewrite["target_new"]["str"]),
        old=[old],
        prompt=context.template(context.text(rewrite["prompt"]), subject),
        rephrases=context.rephrased(record.get("paraphrase_prompts"), subject),
        locality=context.localities(Asked([(prompt, old) for prompt in texts_of(record.get("neighborhood_prompts"))])),
    )


def read_mquake(record: Record, context: Context) -> Iterator[FactChange]:
    """MQuAKE: each requested rewrite is a fact; the questions over several hops follow from the last of them."""
    rewrites = record["requested_rewrite"]
    if not isinstance(rewrites, list) or not all(isinstance(rewrite, Mapping) for rewrite in rewrites):
        raise SkipRecordError("requested_rewrite is no list of rewrites, as MQuAKE's is")
    answers: object = [record["new_answer"], record.get("new_answer_alias")]
    for rewrite in rewrites:
        subject = context.text(rewrite["subject"])
        questions = record["questions"] if rewrite is rewrites[-1] else None
        hops: list[tuple[object, object]] = [(question, answers) for question in texts_of(questions)]
        yield context.fact(
            subject=subject,
            relation=context.text(rewrite.get("relation_id")),
            target=context.text(rewrite["target_new"]["str"]),
            old=[context.text((rewrite.get("target_true") or {}).get("str"))],
            prompt=context.template(context.text(rewrite["prompt"]), subject),
            rephrases=context.rephrased(rewrite.get("question"), subject),
            portability=context.portabilities(Asked(hops)),
        )


def read_flat(record: Record, context: Context) -> Iterator[FactChange]:
    """The flat fields of EasyEdit, RECIPE and KnowEdit: CounterFact, ZsRE, recent facts and others."""
    subject = context.text(record["subject"])
    yield context.fact(
        subject=subject,
        target=context.target(record["target_new"]),
        old=context.texts([record.get("ground_truth"), record.get("target_old"), record.get("target_true")]),
        prompt=context.slotted(context.text(record["prompt"]), subject),
        rephrases=context.rephrased([record.get("rephrase_prompt"), record.get("rephrase")], subject),
        locality=context.localities(_beside(record, "locality", "locality_prompt", "locality_ground_truth")),
        portability=context.portabilities(
            _beside(record, "portability", "portability_prompt", "portability_ground_truth")
        ),
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
            old=[context.text(edit["object"]["label"])],
            prompt=context.template(context.text(relation["prompt"]), subject),
            rephrases=context.rephrased(relation.get("query"), subject),
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
    templates = context.rephrased([*record["questions"].values()], subject)
    asked = next((template for template in templates if count_slots(template) == 1), None)
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
            old=[before],
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

    `operation` defaults to assert, the times to the conversion's; a time without zone is UTC. A row with a `fact_id`
    is one that a feed held: its prompts are templates. Any other prompt gets its slot where the subject stands.
    """
    names = {column.name for column in COLUMNS}
    if unknown := [name for name in record if name not in names and not is_index(name)]:
        raise SkipRecordError(f"column {unknown[0]!r} is unknown")
    known = {name: value for name, value in record.items() if value not in (None, "")}
    subject, prompt = context.text(known.get("subject")), context.text(known.get("prompt"))
    fact_id = known.get("fact_id")
    retracts = known.get("operation") == Operation.RETRACT
    written = retracts or (fact_id is not None and count_slots(prompt) == 1)
    try:
        rephrases = _cell(known.get("rephrases"))
        change = FactChange(
            operation=Operation(known.get("operation", Operation.ASSERT)),
            subject=subject,
            relation=context.text(known.get("relation")),
            target=context.text(known.get("target")),
            target_old=context.text(known.get("target_old")) or None,
            prompt=prompt if written else context.slotted(prompt, subject) or prompt,
            rephrases=tuple(context.texts(rephrases)) if written else context.rephrased(rephrases, subject),
            locality=context.localities(asked_of(_cell(known.get("locality")))),
            portability=context.portabilities(asked_of(_cell(known.get("portability")))),
            effective_at=_time(known, "effective_at", context),
            observed_at=_time(known, "observed_at", context),
            source=context.text(known.get("source")) or context.source,
            source_rank=_rank(known.get("source_rank", context.source_rank)),
        )
    except (FactError, ValueError, AttributeError) as error:
        raise SkipRecordError(str(error)) from error
    if fact_id not in (None, change.fact_id):
        raise SkipRecordError("fact_id is not the content's hash; leave it out")
    yield change


def _cell(value: object) -> list[Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if value is not None and not isinstance(value, list):
        raise SkipRecordError(f"{value!r} is no list; write a JSON array")
    return value or []


def _rank(value: object) -> int:
    text = text_of(value).strip()
    if not re.fullmatch(r"\d+(\.0+)?", text) or int(text.split(".")[0]) > _LAST_RANK:
        raise SkipRecordError(f"source_rank {value!r} is no whole number of 0 or more")
    return int(text.split(".")[0])


def _time(record: Record, name: str, context: Context) -> datetime:
    """A time as text in ISO 8601, a date, or a number of seconds or of their parts since 1970, told by its size."""
    value = record.get(name)
    if value is None:
        context.report.repaired[f"no {name}, took the conversion's"] += 1
        return context.at
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        moment = datetime.combine(value, time())
    else:
        text = text_of(value).strip()
        moment = _written_time(text, name, context)
    if moment.tzinfo is None:
        context.report.repaired[f"{name} without a zone, took UTC"] += 1
        return moment.replace(tzinfo=UTC)
    return moment


def _written_time(text: str, name: str, context: Context) -> datetime:
    if _ISO.fullmatch(text):
        try:
            return datetime.fromisoformat(text)
        except ValueError as error:
            raise SkipRecordError(f"{name} {text!r} is no time ({error})") from error
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    for end, parts, unit in _SINCE_1970 if number >= _FROM_1973 else ():
        if number < end:
            context.report.repaired[f"{name} is a number, read as {unit} since 1970"] += 1
            return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=number * 10**6 / parts)
    raise SkipRecordError(f"{name} {text[:60]!r} is no time; write it like 2024-04-03 or 2024-04-03T12:00:00Z")


@dataclass(frozen=True, slots=True)
class Format:
    """A published format: the fields that tell it, the source it names, and its reader.

    `read` uses the fields and `uses`; `idle` say nothing of the fact (numbers, ids, what a model answered).
    Every other field that holds something is counted as left out.
    """

    name: str
    fields: frozenset[str]
    source: str
    read: Callable[[Record, Context], Iterator[FactChange]]
    uses: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()

    def changes(self, record: Record, context: Context) -> list[FactChange]:
        """The record's fact changes. Raises `SkipRecordError` or `FactError` where one cannot be made of it."""
        changes = list(self.read(record, context))
        for change in changes:
            _ = change.fact_id  # which text that is no Unicode has not
        for name in record.keys() - self.fields - self.uses - self.idle:
            if not is_empty(record[name]):
                context.report.left_out[f"field {name!r}"] += 1
        return changes


def _format(
    name: str,
    fields: str,
    source: str,
    read: Callable[[Record, Context], Iterator[FactChange]],
    uses: str = "",
    idle: str = "",
) -> Format:
    named = (frozenset(names.split()) for names in (fields, uses, f"case_id id idx {idle}"))
    return Format(name, next(named), source, read, *named)


_FLAT = (
    "ground_truth target_old target_true rephrase_prompt rephrase locality_prompt locality_ground_truth locality "
    "portability_prompt portability_ground_truth portability"
)
FORMATS = {
    item.name: item
    for item in (
        _format(
            "zsre-mend",
            "subject src alt",
            "ZsRE",
            read_zsre_mend,
            "answers rephrase rephrase_prompt loc loc_ans locality portability",
            "pred cond",
        ),
        _format("mquake", "requested_rewrite questions new_answer", "MQuAKE", read_mquake, "new_answer_alias"),
        _format(
            "counterfact-rome",
            "requested_rewrite",
            "CounterFact",
            read_counterfact_rome,
            "paraphrase_prompts neighborhood_prompts",
            "pararel_idx known_id",
        ),
        _format(
            "counterfact-easyedit", "subject prompt target_new locality_prompt", "CounterFact", read_flat, _FLAT, "cond"
        ),
        _format("knowedit", "subject prompt target_new", "KnowEdit", read_flat, _FLAT, "cond"),
        _format("conflictedit", "edits", "ConflictEdit", read_conflictedit, idle="type rule"),
        _format("dyknow", "element questions answers", "DyKnow", read_dyknow, "domain property"),
        _format(
            "rows", "subject relation target prompt", "rows", read_rows, " ".join(column.name for column in COLUMNS)
        ),
    )
}
