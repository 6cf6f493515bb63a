"""Training of a RECIPE encoder: its losses, exact resume, early stopping; and encoders as artifacts."""

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from editing.editors.recipe import EncoderConfig, MetaEdit, RecipeConfig, RecipeEncoder, TrainingConfig, train_encoder
from editing.editors.recipe.free_prompts import learn_free_prompts
from editing.editors.recipe.objective import DrawnBatch, hinged_nll, imitation_losses, joint_losses, rivals
from editing.editors.recipe.prompted import AskedRows, target_losses
from editing.editors.recipe.training import validate
from editing.errors import ConfigError, FactError, ModelError, StateError
from editing.storage import tensors_digest

PLACES = ("Arden", "Belmont", "Corvia", "Dunmore", "Eastvale")
OFFICES = {"mayor": "The mayor of {}", "governor": "The governor of {}", "seat": "At the seat of {}"}
NAMES = ("Moss", "Hale", "Vance", "Stern")
QUICK = TrainingConfig(
    steps=12, batch=4, negatives=4, learning_rate=3e-3, warmup_steps=2, validate_every=4, checkpoint_every=2, patience=0
)
IMITATING = dataclasses.replace(QUICK, free_steps=6, imitation_steps=4)


class Offices:
    """Edits of places and offices; two places are kept for validation."""

    def draw(self, rng, n, places=PLACES[:3]):
        keys = [(place, office) for place in places for office in OFFICES]
        keys = rng.sample(keys, min(n, len(keys)))
        return [self._edit(rng, *key) for key in keys]

    def validation(self):
        return self.draw(random.Random(0), 6, PLACES[3:])

    def targets(self):
        return sorted(NAMES)

    def _edit(self, rng, place, office):
        question = OFFICES[office].format(place)
        others = tuple(prompt.format(place) for name, prompt in OFFICES.items() if name != office)
        return MetaEdit(
            statement_prompt=question,
            target=rng.choice(NAMES),
            queries=(question, f"Who? {question}", f"{place}: {office}"),
            locality=(*others, "Who leads Farholt?"),
        )


@pytest.fixture(scope="module")
def shape():
    backbone = {
        "model_type": "bert",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.0,
    }
    return EncoderConfig(width=16, max_length=48, backbone_config=backbone)


def test_a_term_counts_only_while_it_does_not_lead_by_the_margin():
    probabilities = torch.tensor([[0.5, 0.45, 0.05], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1]])
    nats = hinged_nll(probabilities.log(), torch.tensor([0, 0, 0]), margin=1.2)
    torch.testing.assert_close(nats, torch.tensor([-math.log(0.5), 0.0, -math.log(0.3)]))
    alone = hinged_nll(torch.tensor([[1.0, -torch.inf]]), torch.tensor([0]), margin=1.2)
    assert alone.tolist() == [0.0]


def test_knowledge_that_the_same_text_asks_for_is_neither_own_nor_foreign():
    edits = [
        MetaEdit(statement_prompt="a is", target="b", queries=("a is", "what is a"), locality=("c is",)),
        MetaEdit(statement_prompt="c is", target="d", queries=("c is",), locality=("a is",)),
    ]
    own, foreign = rivals(edits, ["what is a", "c is", "e is"], [0, -1, -1])
    assert own.tolist() == [[True, False], [False, False], [False, False]]
    assert foreign.tolist() == [[False, True], [True, False], [True, True]]


def test_every_term_reaches_the_parts_that_it_should(tiny_base, shape):
    base = tiny_base("gpt2")
    encoder = RecipeEncoder.create(base, shape)
    rng = random.Random(0)
    batch = DrawnBatch.draw(Offices().draw(rng, 8), rng, 2)
    terms = joint_losses(base, encoder, batch, QUICK)
    expected = sum(term for name, term in terms.items() if name != "loss")
    torch.testing.assert_close(terms["loss"], expected)
    terms["loss"].backward()
    # The pooler's weights move, too: every parameter but the backbone's unused word embeddings learns.
    still = [name for name, part in encoder.named_parameters() if part.grad is None or not part.grad.abs().any()]
    assert still == ["backbone.embeddings.word_embeddings.weight"]
    assert all(part.grad is None for part in base.model.parameters())


