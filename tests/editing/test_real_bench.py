from editing.bench.real import bench_real
from editing.editors import get_editor
from editing.facts import LocalityPrompt
from editing.prompts import PromptForm


def test_consecutive_edits_are_asked_in_every_protocol_of_the_form(tiny_base, edited, fact):
    base, editor = tiny_base("gpt2"), get_editor("coachhook")
    kept = (LocalityPrompt(prompt="Cleo Vance leads", answer="Arden"),)
    facts = [
        fact("Arden", "Vance", prompt="The mayor of {}", rephrases=("Who leads {}?",), locality=kept),
        fact("Belmont", "Stern", prompt="The mayor of {}"),
        fact("Corvia", "Moss", prompt="The mayor of {}"),
    ]
    points = []
    found = bench_real(
        base,
        editor,
        edited("coachhook", 0),
        facts,
        [],
        batch_size=2,
        every=2,
        asked=3,
        other_forms=[PromptForm(name="question", before="Question: ", behind="\nAnswer:", end="\n")],
        report=points.append,
    )
    assert [point["edits"] for point in found["curve"]] == [2, 3]
    assert points == found["curve"]
    assert set(found["generated"]) == set(found["teacher_forced"]) == {"reliability", "generality", "locality"}
    assert found["wild"] == {}  # a plain model ends no answer
    other = found["other_forms"]["question"]
    assert set(other["wild"]) == set(other["generated"]) == {"reliability", "generality", "locality"}
    assert found["bleeding"]["questions"] == 9
    assert found["bleeding"]["base"] == 0.0
    assert 0 <= found["bleeding"]["edited"] <= 1
    assert found["sizes"] == {"reliability": 3, "generality": 1, "locality": 1}
    assert (found["edits"], found["suites"], found["form"]) == (3, {}, "raw")
