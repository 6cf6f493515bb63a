import os

import pytest

from tasks.settings import QUIET, SettingsError, activate, load_settings, template
from tasks.workspace import method_in_force, open_workspace


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("ERRATA_HOME", "ERRATA_CONFIG", "PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", *QUIET):
        monkeypatch.setenv(name, "")  # recorded, so that what `activate` sets is undone
        monkeypatch.delenv(name)
    return tmp_path


def test_everything_lives_under_home(elsewhere):
    settings = load_settings()
    assert settings.home == elsewhere / "var"
    for place in (settings.landing, settings.curated, settings.quarantine, settings.states, settings.nights):
        assert settings.home in place.parents
    assert str(settings.home) in settings.ledger
    assert str(settings.home) in settings.tracking_uri


def test_file_and_variables(elsewhere, monkeypatch):
    folder = elsewhere / "project"
    folder.mkdir()
    (folder / "errata.toml").write_text('home = "data"\n[editor]\nbatch_size = 4\n[editor.options]\nlambda = 2.5\n')
    monkeypatch.setenv("ERRATA_CONFIG", str(folder / "errata.toml"))
    settings = load_settings()
    assert settings.home == folder / "data"
    assert (settings.editor.batch_size, settings.editor.options) == (4, {"lambda": 2.5})
    monkeypatch.setenv("ERRATA_EDITOR__BATCH_SIZE", "7")
    monkeypatch.setenv("ERRATA_HOME", "other")
    settings = load_settings()
    assert settings.editor.batch_size == 7
    assert settings.home == elsewhere / "other"


def test_a_path_begins_at_the_file_or_where_a_variable_names_it(elsewhere, monkeypatch):
    folder = elsewhere / "project"
    folder.mkdir()
    (folder / "errata.toml").write_text(
        'home = "data"\n[statistics]\ncorpus = "texts.txt"\n[evaluation.suites.mmlu]\npath = "mmlu"\n'
    )
    monkeypatch.setenv("ERRATA_CONFIG", str(folder / "errata.toml"))

    def places():
        settings = load_settings()
        return settings.home, settings.statistics.corpus, settings.evaluation.suites["mmlu"].path

    assert places() == (folder / "data", folder / "texts.txt", folder / "mmlu")
    monkeypatch.setenv("ERRATA_HOME", "other")
    monkeypatch.setenv("ERRATA_STATISTICS__MAX_TOKENS", "7")
    assert places() == (elsewhere / "other", folder / "texts.txt", folder / "mmlu")
    monkeypatch.delenv("ERRATA_HOME")
    monkeypatch.setenv("ERRATA_STATISTICS__CORPUS", "mine.txt")
    assert places() == (folder / "data", elsewhere / "mine.txt", folder / "mmlu")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[editor]\nbatch_sise = 4\n", ["editor.batch_sise", "did you mean editor.batch_size"]),
        ("hom = 'x'\n", ["hom", "did you mean home"]),
        ("[editor]\nbatch_size = 0\n", ["editor.batch_size = 0"]),
        ("[editor\n", ["not valid TOML"]),
        ("[evaluation]\ntask_runner = 'ray'\n", ["evaluation.task_runner = 'ray'", "'processes' or 'dask'"]),
        ("[evaluation]\ndask_scheduler = 'tcp://there:8786'\n", ["dask_scheduler is for", "task_runner is 'threads'"]),
        (
            "[feed.inverse_relations]\nmayor = 'mayor of'\n'mayor of' = 'town'\n",
            ["feed.inverse_relations", "'mayor of' has two inverses"],
        ),
    ],
)
def test_mistakes_are_named(elsewhere, text, words):
    (elsewhere / "errata.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for word in words:
        assert word in str(caught.value)


def test_a_runner_that_is_not_installed_is_said_with_the_way_out(monkeypatch):
    monkeypatch.setenv("ERRATA_EVALUATION__TASK_RUNNER", "dask")
    monkeypatch.setattr("tasks.settings.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"needs prefect-dask: pip install 'errata\[dask\]'"):
        load_settings()


def test_unknown_variable_is_named(monkeypatch):
    monkeypatch.setenv("ERRATA_EDITOR__BATCHSIZE", "7")
    with pytest.raises(SettingsError, match="did you mean ERRATA_EDITOR__BATCH_SIZE"):
        load_settings()


def test_missing_config_file(monkeypatch):
    monkeypatch.setenv("ERRATA_CONFIG", "nowhere.toml")
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        load_settings()


def test_users_own_services_are_respected(elsewhere, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:8")
    settings = load_settings()
    activate(settings)
    assert "PREFECT_HOME" not in os.environ
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"
    assert settings.tracking_uri == "http://127.0.0.1:8"


def test_users_own_profile_is_respected(elsewhere):
    profile = elsewhere / "user" / ".prefect" / "profiles.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text('active = "team"\n[profiles.team]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n')
    activate(load_settings())
    assert "PREFECT_HOME" not in os.environ


def test_embedded_services_live_under_home(elsewhere):
    settings = load_settings()
    activate(settings)
    assert os.environ["PREFECT_HOME"] == str(settings.home / "prefect")


def test_the_template_says_every_default(elsewhere):
    plain = load_settings()
    text = template()
    (elsewhere / "errata.toml").write_text(text)
    assert load_settings() == plain
    uncommented = "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines())
    (elsewhere / "errata.toml").write_text(uncommented)
    assert load_settings() == plain


def test_a_suite_is_local_files_or_a_dataset(tmp_path, monkeypatch):
    config = tmp_path / "errata.toml"
    monkeypatch.setenv("ERRATA_CONFIG", str(config))
    (tmp_path / "hub").mkdir()
    config.write_text(
        """
        [evaluation.suites.mmlu]
        dataset = "cais/mmlu"
        subset = "all"
        revision = "abc"
        options = { shots = 5 }
        [evaluation.suites.gsm8k]
        dataset = "hub"
        [evaluation.suites.counterfact]
        path = "records.json"
        options = { generation = 5, references = "snippets.json" }
        """
    )
    suites = load_settings().evaluation.suites
    assert (suites["mmlu"].dataset, suites["mmlu"].path) == ("cais/mmlu", None)
    assert suites["gsm8k"].dataset == str(tmp_path / "hub")
    assert suites["counterfact"].path == tmp_path / "records.json"
    assert suites["counterfact"].options == {"generation": 5, "references": str(tmp_path / "snippets.json")}
    for table, complaint in (
        ('path = "a"\ndataset = "b"', "either a path or a dataset"),
        ("limit = 3", "either a path or a dataset"),
        ('path = "a"\nsubset = "all"', "belong to a dataset"),
    ):
        config.write_text(f"[evaluation.suites.zsre]\n{table}")
        with pytest.raises(SettingsError, match=complaint):
            load_settings()


def test_a_method_in_force_within_another(tmp_path, monkeypatch):
    """Back inside the settings' own method its options count again."""
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setenv("ERRATA_EDITOR__METHOD", "coachhook")
    monkeypatch.setenv("ERRATA_EDITOR__OPTIONS", '{"layers": [1]}')

    def now():
        editor = open_workspace().settings.editor
        return editor.method, editor.options

    with method_in_force("recipe"):
        assert now() == ("recipe", {})
        with method_in_force("coachhook"):
            assert now() == ("coachhook", {"layers": [1]})
        with method_in_force(None):
            assert now() == ("recipe", {})
    assert now() == ("coachhook", {"layers": [1]})