def test_a_targets_loss_is_that_of_the_model_behind_the_prompt(tiny_base):
    base = tiny_base("gpt2")
    prompts = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    asked = AskedRows.targets(base, ["The mayor of Arden is", "Who leads?"], ["Ada Moss", "Hale"])
    logits = asked.logits(base, prompts)
    ids = torch.tensor([asked.ids[1]])
    embeds = torch.cat([prompts[1:], base.model.get_input_embeddings()(ids)], dim=1)
    whole = base.model(inputs_embeds=embeds).logits[0]
    torch.testing.assert_close(logits[asked.row == 1], whole[asked.place[asked.row == 1] + 3], atol=1e-4, rtol=1e-4)


TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_recipe_training as here
from conftest import build_base
from editing.editors.recipe import EncoderConfig, train_encoder
config = EncoderConfig.from_dict({shape!r})
def tell(stage, done, total):
    print(stage, done, sep=": ", flush=True)
encoder = train_encoder(
    build_base("gpt2"), config, here.IMITATING, here.Offices(), checkpoints=Path({folder!r}), progress=tell
)
"""


@pytest.fixture(scope="module")
def unbroken(tiny_base, shape):
    """What an unbroken training ends with: its encoder, and what it reported."""
    told = []
    encoder = train_encoder(
        tiny_base("gpt2"), shape, IMITATING, Offices(), checkpoints=None, report=lambda entry: told.append(dict(entry))
    )
    return encoder, told


@pytest.mark.parametrize(
    ("killed_at", "folder", "kept", "first"),
    [
        pytest.param("free prompts: 3", "free-prompts", (2, 4), ("free prompts", (3, 5)), id="free prompts"),
        pytest.param("training: 7", "", (6, 8), ("training", (7, 9)), id="training"),
    ],
)
def test_a_training_that_was_killed_ends_as_an_unbroken_one(
    tiny_base, shape, tmp_path, unbroken, killed_at, folder, kept, first
):
    base, (whole, _) = tiny_base("gpt2"), unbroken
    script = TRAIN.format(tests=str(Path(__file__).parent), shape=shape.to_dict(), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == killed_at:
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    assert json.loads((tmp_path / folder / "checkpoint.json").read_text())["step"] in kept
    steps = []
    resumed = train_encoder(
        base,
        shape,
        IMITATING,
        Offices(),
        checkpoints=tmp_path,
        progress=lambda stage, done, _: steps.append((stage, done)),
    )
    assert steps[0][0] == first[0]
    assert steps[0][1] in first[1]
    assert steps[-1] == ("training", 12)
    assert resumed.digest == whole.digest
    again = train_encoder(base, shape, IMITATING, Offices(), checkpoints=tmp_path)
    assert again.digest == whole.digest
    with pytest.raises(StateError, match="checkpoint of another training"):
        train_encoder(base, shape, dataclasses.replace(IMITATING, seed=1), Offices(), checkpoints=tmp_path)


def test_every_stage_reports_its_losses(unbroken):
    _, told = unbroken
    assert [entry["step"] for entry in told if "free_prompts" in entry] == [6]
    losses = [entry for entry in told if "loss" in entry]
    assert {"contrastive", "sentinel", "imitation", "naming", "reliability", "generality", "locality"} <= set(
        losses[-1]
    )
    assert {"validation.score", "validation.reliability", "validation.locality"} <= set(told[-1])


def test_nothing_goes_through_the_language_model_while_imitating(tiny_base, shape):
    base, rng = tiny_base("gpt2"), random.Random(0)
    encoder = RecipeEncoder.create(base, shape)
    free = learn_free_prompts(base, encoder, Offices(), IMITATING, key="", checkpoints=None)
    batch = DrawnBatch.draw(Offices().draw(rng, 8), rng, 2)
    calls = []
    with base.model.base_model.register_forward_hook(lambda *_: calls.append(1)):
        terms = joint_losses(base, encoder, batch, IMITATING, free, steering=False)
        assert not calls
        joint_losses(base, encoder, batch, IMITATING, free)
        assert calls
    assert set(terms) == {"loss", "contrastive", "sentinel", "imitation", "naming"}
    # A prompt that is the free one is at no distance, and one that is their mean at that of the variance.
    with torch.no_grad():
        encoder.prompt_head.out.weight.zero_()
        encoder.prompt_head.out.bias.copy_(free.centre.flatten())
    knowledge = encoder.knowledge([edit_of(name).statement for name in NAMES])
    everyone = DrawnBatch(tuple(edit_of(name) for name in NAMES), (), (), (), ())
    assert imitation_losses(encoder, everyone, knowledge, free)["imitation"].item() == pytest.approx(1.0, rel=1e-4)


def edit_of(name):
    return MetaEdit(statement_prompt="The mayor is", target=name, queries=("Who?",), locality=("Where?",))


def test_free_prompts_make_the_frozen_model_say_their_targets(tiny_base, shape):
    base = tiny_base("gpt2")
    encoder = RecipeEncoder.create(base, shape)
    longer = dataclasses.replace(QUICK, free_steps=60)
    free = learn_free_prompts(base, encoder, Offices(), longer, key="", checkpoints=None)
    assert free.units_NPD.shape == (4, 3, 32)
    edits = Offices().validation()
    spread = float(base.model.get_input_embeddings().weight.std())
    start = learn_free_prompts(
        base, encoder, Offices(), dataclasses.replace(QUICK, free_steps=1), key="", checkpoints=None
    )

    def nats(prompts):
        asked = spread * prompts.units_NPD[prompts.rows([edit.target for edit in edits])]
        told = target_losses(base, asked, [edit.queries[0] for edit in edits], [edit.target for edit in edits], 8)
        return sum(loss for loss, _ in told) / len(told)

    assert nats(free) < nats(start) - 1
    with pytest.raises(FactError, match=r"'Nobody' is drawn.*targets"):
        free.rows(["Nobody"])


def test_training_stops_early_and_keeps_the_best_weights(tiny_base, shape):
    base = tiny_base("gpt2")
    patient = dataclasses.replace(QUICK, steps=40, validate_every=2, patience=2, learning_rate=1e-9)
    steps, scores = [], []
    encoder = train_encoder(
        base,
        shape,
        patient,
        Offices(),
        checkpoints=None,
        progress=lambda _, done, __: steps.append(done),
        report=lambda told: scores.append(told["validation.score"]) if "validation.score" in told else None,
    )
    assert steps[-1] == 6
    assert validate(base, encoder, Offices().validation())["score"] == pytest.approx(max(scores))
    satisfied = dataclasses.replace(patient, stop_score=0.0)
    steps.clear()
    train_encoder(base, shape, satisfied, Offices(), checkpoints=None, progress=lambda _, done, __: steps.append(done))
    assert steps == [1, 2]


# Encoders


@pytest.fixture(scope="module")
def roberta(tiny_base, seed, tmp_path_factory):
    """A tiny RoBERTa with a tokenizer of its own, as a folder of Hugging Face's form."""
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = tiny_base("llama").tokenizer
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


