"""`errata calibrate`: trials within a time, each kept as it ends, and the choice written into `errata.toml`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Table

from editing.bench.real import bench_real
from editing.calibration import Trial, candidates, causal_trace, refinements, served_shares
from editing.editors.coachhook import CoachHookConfig
from editing.errors import EditRefusedError, SuiteError
from editing.evals.report import content_digest
from editing.facts import FactChange
from editing.storage import read_json, replace_file, write_json
from tasks.bench import published_facts
from tasks.errors import FeedError
from tasks.progress import reporter
from tasks.settings import CONFIG_NAME, SettingsError, find_config
from tasks.workspace import Workspace, method_in_force, open_workspace, options_in_force

METHOD = "coachhook"
TRACED = 8  # facts of the causal trace
LEAST = 8  # facts, or no half says anything


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was tried and chosen. `reported` are defaults and choice on the facts that nothing was chosen on.

    `finished` says whether every trial was made; where not, the same command goes on. `written` is the file that now
    names the choice, None where the defaults stand.
    """

    trace: Mapping[int, float]
    trials: tuple[Trial, ...]
    best: Trial
    reported: Mapping[str, Mapping[str, float]]
    finished: bool
    written: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "trace": {str(layer): share for layer, share in self.trace.items()},
            "trials": [{**asdict(trial), "score": trial.score} for trial in self.trials],
            "best": {**asdict(self.best), "score": self.best.score},
            "reported": dict(self.reported),
            "finished": self.finished,
            "written": str(self.written) if self.written else None,
        }


def calibrate(
    data: str,
    *,
    facts: int,
    budget_minutes: float,
    write: bool = True,
    report: Callable[[Trial], None] = lambda _: None,
) -> Calibration:
    """Find CoachHooK's layers and the few other choices on the first facts of a published file, within the budget.

    Half of the facts choose, the others report. Every trial is kept under home; the same command goes on where it
    stopped. No trial begins after the budget, so that it may be overrun by one. Raises `FeedError` for too few facts,
    `SettingsError` before the first trial where the choice could not be written into `errata.toml`.
    """
    ends = time.monotonic() + 60 * budget_minutes
    target = find_config()
    if write:
        _require_place(target)
    with method_in_force(METHOD):
        space = open_workspace()
        chosen_from = published_facts(space, data)[:facts]
        if len(chosen_from) < LEAST:
            raise FeedError(f"{data} has {len(chosen_from)} facts of its own subject each; calibration needs {LEAST}")
        choosing, reporting = chosen_from[0::2], chosen_from[1::2]
        defaults = CoachHookConfig.from_dict(space.options)
        run = _Trials(space, choosing, reporting, defaults, ends, report)
        trace = run.trace()
        for options in candidates(trace, len(space.base.blocks), defaults):
            run.choose(options)
        for options in refinements(run.best.options, defaults):
            run.choose(options)
        best = run.best
        reported = {"defaults": run.reported({})}
        if best.options:
            reported["chosen"] = run.reported(best.options)
        better = bool(best.options) and _score(reported["chosen"]) >= _score(reported["defaults"])
        written = target if write and better and run.finished else None
        if written is not None:
            write_choice(written, best, reported)
        return Calibration(trace, tuple(run.trials), best, reported, run.finished, written)


