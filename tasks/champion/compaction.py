"""The champion in as few bytes as its method can: a version of its own, with the same facts and the same answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.editors import get_editor
from editing.errors import StateError
from editing.tokenisation import tokenise_prompts
from tasks.artifacts import show_table
from tasks.champion.answers import drawn_facts
from tasks.champion.choose import ChoiceError
from tasks.faults import checkpoint
from tasks.ledger import VersionRecord
from tasks.registration import register_state
from tasks.registry import Version
from tasks.workspace import Workspace, open_workspace

COMPACTION_TAG = "errata.compaction"
FACTS = 256  # facts whose own prompts and neighbours' are looked up before and after


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """Version `of` compacted as `version` (None: there was nothing to gain), with figures of both states.

    `asked` prompts were looked up in both, `differing` of them found otherwise. `sentence` says it to a person.
    """

    of: int
    version: int | None
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    asked: int = 0
    differing: int = 0

    @property
    def sentence(self) -> str:
        """What was gained."""
        if self.version is None:
            return f"version {self.of} is compact already"
        was, now = (f"{figures['files']} files of {figures['bytes']:,} bytes" for figures in (self.before, self.after))
        return f"version {self.version} is version {self.of} compacted: {was} became {now}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "sentence": self.sentence}


@task(name="compact champion", cache_policy=NO_CACHE)
def compact_champion() -> Compaction:
    """Register the champion compacted, if that gains anything; no alias moves.

    Safe to repeat: the version is found by its state's digest. Raises `ChoiceError` while the base serves,
    and `StateError` when more than the canary's `tolerance` of the prompts asked would be answered by
    another fact.
    """
    space = open_workspace()
    champion = space.champion
    if champion is None:
        raise ChoiceError("the base serves; there is no version to compact")
    state = space.state(champion.state_digest)
    small = get_editor(state.method).compact(space.base, state)
    space.keep(state)
    before = _figures(space, state)
    if small is state:
        return Compaction(of=champion.version, version=None, before=before, after=before)
    space.keep(small)
    checkpoint("compacted")
    asked, differing = _compared(space, champion, state, small)
    after = _figures(space, small)
    with space.registry.night_run(
        small.digest[:16], title=f"compaction of version {champion.version}", tag=COMPACTION_TAG
    ) as run:
        run.params(
            {
                f"{when}.{name}": value
                for when, of in (("before", before), ("after", after))
                for name, value in of.items()
            }
        )
        run.tags({"errata.state_digest": small.digest})
        version = register_state(space, run.run_id, small.digest, _lineage(space, champion, state))
    _record(space, champion, version)
    found = Compaction(
        of=champion.version, version=version.number, before=before, after=after, asked=asked, differing=differing
    )
    show_table("compaction", [{"when": "before", **before}, {"when": "after", **after}], found.sentence)
    return found


def _figures(space: Workspace, state: Any) -> dict[str, Any]:
    """What the method tells of the state, and its size on disk."""
    sizes = [path.stat().st_size for path in space.state_folder(state.digest).rglob("*") if path.is_file()]
    return {**state.describe(), "facts": len(state.fact_ids), "files": len(sizes), "bytes": sum(sizes)}


def _compared(space: Workspace, champion: VersionRecord, state: Any, small: Any) -> tuple[int, int]:
    """How many prompts were looked up in both states, and how many of them are answered otherwise."""
    if small.fact_ids != state.fact_ids:
        raise StateError(f"version {champion.version} compacted holds other facts; nothing was registered")
    facts = drawn_facts(state, FACTS)
    prompts = [
        text for fact in facts for text in (fact.question, *fact.paraphrases, *(p.prompt for p in fact.locality))
    ]
    rows = [(tokens.ids, ()) for tokens in tokenise_prompts(space.base.tokenizer, prompts, space.base.form)]
    read = get_editor(state.method).read_scope
    size = space.settings.evaluation.batch_size
    pairs = zip(*(read(space.base, each, rows, batch_size=size) for each in (state, small)), strict=True)
    differing = sum((one.fact_id, one.touched) != (other.fact_id, other.touched) for one, other in pairs)
    if differing > space.settings.canary.tolerance * len(prompts):
        raise StateError(
            f"version {champion.version} compacted would answer {differing} of {len(prompts)} prompts by another fact; "
            "nothing was registered, raise `recall` among the editor's options for a better index"
        )
    return len(prompts), differing


def _lineage(space: Workspace, champion: VersionRecord, state: Any) -> dict[str, str]:
    return {
        "errata.night": champion.night.isoformat(),
        "errata.method": state.method,
        "errata.parent": champion.state_digest,
        "errata.compacted": str(champion.version),
        "errata.base": space.base.model_id,
        "errata.base_fingerprint": space.base.fingerprint,
        "errata.verdict": champion.verdict,
    }


def _record(space: Workspace, champion: VersionRecord, version: Version) -> None:
    """The version in the ledger: the champion's night and verdict, and the answers that the champion was recorded with,
    which the canary will ask of it."""
    if not space.ledger.answers(version.digest):
        recorded = space.ledger.answers(champion.state_digest)
        space.ledger.record_answers([replace(row, state_digest=version.digest) for row in recorded])
    space.ledger.record_version(
        replace(
            champion,
            version=version.number,
            state_digest=version.digest,
            parent_digest=champion.state_digest,
            report=None,
            run_id=version.run_id,
            at=datetime.now(UTC),
        )
    )
    checkpoint("version recorded")
