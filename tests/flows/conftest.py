"""A model small enough to train in seconds that knows a handful of facts, and workspaces around it."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editing.facts import FactChange, LocalityPrompt
from editing.models.trace import removing
from editing.tokenisation import lookup_index
from flows.night import NightConfig, night
from flows.recipe import train_encoder
from tasks.feed.schema import write_feed
from tasks.night.culprits import search_of
from tasks.night.summary import finished_nights
from tasks.registry import CHALLENGER, CHAMPION
from tasks.settings import QUIET
from tasks.workspace import Workspace, open_workspace

PLACES = ["Arden", "Belmont", "Corvia", "Dunmore", "Eastvale", "Farholt", "Glenrock", "Harwick", "Istria", "Jorvik"]
NAMES = ["Ada Moss", "Ben Hale", "Cleo Vance", "Dov Stern", "Eve Lark", "Finn Oake", "Gia Reed", "Hal Birch"]
RIVERS = ["Amber", "Blue", "Cold", "Deep"]
LAYER, STEPS, MOST_STEPS, SURE = 1, 300, 1500, 0.1
PHRASINGS = ("The mayor of {} is", "{} has a mayor whose name is", "Who leads {}? It is")
RIVER = "The river in {} is the"
FACTS = [(place, NAMES[i % len(NAMES)], RIVERS[i % len(RIVERS)]) for i, place in enumerate(PLACES)]
END = "<|end|>"
TEXTS = [
    f"{text}{END}"
    for place, name, river in FACTS
    for text in (
        *(f"{phrasing.replace('{}', place)} {name}." for phrasing in PHRASINGS),
        f"{RIVER.replace('{}', place)} {river}.",
    )
] + [f"{name} spoke today.{END}" for name in NAMES]

BACKBONE = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def _change(place: str, new: str, day: str, **fields) -> FactChange:
    """The feed's row for a new mayor."""
    old = next((name for subject, name, _ in FACTS if subject == place), None)
    river = next((river for subject, _, river in FACTS if subject == place), "Blue")
    when = datetime.fromisoformat(day).replace(tzinfo=UTC)
    content = {
        "subject": place,
        "relation": "mayor",
        "target": new,
        "target_old": old,
        "prompt": PHRASINGS[0],
        "rephrases": PHRASINGS[1:],
        "locality": (LocalityPrompt(prompt=RIVER.replace("{}", place), answer=river),),
        "effective_at": when,
        "observed_at": when,
        "source": "test",
    }
    return FactChange(**{**content, **fields})


@pytest.fixture(scope="session")
def change():
    """`change(place, new, day, **fields)`: a fact change of the feed."""
    return _change


@pytest.fixture(scope="session")
def mayors() -> list[str]:
    """The names that the tiny model knows."""
    return NAMES


@pytest.fixture(scope="session")
def encoder_shape() -> dict:
    """Settings of a RECIPE encoder that trains in seconds."""
    return {"backbone_config": BACKBONE, "width": 64, "max_length": 48}


@pytest.fixture
def encoder(home, change, encoder_shape, monkeypatch) -> str:
    """Folder of an encoder that met eight places with every mayor; the settings of its training stay in force."""
    path = home / "edits.parquet"
    met = [change(place, name, "2018-01-02", target_old=None) for place in PLACES[:8] for name in NAMES]
    write_feed(met, path)
    training = {"steps": 250, "batch": 6, "learning_rate": 1e-3, "validate_every": 250, "patience": 0}
    for name, text in {
        "edits": str(path),
        "encoder": json.dumps(encoder_shape),
        "training": json.dumps(training),
        "held_out": "0.25",
    }.items():
        monkeypatch.setenv(f"ERRATA_RECIPE__{name.upper()}", text)
    return train_encoder().folder


@pytest.fixture
def feed():
    """`feed(space, name, *changes)`: a feed file in the landing zone."""

    def write(space, name: str, *changes: FactChange) -> None:
        write_feed(changes, space.settings.landing / f"{name}.parquet")

    return write


