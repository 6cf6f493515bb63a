"""Settings are checked before anything heavy starts, by every command alike: names, values and paths."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from editing.editors import METHODS
from editing.editors.both.config import BothConfig
from editing.editors.coachhook.config import CoachHookConfig
from editing.editors.recipe.config import EncoderConfig, RecipeConfig, TrainingConfig
from editing.errors import ConfigError
from tasks.settings import SUITE_PATHS, Settings, SettingsError, find_config

DTYPES = ("float32", "bfloat16", "float16")
CONFIGS: Mapping[str, Any] = {"coachhook": CoachHookConfig, "recipe": RecipeConfig, "both": BothConfig}
TABLES = ("floors", "champion_margins", "base_margins")
_ASKED = ("teacher_forced", "generated")
_MEASURED = ("success", "magnitude")
# What each suite measures, as `metric.protocol`.
METRICS = {
    "zsre": [f"{metric}.{how}" for metric in ("question", "rephrase", "unrelated") for how in _ASKED],
    "counterfact": [
        *(f"{kind}_{what}.likelihood" for kind in ("rewrite", "paraphrase", "neighbourhood") for what in _MEASURED),
        "generation_entropy.sampled",
        "generation_consistency.sampled",
    ],
    "counterfact_edits": [
        *(f"{kind}_{what}.likelihood" for kind in ("efficacy", "paraphrase", "neighbourhood") for what in _MEASURED),
        "generation_entropy.sampled",
        "generation_consistency.sampled",
    ],
    "mmlu": ["accuracy.option_likelihood"],
    "gsm8k": ["strict-match.generated", "flexible-extract.generated"],
    "edits": [
        f"{metric}.{how}"
        for metric in ("reliability", "generality", "portability", "locality", "same_subject_locality")
        for how in (*_ASKED, "wild")
    ],
    "retention": [f"reliability.{how}" for how in (*_ASKED, "wild")],
}
_EVERY_METRIC = {f"{suite}.{metric}" for suite, metrics in METRICS.items() for metric in metrics}
LEAST_FREE = 100 * 10**6  # bytes
ALMANAC_SUITES = ("zsre", "counterfact", "mmlu", "gsm8k")
OF_NIGHTS = ("edits", "retention")  # suites that are made of the night's own facts
# The layers of a model are not known before it is loaded; any stand for them.
_UNKNOWN_YET = {"layers": (0,)}


def check_settings(settings: Settings, *, with_model: bool = True) -> None:
    """Raise `SettingsError` for a name that nothing has, a value that its place does not take, or a path to nothing.

    Nothing is loaded for it. `with_model` False: the base model need not be there yet.
    """
    if settings.model.dtype not in DTYPES:
        raise _wrong("model.dtype", settings.model.dtype, DTYPES)
    check_options(settings.editor.method, settings.editor.options)
    for name, config, content in (
        ("recipe.encoder", EncoderConfig, settings.recipe.encoder),
        ("recipe.training", TrainingConfig, settings.recipe.training),
    ):
        _check_config(name, config, content)
    for name in settings.evaluation.suites:
        if name not in METRICS or name in OF_NIGHTS:
            raise _wrong("a suite under [evaluation.suites]", name, [s for s in METRICS if s not in OF_NIGHTS])
    suites = tuple(settings.evaluation.suites) or ALMANAC_SUITES
    if settings.canary.suite and settings.canary.suite not in suites:
        raise _wrong("canary.suite", settings.canary.suite, suites)
    _check_policy(settings.gate.policy, suites)
    for name, path in _paths(settings, with_model):
        if not path.exists():
            raise SettingsError(f"{_place()}{name} = {str(path)!r}: there is nothing; correct the path")


def check_room(settings: Settings) -> None:
    """Raise `SettingsError` when the disk of home has too little room for servers and states to be written at all."""
    settings.home.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(settings.home).free) < LEAST_FREE:
        raise SettingsError(
            f"the disk is full: {settings.home} has {free // 10**6} MB left, and what runs needs {LEAST_FREE // 10**6} "
            "MB or more; free some space, or name another place (ERRATA_HOME)"
        )


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Raise `SettingsError` for a method that there is not, or options that it does not have or take."""
    if method not in METHODS:
        raise _wrong("editor.method", method, METHODS)
    given: dict[str, Any] = dict(options)
    if method == "both":
        for part in ("coachhook", "recipe"):
            table = given.get(part, {})
            if not isinstance(table, Mapping):
                raise SettingsError(f"{_place()}editor.options.{part} = {table!r}: give a table of its options")
            _check_names(f"editor.options.{part}", CONFIGS[part], table)
            given[part] = {**_unknown_yet(part), **table}
    else:
        given = {**_unknown_yet(method), **given}
    _check_config("editor.options", CONFIGS[method], given)


