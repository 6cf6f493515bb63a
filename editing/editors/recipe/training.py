"""Training of a RECIPE encoder: checkpoints, exact resume, validation and early stopping.

Every step is a function of the seed, the step's number and the weights before it, so a training that
was killed anywhere and resumed ends with the weights of an unbroken one.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from editing.editors.base import Progress
from editing.editors.recipe.checkpoints import (
    below,
    damaged,
    optimiser_tensors,
    read_checkpoint,
    restore_optimiser,
    write_checkpoint,
)
from editing.editors.recipe.config import EncoderConfig, TrainingConfig
from editing.editors.recipe.encoder import RecipeEncoder
from editing.editors.recipe.free_prompts import FreePrompts, learn_free_prompts
from editing.editors.recipe.meta import MetaEdit, MetaSource
from editing.editors.recipe.objective import DrawnBatch, joint_losses, rivals
from editing.editors.recipe.prompted import target_losses
from editing.editors.recipe.schedule import learning_rate
from editing.errors import EditRefusedError, StateError
from editing.models import BaseModel
from editing.storage import canonical_json

FORMAT = 3
REPORT_EVERY = 10
VALIDATION_ROWS = 128
FREE = "free-prompts"  # folder of the free prompts' checkpoint

Report = Callable[[dict[str, float]], None]


@torch.no_grad()
def validate(base: BaseModel, encoder: RecipeEncoder, edits: list[MetaEdit]) -> dict[str, float]:
    """Shares over `edits`, whose knowledge all competes. `reliability` and `generality`: queries that find their own
    knowledge, above the sentinel, whose prompt then steers every token of the target. `locality`: locality queries
    that find nothing. `retrieved` and `steered` are the two halves of the first two; `score` is the mean of the
    three shares."""
    encoder.eval()
    knowledge_NR = encoder.knowledge([edit.statement for edit in edits])
    prompts_NPD = encoder.prompts(knowledge_NR)
    threshold_R = encoder.sentinel()[None]
    firsts = [(index, edit.queries[0]) for index, edit in enumerate(edits)]
    others = [(index, text) for index, edit in enumerate(edits) for text in edit.queries[1:]] or firsts
    kept = [(-1, text) for edit in edits for text in edit.locality]
    shares: dict[str, float] = {}
    found_all, steered_all = [], []
    for name, asked in (("reliability", firsts), ("generality", others)):
        own = [index for index, _ in asked]
        texts = [text for _, text in asked]
        found = _finds(encoder, edits, texts, own, knowledge_NR, threshold_R)
        told = target_losses(base, prompts_NPD[own], texts, [edits[index].target for index in own], VALIDATION_ROWS)
        steered = torch.tensor([right for _, right in told])
        shares[name] = float((found & steered).float().mean())
        found_all.append(found)
        steered_all.append(steered)
    nothing = _finds(encoder, edits, [text for _, text in kept], [-1] * len(kept), knowledge_NR, threshold_R)
    shares["locality"] = float(nothing.float().mean())
    shares["score"] = sum(shares[name] for name in ("reliability", "generality", "locality")) / 3
    shares["retrieved"] = float(torch.cat(found_all).float().mean())
    shares["steered"] = float(torch.cat(steered_all).float().mean())
    return shares


def _finds(
    encoder: RecipeEncoder,
    edits: list[MetaEdit],
    texts: list[str],
    own: list[int],
    knowledge_NR: Tensor,
    threshold_R: Tensor,
) -> Tensor:
    """Per text `[Q]`: whether it finds its own edit's knowledge, or nothing foreign where it has no own."""
    queries_QR = encoder.query(texts)
    own_QN, foreign_QN = (each.to(queries_QR.device) for each in rivals(edits, texts, own))
    scores_QN = encoder.scores(queries_QR, knowledge_NR)
    limit_Q = encoder.scores(queries_QR, threshold_R)[:, 0]
    foreign_Q = scores_QN.masked_fill(~foreign_QN, -torch.inf).amax(1)
    mine_Q = scores_QN.masked_fill(~own_QN, -torch.inf).amax(1)
    has_own = own_QN.any(1)
    return torch.where(has_own, (mine_Q > limit_Q) & (mine_Q >= foreign_Q), foreign_Q <= limit_Q).cpu()


def train_encoder(
    base: BaseModel,
    encoder_config: EncoderConfig,
    training_config: TrainingConfig,
    source: MetaSource,
    *,
    checkpoints: Path | None,
    initial: RecipeEncoder | None = None,
    initial_prompts: bool = True,
    progress: Progress | None = None,
    report: Report | None = None,
) -> RecipeEncoder:
    """The encoder with the best validation score, frozen.

    The weights begin at random, or with those of `initial`, an encoder of this config for this base; without
    `initial_prompts` what makes prompts begins at random all the same, and their number may be another. With
    `free_steps` free prompts are optimised first.
    With `checkpoints` (a folder, made if needed) a training of the same configs and base that was cut
    short goes on where its last checkpoint is. `report` gets the losses every few steps and the
    validation's shares as `validation.*`, each with `step`. Raises `EditRefusedError` when a loss is
    not finite, `StateError` for a checkpoint that is damaged or of another training, or an `initial`
    of another shape.
    """
    encoder = RecipeEncoder.create(base, encoder_config)
    if initial is not None:
        _begin_with(encoder, initial, initial_prompts)
    run = _Run(
        base,
        encoder,
        training_config,
        initial=initial.digest if initial else None,
        makes_prompts=initial is not None and initial_prompts,
    )
    if training_config.free_steps:
        run.imitate(
            learn_free_prompts(
                base,
                encoder,
                source,
                training_config,
                key=run.key,
                checkpoints=None if checkpoints is None else checkpoints / FREE,
                from_encoder=run.makes_prompts,
                progress=progress,
                report=report,
            )
        )
    if checkpoints is not None:
        run.restore(checkpoints)
    held_out = source.validation()
    while not run.finished:
        losses = run.advance(source)
        if report is not None and (run.step % REPORT_EVERY == 0 or run.step == training_config.steps):
            report({"step": run.step, **losses})
        if run.step % training_config.validate_every == 0 or run.step == training_config.steps:
            shares = validate(base, encoder, held_out)
            run.judge(shares["score"])
            if report is not None:
                report({"step": run.step, **{f"validation.{name}": value for name, value in shares.items()}})
        if checkpoints is not None and (run.step % training_config.checkpoint_every == 0 or run.finished):
            run.save(checkpoints)
        if progress is not None:
            progress("training", run.step, training_config.steps)
    encoder.load_state_dict(run.best)
    return encoder.freeze()


