"""The published formats of fact edits: how each is recognised, and what of a record makes a fact change."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from editing.errors import FactError
from editing.facts import SLOT, FactChange, Operation, fold
from editing.published import Asked, asked_of, is_empty, text_of, texts_of, zipped
from editing.templates import count_slots, escape, fill, places, with_slot
from tasks.feed.records import Context, Record, SkipRecordError
from tasks.feed.schema import COLUMNS, is_index

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
_OWN = frozenset(column.name for column in COLUMNS)


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


def read_wikibigedit(record: Record, context: Context) -> Iterator[FactChange]:
    """WikiBigEdit: a question with its new answer, other ways to ask it, and a question of several hops."""
    subject = context.text(record["subject"])
    yield context.fact(
        subject=subject,
        target=context.target(_either(record, "ans", "alt")),
        prompt=context.slotted(context.text(_either(record, "update", "src")), subject),
        rephrases=context.rephrased([record.get(name) for name in ("rephrase", "personas", "genv2_mixed")], subject),
        locality=context.localities(_beside(record, "locality", "loc", "loc_ans")),
        portability=context.portabilities(_beside(record, "portability", "mhop", "mhop_ans")),
    )


def _either(record: Record, *names: str) -> object:
    return next((record[name] for name in names if not is_empty(record.get(name))), None)


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
    """MQuAKE: each requested rewrite is a fact; the questions over several hops follow from the last of them.

    Single hops, before and after, that no rewrite concerns hold on: they are that fact's locality.
    """
    rewrites = record["requested_rewrite"]
    if not isinstance(rewrites, list) or not all(isinstance(rewrite, Mapping) for rewrite in rewrites):
        raise SkipRecordError("requested_rewrite is no list of rewrites, as MQuAKE's is")
    answers: object = [record["new_answer"], record.get("new_answer_alias")]
    rewritten = {fold(text) for rewrite in rewrites for text in texts_of(rewrite.get("question"))}
    kept = asked_of([record.get("single_hops"), record.get("new_single_hops")])
    kept.pairs = [pair for pair in kept.pairs if rewritten.isdisjoint(map(fold, texts_of(pair[0])))]
    for rewrite in rewrites:
        last = rewrite is rewrites[-1]
        subject = context.text(rewrite["subject"])
        hops: list[tuple[object, object]] = [
            (question, answers) for question in texts_of(record["questions"] if last else None)
        ]
        yield context.fact(
            subject=subject,
            relation=context.text(rewrite.get("relation_id")),
            target=context.text(rewrite["target_new"]["str"]),
            old=[context.text((rewrite.get("target_true") or {}).get("str"))],
            prompt=context.template(context.text(rewrite["prompt"]), subject),
            rephrases=context.rephrased(rewrite.get("question"), subject),
            locality=context.localities(kept if last else Asked()),
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


def read_wikibio(record: Record, context: Context) -> Iterator[FactChange]:
    """KnowEdit's WikiBio: a passage about a person, and the sentence that is to go on with it."""
    yield from read_flat(
        {**record, "subject": record["concept"], "prompt": record["text"], "target_new": record["labels"]}, context
    )


def read_cknowedit(record: Record, context: Context) -> Iterator[FactChange]:
    """CKnowEdit: Chinese prompts that name no subject; as for their publishers the whole prompt is it."""
    subject = context.text(record["prompt"])
    yield context.fact(
        subject=subject,
        relation="answer",
        target=context.target(record["target_new"]),
        old=context.texts(record["target_old"]),
        prompt=SLOT,
        rephrases=context.rephrased(record.get("rephrase"), subject),
        locality=context.localities(_beside(record, "locality", "locality_prompt", "locality_answer")),
        portability=context.portabilities(_beside(record, "portability", "portability_prompt", "portability_answer")),
    )


