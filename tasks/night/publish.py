"""What a night leaves in MLflow: its run, with the candidate as a version."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.evals.gate import Verdict
from editing.evals.report import EvalReport
from tasks.artifacts import show_link
from tasks.champion.answers import record_answers
from tasks.faults import checkpoint
from tasks.feed.schema import SCHEMA
from tasks.night.edit import applied_facts, refusals
from tasks.night.evaluate import answered_facts, report_of, retention_groups, verdict_of
from tasks.night.plan import NightWork
from tasks.night.record import record_version
from tasks.night.summary import finished_nights, scores_of
from tasks.night.telemetry import log_telemetry
from tasks.night.timing import log_timing
from tasks.plots import retention_by_age, success_by_night
from tasks.registration import register_state
from tasks.registry import NightRun
from tasks.report.content import report_path
from tasks.workspace import Workspace, open_workspace

TAG_LIMIT = 50_000
REPORT = "report.html"


@task(name="publish", retries=2, retry_delay_seconds=5, cache_policy=NO_CACHE)
def publish(work: NightWork, candidate: str) -> int:
    """Leave the night in MLflow and register the candidate, loaded back and checked; the version's number.

    Safe to repeat: the run is found by the night's key, the version by the state's digest.
    """
    space = open_workspace()
    report, verdict = report_of(space, work.key, "candidate"), verdict_of(space, work.key)
    with space.registry.night_run(work.key, title=f"night {work.time:%Y-%m-%d}") as run:
        _describe(space, work, run, report, verdict)
        checkpoint("logged")
        version = register_state(space, run.run_id, candidate, _lineage(space, work), parent=work.parent)
    record_answers(space, version.digest, report)
    space.registry.tag(version.number, {"errata.verdict": verdict.decision})
    record_version(space, work, version, report, verdict)
    show_link("mlflow-run", run.url, "MLflow run", "Parameters, metrics, tables, plots")
    show_link("report", f"{run.url}/artifacts/{REPORT}", "Report", f"The verdict on version {version.number}, one page")
    checkpoint("recorded")
    return version.number


def _lineage(space: Workspace, work: NightWork) -> dict[str, str]:
    """The version's tags: where it comes from, what it was made for, and every fact it added or took back."""
    return {
        "errata.night": work.as_of,
        "errata.work": work.key,
        "errata.method": work.method,
        "errata.parent": work.parent or "base",
        "errata.base": space.base.model_id,
        "errata.base_fingerprint": space.base.fingerprint,
        "errata.applied": _listed(applied_facts(space, work)),
        "errata.retracted": _listed([fact for _, fact in work.retract]),
    }


def _listed(fact_ids: list[str]) -> str:
    text = ",".join(fact_ids)
    return text if len(text) <= TAG_LIMIT else f"{len(fact_ids)} facts: see the version's files"


def _describe(space: Workspace, work: NightWork, run: NightRun, report: EvalReport, verdict: Verdict) -> None:
    """Everything that MLflow's page of the night shows."""
    steps, facts = space.ledger.commits(work.key), space.ledger.facts(applied_facts(space, work))
    state = space.state(report.model_digest)
    outcomes = {row["fact_id"]: row for step in steps for row in step.detail.get("outcomes", [])}
    asked = answered_facts(report)
    reports = {"candidate": report, "base": report_of(space, work.key, "base")}
    if work.parent:
        reports["champion"] = report_of(space, work.key, "champion")
    run.tags({"errata.verdict": verdict.decision, "errata.state_digest": report.model_digest})
    run.params(
        {
            "as_of": work.as_of,
            "method": work.method,
            "base": space.base.model_id,
            "base_fingerprint": space.base.fingerprint,
            "parent": work.parent or "base",
            "batch_size": space.settings.editor.batch_size,
            "evaluation_batch_size": report.batch_size,
            **{f"options.{name}": value for name, value in state.config.to_dict().items()},
            **{f"package.{name}": value for name, value in report.packages.items()},
        }
    )
    counts = {
        "applied": len(facts),
        "refused": len(refusals(space, work)),
        "retracted": len(work.retract),
        "known": len(work.known),
    }
    counts |= {"superseded": work.superseded, "batches": len(work.batches), "left_out": len(work.left_out)}
    measured = {f"{who}/{name}": value for who, item in reports.items() for name, value in item.scalars().items()}
    health = {f"state/{name}": value for name, value in state.describe().items() if isinstance(value, (int, float))}
    numbers = {f"night/{name}": value for name, value in counts.items()} | measured | health
    run.metrics({k: float(v) for k, v in numbers.items()}, timestamp=int(datetime.now(UTC).timestamp() * 1000))
    run.dataset(name="feed", source=str(space.settings.landing), digest=work.key, columns=SCHEMA.names, rows=len(facts))
    run.table(
        "facts",
        [
            {
                "fact_id": fact.fact_id,
                "subject": fact.subject,
                "relation": fact.relation,
                "old": fact.target_old,
                "new": fact.target,
                "effective": f"{fact.effective_at:%Y-%m-%d}",
                "converged": outcomes[fact.fact_id]["converged"],
                "loss": outcomes[fact.fact_id]["loss"],
                "answered": asked[fact.fact_id].score == 1.0 if fact.fact_id in asked else None,
            }
            for fact in facts
        ],
    )
    run.table("items", report.table().to_pylist())
    comparisons = {"champion": verdict.against_champion, "base": verdict.against_base}
    run.table("comparisons", [{"against": who, **asdict(row)} for who, rows in comparisons.items() for row in rows])
    run.text("verdict.md", verdict.to_markdown())
    run.text(REPORT, report_path(space, work.key).read_text(encoding="utf-8"))
    earlier = [row.to_dict() for row in finished_nights(space.ledger) if row.version is not None]
    tonight = {"night": f"{work.time:%Y-%m-%d}", **scores_of(report)}
    run.figure("success-by-night", success_by_night([*earlier, tonight]))
    log_telemetry(space, work, run, facts)
    log_timing(space, work, run)
    if ages := retention_groups(report):
        run.figure("retention-by-age", retention_by_age(ages))
