import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from editing.editors import get_editor
from editing.errors import SuiteError
from editing.evals.edits import AppliedFact, Contradictions, age_bucket, current_facts, edit_suite, without_edited
from editing.evals.lanes import Lanes
from editing.evals.probes import Probe, ProbeSuite
from editing.evals.report import EvalReport
from editing.evals.scorer import Scorer, open_scorer
from editing.evals.scoring import (
    GenerationWork,
    Sampling,
    _Draw,
    cut,
    exact_match,
    generate_greedy,
    teacher_forced,
)
from editing.evals.shards import answers, batched, carry_out
from editing.evals.suite import evaluate
from editing.facts import EditBatch, FactChange, LocalityPrompt, Operation, PortabilityPrompt
from editing.models import wrap_model
from editing.statistics import compute_second_moments

NIGHT = date(2020, 1, 31)
KNOWN = {
    "The mayor of Arden is": "Ada Moss",
    "The mayor of Belmont is": "Ben Hale",
    "The mayor of Corvia is": "Cleo Vance",
    "The president of Arden is": "Dov Stern",
    "The president of Dunmore is": "Ada Moss",
    "The governor of Eastvale is": "Ben Hale",
    "Who is the mayor of Arden? It is": "Ada Moss",
    "The long-serving governor of the old town of Belmont by the sea is": "Cleo Vance",
}