def read_conflictedit(record: Record, context: Context) -> Iterator[FactChange]:
    """ConflictEdit: the edits of a stream in their order, a second apart; what they presuppose is the last's locality.

    A record of its easy and hard rounds has a single `edit`.
    """
    edits = record["edits"] if "edits" in record else [record["edit"]]
    triples, presupposed = record.get("triples") or [], record.get("prerequisites") or []
    for position, edit in enumerate(edits):
        relation = edit["relation"]
        subject = context.text(edit["subject"]["label"])
        yield context.fact(
            subject=subject,
            relation=context.text(relation.get("id")),
            target=context.text(edit["new_object"]["label"]),
            old=[context.text(edit["object"]["label"])],
            prompt=context.template(context.text(relation["prompt"]), subject),
            rephrases=context.rephrased(relation.get("query"), subject),
            locality=context.localities(
                Asked([_triple_asked(triples[place]) for place in presupposed] if edit is edits[-1] else [])
            ),
            effective_at=context.at + timedelta(seconds=position),
        )


def _triple_asked(triple: Record) -> tuple[object, object]:
    return fill(triple["relation"]["prompt"], triple["subject"]["label"]), triple["object"]["label"]


# How a sentence of RippleEdits goes on behind its subject, up to where the object begins.
_TIE = (
    r" (?:is (?:associated with|a member of|part of|the capital of) is|(?:has|won|plays in) is|is followed by|follows"
    r"|is|are)"
)
_JOINING = ("of", "by", "or")
_STAYS = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")
_FOLLOWS = ("Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")


def read_rippleedits(record: Record, context: Context) -> Iterator[FactChange]:
    """RippleEdits: an edit as one sentence; what must follow from it is its portability, what must stay its locality.

    The sentence is not parted into subject and object: they are told by the relation's name and by the questions
    about the same subject. Where these do not agree the record is skipped.
    """
    edit = record["edit"]
    before = edit.get("original_fact") or edit.get("previous_fact") or {}
    stays, follows = (_ripple_queries(record, names, context) for names in (_STAYS, _FOLLOWS))
    about = [
        context.text(query["prompt"])
        for query in [*stays, *follows]
        if query.get("subject_id") == edit["subject_id"]
        and query.get("query_type", "regular") == "regular"
        and not query.get("phrase")
    ]
    head, subject, tie, target = _ripple_parts(context.text(edit["prompt"]), str(edit["relation"]), about)
    asked = f"{head}{subject}{tie}"
    old = context.text(before.get("prompt")).removesuffix(".")
    yield context.fact(
        subject=subject,
        relation=" ".join(context.text(edit["relation"]).lower().split("_")),
        target=target,
        old=[old.removeprefix(asked).strip()] if old.startswith(asked) else [],
        prompt=with_slot(asked, len(head), len(subject)),
        locality=context.localities(_ripple_asked(stays)),
        portability=context.portabilities(_ripple_asked(follows)),
    )


def _ripple_queries(record: Record, names: Iterable[str], context: Context) -> list[Record]:
    tests = [test for name in names for test in record.get(name) or []]
    for test in tests:
        if test.get("condition_queries"):
            context.report.left_out["field 'condition_queries'"] += 1
    return [query for test in tests for query in test["test_queries"]]


def _ripple_asked(queries: Iterable[Record]) -> Asked:
    return Asked(
        [(query["prompt"], [[a.get("value"), a.get("aliases")] for a in query["answers"] or []]) for query in queries]
    )


def _ripple_parts(sentence: str, relation: str, about: Iterable[str]) -> tuple[str, str, str, str]:
    """A sentence as what stands before its subject, the subject, what ties it to the object, and the object.

    The subject begins behind a word of the relation's name (or what some relations say instead) and ends where every
    question `about` it agrees.
    """
    said = sentence.removesuffix(".")
    words = [word for word in reversed(relation.lower().split("_")) if word not in _JOINING]
    heads = [
        rf"The .*?\b{re.escape(word)}\w*(?: city)?(?: of| by| which| in)? " for word in (*words, "tongue", "country")
    ]
    for pattern in [*heads, ""] if "FOLLOW" in relation else heads:
        if (head := re.match(pattern, said)) is None:
            continue
        rest = said[head.end() :]
        for tie in re.finditer(rf"{_TIE}(?= )", rest):
            subject, target = rest[: tie.start()], rest[tie.end() :].strip()
            if subject and target and all(_is_about(text, subject) for text in about):
                return head[0], subject, tie[0], target
    raise SkipRecordError(f"its subject cannot be told from {sentence[:80]!r} and its questions")


