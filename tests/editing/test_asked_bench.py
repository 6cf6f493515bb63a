import dataclasses

from editing.bench.asked import bench_asked
from editing.editors import get_editor
from editing.editors.coachhook.asked import AskedFacts, open_reader
from editing.editors.coachhook.config import CoachHookConfig
from editing.facts import LocalityPrompt


def test_shares_are_of_questions_that_take_an_edit(tiny_base, sentence_encoder, fact):
    base, editor = tiny_base("gpt2"), get_editor("recipe")
    facts = [
        fact(
            "Arden",
            "Vance",
            prompt="The mayor of {}",
            rephrases=("The mayor of {}", "Who has power over {} these days?"),
            locality=(LocalityPrompt(prompt="Cleo Vance leads", answer="Corvia"),),
        ),
        fact("Belmont", "Stern", prompt="At the seat of {}"),
    ]
    state = editor.start(base, {"backbone": str(sentence_encoder), "named_score": 0.95, "unnamed_score": 1.0})
    config = CoachHookConfig(layers=(0,), reader=str(sentence_encoder), alike=0.999)
    asked = AskedFacts(open_reader(config.reader, base.model_id), config, facts)
    strict = bench_asked(base, state, asked, facts)
    assert strict["coachhook"] == {"rephrases": 0.5, "else_asked": 0.0, "other_facts": 0.0}
    assert strict["recipe"]["locality"] == strict["recipe"]["else_asked"] == 0.0
    every = dataclasses.replace(state, config=dataclasses.replace(state.config, named_score=-1.0))
    lenient = dataclasses.replace(config, alike=-1.0)
    loose = bench_asked(base, every, AskedFacts(open_reader(config.reader, base.model_id), lenient, facts), facts)
    assert loose["coachhook"] == {"rephrases": 1.0, "else_asked": 1.0, "other_facts": 1.0}
    assert loose["recipe"] == {"rephrases": 1.0, "else_asked": 1.0, "other_facts": 1.0, "locality": 0.0}
