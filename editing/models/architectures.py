"""Where each architecture keeps its blocks, down-projections, final norm and head.

One table, keyed by the model's `config.model_type`. Listed are decoders whose block adds the MLP's
output to the residual stream unchanged: there a change of the down-projection's output is a change
of the block's output, which is what the closed-form editors solve for (MEMIT, arXiv 2210.07229,
section 4.2). Gemma 2 and 3 normalise the MLP's output first and are left out for that reason.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import nn

from editing.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Module paths of one `config.model_type`.

    `blocks`, `final_norm` and `head` are paths in the causal LM, `down_projection` is a path in a
    block. `in_first` says that the projection's weight is stored `[inner, width]` (GPT-2's
    `Conv1D`) and not `[width, inner]` (`nn.Linear`).
    """

    model_type: str
    blocks: str
    down_projection: str
    final_norm: str
    head: str
    in_first: bool = False


def _llama_like(model_type: str) -> Architecture:
    return Architecture(
        model_type=model_type,
        blocks="model.layers",
        down_projection="mlp.down_proj",
        final_norm="model.norm",
        head="lm_head",
    )


ARCHITECTURES: dict[str, Architecture] = {
    entry.model_type: entry
    for entry in (
        Architecture(
            model_type="gpt2",
            blocks="transformer.h",
            down_projection="mlp.c_proj",
            final_norm="transformer.ln_f",
            head="lm_head",
            in_first=True,
        ),
        Architecture(
            model_type="gptj",
            blocks="transformer.h",
            down_projection="mlp.fc_out",
            final_norm="transformer.ln_f",
            head="lm_head",
        ),
        Architecture(
            model_type="gpt_neox",
            blocks="gpt_neox.layers",
            down_projection="mlp.dense_4h_to_h",
            final_norm="gpt_neox.final_layer_norm",
            head="lm_head",
        ),
        Architecture(
            model_type="phi",
            blocks="model.layers",
            down_projection="mlp.fc2",
            final_norm="model.final_layernorm",
            head="lm_head",
        ),
        *(_llama_like(name) for name in ("llama", "mistral", "qwen2", "qwen3", "gemma")),
    )
}


def _model_type(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "model_type", None)


def unknown_architecture(model: nn.Module) -> ModelError:
    """The error for a model that the table does not have, with what an entry must give."""
    wanted = ", ".join(item.name for item in fields(Architecture))
    return ModelError(
        f"model_type {_model_type(model)!r} ({type(model).__name__}) is not in the architecture table "
        f"({', '.join(sorted(ARCHITECTURES))}); add an Architecture to "
        f"editing.models.ARCHITECTURES that gives {wanted}"
    )


def architecture_of(model: nn.Module) -> Architecture:
    """The table's entry for `model`, with its paths checked on the model itself.

    Raises `ModelError` for a `config.model_type` that is not in the table, or a path that is not
    in the model.
    """
    model_type = _model_type(model)
    entry = ARCHITECTURES.get(str(model_type))
    if entry is None:
        raise unknown_architecture(model)
    for path in (entry.blocks, f"{entry.blocks}.0.{entry.down_projection}", entry.final_norm, entry.head):
        try:
            model.get_submodule(path)
        except AttributeError as error:
            raise ModelError(
                f"{type(model).__name__} has no module {path!r}, which the architecture table gives for "
                f"model_type {model_type!r}; mend that entry of editing.models.ARCHITECTURES"
            ) from error
    return entry
