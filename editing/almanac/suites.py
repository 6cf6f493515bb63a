"""Writes the Almanac's four suites in the published file formats.

`write_suites` fills a folder with `zsre.json` (the fields of MEND), `counterfact.json` and its
reference texts `attribute_snippets.json` (the fields of ROME), `mmlu/{dev,test}/RELATION_{dev,test}.csv`
and `gsm8k/test.jsonl`; `SUITES` holds what it writes with the default arguments. ZsRE and
CounterFact ask for facts that no feed edits; their edit targets are false and of the right kind.
MMLU and GSM8K hold only problems that the training text leaves out.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from editing.almanac import corpus
from editing.almanac.world import DATA, World
from editing.facts import SLOT

SUITES = DATA / "suites"
RECORDS = 200  # of ZsRE and of CounterFact
QUESTIONS = 60  # of each relation in MMLU's test split
EXAMPLES = 5  # of each relation in MMLU's dev split
SAMPLES = 4  # reference texts of each object
PROBLEMS = 240  # of GSM8K

_PROPERTIES = {  # Wikidata's property for each relation, as CounterFact names relations
    "head_of_state": "P35",
    "head_of_government": "P6",
    "chief_executive": "P169",
    "organisation_head": "P488",
    "team": "P54",
    "capital": "P36",
    "currency": "P38",
    "official_language": "P37",
    "continent": "P30",
    "headquarters": "P159",
    "seat": "P159",
    "industry": "P452",
    "sport": "P641",
    "nationality": "P27",
}


def write_suites(world: World, folder: Path, *, seed: int = 0) -> None:
    """Write the four suites into `folder`; the same world and seed give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "zsre.json", zsre_records(world, random.Random(f"{seed} zsre")))
    counterfacts = counterfact_records(world, random.Random(f"{seed} counterfact"))
    _write_json(folder / "counterfact.json", counterfacts)
    _write_json(folder / "attribute_snippets.json", reference_records(world, counterfacts))
    for relation in sorted(world.static_relations):
        rows = mmlu_rows(world, relation, random.Random(f"{seed} mmlu {relation}"))
        for split, part in {"dev": rows[:EXAMPLES], "test": rows[EXAMPLES:]}.items():
            path = folder / "mmlu" / split / f"{relation}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(part)
    path = folder / "gsm8k" / "test.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in gsm8k_records(random.Random(f"{seed} gsm8k"))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def zsre_records(world: World, rng: random.Random) -> list[dict[str, Any]]:
    """`RECORDS` records with MEND's fields; `loc` asks for a static fact of another subject and relation."""
    records = []
    for fact in rng.sample(world.steady_facts, RECORDS):
        phrasings = world.relations[fact.relation].phrasings
        source, rephrase = (phrasings[i].replace(SLOT, fact.subject) for i in (1, rng.choice((0, *range(2, 8)))))
        alternative = rng.choice(corpus.alternatives(world, fact))
        unrelated = [o for o in world.static if o.subject != fact.subject and o.relation != fact.relation]
        other = rng.choice(unrelated)
        records.append(
            {
                "subject": fact.subject,
                "src": source,
                "pred": fact.object,
                "rephrase": rephrase,
                "alt": alternative,
                "answers": [fact.object],
                "loc": f"nq question: {world.relations[other.relation].phrasings[1].replace(SLOT, other.subject)}",
                "loc_ans": other.object,
                "cond": f"{fact.object} >> {alternative} || {source}",
            }
        )
    return records


