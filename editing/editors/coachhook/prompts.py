"""From a batch's facts to the token rows of its targets: one group for each subject.

Facts of a subject meet in its lookup token, so they share one delta: tonight's facts and those of
earlier batches that still hold. The locality prompts that name the subject, of whatever fact, and its essence prompt
come along, with the distribution of the base model as what to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from editing.editors.coachhook.config import CoachHookConfig
from editing.facts import SLOT, FactChange, LocalityPrompt, fold
from editing.models import BaseModel
from editing.tokenisation import (
    Tokens,
    find_subject,
    last_subject_token,
    pad,
    padding_id,
    tokenise_prompts,
    tokenise_with_target,
)

KEPT_TOKENS = 6  # of the model's own answer to a prompt whose distribution is kept
ANSWERED = 64  # prompts that are answered in one pass
BY_KEY = ("leverage", "calibrated")  # scopes that judge a token by its own key, so that more keys can be judged


@dataclass(frozen=True, slots=True)
class Row:
    """A token sequence with its lookup token, and what is asked of it.

    The tokens `ids[at]` for `at` in `asked` are predicted from the positions before them; each
    position weighs `weight`. `fact` is the fact's place in its group, -1 where the base's own
    distribution is to be kept.
    """

    ids: tuple[int, ...]
    lookup: int
    asked: tuple[int, ...]
    fact: int
    weight: float

    @property
    def columns(self) -> int:
        """Positions from the lookup token to the last that predicts."""
        return len(self.ids) - 1 - self.lookup


@dataclass(frozen=True, slots=True)
class Context:
    """A prompt and its lookup token; `text` ends with the subject."""

    text: str
    ids: tuple[int, ...]
    lookup: int

    @property
    def key(self) -> tuple[int, ...]:
        """The tokens up to the lookup token: in a causal model, contexts that agree in them share a key."""
        return self.ids[: self.lookup + 1]


@dataclass(frozen=True, slots=True)
class Column:
    """A lookup context whose target the solve sets: the bare prompt, and one variant per context prefix."""

    bare: Context
    prefixed: tuple[Context, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """One subject's part of a batch: `facts` (tonight's first), `rows` of the objective, `columns` of the solve.

    `judged` are the contexts of the facts that the scope's threshold must let through.
    """

    subject: str
    facts: tuple[FactChange, ...]
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    judged: tuple[Context, ...]

    def owner(self, context: Context) -> Column:
        """The column whose target a token of `context` gets: the one with its key, else the first."""
        return next((column for column in self.columns if column.bare.key == context.key), self.columns[0])


def _start_of_subject(fact: FactChange, text: str) -> int:
    """Where the subject starts in the fact's edit prompt, or in another text about it (-1: nowhere)."""
    return fact.subject_start if text == fact.question else find_subject(text, fact.subject)


def _about(fact: FactChange, wanted: str) -> list[tuple[str, int]]:
    """The fact's edit prompt, and with `rephrases` those of its paraphrases that name the subject, with its start."""
    texts = [fact.question, *(fact.paraphrases if wanted == "rephrases" else ())]
    found = [(text, _start_of_subject(fact, text)) for text in dict.fromkeys(texts)]
    return [(text, start) for text, start in found if start >= 0]


def _lookup(base: BaseModel, tokens: Tokens, text: str, subject: str, start: int) -> int:
    """The lookup token in the tokens of `text` as it is served, of a subject that starts at character `start`."""
    rendered, shift = base.form.render(text)
    return last_subject_token(tokens, rendered, subject, start + shift if start >= 0 else start)


def _context(base: BaseModel, text: str, subject: str, start: int) -> Context:
    tokens = tokenise_prompts(base.tokenizer, [text], base.form)[0]
    lookup = _lookup(base, tokens, text, subject, start)
    return Context(text[: start + len(subject)], tuple(tokens.ids), lookup)


def _asking(
    base: BaseModel, tokens: Tokens, text: str, subject: str, start: int, asked: Sequence[int], fact: int, weight: float
) -> Row | None:
    """A row cut behind the last position that is asked, or None when the lookup token comes too late to matter."""
    lookup = _lookup(base, tokens, text, subject, start)
    seen = [at for at in asked if at > lookup]
    if not seen:
        return None
    return Row(tuple(tokens.ids[: seen[-1] + 1]), lookup, tuple(seen), fact, weight / len(seen))


def _fact_rows(base: BaseModel, facts: Sequence[FactChange], config: CoachHookConfig) -> list[Row]:
    rows: list[Row] = []
    for index, fact in enumerate(facts):
        variants = [
            (context + text, start + len(context))
            for text, start in _about(fact, config.optimise_over)
            for context in config.contexts
        ]
        share = 1 / (len(facts) * len(variants))
        encoded = tokenise_with_target(base.tokenizer, [(text, fact.target) for text, _ in variants], base.form)
        for (text, start), (tokens, asked) in zip(variants, encoded, strict=True):
            row = _asking(base, tokens, text, fact.subject, start, asked, index, share)
            assert row is not None, "a prompt with its subject comes before its target"
            rows.append(row)
    return rows


