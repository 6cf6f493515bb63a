"""What a prompt asks: the text that is looked up in the repository."""

from __future__ import annotations

from itertools import takewhile
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from editing.editors.recipe.config import Asked
from editing.prompts import RAW, PromptForm

BLOCK = "\n\n"  # what parts the shots of a few-shot prompt


class Turn(NamedTuple):
    """The texts that a chat template puts before and behind what the user says."""

    before: str
    behind: str


def user_turn(tokenizer: PreTrainedTokenizerBase) -> Turn | None:
    """How the tokenizer's chat template frames a user's message; None without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    said = ("first-message", "reply-message", "second-message")
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    first, rest = text.split(said[0])
    behind_first, rest = rest.split(said[1])
    before_second, behind_second = rest.split(said[2])
    before = _common_start(first[::-1], before_second[::-1])[::-1]
    behind = _common_start(behind_first, behind_second).rstrip()
    return Turn(before, behind) if before and behind else None


class AskedText:
    """Reads what is asked out of the tokens of a prompt: the asked text itself, not the form around it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, asked: Asked, form: PromptForm = RAW) -> None:
        self._tokenizer, self._form = tokenizer, form
        self._last_only = asked == "last_question"
        self._turn = user_turn(tokenizer) if self._last_only or form.name == "chat" else None

    def of_text(self, text: str) -> str:
        """What is asked by a prompt that is given as text, in the form or not."""
        rendered = self._form.render(text)[0]
        return self.of_ids(self._tokenizer(rendered, add_special_tokens=self._form.special_tokens)["input_ids"])

    def of_ids(self, ids: list[int]) -> str:
        """The whole prompt, or its last question: what the user said last in the chat template's form, and of that
        the last block, where blocks are parted by empty lines."""
        text = None
        if self._turn is not None:
            framed = str(self._tokenizer.decode(ids))
            if self._turn.before in framed:
                text = framed.rsplit(self._turn.before, 1)[1].split(self._turn.behind, 1)[0]
        if text is None:
            text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        if self._form.name == "question" and not self._last_only:
            text = self._form.asked(text)
        return _last_block(text) if self._last_only else text.strip()


def _common_start(one: str, two: str) -> str:
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


def _last_block(text: str) -> str:
    return text.strip().rsplit(BLOCK, 1)[-1].strip()