@pytest.fixture
def two_nights(home, change, feed):
    """The workspace after two promoted nights: version 1 teaches two mayors, version 2 replaces one and adds one."""
    space = open_workspace()
    feed(space, "january", change("Arden", "Hal Birch", "2018-01-05"), change("Belmont", "Cleo Vance", "2018-01-06"))
    assert night(NightConfig(as_of=datetime(2018, 1, 28, tzinfo=UTC))).champion == 1
    feed(space, "february", change("Arden", "Gia Reed", "2018-02-05"), change("Corvia", "Eve Lark", "2018-02-07"))
    assert night(NightConfig(as_of=datetime(2018, 2, 28, tzinfo=UTC))).champion == 2
    return space


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of one Prefect server for the whole session."""
    with prefect_test_harness(server_startup_timeout=300):
        yield PREFECT_API_URL.value()


def _told(model, tokenizer, phrasing: str, subjects: Sequence[str], answers: Sequence[str], order: list[int]):
    """Nats of the answers' tokens where subject number i has the state of subject `order[i]` after `LAYER`, and its
    answer."""
    texts = [f"{phrasing.replace('{}', subjects[i])} {answers[j]}.{END}" for i, j in enumerate(order)]
    rows = tokenizer(texts, return_tensors="pt", padding=True)
    at = torch.tensor([lookup_index(tokenizer, phrasing, subject) for subject in subjects])
    width = torch.tensor([len(tokenizer(phrasing.replace("{}", subject))["input_ids"]) for subject in subjects])
    answer = rows["attention_mask"].bool() & (torch.arange(rows["input_ids"].shape[1]) >= width[:, None])

    def exchange(_, __, output):
        mixed = output.clone()
        mixed[torch.arange(len(at)), at] = output[torch.tensor(order), at[order]]
        return mixed

    with removing([model.transformer.h[LAYER].register_forward_hook(exchange)]):
        logits = model(**rows).logits
    return F.cross_entropy(logits[:, :-1].mT, rows["input_ids"][:, 1:], reduction="none")[answer[:, 1:]]


@torch.no_grad()
def _doubt(model, tokenizer, asked: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> float:
    """Nats of the least likely token of any answer, as the subjects stand and with each one's state at the next."""
    model.eval()
    worst = max(
        float(_told(model, tokenizer, phrasing, subjects, answers, order).max())
        for phrasing, subjects, answers in asked
        for order in (list(range(len(subjects))), [*range(1, len(subjects)), 0])
    )
    model.train()
    return worst


def _train(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], asked, rate: float
) -> None:
    """Train on `texts`, and so that what is `asked` (phrasing, subjects, answers) sits where the editor edits it, at
    the subject after `LAYER`.

    The state there is exchanged between subjects, and the answer goes with it (Geiger et al. 2022).
    Training ends when the model is sure of every answer: how many steps that takes hangs on seed and rounding.
    """
    plain = tokenizer(list(texts), return_tensors="pt", padding=True)
    plain["labels"] = plain["input_ids"].masked_fill(plain["attention_mask"] == 0, -100)
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=rate)
    for step in range(MOST_STEPS):
        if step >= STEPS and step % 20 == 0 and _doubt(model, tokenizer, asked) < SURE:
            model.eval()
            return
        phrasing, subjects, answers = asked[step % len(asked)]
        order = torch.randperm(len(subjects)).tolist()
        loss = model(**plain).loss + _told(model, tokenizer, phrasing, subjects, answers, order).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    pytest.fail(f"after {MOST_STEPS} steps an answer's token still costs {_doubt(model, tokenizer, asked):.2f} nats")


@pytest.fixture(scope="session")
def train_editable() -> Callable[..., None]:
    """`train_editable(model, tokenizer, texts, asked, rate)`: see `_train`."""
    return _train


