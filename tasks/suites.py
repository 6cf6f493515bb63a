"""The suites of the nightly evaluation, as the settings name them, and the number that speaks for each."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from editing.almanac.suites import SUITES as ALMANAC_SUITES
from editing.evals.suite import Suite
from editing.evals.suites import load_suite
from editing.evals.suites.hub import fetch_dataset
from tasks.settings import Settings, SettingsError, SuiteSettings
from tasks.waiting import HUB, waiting_for

HEADLINES = {
    "zsre": "zsre.question.generated",
    "counterfact": "counterfact.neighbourhood_success.likelihood",
    "mmlu": "mmlu.accuracy.option_likelihood",
    "gsm8k": "gsm8k.strict-match.generated",
}
# The Almanac's model is too small for shots and headers.
_BARE = {"shots": 0, "form": "bare"}
ALMANAC_SOURCES = {
    "zsre": SuiteSettings(path=ALMANAC_SUITES / "zsre.json", limit=600),
    "counterfact": SuiteSettings(
        path=ALMANAC_SUITES / "counterfact.json",
        limit=600,
        options={"generation": 10, "references": ALMANAC_SUITES / "attribute_snippets.json"},
    ),
    "mmlu": SuiteSettings(path=ALMANAC_SUITES / "mmlu", options=_BARE),
    "gsm8k": SuiteSettings(path=ALMANAC_SUITES / "gsm8k", options=_BARE),
}


def configured_suites(settings: Settings, only: Collection[str] = ()) -> list[Suite]:
    """The suites, or `only` those named, each cut to its limit.

    Raises `SuiteError` for one that is unknown or cannot be read, `SettingsError` for a name that is not configured.
    """
    sources = suite_sources(settings)
    if unknown := sorted(set(only) - sources.keys()):
        raise SettingsError(f"no suite {unknown[0]!r} is configured; there are {', '.join(sources)}")
    return [
        load_suite(name, suite_path(settings, source), **source.options).sample(source.limit, settings.evaluation.seed)
        for name, source in sources.items()
        if not only or name in only
    ]


def suite_sources(settings: Settings) -> dict[str, SuiteSettings]:
    """Where each suite comes from: as the settings say, else the Almanac's."""
    return settings.evaluation.suites or ALMANAC_SOURCES


def suite_path(settings: Settings, source: SuiteSettings) -> Path:
    """The file or folder of a suite; a dataset's is fetched into the cache when it is not there."""
    if source.path is not None:
        return source.path
    assert source.dataset is not None
    folder = settings.cache / "datasets"
    with waiting_for(HUB):
        return fetch_dataset(source.dataset, folder, subset=source.subset, revision=source.revision)
