"""What the benches measure on: the configured base, a history of edits, facts by the thousand, an encoder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, cast

from editing.almanac.filler import filling_facts, filling_stream
from editing.almanac.history import almanac_history
from editing.almanac.world import load_world
from editing.bench.asked import bench_asked
from editing.bench.prompt_space import prompt_space
from editing.bench.real import bench_real
from editing.bench.recipe import ASKED, Crowd, bench_lifelong, bench_recipe, gated_configs
from editing.bench.recipe_speed import measure_recipe_speed
from editing.bench.replay import History, spread
from editing.bench.self_text import compare_corpora
from editing.bench.statistics_speed import measure_statistics
from editing.editors import get_editor
from editing.editors.base import EditState
from editing.editors.coachhook import CoachHookConfig
from editing.editors.coachhook.asked import AskedFacts, open_reader
from editing.editors.recipe import RecipeConfig, RecipeEncoder, train_encoder
from editing.editors.recipe.editor import encoder_folder
from editing.editors.recipe.training import validate
from editing.evals.report import content_digest
from editing.facts import FactChange, Operation, fold, resolve_conflicts
from editing.prompts import FormChoice, find_form
from tasks.errors import FeedError
from tasks.feed.convert import Conversion
from tasks.feed.reading import read_feed
from tasks.plots import prompt_tokens
from tasks.progress import reporter
from tasks.recipe.plan import edit_source, plan_training
from tasks.self_text import open_self_text
from tasks.settings import SettingsError
from tasks.statistics import open_corpus, read_texts
from tasks.suites import configured_suites, suite_path, suite_sources
from tasks.workspace import Workspace, method_in_force, open_workspace, options_in_force

# What CoachHooK is measured against: its paper's scope, every token in scope, and MEMIT batch after batch.
BASELINES: dict[str, dict[str, Any]] = {
    "sequence_scope": {"scope": "sequence"},
    "no_gate": {"scope": "always"},
    "sequential_memit": {"scope": "always", "accumulate": False},
}
DRAWN = 200  # facts whose prompt tokens are drawn


def recipe_config(space: Workspace) -> RecipeConfig:
    """RECIPE's options on the configured base. Raises `ConfigError` where no encoder is known."""
    return RecipeConfig.from_dict(space.options)


def bench_history(feed: Path | None) -> History:
    """The edits of a feed by their effective dates, or the Almanac's history."""
    if feed is None:
        return almanac_history(load_world())
    nights: dict[date, list[FactChange]] = {}
    for change in read_feed(feed):
        nights.setdefault(change.effective_at.date(), []).append(change)
    return History(nights=dict(sorted(nights.items())))


def crowd_of(feed: Path | None, edits: int) -> Crowd:
    """At most `edits` facts to apply and prompts that must stay: a feed's, or made up for the Almanac.

    For the Almanac what must stay are `ASKED` of the prompts whose subjects no fact is about, and as
    many about the edited subjects' other relations.
    """
    if feed is not None:
        facts = list(resolve_conflicts(read_feed(feed)).winners)[:edits]
        return Crowd(facts=facts, kept=[*spread(History(nights={facts[0].effective_at.date(): facts}).kept(), ASKED)])
    world = load_world()
    facts = filling_facts(world, edits)
    told = {fact.key for fact in facts}
    asked = [
        (fact.subject, prompt, fact.object)
        for fact in world.steady_facts
        if (fold(fact.subject), fold(fact.relation)) not in told
        for prompt in world.relations[fact.relation].prompts(fact.subject)[:2]
    ]
    history = History(nights={facts[0].effective_at.date(): facts}, unedited=asked)
    kept = history.kept()
    return Crowd(
        facts=facts,
        kept=[
            probe
            for metric in ("locality", "same_subject")
            for probe in spread([probe for probe in kept if probe.metric == metric], ASKED)
        ],
    )