def _unknown_yet(method: str) -> dict[str, Any]:
    return dict(_UNKNOWN_YET) if method == "coachhook" else {}


def _check_config(table: str, config: Any, content: Mapping[str, Any]) -> None:
    _check_names(table, config, content)
    try:
        config.from_dict(content)
    except (ConfigError, TypeError, ValueError) as error:
        raise SettingsError(f"{_place()}[{table}] does not fit: {error}") from error


def _check_names(table: str, config: Any, content: Mapping[str, Any]) -> None:
    known = [item.name for item in fields(config)]
    for name in content:
        if name not in known:
            raise _wrong(f"an option under [{table}]", name, known)


def _check_policy(policy: Mapping[str, Any], suites: Collection[str]) -> None:
    known = (*TABLES, "alpha", "power", "discordance", "seed")
    for name in policy:
        if name not in known:
            raise _wrong("a field of [gate.policy]", name, known)
    there = [*suites, *OF_NIGHTS]
    measured = [f"{suite}.{metric}" for suite in there for metric in METRICS[suite]]
    for name in TABLES:
        limits = policy.get(name) or {}
        if not isinstance(limits, Mapping):
            raise SettingsError(f"{_place()}gate.policy.{name} = {limits!r}: give a table of metrics, or false")
        for metric, limit in limits.items():
            suite = metric.split(".", 1)[0]
            if limit is not False and suite in METRICS and suite not in there:
                raise SettingsError(
                    f"{_place()}[gate.policy.{name}] names {metric}, and no suite {suite!r} is configured; the suites "
                    f"are {', '.join(suites)}"
                )
            if metric not in measured and not (limit is False and metric in _EVERY_METRIC):
                raise _wrong(f"a metric under [gate.policy.{name}]", metric, measured)
            number = not isinstance(limit, bool) and isinstance(limit, int | float)
            if limit is not False and not (number and 0 <= limit <= 1):
                raise SettingsError(
                    f"{_place()}gate.policy.{name} of {metric} is {limit!r}: give a share between 0 and 1, or "
                    "false for none"
                )


def _paths(settings: Settings, with_model: bool) -> Iterator[tuple[str, Path]]:
    """Every place on disk that the settings name and that must be there."""
    if with_model and (model := Path(settings.model.id)).is_absolute():
        yield "model.id", model
    for name, path in (
        ("statistics.corpus", settings.statistics.corpus),
        ("recipe.edits", settings.recipe.edits),
        ("recipe.initial", settings.recipe.initial),
        *(("recipe.without", path) for path in settings.recipe.without),
    ):
        if path is not None:
            yield name, path
    for name, suite in settings.evaluation.suites.items():
        if suite.path is not None:
            yield f"evaluation.suites.{name}.path", suite.path
        for option in SUITE_PATHS:
            if option in suite.options:
                yield f"evaluation.suites.{name}.options.{option}", Path(suite.options[option])


def _wrong(what: str, name: object, known: Collection[str]) -> SettingsError:
    close = difflib.get_close_matches(str(name), known, n=1)
    way = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return SettingsError(f"{_place()}{what} cannot be {name!r}; {way}")


def _place() -> str:
    return f"{path}: " if (path := find_config()) else ""
