"""Renders a night's report: the page of HTML, and the markdown of Prefect's artifact."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from editing.evals.gate import Decision
from editing.facts import FactChange
from editing.shown import in_markdown
from tasks.report.charts import BAD, GOOD, drops_chart, scores_chart, trials_chart
from tasks.report.content import Content

BANNERS = {Decision.PROMOTE: GOOD, Decision.HOLD: "#a86a00", Decision.REJECT: BAD}
WORDS = {Decision.PROMOTE: "Promote", Decision.HOLD: "Hold", Decision.REJECT: "Reject"}
SHOWN, MANY = 10, 50


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True).get_template(
        "page.html"
    )


def html(content: Content) -> str:
    """The page, which needs nothing from outside."""
    verdict, work = content.verdict, content.work
    comparisons = [("champion", c) for c in verdict.against_champion] + [("base", c) for c in verdict.against_base]
    return _template().render(
        content=content,
        night=f"{work.time:%Y-%m-%d}",
        decision=WORDS[verdict.decision],
        banner=BANNERS[verdict.decision],
        promoted=verdict.decision is Decision.PROMOTE,
        whole=len(work.facts) + len(work.left_out),
        has_whole=any(row.whole is not None and row.whole != row.candidate for row in content.scores),
        comparisons=comparisons,
        level=f"{1 - verdict.policy.alpha:.0%}",
        scores_chart=scores_chart(content.scores),
        drops_chart=drops_chart(comparisons, verdict.policy.alpha) if comparisons else "",
        trials_chart=trials_chart(content.search.trials) if content.search else "",
        percent=_percent,
        provenance=_provenance(content),
        shown=SHOWN,
        many=MANY,
    )


def markdown(content: Content) -> str:
    """The verdict with who is to blame above it."""
    lines = [f"**{content.headline}**", ""]
    if content.search:
        lines += [content.search.sentence, ""]
        lines += [f"- gate with all facts: {reason}" for reason in content.search.reasons]
    for accused in content.accused:
        why = in_markdown(accused.evidence.why)
        lines.append(f"- quarantined {_named(accused.fact)}: {why}")
    lines += [f"- quarantined `{fact.fact_id}`: {in_markdown(why)}" for fact, why in content.contradicting[:SHOWN]]
    lines += [f"- postponed {_named(fact)}" for fact in content.postponed[:SHOWN]]
    return "\n".join([*lines, "", content.verdict.to_markdown()])


def _named(fact: FactChange) -> str:
    return f"`{fact.fact_id}` ({in_markdown(fact.question)} **{in_markdown(fact.target)}**)"


def _percent(share: float | None) -> str:
    return "not asked" if share is None else f"{share:.1%}"


def _provenance(content: Content) -> list[tuple[str, str]]:
    candidate, work = content.reports["candidate"], content.work
    return [
        ("night", work.key),
        ("as planned", work.origin or work.key),
        ("facts up to", work.as_of),
        ("method", work.method),
        ("candidate", candidate.model_digest),
        ("champion", work.parent or "none: the base serves"),
        ("base", f"{candidate.model_id} {candidate.base_fingerprint}"),
        ("tokenizer", candidate.tokenizer_hash),
        ("evaluated", f"{candidate.created_at}, {candidate.dtype} on {candidate.device}, batch {candidate.batch_size}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in candidate.packages.items())),
        *(
            (f"suite {name}", f"version {s.version}, {s.items} items, {s.digest[:12]}")
            for name, s in candidate.suites.items()
        ),
    ]