def _is_about(question: str, subject: str) -> bool:
    if re.search(rf"{_TIE}$", question):
        return re.search(rf"\b{re.escape(subject)}{_TIE}$", question) is not None
    return bool(places(subject, question))


_BLANK = re.compile(r"\s*_{2,}\s*[.?!]?\s*$")


def read_wikifactdiff(record: Record, context: Context) -> Iterator[FactChange]:
    """WikiFactDiff: the first new object is asserted; without one, each obsolete object is taken back.

    Its prompts are cloze texts with a blank; those that end in it can be asked. A neighbour's first triple is locality.
    """
    subject, relation = context.text(record["subject"]["label"]), record["relation"]
    by_decision: dict[str, list[str]] = {}
    for item in record["objects"]:
        by_decision.setdefault(item["decision"], []).append(context.text(item["label"]))
    new = [*by_decision.pop("new", []), *by_decision.pop("learn", [])]
    old = [*by_decision.pop("obsolete", []), *by_decision.pop("forget", [])]
    for decision, labels in by_decision.items():
        context.report.left_out[f"{decision} object"] += len(labels)
    prompts = [
        _blanked(text, context) for text in texts_of([record["update_prompt"], record["generalization_prompts"]])
    ]
    asked = [template for text in prompts if text and (template := context.slotted(text, subject)) is not None]
    if not asked:
        raise SkipRecordError("no prompt names the subject and ends in its blank")
    if new[1:]:
        context.report.left_out["other new object"] += len(new) - 1
    shared: dict[str, Any] = {
        "subject": subject,
        "relation": context.text(relation.get("id")) or context.text(relation.get("label")),
        "prompt": asked[0],
        "rephrases": tuple(dict.fromkeys(asked[1:])),
        "locality": context.localities(Asked(list(_neighbours(record.get("neighborhood"), context)))),
    }
    if new:
        yield context.fact(target=new[0], old=old, **shared)
    for label in [] if new else old:
        yield context.retraction(target=label, **shared)


def _blanked(text: str, context: Context) -> str | None:
    """A cloze text up to the blank that it ends in; None, and counted, where its blank stands elsewhere."""
    if _BLANK.search(text):
        return context.text(_BLANK.sub("", text))
    context.report.left_out["prompt that goes on after its blank"] += 1
    return None