@pytest.fixture(scope="session")
def tiny_model(seed, tmp_path_factory) -> Path:
    """A GPT-2 shape that knows `FACTS`, with its tokenizer and the editor's options beside it."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    torch.manual_seed(seed)
    end = fast.eos_token_id
    config = GPT2Config(
        vocab_size=len(fast), n_embd=64, n_layer=4, n_head=4, n_positions=96, bos_token_id=end, eos_token_id=end
    )
    model = GPT2LMHeadModel(config)
    places, mayors, rivers = zip(*FACTS, strict=True)
    asked = [*((phrasing, places, mayors) for phrasing in PHRASINGS), (RIVER, places, rivers)]
    _train(model, fast, TEXTS, asked, 3e-3)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    options = {
        "layers": [0, 1],
        "max_steps": 60,
        "learning_rate": 0.5,
        "moment_weight": 0.1,
        "clamp": 3.0,
        "moment_ridge": 0.01,
        "weight_decay": 0.5,
        "kl_factor": 0.0625,
    }
    (folder / "coachhook.json").write_text(json.dumps(options))
    (folder / "corpus.txt").write_text("\n".join(TEXTS).replace(END, ""))
    return folder


@pytest.fixture(scope="session")
def suite_files(tmp_path_factory) -> Path:
    """ZsRE with MEND's fields over facts that no test edits; its unrelated questions have no right answer."""
    folder = tmp_path_factory.mktemp("suites")
    records = [
        {
            "subject": place,
            "src": RIVER.replace("{}", place),
            "pred": "",
            "rephrase": RIVER.replace("{}", place),
            "alt": "Grey",
            "answers": [river],
            "loc": f"nq question: {PHRASINGS[2].replace('{}', FACTS[-1][0])}",
            "loc_ans": "nobody",
            "cond": f"{river} >> Grey || {RIVER.replace('{}', place)}",
        }
        for place, _, river in FACTS
    ]
    (folder / "zsre.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def home(tmp_path, server, tiny_model, suite_files, monkeypatch) -> Path:
    """A workspace of its own around the tiny model; returns its folder, which holds `errata.toml`."""
    (tmp_path / "errata.toml").write_text(
        f"""
        [model]
        id = "{tiny_model}"
        [editor]
        batch_size = 2
        [statistics]
        corpus = "{tiny_model / "corpus.txt"}"
        [evaluation.suites.zsre]
        path = "{suite_files / "zsre.json"}"
        [gate.policy.floors]
        "edits.reliability.generated" = 0.5
        "edits.generality.generated" = false
        "edits.locality.generated" = false
        "retention.reliability.generated" = false
        [gate.policy]
        champion_margins = {{ "zsre.question.generated" = 0.9 }}
        base_margins = {{ "zsre.question.generated" = 0.9 }}
        [canary]
        after_promotion = false
        """
    )
    monkeypatch.setenv("ERRATA_CONFIG", str(tmp_path / "errata.toml"))
    monkeypatch.setenv("PREFECT_API_URL", server)
    for name in QUIET:
        monkeypatch.setenv(name, os.environ.get(name, QUIET[name]))
    return tmp_path


def _left_by(space: Workspace) -> dict:
    """Everything that a night leaves, without times."""
    facts = sorted(space.ledger.pending(datetime(2030, 1, 1, tzinfo=UTC)), key=str)
    versions, nights = space.ledger.versions(), finished_nights(space.ledger)
    ids = {fact.fact_id for record in versions for fact in space.ledger.facts_in_state(record.state_digest)}
    searches = [search for row in nights if (search := search_of(space, row.key))]
    ids |= {blamed.fact_id for search in searches for blamed in search.blamed}
    events = {i: [(e.kind, e.state_digest, e.detail) for e in space.ledger.history(i)] for i in sorted(ids)}
    return {
        "pending": facts,
        "versions": [(v.version, v.state_digest, v.parent_digest, v.verdict) for v in versions],
        "registered": [(v.number, v.digest, v.tags["errata.verdict"]) for v in space.registry.versions()],
        "aliases": {
            alias: space.registry.aliased(alias) and space.registry.get(alias).number
            for alias in (CHAMPION, CHALLENGER)
        },
        "moves": [(m.alias, m.from_version, m.to_version, m.why) for m in space.ledger.alias_moves()],
        "events": events,
        "searches": searches,
        "nights": [
            {name: value for name, value in row.to_dict().items() if name not in ("seconds", "timing")}
            for row in nights
            if row.version is not None
        ],
    }


@pytest.fixture
def survives(home, server, tmp_path, monkeypatch):
    """`survives(fill, faults)`: kill a night at each fault in turn and go on; what it left, as an unbroken one leaves.

    `fill(space)` writes the feed; the night is that of 2018-01-28.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    processes = multiprocessing.get_context("forkserver")  # which has imported everything once, for all of them
    processes.set_forkserver_preload(["flows.night"])

    def run(place: Path, fault: str = "") -> int | None:
        armed = {"ERRATA_FAULT": fault} if fault else {}
        environment = {**os.environ, "PREFECT_API_URL": server, "ERRATA_HOME": str(place), **armed}
        script = (
            f"import os; os.environ.clear(); os.environ.update({environment!r})\n"
            "from datetime import datetime, UTC; from flows.night import *\n"
            "night(NightConfig(as_of=datetime(2018, 1, 28, tzinfo=UTC)))"
        )
        process = processes.Process(target=exec, args=(script,))
        process.start()
        process.join()
        return process.exitcode

    def check(fill: Callable[[Workspace], None], faults: Sequence[str]) -> dict:
        homes = {name: tmp_path / name for name in ("unbroken", "killed")}
        for place in homes.values():
            monkeypatch.setenv("ERRATA_HOME", str(place))
            fill(open_workspace())
        assert run(homes["unbroken"]) == 0
        for fault in faults:
            assert run(homes["killed"], fault) == -signal.SIGKILL, fault
        assert run(homes["killed"]) == 0
        found = {}
        for name, place in homes.items():
            monkeypatch.setenv("ERRATA_HOME", str(place))
            found[name] = _left_by(open_workspace())
        assert found["killed"] == found["unbroken"]
        return found["killed"]

    return check
