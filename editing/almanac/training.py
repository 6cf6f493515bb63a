"""Trains the Almanac's language model so that it holds its facts where editors edit them.

A small transformer trained on plain text reads a subject's raw embedding from the last token, and
then no edit of a middle layer can change what it says. Three objectives, all on an unchanged
GPT-NeoX architecture, move every fact into the state of the last subject token after layer
`mediation_layer`:

- *Whole-state interchange* (Geiger et al. 2022, "Inducing causal structure for interpretable neural
  networks"): that state is replaced by another subject's, and the answer becomes the other
  subject's.
- *Subspace interchange* (Geiger et al. 2023, "Finding alignments between interpretable causal
  variables and distributed neural representations"): only one relation's orthonormal block is
  replaced. Asked about that relation the answer becomes the other subject's, asked about any other
  relation it stays.
- *Fictional holders*: the block is set to a learned code of a name that need never have been the
  subject's answer, and the model must say that name. A real new holder of an office has never been
  anyone's answer for it; this is how the model learns to read such a state.

In every second step, and in most facts of plain texts, an attention mask hides the subject from
later tokens everywhere but in the mediated state, so that no detour is learned for subjects that no
interchange covers.

A further term ties the inputs of the edited MLPs at the last subject token to those of the bare
subject, whatever precedes it, so that an edit keyed by one phrasing is found by the others.

Shape suffixes: B rows, T tokens, D width, F MLP inner width, R width of one relation's block.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from editing.almanac import corpus
from editing.almanac.world import BELIEF, Fact, World
from editing.editors.base import Progress
from editing.facts import SLOT
from editing.tokenisation import pad, tokenise

END = "<|endoftext|>"
CODES = "mediation.safetensors"  # the name codes, beside the model
LOG = "training.json"
TEXT_SORTS = ("short", "choice", "arithmetic")
FICTIONAL_ROUNDS = 10  # how often an invented subject carries each name


@dataclass(frozen=True, slots=True, kw_only=True)
class AlmanacConfig:
    """Everything that decides the weights, besides the world's tables."""

    width: int = 192
    layers: int = 6
    heads: int = 6
    vocabulary: int = 3072
    positions: int = 512
    mediation_layer: int = 2  # index of the block after which a fact must sit at the last subject token
    steps: int = 2200
    text_rows: tuple[int, int, int] = (22, 30, 14)  # short texts, multiple-choice questions, word problems
    interchange_rows: int = 112
    fictional_share: float = 0.15  # of interchange rows about invented subjects, all of whose blocks are codes
    dated_share: float = 0.4  # of interchange rows about facts that a feed will change, besides their share at large
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    key_weight: float = 0.05  # weight of the term that ties contextual keys to bare ones
    code_rate: float = 10.0  # learning rate of the name codes, relative to that of the model
    held_out_subjects: float = 0.05  # share of subjects that no interchange is ever trained on
    held_out_from: float = 0.4  # share of the steps after which those subjects' facts join the texts
    held_out_rows: float = 0.25  # share of the facts in texts that are theirs from then on
    shielded_texts: float = 0.95  # share of the facts in texts that are read from the mediated state alone
    seed: int = 0

    @property
    def edited_layers(self) -> tuple[int, ...]:
        """The layers an editor is expected to edit: the two that end at the mediation layer."""
        return (self.mediation_layer - 1, self.mediation_layer)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; every word, also the first, carries its leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's token ids and the indices of its first and last subject tokens."""

    ids: tuple[int, ...]
    first: int
    lookup: int


