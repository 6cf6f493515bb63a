"""Free prompts: for every target one prompt that makes the language model say it, whatever it is asked.

The paper trains the prompt encoder through the language model alone (arXiv 2405.03279, edit loss). Where
targets recur, most of what has to be learned is one prompt per target, and a table of prompts learns
that without an encoder in between. The encoder then begins by imitating the table, which takes no
pass of the language model.

Shapes: N targets, P prompt tokens, D width of the language model, B rows, L target tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from editing.editors.base import Progress
from editing.editors.recipe.checkpoints import (
    damaged,
    optimiser_tensors,
    read_checkpoint,
    restore_optimiser,
    write_checkpoint,
)
from editing.editors.recipe.config import TrainingConfig
from editing.editors.recipe.encoder import RecipeEncoder
from editing.editors.recipe.meta import MetaEdit, MetaSource
from editing.editors.recipe.prompted import AskedRows
from editing.editors.recipe.schedule import learning_rate
from editing.errors import EditRefusedError, FactError
from editing.models import BaseModel

STAGE = "free prompts"
REPORT_EVERY = 10
SPARE = 4  # edits drawn for each one that is asked
DRAWS, DRAWN = 40, 256  # to find a statement of every target


@dataclass(frozen=True, slots=True, eq=False)
class FreePrompts:
    """One prompt per target, in units of the word embeddings' spread."""

    row: dict[str, int]
    units_NPD: Tensor

    def rows(self, targets: Sequence[str]) -> Tensor:
        """The rows `[B]` of these targets' prompts. Raises `FactError` for an unknown one."""
        if unknown := next((target for target in targets if target not in self.row), None):
            raise FactError(f"target {unknown!r} is drawn, and not among the source's targets(); name it there")
        return torch.tensor([self.row[target] for target in targets])

    @property
    def centre(self) -> Tensor:
        """Their mean, the best guess while nothing is known of the target."""
        return self.units_NPD.mean(0)

    @property
    def variance(self) -> Tensor:
        """Mean square distance of a component from the mean."""
        return (self.units_NPD - self.centre).square().mean()


def learn_free_prompts(
    base: BaseModel,
    encoder: RecipeEncoder,
    source: MetaSource,
    config: TrainingConfig,
    *,
    key: str,
    checkpoints: Path | None,
    from_encoder: bool = False,
    progress: Progress | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> FreePrompts:
    """A prompt for each of the source's targets, by `config.free_steps` steps of Adam on drawn questions.

    They are of the shape that `encoder` makes. All begin with one random prompt, so that what they have in common
    is learned once, or, `from_encoder`, with those that it makes. A step asks two queries of `config.batch` edits,
    those of `SPARE` times as many whose targets were asked least; only the prompts of their targets move. With
    `checkpoints` a training of this `key` that was cut short goes on. Raises `EditRefusedError` when a loss is not
    finite.
    """
    row = {target: index for index, target in enumerate(source.targets())}
    spread, shape = encoder.prompt_head.spread, (encoder.config.prompt_tokens, encoder.lm_width)
    if from_encoder:
        start_NF = _made_by(encoder, source, row, config.seed)
    else:
        start_F = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed)).flatten()
        start_NF = start_F.repeat(len(row), 1).to(base.device)
    table = torch.nn.Embedding.from_pretrained(start_NF, freeze=False, sparse=True)
    optimiser = torch.optim.SparseAdam(table.parameters(), lr=config.free_learning_rate)
    asked_N = torch.zeros(len(row), dtype=torch.int64)
    begin = 0
    if checkpoints is not None and (found := read_checkpoint(checkpoints, key)):
        content, tensors = found
        try:
            table.load_state_dict({"weight": tensors["prompts"]})
            asked_N += tensors["asked"]
            restore_optimiser(optimiser, tensors)
        except (RuntimeError, ValueError, KeyError) as error:
            raise damaged(checkpoints, error) from error
        begin = int(content["step"])
    for step in range(begin, config.free_steps):
        rng = random.Random(f"{config.seed}-{STAGE}-{step}")
        drawn = source.draw(rng, SPARE * config.batch)
        edits = sorted(drawn, key=lambda edit: int(asked_N[row[edit.target]]))[: config.batch]
        owners_B = torch.tensor([row[edit.target] for edit in edits])
        asked_N.index_add_(0, owners_B, torch.ones_like(owners_B))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step, config.free_steps, config.free_learning_rate)
        with torch.enable_grad():
            prompts_BPD = spread * table(owners_B.to(base.device)).unflatten(1, shape)
            nats = _nats(base, prompts_BPD.repeat(2, 1, 1), edits, rng)
            optimiser.zero_grad(set_to_none=True)
            nats.backward()
        if not torch.isfinite(nats):
            raise EditRefusedError(
                f"the loss of the free prompts at step {step} is not finite; lower free_learning_rate (now "
                f"{config.free_learning_rate})"
            )
        optimiser.step()
        done = step + 1
        if report is not None and (done % REPORT_EVERY == 0 or done == config.free_steps):
            report({"step": done, "free_prompts": float(nats.detach())})
        if checkpoints is not None and (done % config.checkpoint_every == 0 or done == config.free_steps):
            kept = {"prompts": table.weight.detach(), "asked": asked_N, **optimiser_tensors(optimiser)}
            write_checkpoint(checkpoints, {"key": key, "step": done}, kept)
        if progress is not None:
            progress(STAGE, done, config.free_steps)
    return FreePrompts(row, table.weight.detach().unflatten(1, shape))


@torch.no_grad()
def _made_by(encoder: RecipeEncoder, source: MetaSource, row: dict[str, int], seed: int) -> Tensor:
    """The prompts `[N, P*D]` that the encoder makes of one drawn statement of each target, in units of the spread.

    A target that `DRAWS` draws did not give has the mean of the others.
    """
    encoder.eval()
    rng = random.Random(f"{seed}-{STAGE}-start")
    drawn = {edit.target: edit.statement for _ in range(DRAWS) for edit in source.draw(rng, DRAWN)}
    statements = [drawn[target] for target in row if target in drawn]
    made_MF = encoder.prompts(encoder.knowledge(statements)).flatten(1) / encoder.prompt_head.spread
    start_NF = made_MF.mean(0).repeat(len(row), 1)
    start_NF[[row[target] for target in row if target in drawn]] = made_MF
    return start_NF


def _nats(base: BaseModel, prompts_BPD: Tensor, edits: Sequence[MetaEdit], rng: random.Random) -> Tensor:
    """Mean nats per target token of two queries of each edit, first one of every edit, behind their prompts."""
    texts = [rng.choice(edit.queries) for _ in range(2) for edit in edits]
    asked = AskedRows.targets(base, texts, [edit.target for _ in range(2) for edit in edits])
    return asked.nats(asked.logits(base, prompts_BPD)).mean()
