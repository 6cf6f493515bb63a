import dataclasses

import pytest
import torch
from transformers import BertConfig, BertModel

from editing.errors import ModelError
from editing.models import ARCHITECTURES, architecture_of, load_base_model, wrap_model
from editing.models.trace import inputs_of, output_of


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_down_weight_is_width_by_inner_and_computes_the_projection(tiny_base, model_type):
    base = tiny_base(model_type)
    module = base.down_projection(1)
    ids = torch.arange(12)[None]
    keys = inputs_of(base.model, module, input_ids=ids)
    out = output_of(base.model, module, input_ids=ids)
    bias = module.bias if getattr(module, "bias", None) is not None else 0.0
    assert base.down_weight(1).shape == (32, 64)
    torch.testing.assert_close(keys @ base.down_weight(1).T + bias, out)
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training


def test_unknown_architecture_names_the_fields_to_give():
    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(ModelError, match=r"'bert'.*blocks, down_projection, final_norm, head, in_first"):
        architecture_of(model)


def test_a_wrong_path_in_the_table_is_named(tiny_base, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "gpt2", dataclasses.replace(ARCHITECTURES["gpt2"], down_projection="mlp.down"))
    with pytest.raises(ModelError, match=r"transformer\.h\.0\.mlp\.down"):
        architecture_of(tiny_base("gpt2").model)


def test_identity_survives_a_round_trip_and_sees_a_changed_weight(tiny_base, tmp_path):
    base = tiny_base("gpt2")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    again = load_base_model(str(tmp_path))
    assert (again.fingerprint, again.tokenizer_hash) == (base.fingerprint, base.tokenizer_hash)
    with torch.no_grad():
        again.model.transformer.h[0].mlp.c_proj.weight[0, 0] += 1e-6
    assert wrap_model(again.model, again.tokenizer, model_id="changed").fingerprint != base.fingerprint


def test_loading_errors_say_what_to_give(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base_model(str(tmp_path))
    with pytest.raises(ModelError, match="float32, bfloat16, float16"):
        load_base_model(str(tmp_path), dtype="int3")


def test_a_layer_out_of_range_is_refused(tiny_base):
    with pytest.raises(ModelError, match="layers 0 to 3"):
        tiny_base("llama").down_projection(4)