class _Trials:
    """The trials of one calibration, each in a file of its own."""

    def __init__(
        self,
        space: Workspace,
        choosing: Sequence[FactChange],
        reporting: Sequence[FactChange],
        defaults: CoachHookConfig,
        ends: float,
        report: Callable[[Trial], None],
    ) -> None:
        self._choosing, self._reporting, self._ends, self._report = choosing, reporting, ends, report
        self._base = space.base
        asked = [fact.fact_id for fact in (*choosing, *reporting)]
        run = [space.base.fingerprint, space.base.form.to_dict(), defaults.to_dict(), asked]
        self._folder = space.settings.cache / "calibration" / content_digest(run)[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        self.trials: list[Trial] = []
        self.finished = True

    @property
    def best(self) -> Trial:
        return max(self.trials, key=lambda trial: trial.score) if self.trials else Trial({}, {})

    def trace(self) -> dict[int, float]:
        path = self._folder / "trace.json"
        if not path.exists():
            stride = max(1, len(self._base.blocks) // 12)
            traced = causal_trace(self._base, self._choosing[:TRACED], stride=stride, progress=reporter())
            write_json(path, {str(layer): share for layer, share in traced.items()})
        return {int(layer): share for layer, share in read_json(path, SuiteError).items()}

    def choose(self, options: Mapping[str, Any]) -> None:
        shares = self._shares("choosing", options, self._choosing)
        if shares is not None:
            self.trials.append(Trial(options, shares))
            self._report(self.trials[-1])

    def reported(self, options: Mapping[str, Any]) -> dict[str, float]:
        return self._shares("reporting", options, self._reporting, must=True) or {}

    def _shares(
        self, part: str, options: Mapping[str, Any], facts: Sequence[FactChange], *, must: bool = False
    ) -> dict[str, float] | None:
        """The shares of a trial, made or read; None where the time is over."""
        path = self._folder / f"{part}-{content_digest(dict(options))[:16]}.json"
        if not path.exists():
            if not must and time.monotonic() >= self._ends:
                self.finished = False
                return None
            write_json(path, {"options": dict(options), "shares": self._edited(options, facts)})
        return dict(read_json(path, SuiteError)["shares"])

    def _edited(self, options: Mapping[str, Any], facts: Sequence[FactChange]) -> dict[str, float]:
        with options_in_force(options):
            space = open_workspace()
            try:
                found = bench_real(
                    space.base,
                    space.editor,
                    space.start(reporter()),
                    facts,
                    (),
                    batch_size=space.settings.editor.batch_size,
                    every=len(facts),
                    asked=len(facts),
                    scoring_batch_size=min(32, space.settings.evaluation.batch_size),
                    progress=reporter(),
                )
            except EditRefusedError:  # a choice that leaves no state counts for nothing
                return {"reliability": 0.0}
            return served_shares(found)


def _score(shares: Mapping[str, float]) -> float:
    return Trial({}, shares).score


def _require_place(path: Path | None) -> None:
    """Raise `SettingsError` where a choice has no place in the settings file."""
    if path is None:
        raise SettingsError(f"there is no {CONFIG_NAME} to write the choice to; `errata init`, or give --no-write")
    editor = tomlkit.parse(path.read_text(encoding="utf-8")).get("editor", {})
    if (method := editor.get("method", METHOD)) != METHOD:
        raise SettingsError(
            f"editor.method in {path} is {method!r}, and the options there are its own; set it to {METHOD!r}, or give "
            "--no-write"
        )
    if not isinstance(editor.get("options", tomlkit.table()), Table):
        raise SettingsError(f"the options of [editor] in {path} stand in one line; write them as [editor.options]")


def write_choice(path: Path, best: Trial, reported: Mapping[str, Mapping[str, float]]) -> None:
    """Put the choice into `[editor.options]` of a settings file, the evidence above it; all else stays as it is."""
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    editor = document.setdefault("editor", tomlkit.table())
    options = editor.setdefault("options", tomlkit.table())
    assert isinstance(options, Table)
    told = "; ".join(
        f"{name} " + ", ".join(f"{metric} {share:.2f}" for metric, share in shares.items())
        for name, shares in reported.items()
    )
    options.add(
        tomlkit.comment(f"errata calibrate, {datetime.now(UTC):%Y-%m-%d}, on facts it did not choose on: {told}")
    )
    for name, value in best.options.items():
        options[name] = value
    replace_file(path, lambda part: part.write_text(tomlkit.dumps(document), encoding="utf-8"))