def counterfact_records(world: World, rng: random.Random) -> list[dict[str, Any]]:
    """`RECORDS` records with ROME's fields, about facts whose object other subjects share.

    The neighbourhood prompts ask for the same relation of those subjects, the attribute prompts for
    that of subjects whose true object is the new target.
    """
    sharers: dict[tuple[str, str], list[str]] = {}
    for fact in world.steady_facts:
        sharers.setdefault((fact.relation, fact.object), []).append(fact.subject)
    shared = [fact for fact in world.steady_facts if len(sharers[fact.relation, fact.object]) > 2]
    records = []
    for case, fact in enumerate(rng.sample(shared, RECORDS)):
        phrasings = world.relations[fact.relation].phrasings
        new = rng.choice([name for name in corpus.alternatives(world, fact) if (fact.relation, name) in sharers])
        neighbours = [subject for subject in sharers[fact.relation, fact.object] if subject != fact.subject]
        records.append(
            {
                "case_id": case,
                "pararel_idx": case,
                "requested_rewrite": {
                    "prompt": phrasings[0],
                    "relation_id": _PROPERTIES[fact.relation],
                    "target_new": {"str": new, "id": _object_id(new)},
                    "target_true": {"str": fact.object, "id": _object_id(fact.object)},
                    "subject": fact.subject,
                },
                "paraphrase_prompts": [text.replace(SLOT, fact.subject) for text in rng.sample(phrasings[1:], 2)],
                "neighborhood_prompts": _ten_prompts(phrasings, neighbours, rng),
                "attribute_prompts": _ten_prompts(phrasings, sharers[fact.relation, new], rng),
                "generation_prompts": _ten_prompts(phrasings, [fact.subject], rng),
            }
        )
    return records


def reference_records(world: World, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the training text says of things that have an object of `records`, in ROME's `attribute_snippets` fields."""
    wanted = {
        (record["requested_rewrite"]["relation_id"], record["requested_rewrite"][name]["id"])
        for record in records
        for name in ("target_true", "target_new")
    }
    told: dict[tuple[str, str], dict[str, Any]] = {}
    for fact in world.steady_facts:
        relation, target = _PROPERTIES[fact.relation], _object_id(fact.object)
        if (relation, target) not in wanted:
            continue
        empty = {"relation_id": relation, "target_id": target, "samples": []}
        samples = told.setdefault((relation, target), empty)["samples"]
        if len(samples) < SAMPLES:
            prompts = (text.replace(SLOT, fact.subject) for text in world.relations[fact.relation].phrasings)
            text = " ".join(f"{prompt} {fact.object}." for prompt in prompts)
            samples.append({"name": fact.subject, "target": fact.object, "text": text})
    return [told[key] for key in sorted(told)]


def _object_id(name: str) -> str:
    """The Almanac's objects have no Wikidata ids: their names stand for them."""
    return "_".join(name.split())


def _ten_prompts(phrasings: Sequence[str], subjects: Sequence[str], rng: random.Random) -> list[str]:
    """Ten prompts: as many subjects as there are, under varied phrasings."""
    asked = islice(cycle(rng.sample(subjects, len(subjects))), 10)
    wordings = islice(cycle(rng.sample(phrasings, len(phrasings))), 10)
    return [wording.replace(SLOT, subject) for wording, subject in zip(wordings, asked, strict=True)]


def mmlu_rows(world: World, relation: str, rng: random.Random) -> list[list[str]]:
    """`EXAMPLES` + `QUESTIONS` different held-out rows of one relation: question, options A to D, letter."""
    facts = [fact for fact in world.static if fact.relation == relation]
    rng.shuffle(facts)
    problems: dict[str, corpus.Problem] = {}
    for fact in cycle(facts):
        if len(problems) == EXAMPLES + QUESTIONS:
            break
        problem = corpus.multiple_choice(world, rng, [fact], held_out=True)
        problems[problem.prompt] = problem
    return [_mmlu_row(problem) for problem in problems.values()]


def _mmlu_row(problem: corpus.Problem) -> list[str]:
    question, *options, _ = problem.prompt.split("\n")
    return [question, *(option.split(". ", 1)[1] for option in options), problem.answer]


def gsm8k_records(rng: random.Random) -> list[dict[str, str]]:
    """`PROBLEMS` different held-out word problems: question and answer, which ends with "#### " and the number."""
    problems: dict[str, corpus.Problem] = {}
    while len(problems) < PROBLEMS:
        problem = corpus.arithmetic(rng, held_out=True)
        problems[problem.prompt] = problem
    return [
        {"question": prompt.removeprefix("Question: ").removesuffix("\nAnswer:"), "answer": problem.answer}
        for prompt, problem in problems.items()
    ]


def _write_json(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text(json.dumps(list(records), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
