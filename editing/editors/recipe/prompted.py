"""A frozen language model with continuous prompts: `f(p + emb(q))` (arXiv 2405.03279), or `f(emb(q) + p)`.

Shapes: B rows, P prompt tokens, T tokens, D model width, L asked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editing.models import BaseModel
from editing.passes import passes_by_length, side_by_side
from editing.tokenisation import pad, padding_id, tokenise_prompts, tokenise_with_target


@dataclass(frozen=True, slots=True, eq=False)
class AskedRows:
    """Token rows with the places `[L]` that are asked: `row` and `place` of each, and its `label` (-1: none)."""

    ids: tuple[list[int], ...]
    row: Tensor
    place: Tensor
    label: Tensor

    @classmethod
    def targets(cls, base: BaseModel, prompts: Sequence[str], targets: Sequence[str]) -> AskedRows:
        """Each target read after its prompt, every token of it asked. Raises `TokenisationError` for a bad pair."""
        rows = tokenise_with_target(base.tokenizer, list(zip(prompts, targets, strict=True)), base.form)
        asked = [(row, place - 1, ids.ids[place]) for row, (ids, inside) in enumerate(rows) for place in inside]
        return cls.of([ids.ids[: inside[-1]] for ids, inside in rows], asked)

    @classmethod
    def ends(cls, base: BaseModel, prompts: Sequence[str]) -> AskedRows:
        """Each prompt with its end asked: the distribution of the next token."""
        rows = [tokens.ids for tokens in tokenise_prompts(base.tokenizer, prompts, base.form)]
        return cls.of(rows, [(row, len(ids) - 1, -1) for row, ids in enumerate(rows)])

    @classmethod
    def of(cls, ids: Sequence[list[int]], asked: Sequence[tuple[int, int, int]]) -> AskedRows:
        """Rows with (row, place, label) triples."""
        columns = torch.tensor(asked, dtype=torch.int64).reshape(-1, 3).T
        return cls(tuple(ids), columns[0], columns[1], columns[2])

    def logits(self, base: BaseModel, prompts_BPD: Tensor | None, *, behind: bool = False) -> Tensor:
        """Logits `[L, V]` float32 at the asked places, with prompts (None: the base's own) in front of the text, or
        `behind` the first place that is asked of a row.

        Rows of like length share a pass.
        """
        chunks = passes_by_length(self.ids)
        asked = [torch.isin(self.row, torch.tensor(chunk)).nonzero()[:, 0] for chunk in chunks]

        def logits_of(index: int) -> Tensor:
            chunk = chunks[index]
            prompts_bPD = None if prompts_BPD is None else prompts_BPD[chunk]
            return self._part(chunk, asked[index])._pass(base, prompts_bPD, behind)

        parts = side_by_side(logits_of, len(chunks), base.device)
        return torch.cat(parts)[torch.cat(asked).argsort().to(parts[0].device)]

    def mean_by_row(self, values_L: Tensor) -> Tensor:
        """The mean of what belongs to the asked places of each row, `[B]`."""
        row_L = self.row.to(values_L.device)
        rows = len(self.ids)
        return values_L.new_zeros(rows).index_add(0, row_L, values_L) / row_L.bincount(minlength=rows)

    def nats(self, logits_LV: Tensor) -> Tensor:
        """Mean nats per label of each row, `[B]`."""
        return self.mean_by_row(cross_entropy(logits_LV, self.label.to(logits_LV.device), reduction="none"))

    def said(self, logits_LV: Tensor) -> Tensor:
        """Whether every label of a row is the argmax, `[B]`."""
        return self.mean_by_row((logits_LV.argmax(-1) == self.label.to(logits_LV.device)).float()) == 1

    def _part(self, rows: Sequence[int], asked: Tensor) -> AskedRows:
        """These rows, with the places `asked` of theirs."""
        place = {row: index for index, row in enumerate(rows)}
        row = torch.tensor([place[row] for row in self.row[asked].tolist()], dtype=torch.int64)
        return AskedRows(tuple(self.ids[row] for row in rows), row, self.place[asked], self.label[asked])

    def starts(self) -> Tensor:
        """The place behind the first that is asked of each row, where its answer begins, `[B]`."""
        first_B = torch.full((len(self.ids),), max(map(len, self.ids)), dtype=torch.int64)
        return first_B.scatter_reduce(0, self.row, self.place, "amin") + 1

    def _pass(self, base: BaseModel, prompts_BPD: Tensor | None, behind: bool) -> Tensor:
        """`logits` of all rows in one pass; no mask is needed, since the padding is behind all that is asked."""
        device = base.device
        ids_BT = pad(self.ids, padding_id(base.tokenizer), side="right")[0].to(device)
        embeds = base.model.get_input_embeddings()(ids_BT)
        before = 0
        if prompts_BPD is not None:
            before = prompts_BPD.shape[1]
            starts_B = self.starts() if behind else torch.zeros(len(embeds), dtype=torch.int64)
            embeds = Inserted.at(starts_B.to(device), ids_BT.shape[1], before).embeds(embeds, prompts_BPD)
        hidden_BTD = base.model.base_model(
            inputs_embeds=embeds,
            position_ids=torch.arange(embeds.shape[1], device=device)[None].expand(len(embeds), -1),
            use_cache=False,
        ).last_hidden_state
        row, place = (each.to(hidden_BTD.device) for each in (self.row, self.place))
        return base.head(hidden_BTD[row, place + before]).float()


@dataclass(frozen=True, slots=True, eq=False)
class Inserted:
    """Rows of T tokens with P more in each: where the text's tokens are then, and where the prompt's."""

    text_BT: Tensor
    prompt_BP: Tensor

    @classmethod
    def at(cls, starts_B: Tensor, tokens: int, prompt_tokens: int) -> Inserted:
        """The prompt's tokens before what was the token at place `starts_B`; at T: behind all."""
        places_1T = torch.arange(tokens, device=starts_B.device)[None]
        starts_B1 = starts_B[:, None]
        prompt_BP = starts_B1 + torch.arange(prompt_tokens, device=starts_B.device)[None]
        return cls(places_1T + prompt_tokens * (places_1T >= starts_B1), prompt_BP)

    def embeds(self, text_BTD: Tensor, prompts_BPD: Tensor) -> Tensor:
        """The embeddings `[B, T + P, D]` of text and prompt."""
        both_BSD = torch.cat([text_BTD, prompts_BPD.to(text_BTD)], dim=1)
        order_BS = torch.cat([self.text_BT, self.prompt_BP], dim=1).argsort(1)
        return both_BSD.gather(1, order_BS[..., None].expand_as(both_BSD))

    def columns(self, text_BT: Tensor, prompt_BP: Tensor) -> Tensor:
        """What each token has, `[B, T + P]`, from what the text's and the prompt's have."""
        both_BS = torch.cat([text_BT, prompt_BP], dim=1)
        return both_BS.gather(1, torch.cat([self.text_BT, self.prompt_BP], dim=1).argsort(1))


@torch.no_grad()
def target_losses(
    base: BaseModel,
    prompts_NPD: Tensor,
    questions: Sequence[str],
    targets: Sequence[str],
    batch: int,
    *,
    behind: bool = False,
) -> list[tuple[float, bool]]:
    """For each target with its prompt, in front or `behind` the question: mean nats per token, and whether every
    token is the argmax."""
    results: list[tuple[float, bool]] = []
    for begin in range(0, len(questions), batch):
        end = begin + batch
        asked = AskedRows.targets(base, questions[begin:end], targets[begin:end])
        logits_LV = asked.logits(base, prompts_NPD[begin:end], behind=behind).cpu()
        results += zip(asked.nats(logits_LV).tolist(), asked.said(logits_LV).tolist(), strict=True)
    return results
