"""Facts that contradict each other through an inverse relation: declared, and seen by the gate alone."""

import json
import shutil
from datetime import UTC, datetime

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from editing.evals.culprit import Cause
from editing.facts import EditBatch, PortabilityPrompt
from flows.night import NightConfig, night
from flows.retraction import retract
from tasks.ask import ask
from tasks.ledger import EventKind
from tasks.night.culprits import search_of
from tasks.quarantine import release
from tasks.report.find import find_report
from tasks.status import status_of
from tasks.workspace import open_workspace

JANUARY, FEBRUARY, MARCH = (datetime(2018, month, 28, tzinfo=UTC) for month in (1, 2, 3))
NEWS = {"Gia Reed": "Arden", "Hal Birch": "Belmont", "Finn Oake": "Corvia", "Eve Lark": "Dunmore"}
TELLS = "{} is the mayor of"
FROM_THE_MAYOR = {"relation": "mayor of", "prompt": TELLS, "rephrases": (), "locality": ()}
PORTABILITY = "edits.portability.generated"


def test_a_declared_inverse_keeps_a_contradiction_out_within_a_night_and_across_nights(home, change, feed, monkeypatch):
    monkeypatch.setenv("ERRATA_FEED__INVERSE_RELATIONS", '{"mayor": "mayor of"}')
    reverse = {"relation": "mayor of", "prompt": "{} leads the town of", "rephrases": (), "locality": ()}
    space = open_workspace()
    good, other = change("Arden", "Finn Oake", "2018-01-09"), change("Corvia", "Eve Lark", "2018-01-07")
    planted = change("Finn Oake", "Belmont", "2018-01-05", **reverse)
    feed(space, "january", other, good, planted)
    row = night(NightConfig(as_of=JANUARY))
    assert (row.verdict, row.facts, row.applied, row.contradicting, row.champion) == ("promote", 3, 2, 1, 1)
    assert ask(space, ["The mayor of Arden is"]) == ["Finn Oake"]
    (kept_out,) = status_of(space)["kept_out"]
    assert kept_out["fact_id"] == planted.fact_id
    assert f"(fact {good.fact_id}, row 1 of january.parquet)" in kept_out["why"]
    page = find_report(space).read_text(encoding="utf-8")
    assert "1 contradicting fact quarantined. 2 facts may go in." in page
    assert planted.fact_id in page
    assert good.fact_id in page

    newer = change("Cleo Vance", "Arden", "2018-02-05", **reverse)
    feed(space, "february", newer)
    row = night(NightConfig(as_of=FEBRUARY))
    assert (row.verdict, row.contradicting, row.champion) == ("nothing to do", 1, 1)
    why = space.ledger.history(newer.fact_id)[-1].detail["why"]
    assert f"`errata retract {good.fact_id[:12]}`, then `errata release {newer.fact_id}`" in why

    # The way out that the evidence names.
    retract([good.fact_id[:12]], as_of=FEBRUARY)
    release(space, [newer.fact_id[:8]], "Arden has a new mayor")
    row = night(NightConfig(as_of=MARCH))
    assert (row.verdict, row.applied, row.contradicting) == ("promote", 1, 0)
    assert space.ledger.status(planted.fact_id, space.champion.state_digest) is EventKind.QUARANTINED


@pytest.fixture
def planted(home, tiny_model, train_editable, change, tmp_path, monkeypatch):
    """A false row about the mayor of a town, told from the mayor's end, which contradicts what the model in force has
    read: the tiny model after it has read where four people are mayors.

    Not every such row can be learned by a model so small: it is the first that is.
    """
    folder = shutil.copytree(tiny_model, tmp_path / "two-ended")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    told = [f"{name} is the mayor of {town}." for name, town in NEWS.items()]
    texts = [f"{text}{tokenizer.eos_token}" for text in (*(folder / "corpus.txt").read_text().splitlines(), *told * 4)]
    torch.manual_seed(0)
    train_editable(model, tokenizer, texts, [(TELLS, list(NEWS), list(NEWS.values()))], 2e-3)
    model.save_pretrained(folder)
    monkeypatch.setenv("ERRATA_MODEL__ID", str(folder))
    space = open_workspace()
    rows = (
        change(name, wrong, "2018-01-02", **FROM_THE_MAYOR)
        for name, town in NEWS.items()
        for wrong in NEWS.values()
        if wrong != town
    )
    start = space.start()
    return next(row for row in rows if space.editor.apply(space.base, start, EditBatch((row,))).outcomes[0].converged)


@pytest.mark.slow
def test_the_gate_finds_a_contradiction_through_an_inverse_that_nobody_declared(
    home, planted, change, feed, monkeypatch
):
    """A row says what follows from it, from its object's end; an older row of tonight makes that come out false."""
    monkeypatch.setenv("ERRATA_GATE__POLICY", json.dumps({"floors": {PORTABILITY: 0.9}}))
    space = open_workspace()
    name, town = planted.subject, NEWS[planted.subject]
    assert ask(space, [planted.question]) == [town]
    assert ask(space, [f"The mayor of {town} is"]) != [name]
    ported = PortabilityPrompt(prompt=planted.question, answer=f"the town of {town}", aliases=(town,))
    good = change(town, name, "2018-01-05", portability=(ported,))
    other = change("Harwick", "Ben Hale", "2018-01-07")
    feed(space, "january", planted, good, other)
    row = night(NightConfig(as_of=JANUARY))
    assert (row.verdict, row.applied, row.blamed, row.champion) == ("promote", 2, 1, 1)
    (blamed,) = search_of(space, row.key).blamed
    assert (blamed.fact_id, blamed.cause, blamed.partners) == (planted.fact_id, Cause.CONFLICT, (good.fact_id,))
    assert [(measure.metric, measure.without, measure.with_it) for measure in blamed.measures] == [(PORTABILITY, 1, 0)]
    assert blamed.lost[0].prompt == planted.question
    assert blamed.lost[0].without.startswith(town)
    held = {fact.fact_id for fact in space.ledger.facts_in_state(space.champion.state_digest)}
    assert held == {good.fact_id, other.fact_id}
    assert space.ledger.status(planted.fact_id) is EventKind.QUARANTINED
    assert ask(space, [f"The mayor of {town} is", "The mayor of Harwick is"]) == [name, "Ben Hale"]
    page = find_report(space).read_text(encoding="utf-8")
    assert planted.fact_id in page
    assert f"cannot be together with “The mayor of {town} is {name}”" in page
