"""The canary's fresh process: loads a version from the registry as a server would, and says what it found.

`python -m tasks.champion.fresh` reads a `Question` as JSON on stdin and writes a `Finding` as JSON on
stdout. It shares nothing with the process that asks: no model, no kept state, no remembered score.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from editing.errors import StateError
from tasks.champion.answers import Comparison, compare_answers
from tasks.errors import TasksError
from tasks.ledger import RecordedAnswer
from tasks.registry import ArtifactMissingError, RegistryError, RegistryUnreachableError, Version
from tasks.settings import Settings
from tasks.workspace import Workspace

FINGERPRINT_TAG = "errata.base_fingerprint"
SECONDS = 1800


class CanaryError(TasksError, RuntimeError):
    """The check itself could not be carried out, which says nothing about the version."""


class Health(StrEnum):
    """What a check can come to. Only `BAD` and `MISSING` speak against the version."""

    SOUND = "sound"
    BAD = "bad"
    MISSING = "missing"
    UNREACHABLE = "unreachable"
    OTHER_BASE = "other base"


@dataclass(frozen=True, slots=True)
class Question:
    """A version as the ledger knows it, and what it answered when it was registered."""

    settings: Mapping[str, Any]
    version: int
    digest: str
    base_fingerprint: str
    recorded: Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What the fresh process found. `differences` holds suite, prompt, recorded and given answer."""

    version: int
    health: Health
    sentence: str
    compared: int = 0
    differences: Sequence[Mapping[str, str]] = field(default_factory=tuple)


def check_in_fresh_process(question: Question, server: str | None = None) -> Finding:
    """Let a new process load and ask the version; `server` is the Prefect server that it tells of shards, if it has
    any.

    Raises `CanaryError` when it ends without a finding.
    """
    command = [sys.executable, "-m", "tasks.champion.fresh"]
    environment = {**os.environ, "PREFECT_API_URL": server} if server else None
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(question)),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=environment,
        )
        content = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        said = (getattr(error, "stderr", None) or "") if isinstance(error, subprocess.TimeoutExpired) else done.stderr
        last = (str(said).strip().splitlines() or [type(error).__name__])[-1]
        raise CanaryError(
            f"the process that checks version {question.version} ended without a finding ({last}); no alias was "
            "moved, run `errata canary` again"
        ) from error
    return Finding(**{**content, "health": Health(content["health"])})


def examine(question: Question) -> Finding:
    """Load the version from the registry into this process and compare it with what the ledger says of it."""
    space = Workspace(Settings.restored(question.settings))
    space.settings.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=space.settings.cache, prefix="canary-") as cache:
        return _examine(space, question, Path(cache))


def _examine(space: Workspace, question: Question, cache: Path) -> Finding:
    number = question.version

    def found(health: Health, sentence: str, comparison: Comparison | None = None) -> Finding:
        told = [asdict(difference) for difference in comparison.differences] if comparison else []
        return Finding(number, health, sentence, comparison.compared if comparison else 0, told)

    if space.base.fingerprint != question.base_fingerprint:
        return found(
            Health.OTHER_BASE,
            f"the base model here ({space.base.model_id!r}) has fingerprint {space.base.fingerprint[:12]}, "
            f"version {number} was made for {question.base_fingerprint[:12]}; put the base back that the versions name",
        )
    registry = space.open_registry(cache)
    try:
        with registry.answering():
            version = registry.get(number)
        if lie := _lie(version, question):
            return found(Health.BAD, lie)
        folder = registry.fetch(version)
        state = space.load(folder, question.digest)
    except RegistryUnreachableError as error:
        return found(Health.UNREACHABLE, str(error))
    except ArtifactMissingError as error:
        return found(Health.MISSING, str(error))
    except (StateError, RegistryError) as error:
        return found(Health.BAD, f"version {number} does not load: {error}")
    settings = space.settings
    with space.scorer_of(state, folder, cache=None) as scorer:
        comparison = compare_answers(scorer, settings, [RecordedAnswer(**row) for row in question.recorded])
    if comparison.share > settings.canary.tolerance:
        sentence = (
            f"version {number} answers {len(comparison.differences)} of {comparison.compared} recorded prompts "
            "otherwise than when it was registered"
        )
        return found(Health.BAD, sentence, comparison)
    agreed = comparison.compared - len(comparison.differences)
    sentence = f"version {number} is the state that was registered and gives {agreed} of {comparison.compared} answers"
    return found(Health.SOUND, sentence, comparison)


def _lie(version: Version, question: Question) -> str | None:
    """What the registry says of the version that the ledger knows to be false."""
    for name, told, true in (
        ("the state", version.digest, question.digest),
        ("the base", version.tags.get(FINGERPRINT_TAG, ""), question.base_fingerprint),
    ):
        if told != true:
            return (
                f"version {version.number} lies about {name}: the registry says {told[:12] or 'nothing'}, "
                f"the ledger {true[:12]}"
            )
    return None


def main() -> None:
    """Answer the question on stdin."""
    print(json.dumps(asdict(examine(Question(**json.load(sys.stdin))))))


if __name__ == "__main__":
    main()