@pytest.fixture(scope="module")
def learned(tiny_base, seed):
    """A GPT-2 that knows the sentences of KNOWN by heart: it is trained until it is sure of each answer's tokens."""
    tokenizer = tiny_base("gpt2").tokenizer
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=48,
            n_layer=2,
            n_head=4,
            n_positions=96,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    batch = tokenizer([f"{p} {a}.\n" for p, a in KNOWN.items()], padding=False)["input_ids"]
    width = max(map(len, batch))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in batch])
    mask = (labels >= 0).long()
    asked = torch.tensor([len(row) for row in tokenizer(list(KNOWN), padding=False)["input_ids"]])
    answers = (torch.arange(width) >= asked[:, None]) & (labels >= 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(1000):
        told = model(input_ids=ids, attention_mask=mask, labels=labels)
        nats = F.cross_entropy(told.logits[:, :-1].mT, ids[:, 1:], reduction="none")[answers[:, 1:]]
        if nats.max() < 0.05:
            break
        told.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    else:
        pytest.fail(f"after 1000 steps an answer's token still costs {nats.max():.2f} nats")
    return wrap_model(model.eval(), tokenizer, model_id="learned")


def fact(subject="Arden", target="Ada Moss", **more):
    content = {
        "subject": subject,
        "relation": "mayor",
        "target": target,
        "prompt": "The mayor of {} is",
        "effective_at": datetime(2020, 1, 1, tzinfo=UTC),
        "observed_at": datetime(2020, 1, 2, tzinfo=UTC),
        "source": "test",
    }
    return FactChange(**{**content, **more})


LOCALITY = (
    LocalityPrompt(prompt="The president of Arden is", answer="Dov Stern"),
    LocalityPrompt(prompt="The mayor of Belmont is", answer="Ben Hale"),
)
TAUGHT = fact(target="Vance", prompt="The mayor of {}", rephrases=("Now the mayor of {}",), locality=LOCALITY)
QUICK = {
    "layers": [1, 2],
    "max_steps": 60,
    "learning_rate": 0.5,
    "clamp": 20.0,
    "weight_decay": 0.0,
    "preservation": 0.0,
}


@pytest.fixture(scope="module")
def edited(tiny_base, corpus):
    """States of CoachHooK over a random GPT-2 that was taught one fact, by scope."""
    base, editor = tiny_base("gpt2"), get_editor("coachhook")
    moments = compute_second_moments(base, corpus, QUICK["layers"], n_background=200)
    config = {**QUICK, "kl_factor": 0.0, "moment_weight": 1e-3, "stop_loss": 0.2}
    starts = {
        scope: editor.start(base, {**config, "scope": scope}, moments) for scope in ("calibrated", "sequence", "always")
    }
    return {scope: editor.apply(base, start, EditBatch((TAUGHT,))).state for scope, start in starts.items()}


def close(a, b):
    assert [x.target_ids for x in a] == [x.target_ids for x in b]
    assert [x.predicted_ids for x in a] == [x.predicted_ids for x in b]
    assert [x.logprob for x in a] == pytest.approx([x.logprob for x in b], abs=1e-4)


def test_a_model_that_knows_its_sentences_scores_one_in_both_protocols(learned):
    results = teacher_forced(learned, list(KNOWN), list(KNOWN.values()))
    assert all(r.all_correct and r.token_accuracy == 1 and r.logprob > -0.5 for r in results)
    texts = generate_greedy(learned, list(KNOWN), 12)
    assert all(exact_match(text, answer) for text, answer in zip(texts, KNOWN.values(), strict=True))
    assert all(text.endswith(".") for text in texts)  # the newline stopped it, the budget did not
    wrong = teacher_forced(learned, ["The mayor of Arden is"], ["Cleo Vance"])[0]
    assert wrong.token_accuracy < 1
    assert wrong.logprob < results[0].logprob - 2


@pytest.mark.parametrize(
    "model_type", ["gpt2", "gptj", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma"]
)
def test_teacher_forcing_through_the_cache_equals_one_plain_forward(tiny_base, model_type):
    base = tiny_base(model_type)
    prompts, targets = list(KNOWN), list(KNOWN.values())
    results = teacher_forced(base, prompts, targets, batch_size=3)
    for prompt, target, result in zip(prompts, targets, results, strict=True):
        ids = torch.tensor([base.tokenizer(f"{prompt} {target}")["input_ids"]])
        n = len(result.target_ids)
        assert tuple(ids[0, -n:].tolist()) == result.target_ids
        with torch.inference_mode():
            logprobs = base.model(ids).logits[0, -n - 1 : -1].log_softmax(-1)
        assert tuple(logprobs.argmax(-1).tolist()) == result.predicted_ids
        expected = logprobs.gather(1, ids[0, -n:, None]).sum().item()
        assert result.logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_results_do_not_depend_on_batch_mates(learned, batch_size):
    prompts = [*KNOWN, "Dov", "The mayor of Arden is"]
    targets = [*KNOWN.values(), "Stern leads Belmont", "Ben"]
    close(teacher_forced(learned, prompts, targets, batch_size), teacher_forced(learned, prompts, targets, 4))
    budgets = [3 + i % 5 for i in range(len(prompts))]
    alone = [generate_greedy(learned, [p], b)[0] for p, b in zip(prompts, budgets, strict=True)]
    assert generate_greedy(learned, prompts, budgets, batch_size) == alone


def test_all_correct_is_what_generation_says(learned):
    for target in sorted(set(KNOWN.values())):
        results = teacher_forced(learned, list(KNOWN), [target] * len(KNOWN))
        texts = generate_greedy(learned, list(KNOWN), [len(r.target_ids) for r in results])
        assert [r.all_correct for r in results] == [text == target for text in texts]


def test_one_token_targets_of_one_prompt_share_a_row(learned, monkeypatch):
    calls = []
    forward = learned.model.forward
    monkeypatch.setattr(learned.model, "forward", lambda **kw: calls.append(kw["input_ids"].shape[0]) or forward(**kw))
    words = sorted(word[1:] for word in learned.tokenizer.get_vocab() if word[0] == "Ġ" and word[1:].isalpha())[:4]
    results = teacher_forced(learned, ["Answer:"] * 4, words)
    assert calls == [1]
    assert len({r.logprob for r in results}) == 4


def test_a_prompt_too_long_for_the_model_is_refused(learned):
    with pytest.raises(SuiteError, match=r"room for 96; use fewer shots"):
        teacher_forced(learned, ["word " * 200], ["x"])
    with pytest.raises(SuiteError, match="fewer new tokens"):
        generate_greedy(learned, ["The mayor"], 200)


@pytest.mark.parametrize(
    ("text", "target", "right"),
    [
        ("George Bush", "George", True),
        ("Georgia", "George", False),
        ("George's", "George", True),
        ("C++", "C", False),
        ("Jean-Luc Picard", "Jean", False),
        ("5%", "5", False),
        ("5 - 6", "5", True),
        ("Paris - the capital", "Paris", True),
        ("C#", "C", False),
        ("george  bush.", "George Bush", True),
        ("The George", "George", False),
        ("3.5", "3", False),
        ("3.", "3", True),
        ("1,000", "1", False),
        ("31", "3", False),
        ("C++ is", "C++", True),
        ("C++11", "C++", True),
        ("", "George", False),
        ("George", "", False),
    ],
)
def test_exact_match_ends_where_the_answer_ends(text, target, right):
    assert exact_match(text, target) is right


def test_cut_stops_at_the_first_stop_text():
    assert cut(" Ada Moss.\nThe mayor", ("\n",)) == "Ada Moss."
    assert cut("1 + 1\nQuestion: x", ("Question:", "\n\n")) == "1 + 1"


def test_remembered_results_answer_the_same_call_and_no_other(tiny_base, edited, tmp_path):
    base, prompts, targets = tiny_base("gpt2"), list(KNOWN)[:2], list(KNOWN.values())[:2]
    entries = lambda: len(list(tmp_path.rglob("*.json")))  # noqa: E731

    def scorer(state=None, model=base, **more):
        return open_scorer(model, state, cache=tmp_path, **more)

    with scorer() as first:
        forced, texts = first.teacher_forced(prompts, targets), first.generate(prompts, [4, 5])
        drawn = first.sample(prompts, 5, Sampling(5, 0))
    assert (first.asked, first.computed) == (6, 6)
    with scorer() as again:
        assert again.teacher_forced(prompts, targets) == forced
        assert again.generate(prompts, [4, 5]) == texts
        assert again.sample(prompts, 5, Sampling(5, 0)) == drawn
    assert (again.asked, again.computed, entries()) == (6, 0, 3)
    others = [
        (scorer(), lambda s: s.teacher_forced(prompts[::-1], targets)),
        (scorer(batch_size=7), lambda s: s.teacher_forced(prompts, targets)),
        (scorer(model=replace(base, fingerprint="other")), lambda s: s.teacher_forced(prompts, targets)),
        (scorer(edited["always"]), lambda s: s.teacher_forced(prompts, targets)),
        (scorer(edited["sequence"]), lambda s: s.teacher_forced(prompts, targets)),
        (scorer(), lambda s: s.generate(prompts, [4, 6])),
        (scorer(), lambda s: s.generate(prompts, [4, 5], stop=())),
        (scorer(), lambda s: s.sample(prompts, 5, Sampling(5, 1))),
        (scorer(), lambda s: s.sample(prompts, 5, Sampling(4, 0))),
    ]
    for count, (opened, ask) in enumerate(others, start=4):
        with opened as other:
            ask(other)
        assert entries() == count


@pytest.mark.parametrize("scope", ["calibrated", "sequence"])
def test_what_no_edit_reaches_is_answered_by_the_base(tiny_base, edited, tmp_path, scope):
    base = tiny_base("gpt2")
    prompts, targets = [*KNOWN, TAUGHT.question, "In"], [*KNOWN.values(), "Vance", "Arden"]
    ask = lambda s: (s.teacher_forced(prompts, targets), s.generate(prompts, 8), s.sample(prompts, 8, Sampling(5, 0)))  # noqa: E731
    with open_scorer(base, edited[scope]) as alone:
        expected = ask(alone)
    assert alone.computed == alone.asked
    with open_scorer(base, cache=tmp_path) as scorer:
        ask(scorer)
    with open_scorer(base, edited[scope], cache=tmp_path) as sharing:
        found = ask(sharing)
    close(found[0], expected[0])
    assert found[1:] == expected[1:]
    assert 0 < sharing.computed < sharing.asked


class Threads:
    """Shards on threads, each on a lane of its own."""

    def __init__(self, lanes, state, count):
        self.lanes, self.state, self.count = lanes, state, count

    def run(self, parts, what):
        def one(part):
            with self.lanes.serving(self.state) as model:
                return answers(part, model)

        with ThreadPoolExecutor(self.count) as pool:
            yield from pool.map(one, parts)


def test_shards_change_no_score(tiny_base, edited):
    base, prompts, targets = tiny_base("gpt2"), list(KNOWN), list(KNOWN.values())
    lanes = Lanes(base)
    for state in (None, edited["calibrated"]):
        results = []
        for count in (1, 2, 3, 9):
            shards = Threads(lanes, state, count)
            with open_scorer(base, state, batch_size=2, lanes=lanes, shards=shards) as scorer:
                forced = scorer.teacher_forced(prompts, targets)
                results.append((forced, scorer.generate(prompts, 6), scorer.sample(prompts, 6, Sampling(3, 0))))
        assert all(found == results[0] for found in results)
    with lanes.serving(edited["always"]) as one, lanes.serving(None) as other:
        assert one.model is not other.model
        weights = [model.model.get_input_embeddings().weight for model in (base, lanes.spare, one, other)]
        assert len({weight.data_ptr() for weight in weights}) == 1


def test_work_is_shared_out_whole_and_evenly(tiny_base):
    base = tiny_base("gpt2")
    rows = [((1, 2) * n, 2) for n in range(1, 8)]
    work = GenerationWork(batched(rows, 2))
    parts = work.shared_out(3)
    assert [len(part.batches) for part in parts] == [2, 1, 1]
    assert sorted(batch for part in parts for batch in part.batches) == list(work.batches)
    assert len(work.shared_out(9)) == 4
    assert GenerationWork(()).shared_out(2) == []
    seen = []
    alone = carry_out(work, base, "texts", progress=lambda *step: seen.append(step))
    assert seen == [("texts", done, 7) for done in (2, 4, 6, 7)]
    seen.clear()
    shared = carry_out(work, base, "texts", Threads(Lanes(base), None, 3), lambda *step: seen.append(step))
    assert (shared, seen) == (alone, [("texts", done, 7) for done in (3, 5, 7)])


def test_a_shard_that_fails_is_heard_and_leaves_its_lane_free(tiny_base):
    base = tiny_base("gpt2")
    lanes = Lanes(base)
    work = GenerationWork(batched([((1,), 1), ((10**9,), 1)], 1))
    with pytest.raises(IndexError):
        carry_out(work, base, "texts", Threads(lanes, None, 2))
    with lanes.serving(None) as model:
        assert answers(work.shared_out(2)[0], model)


def test_sampled_texts_do_not_depend_on_batch_mates_and_do_depend_on_the_seed(tiny_base):
    base, prompts = tiny_base("gpt2"), list(KNOWN)
    texts = {}
    for batch_size in (1, 3, 64):
        with open_scorer(base, batch_size=batch_size) as scorer:
            texts[batch_size] = scorer.sample(prompts, 9, Sampling(5, 0))
            other = scorer.sample(prompts, 9, Sampling(5, 1))
            greedy = scorer.generate(prompts, 9, stop=())
            assert scorer.sample(prompts, 9, Sampling(1, 0)) == greedy
    assert texts[1] == texts[3] == texts[64] != other
    assert texts[1] != greedy


def test_a_token_is_drawn_as_often_as_it_is_likely(tiny_base):
    base = tiny_base("gpt2")
    ids = torch.tensor([base.tokenizer("The mayor of")["input_ids"]])
    with torch.inference_mode():
        best = base.model(ids).logits[0, -1].topk(3)
    scores = torch.full((400, best.indices.max() + 1), -1e9)
    scores[:, best.indices] = best.values
    drawn = _Draw(Sampling(3, 0), [(row,) for row in range(400)])(ids, scores).argmax(1)
    shares = [(drawn == index).float().mean().item() for index in best.indices]
    assert shares == pytest.approx(best.values.softmax(0).tolist(), abs=0.08)


def test_a_damaged_memory_is_computed_again(learned, tmp_path):
    prompts, targets = list(KNOWN)[:2], list(KNOWN.values())[:2]
    first = Scorer(learned, cache=tmp_path).teacher_forced(prompts, targets)
    (path,) = tmp_path.rglob("*.json")
    entry = json.loads(path.read_text())
    entry["results"][0]["logprob"] = 0.0
    for damage in (json.dumps(entry), path.read_text()[:40], "[]"):
        path.write_text(damage)
        assert Scorer(learned, cache=tmp_path).teacher_forced(prompts, targets) == first


def edits(learned, applied, moment="edits", **more):
    with open_scorer(learned) as scorer:
        return edit_suite(moment, applied, applied=applied, as_of=NIGHT, base_scorer=scorer, **more)


@pytest.mark.parametrize("scope", ["calibrated", "sequence", "always"])
def test_edits_are_scored_in_both_protocols_as_they_are_served(tiny_base, edited, scope):
    base = tiny_base("gpt2")
    suite = edits(base, [AppliedFact(TAUGHT, NIGHT)])
    with open_scorer(base) as scorer:
        before = evaluate(scorer, [suite])
    with open_scorer(base, edited[scope]) as scorer:
        after = evaluate(scorer, [suite])
        prompts = [*KNOWN, TAUGHT.question, "In"]
        for target in ("Vance", "Vance Vance", "Dov Stern"):
            forced = scorer.teacher_forced(prompts, [target] * len(prompts))
            said = scorer.generate(prompts, [len(result.target_ids) for result in forced])
            assert [result.all_correct for result in forced] == [text == target for text in said]
    assert suite.metric_sizes() == {name: m.n for name, m in after.metrics.items()}
    assert suite.metric_sizes() == {
        f"edits.{metric}.{protocol}": 1
        for metric in ("reliability", "generality", "locality", "same_subject_locality")
        for protocol in ("teacher_forced", "generated")
    }
    for report, wanted in ((before, 0), (after, 1)):
        assert report.metrics["edits.reliability.teacher_forced"].value == wanted
        (outcome,) = report.items("edits.reliability.generated").values()
        assert outcome.got.startswith("Vance") == wanted
    for metric in ("locality", "same_subject_locality"):
        for protocol in ("teacher_forced", "generated"):
            assert before.metrics[f"edits.{metric}.{protocol}"].value == 1
    assert (after.method, before.method) == ("coachhook", None)
    assert after.model_digest == edited[scope].digest != before.model_digest == base.fingerprint
    with open_scorer(base) as scorer:
        assert evaluate(scorer, [suite]).digest == before.digest


def test_locality_is_what_the_base_said_even_where_the_base_is_wrong(learned):
    wrong = fact(locality=(LocalityPrompt(prompt="The mayor of Belmont is", answer="Dov Stern"),))
    suite = edits(learned, [AppliedFact(wrong, NIGHT)], metrics=["locality"])
    with open_scorer(learned) as scorer:
        report = evaluate(scorer, [suite])
    outcome = report.items("edits.locality.generated")[suite.items[0].item_id]
    assert outcome.score == 1
    assert outcome.expected.startswith("Ben Hale")


def test_locality_without_a_frozen_base_is_refused(learned, tiny_base, edited):
    suite = replace(edits(learned, [AppliedFact(fact(locality=LOCALITY), NIGHT)]), frozen={})
    with open_scorer(learned) as scorer, pytest.raises(SuiteError, match="freeze the base first"):
        suite.score(scorer)
    with open_scorer(tiny_base("gpt2"), edited["always"]) as scorer, pytest.raises(SuiteError, match="base alone"):
        edit_suite("edits", [AppliedFact(fact(locality=LOCALITY), NIGHT)], applied=[], as_of=NIGHT, base_scorer=scorer)


def test_superseded_facts_and_contradicted_prompts_are_left_out_and_counted(learned):
    old = AppliedFact(fact(effective_at=datetime(2019, 1, 1, tzinfo=UTC)), date(2019, 2, 1))
    new = AppliedFact(fact(target="Cleo Vance", target_old="Ada Moss", locality=LOCALITY), NIGHT)
    other = AppliedFact(
        fact(
            subject="Belmont",
            target="Dov Stern",
            target_old="Ben Hale",
            locality=(LocalityPrompt(prompt="In Arden the mayor is called", answer="Ada Moss"),),
        ),
        NIGHT,
    )
    suite = edits(learned, [old, new, other])
    assert [p.prompt for p in suite.items if p.metric == "reliability"] == [
        "The mayor of Arden is",
        "The mayor of Belmont is",
    ]
    assert [p.metric for p in suite.items if p.as_base] == ["same_subject_locality"]
    assert suite.excluded == {"superseded or retracted": 1, "locality prompt contradicted by an edit": 2}


def ported(*answers, **more):
    """A fact from which the answer to what `learned` is asked for the mayor of Arden would follow."""
    asked = PortabilityPrompt.of("The mayor of Arden is", answers)
    content = {"relation": "river", "prompt": "The river in {} is the", "target": "Amber", "portability": (asked,)}
    return fact(**{**content, **more})


def test_any_name_of_an_answer_that_follows_is_right(learned):
    suites = {
        answers: edits(learned, [AppliedFact(ported(*answers), NIGHT)], metrics=["portability"])
        for answers in (("Her Honour", "Ada Moss", "ada  moss"), ("Her Honour",), ("Her Honour", "Nobody"))
    }
    with open_scorer(learned) as scorer:
        found = {case: evaluate(scorer, [suite]).metrics for case, suite in suites.items()}
    for case, right in zip(found, (True, False, False), strict=True):
        metrics = found[case]
        assert metrics["edits.portability.generated"].value == right
        assert (metrics["edits.portability.teacher_forced"].value == 1.0) == right
    (probe,) = suites["Her Honour", "Ada Moss", "ada  moss"].items
    assert (probe.answers, probe.any_forced) == (("Her Honour", "Ada Moss"), True)


def test_only_a_newer_fact_makes_an_answer_that_follows_out_of_date(learned):
    """An older or less trusted one contradicts it, which is to be seen and not to be left out."""
    good = AppliedFact(ported("Ada Moss"), NIGHT)

    def asked(**fields):
        rival = AppliedFact(fact(subject="The mayor of Arden", prompt="{} is", **fields), NIGHT)
        return edits(learned, [good, rival], metrics=["portability"])

    newer = {"effective_at": datetime(2020, 1, 9, tzinfo=UTC)}
    assert len(asked(target="Dov Stern", source_rank=1)) == 1
    assert len(asked(target="Ada Moss", **newer)) == 1
    left_out = asked(target="Dov Stern", **newer)
    assert len(left_out) == 0
    assert left_out.excluded == {"portability prompt contradicted by a newer edit": 1}


def test_a_retracted_fact_holds_no_longer():
    taught = AppliedFact(fact(), NIGHT)
    gone = AppliedFact(
        fact(operation=Operation.RETRACT, effective_at=datetime(2021, 1, 1, tzinfo=UTC)), date(2021, 1, 1)
    )
    assert current_facts([taught, gone]) == []
    assert current_facts([taught, taught]) == [taught]


def test_retention_is_grouped_by_age(learned):
    applied = [
        AppliedFact(fact(), date(2020, 1, 30)),
        AppliedFact(fact(subject="Belmont", target="Ben Hale"), date(2018, 1, 1)),
        AppliedFact(fact(subject="Corvia", target="Dov Stern"), date(2018, 1, 1)),
    ]
    suite = edits(learned, applied, "retention", metrics=["reliability"])
    with open_scorer(learned) as scorer:
        report = evaluate(scorer, [suite])
    groups = report.groups("retention.reliability.generated")
    assert {name: (m.value, m.n) for name, m in groups.items()} == {"000-001 days": (1.0, 1), "366+ days": (0.5, 2)}
    assert [age_bucket(NIGHT, NIGHT), age_bucket(date(2019, 12, 1), NIGHT)] == ["000-001 days", "031-090 days"]


def test_contradictions_need_the_prompt_or_the_subject_with_the_replaced_value():
    found = Contradictions([fact(target="Ben Hale", target_old="Ada Moss", rephrases=("{} is led by",))])
    assert found.find("The mayor of Arden is", "Ada Moss")
    assert found.find("arden is led  by", "Someone")
    assert found.find("Name the mayor of Arden:", "Ada Moss")
    assert not found.find("The mayor of Arden is", "Ben Hale")
    assert not found.find("The mayor of Corvia is", "Ada Moss")
    assert not found.find("The president of Arden is", "Dov Stern")


def probes(*prompts):
    return ProbeSuite(
        name="probes",
        version="1",
        items=tuple(Probe(item_id=p, metric="recall", prompt=p, answers=(KNOWN[p],)) for p in prompts),
    )


def test_suites_know_their_content_and_sample_stably():
    suite = probes(*KNOWN)
    assert suite.digest == probes(*KNOWN).digest != probes(*list(KNOWN)[1:]).digest
    assert suite.digest != replace(suite, version="2").digest
    drawn = {p.prompt for p in suite.sample(4, seed=1).items}
    assert len(drawn) == 4
    fewer = suite.without("test", lambda item: item.prompt not in drawn and item.prompt[4] == "m")
    assert drawn == {p.prompt for p in fewer.sample(4, seed=1).items}
    assert sum(fewer.excluded.values()) == len(suite) - len(fewer)
    mixed = replace(suite, items=tuple(replace(p, metric=f"m{i > 1}") for i, p in enumerate(suite.items)))
    assert set(mixed.sample(4).metric_sizes().values()) == {2}
    assert mixed.sample(5).metric_sizes()["probes.mFalse.generated"] == 2
    left = without_edited(suite, [fact(target="Ben Hale", target_old="Ada Moss")])
    assert left.excluded == {"contradicted by an edit": 2}
    with pytest.raises(SuiteError, match="twice"):
        probes(*KNOWN, "The mayor of Arden is")


def test_any_answer_counts_when_generated(learned):
    probe = Probe(item_id="a", metric="recall", prompt="The mayor of Arden is", answers=("Nobody", "Ada Moss"))
    with open_scorer(learned) as scorer:
        report = evaluate(scorer, [ProbeSuite(name="s", version="1", items=(probe,))])
    assert report.metrics["s.recall.generated"].value == 1
    assert report.metrics["s.recall.teacher_forced"].value < 1


def test_a_report_round_trips_and_refuses_what_was_altered(learned, tmp_path):
    seen = []
    with open_scorer(learned, batch_size=8, progress=lambda *step: seen.append(step)) as scorer:
        report = evaluate(scorer, [probes(*KNOWN)], seeds={"retention": 3})
    assert seen == [("probes teacher-forced", 8, 8), ("probes generated", 8, 8)]
    report.save(tmp_path)
    assert EvalReport.load(tmp_path) == report
    assert report.scalars() == {"probes.recall.generated": 1.0, "probes.recall.teacher_forced": 1.0}
    assert (report.batch_size, report.dtype, report.seeds, report.method) == (8, "float32", {"retention": 3}, None)
    assert report.items_per_second > 0
    with pytest.raises(SuiteError, match=r"no metric 'probes\.recall'.*probes\.recall\.generated"):
        report.items("probes.recall")
    flipped = replace(report, outcomes=(replace(report.outcomes[0], got="x"), *report.outcomes[1:]))
    flipped.save(tmp_path / "other")
    (tmp_path / "items.parquet").write_bytes((tmp_path / "other" / "items.parquet").read_bytes())
    with pytest.raises(SuiteError, match="does not match"):
        EvalReport.load(tmp_path)
    (tmp_path / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(SuiteError, match="cannot be read"):
        EvalReport.load(tmp_path)
    with pytest.raises(SuiteError, match="missing"):
        EvalReport.load(tmp_path / "nothing")
