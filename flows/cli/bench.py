"""Benchmarks on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.console import bars, err, out, print_json, table

app = typer.Typer(help="Measure an editing method on the base model.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
PROTOCOLS = ("generated", "teacher_forced")


@app.callback()
def measure() -> None:
    """Measure an editing method on the base model."""


@app.command()
def coachhook(
    speed: Annotated[bool, typer.Option("--speed", help="Time the optimisation instead of scoring the edits.")] = False,
    feed: Annotated[Path | None, typer.Option(help="Edits to replay; default: the Almanac's history.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score CoachHooK and its ablations over a history of edits, or time it with --speed.

    Example: `errata bench coachhook --speed --json`
    """
    with bars():
        found = _speed() if speed else _quality(feed, variant)
    if as_json:
        print_json(found)
    elif speed:
        columns = ("model", "speedup", "floor_ratio", "inference_ratio", "loss_difference", "batch", "threads")
        rows = [{name: _number(row[name]) for name in columns} for row in found["by_model"]]
        out.print(table("Batched target optimisation against the published way", rows, columns))
    else:
        _print_replay("CoachHooK and its ablations", found)


@app.command()
def recipe(
    speed: Annotated[bool, typer.Option("--speed", help="Time adding, finding and answering instead.")] = False,
    feed: Annotated[Path | None, typer.Option(help="Edits to replay; default: the Almanac's history.")] = None,
    edits: Annotated[int, typer.Option(min=0, help="Facts applied at most for the lifelong curve; 0: none.")] = 10_000,
    rows: Annotated[int, typer.Option(min=1000, help="With --speed: rows of the largest repository.")] = 1_000_000,
    tokens: Annotated[
        int, typer.Option(min=0, help="Also train encoders of 1 to 5 prompt tokens, with this many steps each.")
    ] = 0,
    png: Annotated[Path | None, typer.Option(help="Also draw prompt tokens among word embeddings here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score RECIPE and its ablations over a history of edits and over thousands, or time it with --speed.

    Example: `errata bench recipe --speed --json`
    """
    from tasks.bench import draw_prompts, recipe_quality, recipe_speed, recipe_tokens
    from tasks.workspace import method_in_force

    with bars(), method_in_force("recipe"):
        found = recipe_speed(rows) if speed else recipe_quality(feed, edits)
        if tokens:
            found["prompt_tokens"] = recipe_tokens(tokens)
        if png:
            draw_prompts(png)
    if as_json:
        print_json(found)
        return
    if speed:
        names = [name for name, value in found.items() if isinstance(value, int | float)]
        out.print(table("RECIPE's speed", [{"what": name, "value": f"{found[name]:.4g}"} for name in names]))
        ways = [{"way": way, **{name: f"{row[name]:.4g}" for name in row}} for way, row in found["adding"].items()]
        out.print(table(f"\nfacts added {found['add_batch']} together against one at a time", ways))
        out.print(table("\n64 tokens, one prompt", [_timings(name, row) for name, row in found["inference"].items()]))
    else:
        _print_replay("RECIPE and its gates", found)
        points = [
            {"variant": row["variant"], "edits": row["edits"], **_shares(row["generated"])} for row in found["lifelong"]
        ]
        out.print(table("\nLifelong (generated)", points))
    if tokens:
        rows_of = [{"tokens": row["tokens"], **_shares(row)} for row in found["prompt_tokens"]]
        out.print(table(f"\nPrompt tokens, {tokens} steps each", rows_of))


@app.command()
def real(
    data: Annotated[
        str, typer.Option(help="A published file of facts (ZsRE, CounterFact, KnowEdit, ...), or a configured suite.")
    ],
    method: Annotated[str, typer.Option(help="The editing method.")] = "coachhook",
    edits: Annotated[int, typer.Option(min=1, help="Facts applied at most.")] = 1_000,
    skip: Annotated[
        int, typer.Option(min=0, help="Facts of the file left out before them (for tuning on others).")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Facts edited together.")] = 20,
    every: Annotated[int, typer.Option(min=1, help="Edits between two points of the curve.")] = 100,
    asked: Annotated[int, typer.Option(min=1, help="Applied facts asked at each point, evenly spread, at most.")] = 200,
    baselines: Annotated[
        bool, typer.Option(help="Also the paper's sequence scope, no gate, and sequential MEMIT, on the same facts.")
    ] = False,
    ask_in: Annotated[
        list[str] | None, typer.Option(help="Another prompt form to ask in at the end: raw, question or chat; again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a method on consecutive edits of the configured model, in every protocol; goes on where it was cut off.

    Example: `errata bench real --data counterfact.json --method recipe --edits 1000 --json`
    """
    from tasks.bench import real_quality

    def told(point: dict[str, Any]) -> None:
        for protocol, shares in point.items():
            if isinstance(shares, dict):
                figures = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
                err.print(f"{point['edits']} edits, {protocol}: {figures}", markup=False)

    with bars():
        found = real_quality(
            data,
            method=method,
            edits=edits,
            skip=skip,
            batch=batch,
            every=every,
            asked=asked,
            baselines=baselines,
            forms=ask_in or (),
            report=told,
        )
    if as_json:
        print_json(found)
        return
    rows = [
        {"": name, "edits": point["edits"], "protocol": protocol, **_shares(point[protocol])}
        for name, one in {method: found, **found.get("baselines", {})}.items()
        for point in one["curve"]
        for protocol in point
        if isinstance(point[protocol], dict) and point[protocol]
    ]
    rows += [
        {"": f"{method}, asked {form}", "edits": found["edits"], "protocol": protocol, **_shares(shares)}
        for form, protocols in found["other_forms"].items()
        for protocol, shares in protocols.items()
        if shares
    ]
    out.print(table(f"{method} on {found['model']}, {found['data']}", rows))
    out.print(
        f"{found['seconds_per_fact']:.2f} s and {found['bytes_per_fact']:.0f} bytes a fact, "
        f"{found['converged']:.1%} converged; of questions about the edited subjects and nothing that was edited "
        f"{found['bleeding']['edited']:.1%} are answered with an edit's target, {found['bleeding']['base']:.1%} by the "
        "base",
        soft_wrap=True,
    )


@app.command()
def statistics(
    corpus: Annotated[Path | None, typer.Option(help="Texts to measure on; default: the settings' corpus.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="A layer; may be repeated. Default: the edited ones.")] = None,
    tokens: Annotated[int, typer.Option(min=100, help="Tokens of each sample, at most.")] = 10_000,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each way is timed; the shortest counts.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Time the second-moment statistics against the plain way, over texts of several lengths.

    Example: `errata bench statistics --json`
    """
    from tasks.bench import statistics_speed

    with bars():
        found = statistics_speed(corpus, layer, tokens, repeats)
    if as_json:
        print_json(found)
        return
    columns = {
        "lengths": "tokens of a text",
        "speedup": "speedup",
        "speedup_by_processor_time": "by processor time",
        "tokens_per_second": "tokens a second",
        "plain_tokens_per_second": "the plain way",
        "padding": "its padding",
        "difference": "largest difference",
    }
    rows = [
        {name: f"{row[name]:.3g}" if isinstance(row[name], float) else row[name] for name in columns}
        for row in found["by_lengths"]
    ]
    out.print(table(f"{found['model']}, layers {found['layers']}, {found['threads']} threads", rows, columns))


@app.command("self-text")
def self_text(
    corpus: Annotated[Path, typer.Argument(help="Real texts: one a line, or the column 'text' of a Parquet file.")],
    layer: Annotated[list[int] | None, typer.Option(help="A layer; may be repeated. Default: the edited ones.")] = None,
    tokens: Annotated[int, typer.Option(min=100, help="Tokens of each sample, at most.")] = 20_000,
    as_json: AsJson = False,
) -> None:
    """Compare the statistics over what the model writes by itself with those over a real text.

    Real text is halved: each half's statistics are judged by the other half, as the model's own are.

    Example: `errata bench self-text articles.txt --json`
    """
    from tasks.bench import self_text_quality

    with bars():
        found = self_text_quality(corpus, layer, tokens)
    if as_json:
        print_json(found)
        return
    rows = [
        {"layer": row["layer"], "text": name, **{key: f"{value:.3g}" for key, value in row[name].items()}}
        for row in found
        for name in ("own", "real")
    ]
    out.print(table("Second moments against those of held-out real text", rows))


@app.command()
def asked(
    data: Annotated[str, typer.Option(help="A published file of facts, or a configured suite.")],
    facts: Annotated[int, typer.Option(min=1, help="Facts at most.")] = 200,
    skip: Annotated[int, typer.Option(min=0, help="Facts of the file left out before them.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Tell which questions about an edited subject take its edit, by the sentence encoder alone; nothing is edited.

    Of CoachHooK it is the option `reader` that is measured, whether it is set or not.

    Example: `errata bench asked --data zsre.json --facts 1000`
    """
    from tasks.bench import asked_alone

    with bars():
        found = asked_alone(data, facts, skip)
    if as_json:
        print_json(found)
        return
    kinds = {"rephrases": "rephrases", "else_asked": "nothing edited", "other_facts": "other facts'"}
    rows = [
        {"method": method, **{title: f"{shares[kind]:.1%}" for kind, title in kinds.items() if kind in shares}}
        | ({"locality prompts": f"{shares['locality']:.1%}"} if "locality" in shares else {})
        for method, shares in found.items()
    ]
    out.print(table("Questions that take a fact's edit", rows))


def _timings(model: str, row: Mapping[str, float]) -> dict[str, str]:
    return {"model": model, **{name: f"{value:.3f}" for name, value in row.items()}}


def _print_replay(title: str, found: Mapping[str, Any]) -> None:
    """The tables of a replay: shares by variant and protocol, over the number of edits, and the suites."""
    rows = [
        {"variant": variant, "protocol": protocol, **_shares(scores[protocol])}
        for protocol in PROTOCOLS
        for variant, scores in found["by_variant"].items()
    ]
    out.print(table(title, rows))
    points = [
        {"variant": variant, **_shares(point)}
        for variant, scores in found["by_variant"].items()
        for point in scores["curve"]
    ]
    out.print(table("\nOver the number of edits (generated)", points))
    tests = [
        {
            "variant": variant,
            "metric": metric,
            **_shares({name: test[name] for name in ("base", "edited", "n")}),
            "p_worse": f"{test['p_worse']:.3g}",
        }
        for variant, scores in found["by_variant"].items()
        for metric, test in scores["suites"].items()
    ]
    out.print(table("\nSuites against the base, paired", tests))


def _speed() -> dict[str, Any]:
    from editing.bench.coachhook_speed import measure_speed
    from tasks.progress import reporter
    from tasks.workspace import open_workspace

    space = open_workspace()
    rows = [measure_speed(progress=reporter()), measure_speed(space.base, progress=reporter())]
    return {**rows[0], "by_model": rows}


def _quality(feed: Path | None, wanted: list[str] | None) -> dict[str, Any]:
    from editing.bench.coachhook import VARIANTS, bench_coachhook
    from editing.editors.coachhook import CoachHookConfig
    from tasks.bench import bench_history
    from tasks.progress import reporter
    from tasks.suites import configured_suites
    from tasks.workspace import method_in_force, open_workspace

    if unknown := sorted(set(wanted or ()) - set(VARIANTS)):
        raise typer.BadParameter(f"no variant {', '.join(unknown)}; use some of {', '.join(VARIANTS)}")
    with method_in_force("coachhook"):
        space = open_workspace()
        return bench_coachhook(
            space.base,
            space.statistics(space.layers, reporter()),
            bench_history(feed),
            configured_suites(space.settings),
            CoachHookConfig.from_dict(space.options),
            batch_size=space.settings.editor.batch_size,
            variants=wanted or tuple(VARIANTS),
            progress=reporter(),
        )


def _shares(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.1%}" if isinstance(value, float) else value for name, value in row.items()}


def _number(value: Any) -> Any:
    return f"{value:.2f}" if isinstance(value, float) else value