def test_any_encoder_of_hugging_face_serves_with_its_own_tokenizer(tiny_base, roberta, tmp_path):
    base = tiny_base("gpt2")
    encoder = RecipeEncoder.create(base, EncoderConfig(backbone=str(roberta), width=16, max_length=40)).freeze()
    assert encoder.save(tmp_path) == encoder.digest
    back = RecipeEncoder.load(tmp_path, base)
    texts = ["The mayor of Arden is Moss", "Arden", "Who leads? " * 40, ""]
    knowledge = encoder.knowledge(texts)
    torch.testing.assert_close(back.knowledge(texts), knowledge, rtol=0, atol=0)
    assert knowledge.shape == (4, 16)
    assert encoder.prompts(knowledge).shape == (4, 3, 32)
    assert encoder.sentinel().shape == (16,)
    assert encoder.scores(encoder.query(texts[:2]), knowledge).shape == (2, 4)
    for text, row in zip(texts, knowledge, strict=True):
        torch.testing.assert_close(encoder.knowledge([text])[0], row, atol=1e-5, rtol=1e-4)


def test_a_long_text_is_read_at_its_end(tiny_base, shape):
    encoder = RecipeEncoder.create(tiny_base("gpt2"), shape).freeze()
    long = "People of the old town elected somebody. " * 20 + "Who leads Dunmore?"
    assert not torch.equal(encoder.query([long]), encoder.query([long.replace("Dunmore", "Corvia")]))
    torch.testing.assert_close(encoder.query([long]), encoder.query(["Before that, " + long]))


