"""The canary: whether the champion is still what was promoted, and the way back when it is not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext

from tasks.artifacts import show_table
from tasks.champion.approval import close_requests
from tasks.champion.fresh import CanaryError, Finding, Health, Question, check_in_fresh_process
from tasks.champion.moves import adopt_moves_by_hand, called, moving, point_aliases, record_move, standing
from tasks.faults import checkpoint
from tasks.ledger import RunPhase, RunRecord
from tasks.registry import CHAMPION, ArtifactMissingError, RegistryUnreachableError
from tasks.workspace import open_workspace

CANARY = "canary"
SPOKEN_AGAINST = (Health.BAD, Health.MISSING)


class ChampionFailedError(CanaryError):
    """The champion was not what was promoted; the message says what serves instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """A check: the version that was checked (None: the base serves), what was found, and who serves after it."""

    checked: int | None
    sentence: str
    serving: int | None
    findings: tuple[Finding, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether the version that was checked goes on."""
        return self.checked == self.serving

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "sound": self.sound}


@task(name="find champion", cache_policy=NO_CACHE)
def find_champion() -> int | None:
    """Who serves, after taking over what was moved in MLflow by hand; a version that nobody can approve any more waits
    no longer.

    Raises `RegistryUnreachableError` in an outage.
    """
    space = open_workspace()
    with moving(space), space.registry.answering():
        adopt_moves_by_hand(space)
        close_requests(space)
        point_aliases(space)
    return standing(space)


@task(name="check version", task_run_name="check version {version}", cache_policy=NO_CACHE)
def check_version(version: int) -> Finding:
    """Load a version in a fresh process and compare it with the ledger.

    Raises `RegistryUnreachableError` in an outage and `CanaryError` where the check cannot be made:
    neither is the version's fault.
    """
    space = open_workspace()
    record = space.ledger.version(version)
    if record is None:
        raise CanaryError(f"no night made version {version}; `errata history` lists those that were made")
    running = TaskRunContext.get()
    finding = check_in_fresh_process(
        Question(
            settings=space.settings.model_dump(mode="json"),
            version=version,
            digest=record.state_digest,
            base_fingerprint=record.base_fingerprint,
            recorded=[_plain(row) for row in space.ledger.answers(record.state_digest)],
        ),
        server=str(running.client.api_url) if running else None,
    )
    checkpoint("checked")
    if finding.differences:
        show_table("canary", [dict(row) for row in finding.differences], f"Answers of version {version} that differ")
    if finding.health is Health.UNREACHABLE:
        raise RegistryUnreachableError(f"version {version} was not checked and nothing was moved: {finding.sentence}")
    if finding.health is Health.OTHER_BASE:
        raise CanaryError(f"version {version} was not checked and nothing was moved: {finding.sentence}")
    return finding


@task(name="go back", cache_policy=NO_CACHE)
def go_back(findings: list[Finding], to: int | None) -> CanaryResult:
    """Move the champion to `to` (None: the base), because of what was found; the ledger says why."""
    space = open_workspace()
    failed = findings[0]
    with moving(space), space.registry.answering():
        if standing(space) == failed.version:
            why = "; ".join(finding.sentence for finding in findings)
            record_move(space, CHAMPION, to, who=CANARY, why=why)
        point_aliases(space)
    checkpoint("gone back")
    serving = standing(space)
    sentence = f"{failed.sentence}; {called(serving)} serves"
    return CanaryResult(checked=failed.version, sentence=sentence, serving=serving, findings=tuple(findings))


@task(name="record check", cache_policy=NO_CACHE)
def record_check(result: CanaryResult) -> None:
    """Write the check into the ledger."""
    phase = RunPhase.FINISHED if result.sound else RunPhase.FAILED
    open_workspace().ledger.record_run(
        RunRecord(run_id=uuid4().hex, kind=CANARY, phase=phase, detail=result.to_dict(), at=datetime.now(UTC))
    )


def choose_way_back() -> list[int | None]:
    """Where the champion can go, the nearest first; the base is last."""
    return open_workspace().ledger.stood_before()


def require_answering_store(findings: list[Finding]) -> None:
    """Raise `ArtifactMissingError` when the files of every version asked for are missing: then the store is."""
    if all(finding.health is Health.MISSING for finding in findings):
        raise ArtifactMissingError(
            f"{findings[0].sentence}; no other version can be fetched either, so the store is at fault and nothing "
            "was moved: restore it, or let the base serve with `errata rollback --to base`"
        )


def _plain(row: Any) -> dict[str, str]:
    return {name: getattr(row, name) for name in row.__slots__}