@dataclass
class _Run:
    """A training between two steps: all that a checkpoint holds."""

    base: BaseModel
    encoder: RecipeEncoder
    config: TrainingConfig
    initial: str | None = None
    makes_prompts: bool = False  # the weights that it begins with do
    step: int = 0
    best_score: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    free: FreePrompts | None = None
    waited: int = 0

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(
            self.encoder.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self.key = hashlib.sha256(
            canonical_json(
                [self.encoder.content(), self.config.to_dict(), self.initial, self.makes_prompts, FORMAT]
            ).encode()
        ).hexdigest()

    def imitate(self, free: FreePrompts) -> None:
        """Take these free prompts for what the prompt encoder begins with; their mean is its first guess."""
        self.free = free
        if not self.makes_prompts:
            with torch.no_grad():
                self.encoder.prompt_head.out.bias.copy_(free.centre.flatten())

    @property
    def finished(self) -> bool:
        """Whether the steps are done, the score is good enough, or it has not risen for too long."""
        patience = self.config.patience
        good = self.best_score >= self.config.stop_score
        return self.step >= self.config.steps or good or (patience > 0 and self.waited >= patience)

    def advance(self, source: MetaSource) -> dict[str, float]:
        """One optimiser step; the losses and the learning rate."""
        config = self.config
        rng = random.Random(f"{config.seed}-{self.step}")
        batch = DrawnBatch.draw(source.draw(rng, config.batch + config.negatives), rng, config.locality_queries)
        rate = learning_rate(config, self.step, config.steps, config.learning_rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.encoder.train()
        with torch.enable_grad(), torch.random.fork_rng():
            torch.manual_seed(config.seed * 1_000_003 + self.step)
            with (
                torch.autocast(self.base.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"),
                self._noise(),
            ):
                terms = joint_losses(
                    self.base,
                    self.encoder,
                    batch,
                    config,
                    self.free,
                    steering=self.step >= config.imitation_steps,
                )
            self.optimiser.zero_grad(set_to_none=True)
            terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), config.clip_norm)
        if not torch.isfinite(norm):
            raise EditRefusedError(
                f"the gradient at step {self.step} is not finite; lower learning_rate (now {config.learning_rate}) or "
                "train in float32"
            )
        self.optimiser.step()
        self.step += 1
        losses = {name: float(term.detach()) for name, term in terms.items()}
        return {**losses, "gradient_norm": float(norm), "learning_rate": rate}

    def _noise(self) -> AbstractContextManager[None]:
        """This step's noise on the words, if the config asks for any."""
        config = self.config
        if not config.word_noise:
            return nullcontext()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        return self.encoder.noisy_words(config.noisy_words, config.word_noise, generator)

    def judge(self, score: float) -> None:
        """Keep the present weights if the validation score is the best so far."""
        if score > self.best_score:
            self.best_score, self.waited = score, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self.encoder.state_dict().items()}
        else:
            self.waited += 1

    # Checkpoints

    def save(self, folder: Path) -> None:
        """Write a checkpoint: the weights, the best ones, the optimiser's moments, and where the training is."""
        tensors = {f"weights.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        content = {
            "key": self.key,
            "step": self.step,
            "best_score": self.best_score if self.best else None,
            "waited": self.waited,
        }
        write_checkpoint(folder, content, tensors | optimiser_tensors(self.optimiser))

    def restore(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`, if there is one."""
        if not (found := read_checkpoint(folder, self.key)):
            return
        content, tensors = found
        try:
            self.encoder.load_state_dict(below("weights.", tensors))
            restore_optimiser(self.optimiser, tensors)
        except (RuntimeError, ValueError, KeyError) as error:
            raise damaged(folder, error) from error
        self.best = below("best.", tensors)
        self.step, self.waited = content["step"], content["waited"]
        self.best_score = -math.inf if content["best_score"] is None else content["best_score"]


def _begin_with(encoder: RecipeEncoder, initial: RecipeEncoder, prompts: bool) -> None:
    """Give `encoder` the weights of `initial`, or all but those that make prompts.

    Raises `StateError` when they are of different shapes.
    """
    mine, theirs = encoder.config.to_dict(), initial.config.to_dict()
    for name in sorted(set(mine) - {"seed"} - (set() if prompts else {"prompt_tokens"})):
        if mine[name] != theirs[name]:
            raise StateError(
                f"{name} differs: the encoder to begin with has {theirs[name]!r}, the one to train {mine[name]!r}; "
                "set the encoder's config to that of the first"
            )
    given = initial.state_dict()
    if not prompts:
        given |= {name: own for name, own in encoder.state_dict().items() if name.startswith("prompt_head.")}
    encoder.load_state_dict(given)
