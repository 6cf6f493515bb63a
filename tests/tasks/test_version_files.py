"""Files that versions share, in a store on this machine and behind a real MLflow server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import httpx
import pytest
from mlflow import MlflowClient

from editing.errors import StateError
from tasks.registry import ArtifactMissingError, Registry
from tasks.version_files import KEEP, KEEP_TAG, LIST, LIST_TAG

OLD, NEW = b"a night's rows" * 5000, b"ten more facts"


def state(folder, number, **files):
    """A state's files: the first night's segment, and what differs."""
    content = {
        "state.json": b'{"night": %d}' % number,
        "segments/one.parquet": OLD,
        "README.md": b"# A state\n",
    } | files
    for name, data in content.items():
        (folder / f"{number}" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}" / name).write_bytes(data)
    return folder / f"{number}"


def register(registry, folder, number, parent=None):
    with registry.night_run(f"night-{number}", title=f"night {number}") as run:
        return registry.register(run.run_id, folder, digest=f"d{number}", tags={}, parent=parent)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(folder):
    """Bytes below `folder`, each file once however many names it has."""
    return sum({path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}.values())


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """The URI of an MLflow server that keeps artifacts itself, and the folder that nobody but it may know."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "kept")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    uri = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 120
    while True:
        try:
            if httpx.get(f"{uri}/health").is_success:
                break
        except httpx.HTTPError:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
    yield uri, folder / "kept"
    server.terminate()
    server.wait(timeout=30)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The URI of a store on this machine, and the folder of its artifacts."""
    folder = tmp_path_factory.mktemp("local")
    return f"sqlite:///{folder}/mlflow.db", folder / "artifacts"


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    """A registry of its own and the folder where its artifacts end up."""
    uri, kept = request.getfixturevalue(request.param)
    return Registry(uri, name=request.node.name, artifacts=kept, cache=tmp_path / "cache"), kept


def place(kept, version):
    """Where the store has a version's own files."""
    (found,) = (path for path in kept.rglob("state") if version.run_id in path.parts)
    return found


def test_a_version_writes_what_its_parent_has_not(store, tmp_path):
    registry, kept = store
    first = state(tmp_path, 1)
    second = state(tmp_path, 2, **{"segments/two.parquet": NEW})
    third = state(tmp_path, 3, **{"segments/two.parquet": NEW, "README.md": b"# Another\n"})
    register(registry, first, 1)
    for number, folder in ((2, second), (3, third)):
        before = stored(kept)
        version = register(registry, folder, number, parent=f"d{number - 1}")
        assert stored(kept) - before < len(OLD) / 20
        for _ in range(2):
            assert content(registry.fetch(version)) == content(folder)
            registry.forget(version)
    # A version without a parent, or of other content, shares nothing.
    before = stored(kept)
    register(registry, state(tmp_path, 4), 4)
    assert stored(kept) - before > len(OLD)


def test_the_parents_damage_is_not_taken_over(store, tmp_path):
    registry, kept = store
    segment = place(kept, register(registry, state(tmp_path, 1), 1)) / "segments" / "one.parquet"
    segment.write_bytes(OLD[:-1] + b"!")
    folder = state(tmp_path, 2)
    version = register(registry, folder, 2, parent="d1")
    with pytest.raises(StateError, match=r"segments/one.parquet.* was altered after it was written"):
        registry.fetch(version)
    registry.forget(version)
    registry.restore(version, folder)
    assert content(registry.fetch(version)) == content(folder)
    segment.unlink()
    version = register(registry, state(tmp_path, 3), 3, parent="d1")
    try:
        assert content(registry.fetch(version)) == content(state(tmp_path, 3))  # nothing to link: written
    except ArtifactMissingError as error:
        assert "version 3" in str(error)  # noqa: PT017
        registry.restore(version, state(tmp_path, 3))
        assert content(registry.fetch(version)) == content(state(tmp_path, 3))


def test_a_flipped_byte_in_any_file_is_seen(store, tmp_path):
    registry, kept = store
    version = register(registry, state(tmp_path, 1), 1)
    files = sorted(path for path in place(kept, version).rglob("*") if path.is_file())
    assert {path.name for path in files} == {LIST, "state.json", "one.parquet", "README.md"}
    for path in files:
        sound = path.read_bytes()
        for at in (0, len(sound) // 2, len(sound) - 1):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
            registry.forget(version)
            with pytest.raises(StateError, match=f"{path.name} was altered after it was written"):
                registry.fetch(version)
        path.write_bytes(sound)
    (files[0].parent / "more").write_bytes(b"x")
    with pytest.raises(StateError, match="more was added"):
        registry.fetch(version)
    (files[0].parent / "more").unlink()
    assert content(registry.fetch(version)) == content(tmp_path / "1")


def test_a_version_of_before_its_list_had_a_digest_comes_back(local, tmp_path):
    uri, kept = local
    registry = Registry(uri, name="before", artifacts=kept, cache=tmp_path / "cache")
    version = register(registry, state(tmp_path, 1), 1)
    MlflowClient(uri).delete_model_version_tag("before", "1", LIST_TAG)
    assert content(registry.fetch(version)) == content(tmp_path / "1")
    (place(kept, version) / LIST).unlink()
    registry.forget(version)
    assert content(registry.fetch(version)) == content(tmp_path / "1")


def test_on_this_machine_no_version_needs_another(local, tmp_path):
    uri, kept = local
    registry = Registry(uri, name="m", artifacts=kept, cache=tmp_path / "cache")
    first = register(registry, state(tmp_path, 1), 1)
    second = register(registry, state(tmp_path, 2), 2, parent="d1")
    fetched = registry.fetch(second)
    assert (fetched / "segments" / "one.parquet").stat().st_nlink == 3  # both versions and the fetched one
    shutil.rmtree(place(kept, first))
    registry.forget(second)
    assert content(registry.fetch(second)) == content(tmp_path / "2")
    with pytest.raises(ArtifactMissingError, match="version 1 of 'm'"):
        registry.fetch(first)


def test_behind_a_server_the_run_that_keeps_files_says_so(remote, tmp_path):
    uri, kept = remote
    registry = Registry(uri, name="marked", artifacts=tmp_path / "unused", cache=tmp_path / "cache")
    first = register(registry, state(tmp_path, 1), 1)
    client = MlflowClient(uri)
    assert KEEP_TAG not in client.get_run(first.run_id).data.tags
    second = register(registry, state(tmp_path, 2), 2, parent="d1")
    third = register(registry, state(tmp_path, 3), 3, parent="d2")
    assert client.get_run(first.run_id).data.tags[KEEP_TAG] == KEEP
    # The list is readable in MLflow and names the run that has the file, not one that refers to it.
    listed = json.loads((place(kept, third) / LIST).read_text())
    assert listed["segments/one.parquet"]["run"] == first.run_id
    assert listed["state.json"]["run"] == third.run_id
    # A run that is only marked as deleted still gives its files; one that is gone makes the version incomplete.
    client.delete_run(first.run_id)
    assert content(registry.fetch(second)) == content(tmp_path / "2")
    shutil.rmtree(place(kept, first))
    with pytest.raises(ArtifactMissingError, match="version 3 of 'marked'"):
        registry.fetch(third)
    registry.restore(third, tmp_path / "3")
    assert content(registry.fetch(third)) == content(tmp_path / "3")