def recipe_quality(feed: Path | None, edits: int) -> dict[str, Any]:
    """The replay under each gate and the lifelong curve up to `edits` edits, as plain JSON types."""
    space = open_workspace()
    configs = gated_configs(space.base, recipe_config(space), edit_source(space))
    found = bench_recipe(
        space.base,
        bench_history(feed),
        configured_suites(space.settings),
        configs,
        batch_size=space.settings.editor.batch_size,
        progress=reporter(),
    )
    rows = bench_lifelong(space.base, crowd_of(feed, edits), configs, progress=reporter()) if edits else []
    return {**found, "lifelong": rows, "fixed_score": configs["fixed_threshold"].fixed_score}


def real_quality(
    data: str,
    *,
    method: str,
    edits: int,
    skip: int,
    batch: int,
    every: int,
    asked: int,
    baselines: bool = False,
    forms: Sequence[str] = (),
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """`bench_real` of the configured base on the first facts of a published file behind `skip`, one a subject.

    The same call goes on where the last one was cut off.

    With `baselines` the same facts go through each of `BASELINES` as well, under `baselines` by name; in each of
    `forms` the last questions are asked once more.
    """
    space = open_workspace()
    path, facts = _published_file(space, data), _facts_behind(space, data, skip, edits)

    def measured() -> dict[str, Any]:
        space = open_workspace()
        suites = [suite for suite in configured_suites(space.settings) if suite.name in ("mmlu", "gsm8k")]
        start = space.start(reporter())
        run = [start.digest, space.options, batch, every, asked, [fact.fact_id for fact in facts]]
        found = bench_real(
            space.base,
            space.editor,
            start,
            facts,
            suites,
            batch_size=batch,
            every=every,
            asked=asked,
            scoring_batch_size=min(32, space.settings.evaluation.batch_size),
            cache=space.settings.cache / "scores",
            size_of=_saved_bytes,
            other_forms=[find_form(space.base.tokenizer, cast(FormChoice, form)) for form in forms],
            progress=reporter(),
            report=report,
            kept=space.settings.cache / "bench" / content_digest(run)[:16],
            statistics=space.moments(reporter()),
        )
        return {**found, "options": space.options}

    with method_in_force(method):
        found = {**measured(), "method": method, "data": path.name, "skip": skip}
    if baselines:
        found["baselines"] = {}
        for name, options in BASELINES.items():
            with method_in_force("coachhook"), options_in_force(options):
                found["baselines"][name] = measured()
    return found


def asked_alone(data: str, facts: int, skip: int) -> dict[str, dict[str, float]]:
    """`bench_asked` of the configured base's sentence encoder on the first facts of a published file behind `skip`."""
    with method_in_force("recipe"):
        space = open_workspace()
        state = space.editor.start(space.base, space.options, None)
        chosen = _facts_behind(space, data, skip, facts)
    if not state.config.backbone:
        raise SettingsError(
            "editor.options names a trained encoder; take `encoder` out to measure the one it comes with"
        )
    with method_in_force("coachhook"):
        options = {"layers": (0,), **open_workspace().options, "reader": state.config.backbone}
    config = CoachHookConfig.from_dict(options)
    asked = AskedFacts(open_reader(config.reader, space.base.model_id), config, chosen)
    return bench_asked(space.base, state, asked, chosen)


def _facts_behind(space: Workspace, data: str, skip: int, most: int) -> list[FactChange]:
    """At most so many of `published_facts` behind the first `skip`. Raises `FeedError` where there are none."""
    facts = published_facts(space, data)[skip:][:most]
    if not facts:
        raise FeedError(f"{data} leaves no facts behind the first {skip}; lower --skip")
    return facts


def published_facts(space: Workspace, data: str) -> list[FactChange]:
    """The facts of a published file or a configured suite, the first of each subject, in the file's order.

    Where prompts are questions, locality prompts are as well. Raises `FeedError` for what is neither.
    """
    return _one_a_subject(Conversion(_published_file(space, data)))


def _published_file(space: Workspace, data: str) -> Path:
    """The file that `data` names, or that of the configured suite of this name. Raises `FeedError` for neither."""
    if (path := Path(data)).is_file():
        return path
    sources = suite_sources(space.settings)
    if data not in sources:
        raise FeedError(f"{data} is neither a file nor a configured suite; give a file, or one of {', '.join(sources)}")
    return suite_path(space.settings, sources[data])


def _saved_bytes(state: EditState) -> int:
    """Bytes of a state's files."""
    with tempfile.TemporaryDirectory() as folder:
        get_editor(state.method).save(state, Path(folder))
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _one_a_subject(changes: Iterable[FactChange]) -> list[FactChange]:
    """The first assertion about each subject, in the file's order; where prompts are questions, all of them are."""
    first: dict[str, FactChange] = {}
    for change in changes:
        if change.operation is Operation.ASSERT:
            first.setdefault(change.key.subject, change)
    return [_as_question(fact) if fact.question.endswith("?") else fact for fact in first.values()]


def _as_question(fact: FactChange) -> FactChange:
    local = [item if item.prompt.endswith("?") else replace(item, prompt=f"{item.prompt}?") for item in fact.locality]
    return replace(fact, locality=tuple(local))


def recipe_speed(rows: int) -> dict[str, Any]:
    """Adding, finding among `rows` rows and a tenth of them, and answering, as plain JSON types."""
    space = open_workspace()
    layers = _edited_layers()
    sizes = sorted({max(1_000, rows // 10), rows})
    stream = filling_stream(load_world())
    return measure_recipe_speed(
        space.base, recipe_config(space), stream, layers=layers, sizes=sizes, progress=reporter()
    )


def recipe_tokens(steps: int) -> list[dict[str, Any]]:
    """Encoders of 1 to 5 prompt tokens and their shares on validation.

    All begin with the texts' part of the encoder in use. What makes prompts is trained anew: free prompts for
    `steps` steps, then `steps` steps of the encoder, of which the last fifth goes through the language model.
    """
    space = open_workspace()
    plan = plan_training.fn()
    source = edit_source(space)
    initial = RecipeEncoder.load(encoder_folder(space.base, recipe_config(space)), space.base)
    training = replace(
        plan.training_config,
        free_steps=steps,
        imitation_steps=steps * 4 // 5,
        steps=steps,
        validate_every=steps,
        patience=0,
    )
    found = []
    for tokens in range(1, 6):
        encoder = train_encoder(
            space.base,
            replace(initial.config, prompt_tokens=tokens),
            training,
            source,
            checkpoints=None,
            initial=initial,
            initial_prompts=False,
            progress=reporter(f"{tokens} prompt tokens: "),
        )
        found.append({"tokens": tokens, **validate(space.base, encoder, source.validation())})
    return found


def statistics_speed(corpus: Path | None, layers: Sequence[int] | None, tokens: int, repeats: int) -> dict[str, Any]:
    """The statistics' speed on a file's texts, or the configured ones, as plain JSON types."""
    space = open_workspace()
    texts = read_texts(corpus) if corpus else open_corpus(space.settings, space.base, reporter()).texts
    return measure_statistics(
        space.base,
        texts,
        layers or _edited_layers(),
        tokens=tokens,
        max_length=space.settings.statistics.max_length,
        repeats=repeats,
        progress=reporter(),
    )


def self_text_quality(corpus: Path, layers: Sequence[int] | None, tokens: int) -> list[dict[str, Any]]:
    """How far the statistics over the base's own text are from those over a file's, as plain JSON types."""
    space = open_workspace()
    return compare_corpora(
        space.base,
        open_self_text(space.settings, space.base, reporter()).texts,
        read_texts(corpus),
        layers or _edited_layers(),
        tokens=tokens,
        max_length=space.settings.statistics.max_length,
        progress=reporter(),
    )


def _edited_layers() -> Sequence[int]:
    """The layers that CoachHooK edits under the settings."""
    with method_in_force("coachhook"):
        return open_workspace().layers


def draw_prompts(path: Path) -> None:
    """Draw where the prompt tokens of invented facts lie among the word embeddings."""
    space = open_workspace()
    encoder = RecipeEncoder.load(encoder_folder(space.base, recipe_config(space)), space.base)
    facts = filling_facts(load_world(), DRAWN)
    statements = [f"{fact.question} {fact.target}" for fact in facts]
    prompt_tokens(prompt_space(space.base, encoder, statements)).savefig(path)
