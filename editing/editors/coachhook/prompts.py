"""From a batch's facts to the token rows of its targets: one group for each subject.

Facts of a subject meet in its lookup token, so they share one delta: tonight's facts and those of
earlier batches that still hold. The subject's locality prompts and essence prompt come along, with
the distribution of the base model as what to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from editing.editors.coachhook.config import CoachHookConfig
from editing.facts import SLOT, FactChange, fold
from editing.models import BaseModel
from editing.tokenisation import (
    Tokens,
    find_subject,
    last_subject_token,
    tokenise_prompts,
    tokenise_with_target,
)

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


def _kept_rows(base: BaseModel, facts: Sequence[FactChange], config: CoachHookConfig) -> list[Row]:
    """Rows whose distribution is the base's to keep: locality prompts that name the subject, and the essence prompt.

    A locality prompt that asks what one of the facts changes is left out.
    """
    subject = facts[0].subject
    changed = {fold(text) for fact in facts for text, _ in _about(fact, "rephrases")}
    kept: dict[str, str] = {}
    for fact in facts:
        for item in fact.locality:
            if fold(item.prompt) not in changed and find_subject(item.prompt, subject) >= 0:
                kept.setdefault(item.prompt, item.answer)
    rows: list[Row | None] = []
    if config.preservation > 0:
        for prompt, answer in kept.items():
            rows.append(_kept_row(base, prompt, answer, subject, config.preservation / len(kept)))
    if config.kl_factor > 0:
        rows.append(_kept_row(base, config.essence_prompt.replace(SLOT, subject), "", subject, config.kl_factor))
    return [row for row in rows if row is not None]


def _kept_row(base: BaseModel, prompt: str, answer: str, subject: str, weight: float) -> Row | None:
    if answer.strip():
        tokens, asked = tokenise_with_target(base.tokenizer, [(prompt, answer)], base.form)[0]
    else:
        tokens = tokenise_prompts(base.tokenizer, [prompt], base.form)[0]
        # The position behind the prompt is asked for its distribution; which token stands there is never read.
        tokens = Tokens([*tokens.ids, tokens.ids[-1]], [*tokens.spans, (0, 0)])
        asked = [len(tokens.ids) - 1]
    return _asking(base, tokens, prompt, subject, find_subject(prompt, subject), asked, -1, weight)


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
        rows = (*_fact_rows(base, facts, config), *_kept_rows(base, facts, config))
        groups.append(Group(subject, tuple(facts), rows, tuple(columns.values()), tuple(judged)))
    return groups
