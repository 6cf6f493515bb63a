import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from flows.canary import canary
from flows.night import NightConfig, night
from flows.promotion import promote
from tasks.champion.canary import CANARY, ChampionFailedError, check_version
from tasks.champion.fresh import CanaryError, Health, Question, check_in_fresh_process, examine
from tasks.ledger import RunPhase
from tasks.registry import CHAMPION, ArtifactMissingError, RegistryUnreachableError
from tasks.workspace import open_workspace

CLOSED = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def files_of(two_nights):
    """`files_of(version)`: where MLflow keeps a version's files."""
    registry = two_nights.registry

    def find(version):
        uri = registry._client.get_model_version_download_uri(registry.name, str(version))
        return two_nights.settings.home / uri.split(str(two_nights.settings.home))[1].lstrip("/")

    return find


def question(space, version, **changes):
    record = space.ledger.version(version)
    answers = space.ledger.answers(record.state_digest)
    asked = Question(
        settings=space.settings.model_dump(mode="json"),
        version=version,
        digest=record.state_digest,
        base_fingerprint=record.base_fingerprint,
        recorded=[{name: getattr(row, name) for name in row.__slots__} for row in answers],
    )
    return replace(asked, **changes)


def corrupt(folder):
    """Flip a byte in the middle of the tensors."""
    path = folder / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_what_a_version_is_found_to_be(two_nights, files_of, tmp_path, monkeypatch):
    space = two_nights
    sound = examine(question(space, 2))
    recorded = space.ledger.answers(space.ledger.version(2).state_digest)
    assert {row.suite for row in recorded} == {"facts", "zsre"}
    taught = {row.answer.strip(" .") for row in recorded if row.suite == "facts"}
    assert taught == {"Gia Reed", "Cleo Vance", "Eve Lark"}
    assert (sound.health, sound.compared, sound.differences) == (Health.SOUND, len(recorded), [])

    # Its number and digests are right and its weights are not what was evaluated: the answers show it.
    state = space.state(space.ledger.version(2).state_digest)
    layers = {n: replace(layer, weight=space.base.down_weight(n).cpu()) for n, layer in state.layers.items()}
    foreign = replace(state, layers=layers)
    folder = tmp_path / "foreign"
    folder.mkdir()
    space.editor.save(foreign, folder)
    tags = {"errata.base_fingerprint": space.base.fingerprint}
    with space.registry.night_run("foreign", title="foreign") as run:
        number = space.registry.register(run.run_id, folder, digest=foreign.digest, tags=tags).number
    found = examine(replace(question(space, 2), version=number, digest=foreign.digest))
    assert found.health is Health.BAD
    assert "recorded prompts otherwise than when it was registered" in found.sentence
    assert found.differences[0]["recorded"].strip(" .") in taught

    space.registry.tag(2, {"errata.base_fingerprint": "0" * 64})
    found = examine(question(space, 2))
    assert (found.health, "version 2 lies about the base" in found.sentence) == (Health.BAD, True)
    assert examine(question(space, 1, base_fingerprint="0" * 64)).health is Health.OTHER_BASE

    shutil.rmtree(files_of(1))
    assert examine(question(space, 1)).health is Health.MISSING
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert examine(question(space, 1)).health is Health.UNREACHABLE
    with pytest.raises(CanaryError, match="ended without a finding"):
        check_in_fresh_process(question(space, 1, settings={"home": 7}))


def test_a_damaged_champion_goes_back_by_itself(two_nights, files_of):
    space = two_nights
    result = canary()
    assert (result.checked, result.serving, result.sound) == (2, 2, True)

    corrupt(files_of(2))
    with pytest.raises(ChampionFailedError, match=r"version 2 does not load: .*; version 1 serves"):
        canary()
    move = space.ledger.alias_moves(CHAMPION)[-1]
    assert (move.who, move.from_version, move.to_version) == (CANARY, 2, 1)
    assert "was altered after it was written" in move.why
    assert space.registry.get(CHAMPION).number == 1
    phases = [run.phase for run in space.ledger.runs(CANARY)]
    assert phases == [RunPhase.FINISHED, RunPhase.FAILED]

    # The next night makes the same state again and mends its files; a person has the last word on it.
    row = night(NightConfig(as_of=datetime(2018, 2, 28, tzinfo=UTC)))
    assert (row.verdict, row.version, row.champion) == ("hold", 2, 1)
    assert "was taken back on" in row.decided
    assert examine(question(space, 2)).health is Health.SOUND

    # Nothing else is left to go back to: the store is at fault, not every version.
    shutil.rmtree(files_of(1))
    with pytest.raises(ArtifactMissingError, match="the store is at fault and nothing was moved"):
        canary()
    assert space.registry.get(CHAMPION).number == 1


def test_an_outage_is_no_bad_model(two_nights, monkeypatch):
    space = two_nights
    before = space.ledger.alias_moves()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnreachableError, match="does not answer"):
        canary()
    with pytest.raises(RegistryUnreachableError, match="version 2 was not checked and nothing was moved"):
        check_version.fn(2)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    space = open_workspace()
    assert space.ledger.alias_moves() == before
    assert space.registry.get(CHAMPION).number == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_promotion_is_followed_by_the_canary_and_it_survives_being_killed(
    two_nights, files_of, server, change, feed, monkeypatch
):
    space = two_nights
    monkeypatch.setenv("ERRATA_CANARY__AFTER_PROMOTION", "true")
    promote(1)
    assert space.ledger.runs(CANARY)[-1].detail["checked"] == 1
    promote(2)
    kept = files_of(2) / "state.safetensors"
    sound = kept.read_bytes()

    def run(fault=""):
        environment = {**os.environ, "PREFECT_API_URL": server, **({"ERRATA_FAULT": fault} if fault else {})}
        script = "from flows.canary import canary; import json; print(json.dumps(canary().to_dict()))"
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)

    for step in ("checked", "move recorded", "gone back"):
        corrupt(files_of(2))
        killed = run(step)
        assert killed.returncode == -signal.SIGKILL, f"{step}: {killed.stderr}"
        again = run()
        # Before the move the next canary finds the damage anew; after it, the champion is sound.
        assert (again.returncode == 0) == (step != "checked"), again.stderr
        if step != "checked":
            assert json.loads(again.stdout.splitlines()[-1])["checked"] == 1
        assert space.registry.get(CHAMPION).number == space.champion.version == 1
        assert space.ledger.alias_moves(CHAMPION)[-1].who == CANARY
        kept.write_bytes(sound)
        promote(2)