class Prompts:
    """Tokenised prompts, answers and bare subjects, each made once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, world: World) -> None:
        self.tokenizer = tokenizer
        self.world = world
        self._prompts: dict[tuple[str, str], Prompt] = {}
        self._answers: dict[str, tuple[int, ...]] = {}

    def prompt(self, phrasing: str, subject: str) -> Prompt:
        """`phrasing` about `subject`."""
        key = (phrasing, subject)
        if key not in self._prompts:
            tokens = tokenise(self.tokenizer, [phrasing.replace(SLOT, subject)])[0]
            start = phrasing.index(SLOT)
            inside = tokens.within(start, start + len(subject))
            self._prompts[key] = Prompt(tuple(tokens.ids), inside[0], inside[-1])
        return self._prompts[key]

    def bare(self, subject: str) -> Prompt:
        """`subject` alone."""
        return self.prompt(SLOT, subject)

    def answer(self, target: str) -> tuple[int, ...]:
        """The tokens of `target` and the full stop that ends it."""
        if target not in self._answers:
            self._answers[target] = tuple(self.tokenizer(f"{target}.")["input_ids"])
        return self._answers[target]


class Mediated(nn.Module):
    """The base model cut open at the mediation layer, and what only training needs: the name codes.

    `blocks_DR[relation]` is that relation's orthonormal basis: fixed and seeded. The relations of
    one kind of subject share out the whole width, so that no dimension is left to hide a fact in.
    """

    def __init__(self, model: GPTNeoXForCausalLM, world: World, config: AlmanacConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        rotation_DD = torch.linalg.qr(torch.randn(config.width, config.width, generator=generator))[0]
        self.blocks_DR: dict[str, Tensor] = {}
        for kind in dict.fromkeys(relation.subject_kind for relation in world.relations.values()):
            names = [relation.name for relation in world.relations.values() if relation.subject_kind == kind]
            width = config.width // len(names)
            for place, name in enumerate(names):
                self.blocks_DR[name] = rotation_DD[:, place * width : (place + 1) * width].contiguous()
        self.widest = max(block.shape[1] for block in self.blocks_DR.values())
        self.names: dict[tuple[str, str], int] = {}
        for relation in world.relations.values():
            for name in world.objects(relation.object_kind):
                self.names.setdefault((relation.object_kind, name), len(self.names))
        self.codes = nn.Embedding(len(self.names), self.widest)

    def padded_block(self, relation: str) -> Tensor:
        """The relation's basis with zero columns up to the widest, `[D, R]`."""
        block_DR = self.blocks_DR[relation]
        return F.pad(block_DR, (0, self.widest - block_DR.shape[1]))

    def code(self, code_K: Tensor, basis_KDR: Tensor) -> Tensor:
        """The codes of names in these (padded) bases: unit vectors `[K, R]`, zero where a basis has no column."""
        return F.normalize(self.codes(code_K)[:, : basis_KDR.shape[2]] * (basis_KDR.norm(dim=1) > 0), dim=-1)

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """The rotary embeddings of positions 0..T-1."""
        return self.model.gpt_neox.rotary_emb(self.codes.weight, torch.arange(length)[None])

    def lower(
        self, ids_BT: Tensor, lookup_B: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """States after the mediation layer [B, T, D], and the edited layers' MLP inputs [B, F] at `lookup_B`.

        `mask` is an additive attention mask [B or 1, 1, T, T], causal by default.
        """
        rotary, mask = self.rotary(ids_BT.shape[1]), causal_mask(ids_BT.shape[1]) if mask is None else mask
        hidden_BTD = self.model.gpt_neox.embed_in(ids_BT)
        keys: list[Tensor] = []
        rows = torch.arange(len(ids_BT))

        def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
            keys.append(inputs[0][rows, lookup_B])

        for index in range(self.config.mediation_layer + 1):
            layer = self.model.gpt_neox.layers[index]
            watched = lookup_B is not None and index in self.config.edited_layers
            down = layer.get_submodule("mlp.dense_4h_to_h")
            handle = down.register_forward_pre_hook(keep) if watched else None
            hidden_BTD = layer(hidden_BTD, attention_mask=mask, position_embeddings=rotary)
            if handle is not None:
                handle.remove()
        return hidden_BTD, keys

    def upper(self, hidden_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
        """Final normalised states [B, T, D] from states after the mediation layer; `mask` as in `lower`."""
        length = hidden_BTD.shape[1]
        rotary, mask = self.rotary(length), causal_mask(length) if mask is None else mask
        for layer in self.model.gpt_neox.layers[self.config.mediation_layer + 1 :]:
            hidden_BTD = layer(hidden_BTD, attention_mask=mask, position_embeddings=rotary)
        return self.model.gpt_neox.final_layer_norm(hidden_BTD)

    def loss(self, hidden_BTD: Tensor, ids_BT: Tensor, scored_BT: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens of `ids_BT` where `scored_BT`, from the states before them."""
        at = scored_BT[:, 1:]
        logits = self.model.lm_head(hidden_BTD[:, :-1][at])
        return F.cross_entropy(logits.float(), ids_BT[:, 1:][at])


def causal_mask(length: int) -> Tensor:
    """Additive attention mask [1, 1, T, T]."""
    return torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]


def shields(length: int, first_B: Tensor, lookup_B: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [B, 1, T, T] under which later tokens learn of the subject from the mediated state alone.

    Below the mediation layer they see no subject token, above it only the last one.
    """
    place = torch.arange(length)
    later = place[None, :, None] > lookup_B[:, None, None]
    from_first = place[None, None, :] >= first_B[:, None, None]
    below = later & from_first & (place[None, None, :] <= lookup_B[:, None, None])
    above = later & from_first & (place[None, None, :] < lookup_B[:, None, None])
    low = torch.finfo(torch.float32).min
    causal = causal_mask(length)
    return tuple(causal.masked_fill(blocked[:, None], low) for blocked in (below, above))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of a text row and, for each, whether its loss counts.

    `subject` holds the indices of the first and the last token of a subject that is shielded.
    """

    ids: list[int]
    scored: list[bool]
    subject: tuple[int, int] | None = None

    def __add__(self, other: Row) -> Row:
        moved = other.subject and (other.subject[0] + len(self.ids), other.subject[1] + len(self.ids))
        return Row(self.ids + other.ids, self.scored + other.scored, moved or self.subject)


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Text rows as tensors; `below` and `above` are the attention masks up to the mediation layer and after it."""

    ids_BT: Tensor
    scored_BT: Tensor
    below: Tensor
    above: Tensor


@dataclass(slots=True)
class Intervention:
    """A base prompt, what replaces the state at its lookup token, and the answer expected then.

    The state becomes that of `source`, whole (`block` is None) or in one relation's block; `codes`
    are (relation, name code) pairs that set further blocks, whatever the source.
    """

    prompt: Prompt
    bare: Prompt
    answer: tuple[int, ...]
    source: Prompt | None = None
    block: str | None = None
    codes: list[tuple[str, int]] = field(default_factory=list)


@dataclass(slots=True)
class InterchangeBatch:
    """Interventions as tensors: B base prompts, S of them with a source, K blocks replaced in all."""

    ids_BT: Tensor
    scored_BT: Tensor
    first_B: Tensor
    lookup_B: Tensor
    bare_ids_BT: Tensor
    bare_lookup_B: Tensor
    source_ids_ST: Tensor
    source_lookup_S: Tensor
    source_row_S: Tensor
    whole_S: Tensor  # the row's whole state is the source's
    row_K: Tensor
    basis_KDR: Tensor
    code_K: Tensor  # index of the name code put into the block
    from_K: Tensor  # place in S of the source whose block it is instead, or -1


class InterchangeSampler:
    """Draws interchange batches over the facts of the world, without those of the held-out subjects."""

    def __init__(
        self, world: World, facts: Sequence[Fact], prompts: Prompts, mediated: Mediated, train_phrasings: Phrasings
    ) -> None:
        self.world = world
        self.prompts = prompts
        self.mediated = mediated
        self.phrasings = train_phrasings
        self.values: dict[str, dict[str, str]] = {}
        for fact in facts:
            self.values.setdefault(fact.subject, {})[fact.relation] = fact.object
        config = mediated.config
        chooser = random.Random(config.seed + 1)
        subjects = sorted(self.values)
        self.held_out = set(chooser.sample(subjects, round(config.held_out_subjects * len(subjects))))
        self.facts = [fact for fact in facts if fact.subject not in self.held_out]
        self.dated = [fact for fact in self.facts if fact.relation not in world.static_relations]
        self.objects = {r.object_kind: world.objects(r.object_kind) for r in world.relations.values()}
        self.by_relation: dict[str, list[str]] = {}
        for fact in self.facts:
            self.by_relation.setdefault(fact.relation, []).append(fact.subject)
        self.fictional = corpus.fictional_holders(world, config.seed, FICTIONAL_ROUNDS)
        self.fill = prompts.tokenizer.pad_token_id

    def batches(self, rng: random.Random, rows: int) -> list[InterchangeBatch]:
        """`rows` interventions in two batches, the shorter prompts in the first."""
        drawn = sorted((self._draw(rng) for _ in range(rows)), key=lambda one: len(one.prompt.ids))
        half = (rows + 1) // 2
        return [self._collate(part) for part in (drawn[:half], drawn[half:]) if part]

    def _draw(self, rng: random.Random) -> Intervention:
        config = self.mediated.config
        if rng.random() < config.fictional_share:
            return self._fictional(rng)
        fact = rng.choice(self.dated if rng.random() < config.dated_share else self.facts)
        one = Intervention(
            self.prompts.prompt(self.phrasings.draw(rng, fact), fact.subject),
            self.prompts.bare(fact.subject),
            self.prompts.answer(fact.object),
        )
        draw = rng.random()
        if draw < 0.06:
            return one
        if draw < 0.18:  # the whole state of another subject with the same relation
            source = rng.choice(self.by_relation[fact.relation])
            one.source = self._state_of(rng, source)
            one.answer = self.prompts.answer(self.values[source][fact.relation])
            return one
        asked = rng.random() < 0.7
        patched = fact.relation if asked else rng.choice(sorted(self.values[fact.subject]))
        if draw < 0.62:  # one block of another subject
            source = rng.choice(self.by_relation[patched])
            one.source, one.block = self._state_of(rng, source), patched
            said = self.values[source][patched]
        else:  # one block is a name's code, or every block is
            said = self._name(rng, one, patched)
            if rng.random() < 0.5:
                others = [(other, self._name(rng, one, other)) for other in self._others(fact.subject, patched)]
                said = {patched: said, **dict(others)}[fact.relation]
                patched = fact.relation
        if patched == fact.relation:
            one.answer = self.prompts.answer(said)
        return one

    def _fictional(self, rng: random.Random) -> Intervention:
        """A question about a subject that does not exist, all of whose blocks are codes."""
        holder = rng.choice(self.fictional)
        fact = rng.choice(holder.facts)
        return Intervention(
            self.prompts.prompt(rng.choice(self.world.relations[fact.relation].phrasings), holder.name),
            self.prompts.bare(holder.name),
            self.prompts.answer(fact.object),
            codes=[(known.relation, self._code(known.relation, known.object)) for known in holder.facts],
        )

    def _state_of(self, rng: random.Random, subject: str) -> Prompt:
        """A prompt that ends in or goes on after `subject`, whose state at the lookup token is to be used."""
        if rng.random() < 0.5:
            return self.prompts.bare(subject)
        relation = rng.choice(sorted(self.values[subject]))
        return self.prompts.prompt(rng.choice(self.world.relations[relation].phrasings), subject)

    def _others(self, subject: str, relation: str) -> list[str]:
        return [other for other in sorted(self.values[subject]) if other != relation]

    def _code(self, relation: str, name: str) -> int:
        return self.mediated.names[self.world.relations[relation].object_kind, name]

    def _name(self, rng: random.Random, one: Intervention, relation: str) -> str:
        """Put the code of a random object that could be the relation's value into its block."""
        name = rng.choice(self.objects[self.world.relations[relation].object_kind])
        one.codes.append((relation, self._code(relation, name)))
        return name

    def _collate(self, drawn: Sequence[Intervention]) -> InterchangeBatch:
        ids = [one.prompt.ids + one.answer for one in drawn]
        scored = [[0] * len(one.prompt.ids) + [1] * len(one.answer) for one in drawn]
        sourced = [row for row, one in enumerate(drawn) if one.source is not None]
        sources = [one.source for one in drawn if one.source is not None] or [Prompt((self.fill,), 0, 0)]
        blocks = [(row, relation, code, -1) for row, one in enumerate(drawn) for relation, code in one.codes]
        blocks += [(row, one.block, 0, sourced.index(row)) for row, one in enumerate(drawn) if one.block is not None]
        bases = [self.mediated.padded_block(relation) for _, relation, _, _ in blocks]
        return InterchangeBatch(
            ids_BT=pad(ids, self.fill, side="right")[0],
            scored_BT=pad(scored, 0, side="right")[0].bool(),
            first_B=torch.tensor([one.prompt.first for one in drawn]),
            lookup_B=torch.tensor([one.prompt.lookup for one in drawn]),
            bare_ids_BT=pad([one.bare.ids for one in drawn], self.fill, side="right")[0],
            bare_lookup_B=torch.tensor([one.bare.lookup for one in drawn]),
            source_ids_ST=pad([source.ids for source in sources], self.fill, side="right")[0],
            source_lookup_S=torch.tensor([source.lookup for source in sources]),
            source_row_S=torch.tensor(sourced or [0]),
            whole_S=torch.tensor([drawn[row].block is None for row in sourced] or [False]),
            row_K=torch.tensor([row for row, *_ in blocks], dtype=torch.long),
            basis_KDR=torch.stack(bases) if bases else torch.zeros(0, self.mediated.config.width, 1),
            code_K=torch.tensor([code for _, _, code, _ in blocks], dtype=torch.long),
            from_K=torch.tensor([place for *_, place in blocks], dtype=torch.long),
        )


class Phrasings:
    """Which phrasings of a fact are trained on; one per fact is held out."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed

    def held_out(self, fact: Fact) -> str:
        """The phrasing of `fact` that training never sees."""
        choices = self.world.relations[fact.relation].phrasings
        return random.Random(f"{self.seed}/{fact.subject}/{fact.relation}").choice(choices)

    def draw(self, rng: random.Random, fact: Fact) -> str:
        """A trained phrasing of `fact`."""
        choices = self.world.relations[fact.relation].phrasings
        held = self.held_out(fact)
        while (choice := rng.choice(choices)) == held:
            pass
        return choice


def interchange(
    mediated: Mediated, batch: InterchangeBatch, rng: torch.Generator, *, shielded: bool
) -> tuple[Tensor, Tensor]:
    """The answer loss after the interventions, and the key loss of the base prompts.

    A block moves by a random share around 1 of the way from the base's to the new one, with a
    little noise, so that reading it survives an edit that is not exact. A code is put in with the
    length of the block that it replaces.
    """
    rows = torch.arange(len(batch.ids_BT))
    below, above = shields(batch.ids_BT.shape[1], batch.first_B, batch.lookup_B) if shielded else (None, None)
    hidden_BTD, keys = mediated.lower(batch.ids_BT, batch.lookup_B, below)
    with torch.no_grad():
        _, bare_keys = mediated.lower(batch.bare_ids_BT, batch.bare_lookup_B)
    source_STD, _ = mediated.lower(batch.source_ids_ST)
    base_BD = hidden_BTD[rows, batch.lookup_B].float()
    source_SD = source_STD[torch.arange(len(source_STD)), batch.source_lookup_S].float()
    whole = batch.whole_S
    state_BD = base_BD.index_put((batch.source_row_S[whole],), source_SD[whole])
    old_KR = torch.einsum("kd,kdr->kr", base_BD[batch.row_K], batch.basis_KDR)
    radius_K1 = old_KR.detach().norm(dim=-1, keepdim=True)
    code_KR = mediated.code(batch.code_K, batch.basis_KDR) * radius_K1
    taken_KR = torch.einsum("kd,kdr->kr", source_SD[batch.from_K], batch.basis_KDR)
    new_KR = torch.where((batch.from_K >= 0)[:, None], taken_KR, code_KR)
    share_K1 = 0.8 + 0.35 * torch.rand(len(new_KR), 1, generator=rng)
    width_K1 = (batch.basis_KDR.norm(dim=1) > 0).sum(1, keepdim=True)
    noise_KR = torch.randn(new_KR.shape, generator=rng) * radius_K1 * 0.1 / width_K1**0.5
    change_KD = torch.einsum("kr,kdr->kd", share_K1 * (new_KR - old_KR) + noise_KR, batch.basis_KDR)
    state_BD = state_BD.index_add(0, batch.row_K, change_KD.to(state_BD.dtype))
    hidden_BTD = hidden_BTD.index_put((rows, batch.lookup_B), state_BD.to(hidden_BTD.dtype))
    answer_loss = mediated.loss(mediated.upper(hidden_BTD, above), batch.ids_BT, batch.scored_BT)
    key_loss = torch.zeros(())
    for key_BF, bare_BF in zip(keys, bare_keys, strict=True):
        spread = (bare_BF.float() - bare_BF.float().mean(0)).pow(2).sum(-1).mean()
        key_loss = key_loss + (key_BF.float() - bare_BF.float()).pow(2).sum(-1).mean() / spread.clamp(min=1e-6)
    return answer_loss, key_loss / len(keys)


class TextSampler:
    """Draws plain-text rows: facts, mentions of names, multiple-choice questions and word problems."""

    def __init__(
        self, world: World, facts: Sequence[Fact], prompts: Prompts, phrasings: Phrasings, config: AlmanacConfig
    ) -> None:
        self.world = world
        self.facts = list(facts)
        self.joined: list[Fact] = []
        self.joined_share = config.held_out_rows
        self.shielded = config.shielded_texts
        self.static = [fact for fact in facts if fact.relation in world.static_relations]
        self.rows = config.text_rows
        self.prompts = prompts
        self.phrasings = phrasings
        self.mentions = corpus.mention_sentences(world)
        self.end = prompts.tokenizer.eos_token_id

    def join(self, facts: Sequence[Fact]) -> None:
        """Draw from these facts too, from now on, and more often than from the others, which had their time."""
        self.joined = list(facts)
        self.static += [fact for fact in facts if fact.relation in self.world.static_relations]

    def _text(self, text: str) -> Row:
        ids = self.prompts.tokenizer(text)["input_ids"]
        return Row(ids, [False] + [True] * (len(ids) - 1))

    def _fact(self, rng: random.Random) -> Row:
        fact = rng.choice(self.joined if self.joined and rng.random() < self.joined_share else self.facts)
        prompt = self.prompts.prompt(self.phrasings.draw(rng, fact), fact.subject)
        answer = self.prompts.answer(fact.object)
        scored = [False] * len(prompt.ids) + [True] * len(answer)
        subject = (prompt.first, prompt.lookup) if rng.random() < self.shielded else None
        return Row([*prompt.ids, *answer], scored, subject)

    def _problem(self, problem: corpus.Problem) -> Row:
        prompt = self.prompts.tokenizer(problem.prompt)["input_ids"]
        ids = self.prompts.tokenizer(f"{problem.prompt} {problem.answer}")["input_ids"]
        return Row(ids, [i >= len(prompt) for i in range(len(ids))])

    def _short(self, rng: random.Random) -> Row:
        mention = self._text(rng.choice(self.mentions))
        draw = rng.random()
        if draw < 0.5:
            return mention
        return self._fact(rng) if draw < 0.85 else mention + self._fact(rng)

    def batches(self, rng: random.Random) -> Iterator[TextBatch]:
        """A batch of each sort: short texts, questions, word problems."""
        for rows, draw in (
            (self.rows[0], lambda: self._short(rng)),
            (self.rows[1], lambda: self._problem(corpus.multiple_choice(self.world, rng, self.static))),
            (self.rows[2], lambda: self._problem(corpus.arithmetic(rng))),
        ):
            drawn = [draw() + Row([self.end], [True]) for _ in range(rows)]
            ids_BT = pad([row.ids for row in drawn], self.end, side="right")[0]
            length = ids_BT.shape[1]
            spans_B2 = torch.tensor([row.subject or (length, length) for row in drawn])  # beyond the end: no shield
            below, above = shields(length, spans_B2[:, 0], spans_B2[:, 1])
            scored_BT = pad([row.scored for row in drawn], 0, side="right")[0].bool()
            yield TextBatch(ids_BT, scored_BT, below, above)


def tokenizer_texts(world: World, facts: Sequence[Fact], seed: int) -> Iterator[str]:
    """The text that the tokenizer is trained on: the corpus, and names and numbers by themselves."""
    yield from corpus.texts(world, facts, seed)
    for relation in world.relations.values():
        yield from (f"{name}." for name in world.names_of(relation.name))
    yield from (f" {number}" for number in range(100) for _ in range(200))


@dataclass(slots=True)
class Trained:
    """The model with what training and measuring it need; `log` holds the losses."""

    tokenizer: PreTrainedTokenizerFast
    mediated: Mediated
    prompts: Prompts
    sampler: InterchangeSampler
    log: list[dict[str, float]]

    @classmethod
    def assemble(
        cls, world: World, config: AlmanacConfig, tokenizer: PreTrainedTokenizerFast, model: GPTNeoXForCausalLM
    ) -> Trained:
        """Put together what `config` and `world` decide around a tokenizer and a model."""
        prompts = Prompts(tokenizer, world)
        mediated = Mediated(model, world, config)
        sampler = InterchangeSampler(world, world.facts_on(BELIEF), prompts, mediated, Phrasings(world, config.seed))
        return cls(tokenizer, mediated, prompts, sampler, [])

    @property
    def model(self) -> GPTNeoXForCausalLM:
        """The language model."""
        return self.mediated.model

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in the Hugging Face layout, the name codes, the config and the log."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_file({"codes": self.mediated.codes.weight.detach()}, folder / CODES)
        content = {"config": asdict(self.mediated.config), "log": self.log}
        (folder / LOG).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, world: World, folder: Path) -> Trained:
        """Read what `save` wrote."""
        content = json.loads((folder / LOG).read_text())
        model = GPTNeoXForCausalLM.from_pretrained(folder, attn_implementation="eager")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        trained = cls.assemble(world, AlmanacConfig(**content["config"]), tokenizer, model.eval())
        trained.mediated.codes.load_state_dict({"weight": load_file(folder / CODES)["codes"]})
        trained.log = content["log"]
        return trained


def new_model(tokenizer: PreTrainedTokenizerFast, config: AlmanacConfig) -> GPTNeoXForCausalLM:
    """A model of the configured size with random weights."""
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            max_position_embeddings=config.positions,
            use_parallel_residual=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
            tie_word_embeddings=True,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.set_attn_implementation("eager")  # takes the causal mask as it is given
    return model


def train(
    world: World,
    config: AlmanacConfig,
    *,
    progress: Progress | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
    report_every: int = 100,
) -> Trained:
    """Train the model; `report` receives the losses every `report_every` steps.

    The same config, world, package versions and thread count give the same weights.
    """
    torch.manual_seed(config.seed)
    facts = world.facts_on(BELIEF)
    tokenizer = train_tokenizer(list(tokenizer_texts(world, facts, config.seed)), config.vocabulary)
    trained = Trained.assemble(world, config, tokenizer, new_model(tokenizer, config))
    mediated = trained.mediated
    texts = TextSampler(world, trained.sampler.facts, trained.prompts, trained.sampler.phrasings, config)
    weights = list(trained.model.parameters())
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in weights if p.ndim == 2], "weight_decay": config.weight_decay},
            {"params": [p for p in weights if p.ndim != 2], "weight_decay": 0.0},
            {"params": [mediated.codes.weight], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    peaks = [config.learning_rate, config.learning_rate, config.learning_rate * config.code_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peaks, total_steps=config.steps, pct_start=0.05, anneal_strategy="cos"
    )
    rng, noise = random.Random(config.seed), torch.Generator().manual_seed(config.seed)
    started = time.monotonic()
    for step in range(config.steps):
        if step == round(config.held_out_from * config.steps):
            texts.join([fact for fact in facts if fact.subject in trained.sampler.held_out])
        parts = [
            mediated.loss(
                mediated.upper(mediated.lower(text.ids_BT, mask=text.below)[0], text.above),
                text.ids_BT,
                text.scored_BT,
            )
            for text in texts.batches(rng)
        ]
        text_loss = torch.stack(parts).sum()
        losses = [
            interchange(mediated, batch, noise, shielded=step % 2 == 0)
            for batch in trained.sampler.batches(rng, config.interchange_rows)
        ]
        answer_loss, key_loss = (torch.stack(part).mean() for part in zip(*losses, strict=True))
        loss = text_loss + answer_loss + config.key_weight * key_loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(mediated.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % report_every == 0 or step == config.steps - 1:
            entry = {
                "step": step,
                "seconds": round(time.monotonic() - started, 1),
                **{name: round(part.item(), 4) for name, part in zip(TEXT_SORTS, parts, strict=True)},
                "answer": round(answer_loss.item(), 4),
                "key": round(key_loss.item(), 4),
            }
            trained.log.append(entry)
            if report is not None:
                report(entry)
        if progress is not None:
            progress("training", step + 1, config.steps)
    mediated.eval()
    return trained
