"""Which questions about an edited subject take its edit, by the sentence encoder alone: `errata bench asked`.

Nothing is edited and the language model is not asked, so that a thousand facts take minutes. Told are the shares of
`rephrases` (of the file), of `else_asked` (three questions that ask nothing that was edited, `ELSE_ASKED`), of
`other_facts` (the questions of two other facts, put about this subject: some ask the same in other words) and, of
RECIPE alone, of `locality` prompts (of the file) that are answered by an edit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from editing.bench.real import ELSE_ASKED
from editing.editors.coachhook.asked import AskedFacts
from editing.editors.recipe.editor import encode_facts
from editing.editors.recipe.repository import Repository
from editing.editors.recipe.retrieval import retrieve
from editing.editors.recipe.segments import Segment
from editing.editors.recipe.state import RecipeState
from editing.facts import SLOT, FactChange
from editing.models import BaseModel

OTHERS = 2  # other facts whose questions are put about a subject
SEED = 0


def bench_asked(
    base: BaseModel, state: RecipeState, asked: AskedFacts, facts: Sequence[FactChange]
) -> dict[str, dict[str, float]]:
    """Shares by method and kind of question: RECIPE with `facts` in the repository of `state`, CoachHooK with them in
    `asked`. A kind that the facts have none of is left out."""
    prompts = sorted({fact.prompt for fact in facts})
    draw = random.Random(SEED)
    kinds: dict[str, list[tuple[str, FactChange]]] = {
        "rephrases": [(text, fact) for fact in facts for text in fact.paraphrases],
        "else_asked": [(text.replace(SLOT, fact.subject), fact) for fact in facts for text in ELSE_ASKED],
        "other_facts": [
            (draw.choice(others).replace(SLOT, fact.subject), fact)
            for fact in facts
            if (others := [prompt for prompt in prompts if prompt != fact.prompt])
            for _ in range(OTHERS)
        ],
        "locality": [(item.prompt, fact) for fact in facts for item in fact.locality],
    }
    taught = [replace(fact, rephrases=(), locality=()) for fact in facts]
    encoded = encode_facts(base, state, taught)
    full = replace(state, repository=Repository((Segment.of(taught, encoded.knowledge, encoded.prompts),)))
    found: dict[str, dict[str, float]] = {"recipe": {}, "coachhook": {}}
    for kind, rows in kinds.items():
        if not rows:
            continue
        answers = retrieve(full, [text for text, _ in rows])
        taken = [
            bool(used) and (kind != "rephrases" or taught[row].key == fact.key)
            for used, row, (_, fact) in zip(answers.used, answers.rows[:, 0].tolist(), rows, strict=True)
        ]
        found["recipe"][kind] = sum(taken) / len(rows)
        if kind != "locality":  # which CoachHooK's keys decide about
            found["coachhook"][kind] = sum(asked.asks(text, fact.key.subject) for text, fact in rows) / len(rows)
    return found
