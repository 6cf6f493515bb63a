"""Plans of what a model would cost here: the shape by name, or from the config of a model that is not loaded."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from editing.almanac.world import MODEL
from editing.models.costs import ModelShape
from editing.models.shapes import NAMED_SHAPES
from editing.planning import Workload, plan
from tasks.errors import TasksError
from tasks.settings import ALMANAC, Settings


class PlanError(TasksError, ValueError):
    """A model to plan for is neither a known shape nor a model with a config."""


def shape_named(settings: Settings, name: str) -> ModelShape:
    """A named shape, or that of a model by hub id or folder, of which only the config is read. Raises `PlanError`."""
    if name.lower() in NAMED_SHAPES:
        return NAMED_SHAPES[name.lower()]
    revision = settings.model.revision if name == settings.model.id else None
    try:
        config = AutoConfig.from_pretrained(str(MODEL) if name == ALMANAC else name, revision=revision)
    except (OSError, ValueError) as error:
        raise PlanError(
            f"model {name!r} has no config that can be read ({error}); give a hub id, a folder, or one of the shapes "
            f"{', '.join(NAMED_SHAPES)}"
        ) from error
    return ModelShape.of_config(config)


def plan_model(
    settings: Settings, name: str | None, facts: int, method: str | None, dtype: str | None
) -> dict[str, Any]:
    """The plan of editing `facts` facts into a model, under the settings where nothing else is asked."""
    workload = Workload(facts=facts, batch=settings.editor.batch_size, statistics_tokens=settings.statistics.max_tokens)
    model = name or settings.model.id
    found = plan(
        shape_named(settings, model),
        workload,
        dtype=dtype or settings.model.dtype,
        method=method or settings.editor.method,
    )
    return {"model": model, **found}
