"""A person's approval: the flow run pauses with the gate's report in its form, and waits through a server's restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.input import RunInput, keyset_from_paused_state
from prefect.logging import get_run_logger
from prefect.states import Paused, State
from pydantic import ConfigDict, Field

from tasks.errors import TasksError
from tasks.progress import reporter

POLL_SECONDS = 5.0
SIGN_OF_LIFE_SECONDS = 1800.0
# The server fails a paused run that is past its own deadline, so that deadline lies behind ours.
MARGIN = timedelta(hours=24)


class ApprovalError(TasksError, RuntimeError):
    """A run cannot be paused for approval, or there is none that waits."""


class Approval(RunInput):
    """The form. Left as it is, it holds."""

    model_config = ConfigDict(extra="forbid")

    decision: Literal["promote", "hold"] = Field("hold", description="promote: the version serves from now on.")
    who: str = Field("", description="Your name; it goes into the ledger.")
    reason: str = Field("", description="Why; it goes into the ledger.")

    @property
    def sentence(self) -> str:
        """The answer in words."""
        done = "approved" if self.decision == "promote" else "held"
        return f"{done} by {self.who or 'somebody'}" + (f": {self.reason}" if self.reason else "")


def ask_for_approval(
    version: int, report: str, hours: float, while_waiting: Callable[[], object] = lambda: None
) -> Approval:
    """Pause the flow run that this is called from until a person fills in the form, or `hours` have passed: hold.

    `report` (markdown) stands above the form. The server may go away and come back meanwhile.
    `while_waiting` is called every half hour. Raises `ApprovalError` outside a flow run, or when the
    server does not let it pause.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ApprovalError(
            f"version {version} awaits approval, which only a flow run can ask for; call the night flow"
        )
    run_id = context.flow_run.id
    deadline = time.monotonic() + hours * 3600
    paused: State[Any] = Paused(
        timeout_seconds=int(hours * 3600 + MARGIN.total_seconds()), reschedule=False, pause_key=f"version-{version}"
    )
    keyset = keyset_from_paused_state(paused)
    paused.state_details.run_input_keyset = dict(keyset)  # type: ignore[arg-type]
    form = Approval.with_initial_data(description=f"Version {version} passed the gate.\n\n{report}")
    get_run_logger().info("Version %s waits for approval: here, or with `errata approve`", version)
    tell, told = reporter(), time.monotonic()
    with get_client(sync_client=True) as client:
        answer = client.set_flow_run_state(run_id, paused)
        if answer.status is not SetStateStatus.ACCEPT:
            raise ApprovalError(f"the run cannot pause for the approval of version {version}: {answer.details}")
        form.save(keyset, flow_run_id=run_id)
        while not _running(client, run_id):
            tell(f"version {version} waits for `errata approve`", 0, 1)
            if time.monotonic() >= deadline:
                _give_up(client, run_id, hours)
            if time.monotonic() - told >= SIGN_OF_LIFE_SECONDS:
                while_waiting()
                told = time.monotonic()
            time.sleep(POLL_SECONDS)
        tell(f"version {version} waits for `errata approve`", 1, 1)
    return cast(Approval, Approval.load(keyset, flow_run_id=run_id))


def waiting_runs() -> list[FlowRun]:
    """The flow runs that are paused for an approval, oldest first."""
    paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=paused)
    return sorted((run for run in found if _version_of(run)), key=lambda run: str(run.created))


def answer(approval: Approval, version: int | None = None) -> int:
    """Give the answer to the run that waits for one (on `version`, where several do); the version's number.

    Raises `ApprovalError` when none waits or more than one could be meant.
    """
    waiting = {_version_of(run): run for run in waiting_runs()}
    if version is None and len(waiting) > 1:
        raise ApprovalError(f"versions {sorted(filter(None, waiting))} wait for approval; say which with --version")
    chosen = version if version is not None else next(iter(waiting), None)
    if chosen is None or chosen not in waiting:
        told = f", but version {', '.join(map(str, sorted(filter(None, waiting))))} does" if waiting else ""
        raise ApprovalError(
            "no version waits for approval"
            if version is None
            else f"version {version} does not wait for approval{told}"
        )
    with get_client(sync_client=True) as client:
        _resume(client, waiting[chosen].id, approval)
    return chosen


def _version_of(run: FlowRun) -> int | None:
    key = run.state.state_details.pause_key if run.state else None
    return int(key.removeprefix("version-")) if key and key.startswith("version-") else None


def _running(client: SyncPrefectClient, run_id: UUID) -> bool:
    """Whether the run goes on; a server that is away is asked again later."""
    try:
        state = client.read_flow_run(run_id).state
    except httpx.TransportError:
        return False
    except PrefectHTTPStatusError as error:
        if error.response.status_code < 500:
            raise
        return False
    if state is not None and state.is_final():
        raise ApprovalError(f"the run was ended while it waited for approval: {state.name}; run the night again")
    return state is not None and state.is_running()


def _give_up(client: SyncPrefectClient, run_id: UUID, hours: float) -> None:
    """Answer in nobody's name."""
    try:
        _resume(client, run_id, Approval(decision="hold", who="nobody", reason=f"no answer within {hours:g} hours"))
    except (httpx.TransportError, PrefectHTTPStatusError, ApprovalError):
        return  # somebody was faster, or the server is away; the next poll shows which


def _resume(client: SyncPrefectClient, run_id: UUID, approval: Approval) -> None:
    result = client.resume_flow_run(run_id, run_input=approval.model_dump(include={"decision", "who", "reason"}))
    if result.status is not SetStateStatus.ACCEPT:
        raise ApprovalError(f"the run did not take the answer: {result.details}")
