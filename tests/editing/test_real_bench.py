import pytest

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


@pytest.mark.parametrize("method", ["coachhook", "recipe"])
def test_a_run_that_was_cut_off_goes_on_where_it_was(method, tiny_base, moments, edited, fact, tmp_path, monkeypatch):
    base, editor, start = tiny_base("gpt2"), get_editor(method), edited(method, 0)
    facts = [fact(f"Arden {n}", "Vance", prompt="The mayor of {}") for n in range(6)]
    said = []

    def run(kept=None):
        options = {"batch_size": 2, "every": 2, "asked": 3, "report": said.append, "statistics": moments("gpt2")}
        found = bench_real(base, editor, start, facts, [], kept=kept, **options)
        return {name: found[name] for name in ("curve", "converged", "bleeding", "state")}

    whole, applied, apply = run(), [], type(editor).apply

    def cut_off(self, base, state, batch, **others):
        applied.append(batch.facts[0].subject)
        if len(applied) == 3:
            raise KeyboardInterrupt
        return apply(self, base, state, batch, **others)

    monkeypatch.setattr(type(editor), "apply", cut_off)
    said.clear()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "kept")
    assert run(tmp_path / "kept") == whole
    assert said == whole["curve"]
    assert applied == ["Arden 0", "Arden 2", "Arden 4", "Arden 4"]
    assert not (tmp_path / "kept").exists()
