"""One model under one fixed batch size, with an on-disk memory of what it answered.

The memory is keyed by everything that an answer depends on: the model's digest (edit state and
base), tokenizer, protocol, batch size, dtype, device type, package versions and the digest of
the whole list of requests. An entry answers that very call or none, so a base is scored on a
suite once per revision and never answers for another model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from editing.editors import get_editor
from editing.editors.base import EditState, Progress
from editing.evals.lanes import Lanes, attached
from editing.evals.report import content_digest
from editing.evals.requests import GenerationPlan, Ids, RequestBook, Row
from editing.evals.scoring import (
    DEFAULT_BATCH_SIZE,
    NEWLINE,
    SCORING_VERSION,
    Sampling,
    TeacherForced,
    forced_work,
    generation_work,
    targets_read,
    texts_of,
)
from editing.evals.shards import Shards, Work, carry_out
from editing.models import BaseModel
from editing.storage import write_json

PACKAGES = ("torch", "transformers", "tokenizers")
CLEARLY_OUT = 1e-3  # how far below its threshold, relatively, a score must stay to count as out of every edit's reach


class Scorer:
    """Scores the model that is in force now: `base`, edited by whatever is attached to it.

    Get one from `open_scorer`, which attaches the state it names. `cache` is a folder for
    remembered results, or None to remember nothing; `book` holds the plans of requests that other
    scorers have made; `lanes` are the model objects beside `base`; `shards` run work that is shared
    out, None runs all of it on `base`.

    Where the base's answers are remembered and no edit reaches a request or its answer, the base's
    answer is the edited model's too and is taken over. `asked` counts the distinct rows of requests,
    `computed` those that were run through the model.
    """

    def __init__(
        self,
        base: BaseModel,
        state: EditState | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        cache: Path | None = None,
        book: RequestBook | None = None,
        lanes: Lanes | None = None,
        shards: Shards | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.base, self.state = base, state
        self.batch_size, self.cache = batch_size, cache
        self.label = ""  # what is being scored, for the progress report
        self.asked = self.computed = 0
        self._book = book or RequestBook()
        self._lanes = lanes or Lanes(base)
        self._shards, self._progress = shards, progress
        self.model_digest = base.fingerprint if state is None else state.digest
        self.dtype = str(base.model.dtype).removeprefix("torch.")
        self.device = base.device.type
        self.packages = {name: version(name) for name in PACKAGES}

    def teacher_forced(self, prompts: Sequence[str], targets: Sequence[str]) -> list[TeacherForced]:
        """`scoring.teacher_forced` of this model, remembered."""
        plan = self._book.forced(self.base, prompts, targets)
        self.asked += len(plan.rows)
        requests = ["teacher_forced", [list(prompts), list(targets)]]
        found = self._recall(requests, self.model_digest)
        if found is None:
            known = self._untouched_targets(requests, plan.rows)
            rows = [row for row in plan.rows if row not in known]
            self.computed += len(rows)
            made = targets_read(plan, rows, self._carry_out(forced_work(plan, rows, self.batch_size)))
            made |= {item: known[row][item] for row in known for item in plan.asked[row]}
            found = [asdict(made[item]) for item in range(len(plan.pairs))]
            self._remember(requests, found)
        return [_target(row) for row in found]

    def generate(
        self, prompts: Sequence[str], max_new_tokens: int | Sequence[int], *, stop: Sequence[str] = NEWLINE
    ) -> list[str]:
        """`scoring.generate_greedy` of this model, remembered."""
        plan = self._plan(prompts, max_new_tokens)
        requests = ["generated", [list(prompts), list(plan.budgets), list(stop)]]
        return texts_of(self.base.tokenizer, plan, self._texts(requests, plan, stop, None), stop)

    def sample(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int], sampling: Sampling) -> list[str]:
        """Texts drawn by `sampling`, up to the budget or the end of the text, remembered."""
        plan = self._plan(prompts, max_new_tokens)
        requests = ["sampled", [list(prompts), list(plan.budgets), asdict(sampling)]]
        return texts_of(self.base.tokenizer, plan, self._texts(requests, plan, (), sampling), ())

    def _plan(self, prompts: Sequence[str], max_new_tokens: int | Sequence[int]) -> GenerationPlan:
        budgets = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        return self._book.generation(self.base, prompts, budgets)

    def _texts(
        self, requests: list[Any], plan: GenerationPlan, stop: Sequence[str], sampling: Sampling | None
    ) -> dict[Ids, Ids]:
        self.asked += len(plan.rows)
        found = self._recall(requests, self.model_digest)
        if found is None:
            known = self._untouched_texts(requests, plan.rows)
            rows = [row for row in plan.rows if row not in known]
            self.computed += len(rows)
            work = generation_work(plan, rows, self.batch_size, stop, sampling)
            made = known | dict(zip(rows, self._carry_out(work), strict=True))
            found = [list(made[row]) for row in plan.rows]
            self._remember(requests, found)
        return {row: tuple(ids) for row, ids in zip(plan.rows, found, strict=True)}

    def _untouched_targets(self, requests: list[Any], rows: Sequence[Row]) -> dict[Row, list[TeacherForced]]:
        """The base's remembered results, by request, of the rows that no edit reaches."""
        told = self._recall(requests, self.base.fingerprint) if self.state else None
        if not told:
            return {}
        results = [_target(row) for row in told]
        return dict.fromkeys(self._out_of_reach(rows), results)

    def _untouched_texts(self, requests: list[Any], rows: Sequence[Ids]) -> dict[Ids, Ids]:
        """The base's remembered texts of the prompts that no edit reaches, nor any token of the text."""
        told = self._recall(requests, self.base.fingerprint) if self.state else None
        if not told:
            return {}
        texts = {row: tuple(ids) for row, ids in zip(rows, told, strict=True)}
        return {row: texts[row] for row, _ in self._out_of_reach([(row, texts[row][:-1]) for row in rows])}

    def _out_of_reach(self, rows: Sequence[Row]) -> list[Row]:
        assert self.state is not None
        editor, model = get_editor(self.state.method), self._lanes.spare
        if model is None:
            return []
        readings = editor.read_scope(model, self.state, rows, batch_size=self.batch_size)
        return [
            row
            for row, reading in zip(rows, readings, strict=True)
            if not reading.touched and reading.lead < -CLEARLY_OUT
        ]

    def _carry_out(self, work: Work) -> list[Any]:
        return carry_out(work, self.base, f"{self.label} {work.protocol}".lstrip(), self._shards, self._progress)

    def _path(self, requests: list[Any], model_digest: str) -> Path:
        protocol, content = requests
        key = {
            "model": model_digest,
            "base": self.base.fingerprint,
            "tokenizer": self.base.tokenizer_hash,
            "protocol": protocol,
            "requests": content_digest(content),
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "device": self.device,
            "packages": self.packages,
            "scoring": SCORING_VERSION,
            "form": self.base.form.to_dict(),
        }
        assert self.cache is not None
        return score_folder(self.cache, model_digest) / f"{content_digest(key)}.json"

    def _recall(self, requests: list[Any], model_digest: str) -> list[Any] | None:
        if self.cache is None:
            return None
        try:
            entry = json.loads(self._path(requests, model_digest).read_text(encoding="utf-8"))
            return entry["results"] if entry["digest"] == content_digest(entry["results"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, requests: list[Any], results: list[Any]) -> None:
        if self.cache is not None:
            path = self._path(requests, self.model_digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"digest": content_digest(results), "results": results})


def score_folder(cache: Path, model_digest: str) -> Path:
    """Where a scorer with this cache remembers what the model of that digest answered."""
    return cache / model_digest[:16]


def _target(row: dict[str, Any]) -> TeacherForced:
    return TeacherForced(tuple(row["target_ids"]), tuple(row["predicted_ids"]), row["logprob"])


@contextmanager
def open_scorer(
    base: BaseModel,
    state: EditState | None = None,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    cache: Path | None = None,
    book: RequestBook | None = None,
    lanes: Lanes | None = None,
    shards: Shards | None = None,
    progress: Progress | None = None,
) -> Iterator[Scorer]:
    """A scorer of `base`, or of `base` edited by `state`, which is attached inside the `with` only."""
    lanes = lanes or Lanes(base)
    scorer = Scorer(
        base, state, batch_size=batch_size, cache=cache, book=book, lanes=lanes, shards=shards, progress=progress
    )
    if state is not None:
        assert lanes.spare is None or lanes.spare.model is not base.model  # made before any hook is on
    with attached(base, state):
        yield scorer
