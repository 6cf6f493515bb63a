"""Training an encoder, watched: progress, checkpoints under the workspace, losses and shares in MLflow as they come."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.editors.recipe import RecipeEncoder, train_encoder
from tasks.faults import checkpoint
from tasks.progress import reporter
from tasks.recipe.plan import EncoderPlan, edit_source
from tasks.recipe.registry import training_run
from tasks.workspace import Workspace, open_workspace

VALIDATION = "validation."


@task(name="train encoder", cache_policy=NO_CACHE)
def train(plan: EncoderPlan) -> str:
    """Train from the last checkpoint on, or from the beginning; the folder of the encoder with the best score.

    An encoder that an earlier run of the same plan finished is not trained again. The training's
    steps are the time of its curves, so that steps done again after a kill leave the points they left.
    """
    space = open_workspace()
    folder = encoder_folder(space, plan)
    if (folder / "encoder.json").is_file():
        RecipeEncoder.load(folder, space.base)
        return str(folder)
    first = space.settings.recipe.initial
    with training_run(space, plan) as run:
        run.params(
            {
                "base": space.base.model_id,
                "base_fingerprint": space.base.fingerprint,
                "edits": plan.edits,
                "initial": plan.initial,
                **{f"encoder.{name}": value for name, value in plan.encoder.items()},
                **{f"training.{name}": value for name, value in plan.training.items()},
            }
        )

        def report(entry: dict[str, float]) -> None:
            step = int(entry.pop("step"))
            names = {
                name if name.startswith(VALIDATION) else f"training.{name}": value for name, value in entry.items()
            }
            run.metrics(names, timestamp=run.started + step, step=step)
            checkpoint("reported")

        encoder = train_encoder(
            space.base,
            plan.encoder_config,
            plan.training_config,
            edit_source(space),
            checkpoints=checkpoint_folder(space, plan),
            initial=None if first is None else RecipeEncoder.load(first, space.base),
            progress=reporter("encoder "),
            report=report,
        )
    encoder.save(folder)
    checkpoint("encoder kept")
    return str(folder)


def encoder_folder(space: Workspace, plan: EncoderPlan) -> Path:
    """Where the plan's encoder is kept."""
    return space.settings.encoders / plan.key


def checkpoint_folder(space: Workspace, plan: EncoderPlan) -> Path:
    """Where the plan's training keeps its place."""
    return space.settings.cache / "encoders" / plan.key
