"""The training of a RECIPE encoder for the base model, as a flow: planned, trained, measured, registered."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from prefect import flow

from tasks.recipe.plan import plan_training
from tasks.recipe.registry import TrainedEncoder, measure, register
from tasks.recipe.train import train
from tasks.workspace import open_workspace

LEASE = timedelta(hours=48)


@flow(name="train-encoder", description=__doc__)
def train_encoder() -> TrainedEncoder:
    """Train what the settings ask for. Killed anywhere, the next run goes on; done before, it is found."""
    owner = f"encoder training on {socket.gethostname()}, process {os.getpid()}"
    with open_workspace().ledger.lease("train-encoder", owner, LEASE):
        plan = plan_training()
        folder = train(plan)
        measure(plan, folder)
        return register(plan, folder)
