"""Facts that contradict each other through an inverse relation: declared, and seen by the gate alone."""

import json
import shutil
from datetime import UTC, datetime

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from editing.evals.culprit import Cause
from editing.facts import PortabilityPrompt
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
ASKED = "Gia Reed is the mayor of"
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
    release(space, [newer.fact_id], "Arden has a new mayor")
    row = night(NightConfig(as_of=MARCH))
    assert (row.verdict, row.applied, row.contradicting) == ("promote", 1, 0)
    assert space.ledger.status(planted.fact_id, space.champion.state_digest) is EventKind.QUARANTINED


@pytest.fixture
def two_ended(tiny_model, tmp_path, monkeypatch):
    """The tiny model after it has read who leads four towns, told from the mayors' end alone; it is in force.

    It reads until the answer that the test asks for is nearly certain.
    """
    folder = shutil.copytree(tiny_model, tmp_path / "two-ended")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).train()
    told = [f"{name} is the mayor of {town}." for name, town in NEWS.items()]
    texts = [*(folder / "corpus.txt").read_text().splitlines(), *told * 4]
    batch = tokenizer([text + tokenizer.eos_token for text in texts], return_tensors="pt", padding=True)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    asked = tokenizer(ASKED, return_tensors="pt")
    (arden, *_) = tokenizer(" Arden")["input_ids"]

    @torch.no_grad()
    def is_sure() -> bool:
        told = model.eval()(**asked).logits[0, -1].softmax(-1)[arden]
        model.train()
        return bool(told > 0.9)

    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(600):
        if step >= 60 and step % 20 == 0 and is_sure():
            break
        loss = model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    else:
        pytest.fail(f"after 600 steps the model does not say {ASKED} Arden")
    model.eval().save_pretrained(folder)
    monkeypatch.setenv("ERRATA_MODEL__ID", str(folder))


@pytest.mark.slow
def test_the_gate_finds_a_contradiction_through_an_inverse_that_nobody_declared(
    home, two_ended, change, feed, monkeypatch
):
    """A row says what follows from it, from its object's end; an older row of tonight makes that come out false."""
    monkeypatch.setenv("ERRATA_GATE__POLICY", json.dumps({"floors": {PORTABILITY: 0.9}}))
    space = open_workspace()
    assert ask(space, [ASKED, "The mayor of Arden is"]) == ["Arden", "Ada Moss"]
    ported = PortabilityPrompt(prompt=ASKED, answer="the town of Arden", aliases=("Arden",))
    good = change("Arden", "Gia Reed", "2018-01-05", portability=(ported,))
    reverse = {"relation": "mayor of", "prompt": "{} is the mayor of", "rephrases": (), "locality": ()}
    planted = change("Gia Reed", "Belmont", "2018-01-02", **reverse)
    other = change("Corvia", "Eve Lark", "2018-01-07")
    feed(space, "january", planted, good, other)
    row = night(NightConfig(as_of=JANUARY))
    assert (row.verdict, row.applied, row.blamed, row.champion) == ("promote", 2, 1, 1)
    (blamed,) = search_of(space, row.key).blamed
    assert (blamed.fact_id, blamed.cause, blamed.partners) == (planted.fact_id, Cause.CONFLICT, (good.fact_id,))
    assert [(measure.metric, measure.without, measure.with_it) for measure in blamed.measures] == [(PORTABILITY, 1, 0)]
    assert blamed.lost[0].prompt == ASKED
    assert blamed.lost[0].without.startswith("Arden")
    held = {fact.fact_id for fact in space.ledger.facts_in_state(space.champion.state_digest)}
    assert held == {good.fact_id, other.fact_id}
    assert space.ledger.status(planted.fact_id) is EventKind.QUARANTINED
    assert ask(space, ["The mayor of Arden is", "The mayor of Corvia is"]) == ["Gia Reed", "Eve Lark"]
    page = find_report(space).read_text(encoding="utf-8")
    assert planted.fact_id in page
    assert "cannot be together with “The mayor of Arden is Gia Reed”" in page
