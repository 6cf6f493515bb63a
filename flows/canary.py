"""The canary: a fresh process loads the champion from the registry; when it is not what was promoted, it goes back."""

from __future__ import annotations

from dataclasses import replace

from prefect import flow

from tasks.champion.canary import (
    SPOKEN_AGAINST,
    CanaryResult,
    ChampionFailedError,
    check_version,
    choose_way_back,
    find_champion,
    go_back,
    record_check,
    require_answering_store,
)
from tasks.champion.fresh import Finding
from tasks.night.summary import NightSummary
from tasks.workspace import open_workspace


@flow(name="canary", description=__doc__)
def canary() -> CanaryResult:
    """Check the champion. Raises `ChampionFailedError` after going back, by itself, to the last sound one before it.

    An outage is no bad model: where the registry or its store does not answer, the run fails with
    `RegistryUnreachableError` and nothing moves.
    """
    version = find_champion()
    if version is None:
        return CanaryResult(checked=None, sentence="the base serves: there is no version to check", serving=None)
    finding = check_version(version)
    if finding.health not in SPOKEN_AGAINST:
        result = CanaryResult(checked=version, sentence=finding.sentence, serving=version, findings=(finding,))
        record_check(result)
        return result
    result = _way_back(finding)
    record_check(result)
    raise ChampionFailedError(result.sentence)


def _way_back(finding: Finding) -> CanaryResult:
    """From one earlier champion to the next, until one is sound; the base is."""
    findings = [finding]
    for earlier in choose_way_back():
        if earlier is None:
            require_answering_store(findings)
            return go_back(findings, None)
        found = check_version(earlier)
        if found.health not in SPOKEN_AGAINST:
            return go_back(findings, earlier)
        findings.append(found)
    return go_back(findings, None)


def check_champion(summary: NightSummary) -> NightSummary:
    """The night's row after the canary had its say about the version that the night promoted."""
    if not open_workspace().settings.canary.after_promotion:
        return summary
    try:
        canary()
    except ChampionFailedError as error:
        champion = open_workspace().champion
        return replace(summary, champion=champion.version if champion else None, decided=f"taken back: {error}")
    return summary