def test_creating_an_encoder_leaves_the_random_numbers_alone(tiny_base, shape):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = RecipeEncoder.create(tiny_base("gpt2"), shape)
    assert torch.equal(torch.rand(3), expected)
    assert tensors_digest(one.state_dict()) == tensors_digest(
        RecipeEncoder.create(tiny_base("gpt2"), shape).state_dict()
    )


def test_encoders_that_cannot_serve_are_refused(tiny_base, shape, tmp_path):
    base = tiny_base("gpt2")
    encoder = RecipeEncoder.create(base, shape)
    with torch.no_grad():
        encoder.class_token_H[0] = torch.nan
    with pytest.raises(StateError, match="class_token_H of the encoder is not finite"):
        encoder.save(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    with pytest.raises(ModelError, match="no-such-encoder"):
        RecipeEncoder.create(base, EncoderConfig(backbone=str(tmp_path / "no-such-encoder")))
    with pytest.raises(StateError, match=r"encoder\.json is missing"):
        RecipeEncoder.load(tmp_path, base)
    RecipeEncoder.create(base, shape).freeze().save(tmp_path)
    with pytest.raises(StateError, match="base fingerprint differs"):
        RecipeEncoder.load(tmp_path, tiny_base("llama"))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (EncoderConfig, {"prompt_tokens": 6}, "prompt_tokens 6 is outside 1 to 5"),
        (EncoderConfig, {"backbone_config": {"hidden_size": 3}}, "names no model_type"),
        (EncoderConfig, {"max_length": 128}, "do not fit the backbone's max_position_embeddings 128"),
        (EncoderConfig, {"heads": 3}, "EncoderConfig has no setting heads"),
        (TrainingConfig, {"margin": 0.5}, "margin 0.5 is outside"),
        (TrainingConfig, {"precision": "float8"}, "use one of float32, bfloat16"),
        (RecipeConfig, {"encoder": "here", "backbone": "there"}, "are both given"),
        (RecipeConfig, {"encoder": "here", "gate": "guard"}, "use one of auto, sentinel, subject, fixed, none"),
        (RecipeConfig, {"encoder": "here", "asked": "all"}, "use one of prompt, last_question"),
    ],
)
def test_contradicting_settings_are_refused(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind.from_dict(settings)


@pytest.mark.parametrize("config", [EncoderConfig(), TrainingConfig(), RecipeConfig(encoder="here")])
def test_settings_survive_json(config):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_meta_edit_without_questions_is_refused():
    with pytest.raises(FactError, match="queries of the meta-edit 'a is b' is empty"):
        MetaEdit(statement_prompt="a is", target="b", queries=(), locality=("c",))


def test_a_training_begins_with_the_weights_that_it_is_given(tiny_base, shape, tmp_path):
    base = tiny_base("gpt2")
    first = train_encoder(base, shape, QUICK, Offices(), checkpoints=None)
    still = dataclasses.replace(QUICK, steps=1, learning_rate=1e-9, validate_every=1, seed=1)
    second = train_encoder(base, shape, still, Offices(), checkpoints=tmp_path, initial=first)
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, atol=1e-6, rtol=0)
    with pytest.raises(StateError, match="another training"):
        train_encoder(base, shape, still, Offices(), checkpoints=tmp_path)
    wider = dataclasses.replace(shape, width=24)
    with pytest.raises(StateError, match="width differs"):
        train_encoder(base, wider, still, Offices(), checkpoints=None, initial=first)


def test_what_makes_prompts_can_be_trained_anew(tiny_base, shape):
    base = tiny_base("gpt2")
    first = train_encoder(base, shape, QUICK, Offices(), checkpoints=None)
    still = dataclasses.replace(QUICK, steps=1, learning_rate=1e-9, validate_every=1)
    fewer = dataclasses.replace(shape, prompt_tokens=2)
    second = train_encoder(base, fewer, still, Offices(), checkpoints=None, initial=first, initial_prompts=False)
    knowledge = first.knowledge(["The mayor of Arden is Moss"])
    torch.testing.assert_close(second.knowledge(["The mayor of Arden is Moss"]), knowledge, atol=1e-5, rtol=0)
    assert second.prompts(knowledge).shape == (1, 2, 32)
    with pytest.raises(StateError, match="prompt_tokens differs"):
        train_encoder(base, fewer, still, Offices(), checkpoints=None, initial=first)
