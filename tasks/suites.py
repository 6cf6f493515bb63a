"""The suites of the nightly evaluation, as the settings name them, and the number that speaks for each."""

from __future__ import annotations

from editing.almanac.suites import SUITES as ALMANAC_SUITES
from editing.evals.suite import Suite
from editing.evals.suites import load_suite
from tasks.settings import Settings, SuiteSettings

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
    "counterfact": SuiteSettings(path=ALMANAC_SUITES / "counterfact.json", limit=600),
    "mmlu": SuiteSettings(path=ALMANAC_SUITES / "mmlu", options=_BARE),
    "gsm8k": SuiteSettings(path=ALMANAC_SUITES / "gsm8k", options=_BARE),
}


def configured_suites(settings: Settings) -> list[Suite]:
    """The suites, each cut to its limit. Raises `SuiteError` for one that is unknown or cannot be read."""
    evaluation = settings.evaluation
    return [
        load_suite(name, source.path, **source.options).sample(source.limit, evaluation.seed)
        for name, source in (evaluation.suites or ALMANAC_SOURCES).items()
    ]