def _to_keep(
    facts: Sequence[FactChange], told: Mapping[LocalityPrompt, str], config: CoachHookConfig
) -> dict[str, float]:
    """The prompts to which the base's own answers are to be kept, with their weights: the essence prompt, and those of
    the locality prompts `told` (each with its folded text) that name the subject, whichever fact they came with.

    Left out is a locality prompt that asks what one of the facts changes, or expects what one of them replaces.
    """
    subject, folded = facts[0].subject, facts[0].key.subject
    changed = {fold(text) for fact in facts for text, _ in _about(fact, "rephrases")}
    replaced = {fold(fact.target_old) for fact in facts if fact.target_old is not None}
    named = {
        item.prompt: None
        for item, text in told.items()
        if folded in text
        and text not in changed
        and fold(item.answer) not in replaced
        and find_subject(item.prompt, subject) >= 0
    }
    kept = {config.essence_prompt.replace(SLOT, subject): config.kl_factor}
    kept |= {text: config.preservation / len(named) for text in named}
    return {text: weight for text, weight in kept.items() if weight > 0}


def _kept_row(base: BaseModel, prompt: str, said: Sequence[int], subject: str, weight: float) -> Row | None:
    """A row that holds the base's distribution over `said`, the tokens of its own answer."""
    tokens = tokenise_prompts(base.tokenizer, [prompt], base.form)[0]
    count = len(tokens.ids)
    whole = Tokens([*tokens.ids, *said], [*tokens.spans, *[(0, 0)] * len(said)])
    asked = range(count, count + len(said))
    return _asking(base, whole, prompt, subject, find_subject(prompt, subject), asked, -1, weight)


@torch.no_grad()
def _answers(base: BaseModel, prompts: Sequence[str]) -> list[list[int]]:
    """The first `KEPT_TOKENS` tokens that the model adds to each prompt, up to the end of its answer, greedily."""
    found: list[list[int]] = []
    for begin in range(0, len(prompts), ANSWERED):
        rows = [tokens.ids for tokens in tokenise_prompts(base.tokenizer, prompts[begin : begin + ANSWERED], base.form)]
        ids, mask = (each.to(base.device) for each in pad(rows, padding_id(base.tokenizer), side="left"))
        out = base.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=KEPT_TOKENS,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            pad_token_id=padding_id(base.tokenizer),
            eos_token_id=list(base.stop_ids) or None,
        )
        for made in out[:, ids.shape[1] :].tolist():
            ends = [made.index(token) + 1 for token in base.stop_ids if token in made]
            found.append(made[: min(ends, default=len(made))])
    return found


def make_groups(
    base: BaseModel,
    batch: Sequence[FactChange],
    earlier: Sequence[FactChange],
    config: CoachHookConfig,
) -> list[Group]:
    """One group for each subject of `batch`, in order of first appearance.

    `earlier` are the facts that hold so far; those whose key the batch takes over are left out.
    Raises `TokenisationError` when a subject, prompt or target has no tokens.
    """
    superseded = {fact.key for fact in batch}
    by_subject: dict[str, list[FactChange]] = {fact.key.subject: [] for fact in batch}
    for fact in (*batch, *(fact for fact in earlier if fact.key not in superseded)):
        if fact.key.subject in by_subject:
            by_subject[fact.key.subject].append(fact)
    told = {item: fold(item.prompt) for fact in (*batch, *earlier) for item in fact.locality}
    by_name = {subject: _to_keep(facts, told, config) for subject, facts in by_subject.items()}
    asked = list(dict.fromkeys(text for kept in by_name.values() for text in kept))
    answers = dict(zip(asked, _answers(base, asked), strict=True))
    groups = []
    for subject, facts in by_subject.items():
        columns: dict[tuple[int, ...], Column] = {}
        for fact in facts:
            for text, start in _about(fact, config.optimise_over):
                bare = _context(base, text, fact.subject, start)
                prefixed = (
                    _context(base, prefix + text, fact.subject, len(prefix) + start) for prefix in config.contexts
                )
                columns.setdefault(bare.key, Column(bare, tuple(prefixed)))
        judged = (
            _context(base, text, fact.subject, start)
            for fact in facts
            for text, start in _about(fact, config.alpha_over if config.scope in BY_KEY else "prompt")
        )
        kept = (
            _kept_row(base, text, answers[text], facts[0].subject, weight) for text, weight in by_name[subject].items()
        )
        rows = (*_fact_rows(base, facts, config), *(row for row in kept if row is not None))
        groups.append(Group(subject, tuple(facts), rows, tuple(columns.values()), tuple(judged)))
    return groups
