"""The form in which a model is asked: what stands around a question, and what ends its answer.

An instruct model answers inside its chat template and ends its turn; asked a bare question it does neither well. One
form per base model is used for editing, keys, evals, canaries, explanations and serving alike, so that what was edited
and scored is what is served.

- `raw`: the prompt as it stands, the answer after a space; for a plain model.
- `question`: "Question: ...", "Answer:", and the end of the text after the answer; a cloze prompt as it stands.
- `chat`: the user's turn of the tokenizer's chat template; the end of the model's turn belongs to the answer.
"""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from editing.errors import ConfigError

FormName = Literal["raw", "question", "chat"]
FormChoice = Literal["auto", "raw", "question", "chat"]
_ASKED, _REPLY = "the-asked-text", "the-replied-text"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptForm:
    """What stands `before` and `behind` an asked text, `joint` between that and the answer, `end` after the answer.

    `special_tokens` says that the tokenizer adds its own (a BOS) to the whole; a chat template writes them itself.
    """

    name: FormName = "raw"
    before: str = ""
    behind: str = ""
    joint: str = " "
    end: str = ""
    special_tokens: bool = True

    def frame(self, prompt: str) -> tuple[str, str]:
        """What stands before and behind `prompt`; in the form `question` a cloze prompt stands alone."""
        if self.name == "question" and is_cloze(prompt):
            return "", ""
        return self.before, self.behind

    def render(self, prompt: str) -> tuple[str, int]:
        """The text that the model reads, up to where its answer begins, and the character where `prompt` starts.

        Trailing spaces of the prompt are dropped: the answer brings its own.
        """
        before, behind = self.frame(prompt)
        return f"{before}{prompt.rstrip()}{behind}", len(before)

    def answer(self, prompt: str, target: str) -> str:
        """What the model is to write after the rendered `prompt`: the joint, the target, and the end of its turn."""
        head, said = self.render(prompt)[0], target.strip()
        joint = self.joint if head and takes_space(head, said) else ""
        return f"{joint}{said}{self.end}"

    def asked(self, text: str) -> str:
        """The asked text out of a rendered one; `text` itself where nothing of the form is in it."""
        before, behind = self.before, self.behind
        if before and before.strip() in text:
            text = text.rsplit(before.strip(), 1)[1]
            text = text.split(behind.strip(), 1)[0] if behind.strip() else text
        return text.strip()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `PromptForm(**content)` is the inverse."""
        return asdict(self)


RAW = PromptForm()


def is_cloze(prompt: str) -> bool:
    """Whether `prompt` is a sentence to go on with ("The capital of France is"), not one that has ended."""
    text = prompt.rstrip()
    return bool(text) and not unicodedata.category(text[-1]).startswith("P")


def takes_space(head: str, target: str) -> bool:
    """Whether a space parts `head` and `target`: not after an opening quote or bracket or a currency sign, nor
    between letters of scripts that write without spaces."""
    last = unicodedata.category(head[-1])
    if last in ("Ps", "Pi", "Sc") or (head[-1] == '"' and head.count('"') % 2):
        return False
    return not (_unspaced(head[-1]) and target and _unspaced(target[0]))


def _unspaced(character: str) -> bool:
    return unicodedata.category(character) == "Lo" and unicodedata.east_asian_width(character) in ("W", "F")


def find_form(tokenizer: PreTrainedTokenizerBase, choice: FormChoice = "auto", system: str | None = None) -> PromptForm:
    """The form `choice` for a model with this tokenizer; `auto` is `chat` where there is a chat template, else `raw`.

    `system` is the system text of the chat template; None leaves the template's own.
    Raises `ConfigError` for an unknown choice, and for `chat` without a template that renders a user's turn.
    """
    if choice not in get_args(FormChoice):
        raise ConfigError(f"prompts.form {choice!r} is unknown; use one of {', '.join(get_args(FormChoice))}")
    if choice == "auto":
        choice = "chat" if getattr(tokenizer, "chat_template", None) else "raw"
    if choice == "raw":
        return RAW
    if choice == "question":
        return PromptForm(
            name="question", before="Question: ", behind="\nAnswer:", end=str(tokenizer.eos_token or "\n")
        )
    return _chat_form(tokenizer, system)


def _chat_form(tokenizer: PreTrainedTokenizerBase, system: str | None) -> PromptForm:
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "prompts.form is 'chat' and the tokenizer has no chat template; use 'question' or 'raw', or add a "
            "chat_template to the tokenizer"
        )
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": _ASKED})
    try:
        opened = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        replied = str(
            tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": _REPLY}], tokenize=False)
        )
    except Exception as error:  # a template is a program of its own and raises what it likes
        hint = "; leave prompts.system unset" if system is not None else ""
        raise ConfigError(f"the tokenizer's chat template does not render a user's turn: {error}{hint}") from error
    if opened.count(_ASKED) != 1 or _REPLY not in replied:
        raise ConfigError(
            "the tokenizer's chat template does not show the user's text once and the reply; use the form 'question'"
        )
    before, behind = opened.split(_ASKED)
    head, tail = replied.rsplit(_REPLY, 1)
    joint = head[len(opened) :] if head.startswith(opened) else ""
    return PromptForm(
        name="chat", before=before, behind=behind, joint=joint, end=_turn_end(tokenizer, tail), special_tokens=False
    )


def _turn_end(tokenizer: PreTrainedTokenizerBase, tail: str) -> str:
    """The token that ends a reply: the special one that `tail`, what follows a reply, begins with; else the EOS."""
    known = {str(token) for token in tokenizer.get_added_vocab()} | set(map(str, tokenizer.all_special_tokens))
    found = [token for token in known if tail.lstrip().startswith(token)]
    return max(found, key=len) if found else str(tokenizer.eos_token or "\n")
