"""One model under one fixed batch size, with an on-disk memory of what it answered.

The memory is keyed by everything that an answer depends on: the model's digest (edit state and
base), tokenizer, protocol, batch size, dtype, device type, package versions and the digest of
the whole list of requests. An entry answers that very call or none, so a base is scored on a
suite once per revision and never answers for another model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from editing.editors import get_editor
from editing.editors.base import EditState, Progress
from editing.evals.report import content_digest
from editing.evals.scoring import (
    DEFAULT_BATCH_SIZE,
    NEWLINE,
    SCORING_VERSION,
    TeacherForced,
    generate_greedy,
    teacher_forced,
)
from editing.models import BaseModel
from editing.storage import write_json

PACKAGES = ("torch", "transformers", "tokenizers")


class Scorer:
    """Scores the model that is in force now: `base`, edited by whatever is attached to it.

    Get one from `open_scorer`, which attaches the state it names. `cache` is a folder for
    remembered results, or None to remember nothing.
    """

    def __init__(
        self,
        base: BaseModel,
        state: EditState | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.base, self.state = base, state
        self.batch_size, self.cache = batch_size, cache
        self.label = ""  # what is being scored, for the progress report
        self._report = progress
        self.model_digest = base.fingerprint if state is None else state.digest
        self.dtype = str(base.model.dtype).removeprefix("torch.")
        self.device = base.device.type
        self.packages = {name: version(name) for name in PACKAGES}

    def teacher_forced(self, prompts: Sequence[str], targets: Sequence[str]) -> list[TeacherForced]:
        """`scoring.teacher_forced` of this model, remembered."""
        found, path = self._recall("teacher_forced", [list(prompts), list(targets)])
        if found is not None:
            return [
                TeacherForced(tuple(row["target_ids"]), tuple(row["predicted_ids"]), row["logprob"]) for row in found
            ]
        results = teacher_forced(self.base, prompts, targets, self.batch_size, progress=self._progress)
        self._remember(path, [asdict(result) for result in results])
        return results

    def generate(
        self, prompts: Sequence[str], max_new_tokens: int | Sequence[int], *, stop: Sequence[str] = NEWLINE
    ) -> list[str]:
        """`scoring.generate_greedy` of this model, remembered."""
        budget = max_new_tokens if isinstance(max_new_tokens, int) else list(max_new_tokens)
        found, path = self._recall("generated", [list(prompts), budget, list(stop)])
        if found is not None:
            return found
        texts = generate_greedy(self.base, prompts, budget, self.batch_size, stop=stop, progress=self._progress)
        self._remember(path, texts)
        return texts

    def _progress(self, stage: str, done: int, total: int) -> None:
        if self._report:
            self._report(f"{self.label} {stage}".lstrip(), done, total)

    def _recall(self, protocol: str, requests: list[Any]) -> tuple[list[Any] | None, Path | None]:
        if self.cache is None:
            return None, None
        key = {
            "model": self.model_digest,
            "base": self.base.fingerprint,
            "tokenizer": self.base.tokenizer_hash,
            "protocol": protocol,
            "requests": content_digest(requests),
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "device": self.device,
            "packages": self.packages,
            "scoring": SCORING_VERSION,
        }
        path = self.cache / self.model_digest[:16] / f"{content_digest(key)}.json"
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            intact = entry["digest"] == content_digest(entry["results"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, path
        return (entry["results"] if intact else None), path

    @staticmethod
    def _remember(path: Path | None, results: list[Any]) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"digest": content_digest(results), "results": results})


@contextmanager
def open_scorer(
    base: BaseModel,
    state: EditState | None = None,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[Scorer]:
    """A scorer of `base`, or of `base` edited by `state`, which is attached inside the `with` only."""
    scorer = Scorer(base, state, batch_size=batch_size, cache=cache, progress=progress)
    with nullcontext() if state is None else get_editor(state.method).attach(base, state):
        yield scorer
