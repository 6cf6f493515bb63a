import json

import matplotlib
import pytest

matplotlib.use("Agg")

from matplotlib.figure import Figure
from mlflow import MlflowClient

from tasks.moved import StoreError
from tasks.registry import CHAMPION, Registry, RegistryError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def registry(store, request):
    name = request.node.name
    return Registry(
        f"sqlite:///{store}/mlflow.db", name=name, artifacts=store / "artifacts", cache=store / f"cache-{name}"
    )


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "state.json").write_text('{"method": "coachhook"}')
    (folder / "weights.safetensors").write_bytes(b"\x00" * 64)
    return folder


def test_a_version_is_plain_files_that_come_back(registry, state):
    with registry.night_run("night-1", title="2018-01-31") as run:
        version = registry.register(run.run_id, state, digest="d1", tags={"parent": "base"})
    assert (version.number, version.digest, version.tags["parent"]) == (1, "d1", "base")
    registry.point(CHAMPION, version.number)
    fetched = registry.fetch(registry.get(CHAMPION))
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        path.name: path.read_bytes() for path in state.iterdir()
    }


def test_a_store_that_was_moved_finds_its_artifacts(tmp_path, state):
    def opened(home):
        store = home / "mlflow"
        return Registry(f"sqlite:///{store}/mlflow.db", name="m", artifacts=store / "artifacts", cache=home / "cache")

    first, then = tmp_path / "first", tmp_path / "then"
    (first / "mlflow").mkdir(parents=True)
    with opened(first).night_run("night-1", title="2018-01-31") as run:
        opened(first).register(run.run_id, state, digest="d1", tags={})
    first.rename(then)
    moved = opened(then)
    assert (moved.fetch(moved.get(1)) / "state.json").read_bytes() == (state / "state.json").read_bytes()
    with moved.night_run("night-2", title="2018-02-28") as run:
        version = moved.register(run.run_id, state, digest="d2", tags={}, parent="d1")
    assert moved.fetch(version).is_dir()
    assert not first.exists()


def test_a_damaged_store_is_a_sentence(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"mlflow.db does not work \(file is not a database\)"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db", name="m", artifacts=tmp_path / "artifacts", cache=tmp_path)


def test_registering_twice_gives_one_version(registry, state):
    for _ in range(2):
        with registry.night_run("night-1", title="2018-01-31") as run:
            registry.register(run.run_id, state, digest="d1", tags={})
    assert [version.number for version in registry.versions()] == [1]
    assert registry.by_digest("d2") is None


def test_a_killed_nights_run_is_taken_up_again(registry, store):
    ids = []

    def interrupted():
        with registry.night_run("night-1", title="2018-01-31") as run:
            run.params({"method": "coachhook"})
            run.table("edits", [{"fact": "a", "score": 0.0}])
            ids.append(run.run_id)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    assert client.get_run(ids[0]).info.status == "FAILED"
    with registry.night_run("night-1", title="2018-01-31") as run:
        run.params({"method": "coachhook", "facts": 3})
        run.metrics({"reliability.generated": 0.9}, timestamp=1)
        run.table("edits", [{"fact": "a", "score": 1.0}])
        run.figure("success", Figure())
        run.dataset(name="feed", source="landing", digest="abc", columns=["subject"], rows=1)
        ids.append(run.run_id)
    assert ids[0] == ids[1]
    ended = client.get_run(ids[0])
    assert ended.info.status == "FINISHED"
    assert ended.data.params == {"method": "coachhook", "facts": "3"}
    assert ended.data.metrics == {"reliability.generated": 0.9}
    assert len(ended.inputs.dataset_inputs) == 1
    tables = [item.path for item in client.list_artifacts(ids[0], "tables")]
    assert tables == ["tables/edits.json"]
    assert json.loads(ended.data.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/edits.json", "type": "table"}]


def test_what_does_not_exist_is_named(registry, state):
    assert registry.aliased(CHAMPION) is None
    with pytest.raises(RegistryError, match=r"'champion'.*none yet"):
        registry.get(CHAMPION)
    with registry.night_run("night-1", title="2018-01-31") as run:
        registry.register(run.run_id, state, digest="d1", tags={})
    with pytest.raises(RegistryError, match=r"version '7'.*versions: 1"):
        registry.get("7")


def test_an_alias_moves_and_goes_and_a_hand_is_noticed(registry, state, store):
    assert registry.moved_by_hand(CHAMPION) == (False, None)
    with registry.night_run("night-1", title="2018-01-31") as run:
        registry.register(run.run_id, state, digest="d1", tags={})
    for _ in range(2):
        registry.point(CHAMPION, 1)
        assert registry.aliased(CHAMPION).digest == "d1"
        assert registry.moved_by_hand(CHAMPION) == (False, 1)
    MlflowClient(f"sqlite:///{store}/mlflow.db").delete_registered_model_alias(registry.name, CHAMPION)
    assert registry.moved_by_hand(CHAMPION) == (True, None)
    for _ in range(2):
        registry.point(CHAMPION, None)
        assert registry.aliased(CHAMPION) is None
        assert registry.moved_by_hand(CHAMPION) == (False, None)