def _neighbours(neighborhood: Any, context: Context) -> Iterator[tuple[object, object]]:
    for neighbour in neighborhood or []:
        first, *others = neighbour["objects"]
        if (prompt := _blanked(first["prompt"], context)) is not None:
            yield prompt, first.get("object", first)["label"]
        if others:
            context.report.left_out["other object of a neighbour"] += len(others)


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
        yield context.retraction(
            subject=subject, relation=relation, target=before, prompt=asked, effective_at=max(ends)
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
    if unknown := [name for name in record if name not in _OWN and not is_index(name)]:
        raise SkipRecordError(f"column {unknown[0]!r} is unknown")
    known = {name: value for name, value in record.items() if value not in (None, "")}
    subject, prompt = context.text(known.get("subject")), context.text(known.get("prompt"))
    fact_id = known.get("fact_id")
    retracts = known.get("operation") == Operation.RETRACT
    template = retracts or (fact_id is not None and count_slots(prompt) == 1)
    yield _row(known, context, subject, prompt, template=template)


def _row(known: Record, context: Context, subject: str, prompt: str, *, template: bool) -> FactChange:
    """The change of a row; `template` says that its prompts are templates already."""
    fact_id = known.get("fact_id")
    try:
        rephrases = _cell(known.get("rephrases"))
        change = FactChange(
            operation=Operation(known.get("operation", Operation.ASSERT)),
            subject=subject,
            relation=context.text(known.get("relation")),
            target=context.text(known.get("target")),
            target_old=context.text(known.get("target_old")) or None,
            prompt=prompt if template else context.slotted(prompt, subject) or prompt,
            rephrases=tuple(context.texts(rephrases)) if template else context.rephrased(rephrases, subject),
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
    return change


def read_triples(record: Record, context: Context) -> Iterator[FactChange]:
    """Subject, relation and object, and what else of our own columns stands beside them.

    Without a prompt it is the relation's of `context.templates`, else a default one that the report shows.
    """
    known = {name: value for name, value in record.items() if name in _OWN and value not in (None, "")}
    subject, relation = context.text(record["subject"]), context.text(record["relation"])
    known |= {"relation": relation, "target": record["object"]}
    if prompt := context.text(known.get("prompt")):
        yield _row(known, context, subject, prompt, template=False)
        return
    if (template := context.templates.get(relation)) is None:
        template = f"The {escape(' '.join(relation.replace('_', ' ').split()))} of {SLOT} is"
        context.report.repaired[f"no template for relation {relation!r}, took {template!r}"] += 1
    yield _row(known, context, subject, template, template=True)


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
    Every other field that holds something is counted as left out. `spellings` are other names of fields, whatever
    their case.
    """

    name: str
    fields: frozenset[str]
    source: str
    read: Callable[[Record, Context], Iterator[FactChange]]
    uses: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    spellings: Mapping[str, str] = field(default_factory=dict)

    def named(self, record: Record) -> Record:
        """`record` with its fields as this format calls them."""
        spelt = {name: self.spellings.get(str(name).strip().lower(), name) for name in record}
        return {name if spelt[name] in record else spelt[name]: value for name, value in record.items()}

    def fits(self, record: Record) -> bool:
        """Whether `record` has the fields of this format."""
        return self.fields <= self.named(record).keys()

    def changes(self, record: Record, context: Context) -> list[FactChange]:
        """The record's fact changes. Raises `SkipRecordError` or `FactError` where one cannot be made of it."""
        record = self.named(record)
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
    spellings: str = "",
) -> Format:
    pairs = (words.split("=") for words in spellings.split())
    return Format(
        name,
        frozenset(fields.split()),
        source,
        read,
        frozenset(uses.split()),
        frozenset(f"case_id id idx {idle}".split()),
        {other: field for field, others in pairs for other in others.split(",")},
    )


_FLAT = (
    "ground_truth target_old target_true rephrase_prompt rephrase locality_prompt locality_ground_truth locality "
    "portability_prompt portability_ground_truth portability"
)
_BIG_EDIT = "update src ans alt rephrase personas genv2_mixed loc loc_ans locality mhop mhop_ans portability"
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
        _format("wikibigedit", "subject update ans", "WikiBigEdit", read_wikibigedit, _BIG_EDIT, "tag"),
        _format("wikibigedit-src", "subject src alt mhop", "WikiBigEdit", read_wikibigedit, _BIG_EDIT, "tag"),
        _format(
            "mquake",
            "requested_rewrite questions new_answer",
            "MQuAKE",
            read_mquake,
            "new_answer_alias single_hops new_single_hops",
        ),
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
        _format("knowedit-wikibio", "concept text labels", "WikiBio", read_wikibio, _FLAT),
        _format(
            "cknowedit",
            "prompt target_new target_old",
            "CKnowEdit",
            read_cknowedit,
            "rephrase locality locality_prompt locality_answer portability portability_prompt portability_answer",
        ),
        _format("rippleedits", "example_type edit", "RippleEdits", read_rippleedits, " ".join((*_STAYS, *_FOLLOWS))),
        _format(
            "wikifactdiff",
            "subject relation objects update_prompt",
            "WikiFactDiff",
            read_wikifactdiff,
            "generalization_prompts neighborhood",
            "subject_is_ph_new relation_is_temp_func is_replace subject_popularity",
        ),
        _format("conflictedit", "edits", "ConflictEdit", read_conflictedit, "triples prerequisites", "type rule"),
        _format("conflictedit-round", "type edit", "ConflictEdit", read_conflictedit),
        _format("dyknow", "element questions answers", "DyKnow", read_dyknow, "domain property"),
        _format("rows", "subject relation target prompt", "rows", read_rows, " ".join(_OWN)),
        _format(
            "triples",
            "subject relation object",
            "triples",
            read_triples,
            " ".join(_OWN - {"target"}),
            spellings="subject=subject,head,s "
            "relation=relation,predicate,property,p,r "
            "object=object,tail,value,target,o",
        ),
    )
}
