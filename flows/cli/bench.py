"""Benchmarks on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.console import bars, out, print_json, table

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
    as_json: AsJson = False,
) -> None:
    """Score CoachHooK and its ablations over a history of edits, or time it with --speed.

    Example: `errata bench coachhook --speed --json`
    """
    with bars():
        found = _speed() if speed else _quality(feed)
    if as_json:
        print_json(found)
    elif speed:
        columns = ("model", "speedup", "floor_ratio", "inference_ratio", "loss_difference", "batch", "threads")
        rows = [{name: _number(row[name]) for name in columns} for row in found["by_model"]]
        out.print(table("Batched target optimisation against the published way", rows, columns))
    else:
        rows = [
            {"variant": variant, "protocol": protocol, **_shares(scores[protocol])}
            for protocol in PROTOCOLS
            for variant, scores in found["by_variant"].items()
        ]
        out.print(table("CoachHooK and its ablations", rows))
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


def _quality(feed: Path | None) -> dict[str, Any]:
    from editing.almanac.history import almanac_history
    from editing.almanac.world import load_world
    from editing.bench.coachhook import bench_coachhook
    from editing.bench.replay import History
    from editing.editors.coachhook import CoachHookConfig
    from tasks.feed.reading import read_feed
    from tasks.progress import reporter
    from tasks.suites import configured_suites
    from tasks.workspace import open_workspace

    space = open_workspace()
    nights: dict[Any, list[Any]] = {}
    for change in read_feed(feed) if feed else ():
        nights.setdefault(change.effective_at.date(), []).append(change)
    return bench_coachhook(
        space.base,
        space.statistics(space.layers, reporter()),
        History(nights=dict(sorted(nights.items()))) if feed else almanac_history(load_world()),
        configured_suites(space.settings),
        CoachHookConfig.from_dict(space.options),
        batch_size=space.settings.editor.batch_size,
        progress=reporter(),
    )


def _shares(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.1%}" if isinstance(value, float) else value for name, value in row.items()}


def _number(value: Any) -> Any:
    return f"{value:.2f}" if isinstance(value, float) else value
