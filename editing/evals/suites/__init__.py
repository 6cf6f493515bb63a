"""The suites: data in published formats, each read by a package of its own with a README and a version.

| suite | measures, on a model that holds edits | protocols |
|---|---|---|
| zsre | whether the answers that no edit touches are still given | teacher_forced, generated |
| counterfact | whether the true object still beats the counterfactual one | likelihood, sampled |
| counterfact_edits | efficacy, paraphrase, neighbourhood, texts of *applied* counterfactuals | likelihood, sampled |
| mmlu | multiple choice | option_likelihood |
| gsm8k | word problems | generated, by named answer filter |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from editing.errors import SuiteError
from editing.evals.suite import Suite
from editing.evals.suites import counterfact, gsm8k, mmlu, zsre

SUITES: dict[str, Callable[..., Suite]] = {
    "zsre": zsre.load_regression,
    "counterfact": counterfact.load_regression,
    "counterfact_edits": counterfact.load_edited,
    "mmlu": mmlu.load,
    "gsm8k": gsm8k.load,
}


def load_suite(name: str, path: str | Path, **options: Any) -> Suite:
    """Read suite `name` from a file or folder in a published format; `options` go to its loader.

    Raises `SuiteError` for an unknown name or unreadable data.
    """
    if name not in SUITES:
        raise SuiteError(f"no suite {name!r}; the suites are {', '.join(SUITES)}")
    return SUITES[name](Path(path), **options)
