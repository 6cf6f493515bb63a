import json
import shutil

import pytest

from editing.models import load_base_model
from tasks import self_text
from tasks.self_text import SelfTextError, open_self_text
from tasks.settings import load_settings
from tasks.statistics import open_corpus, open_statistics


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ERRATA_MODEL__ID", "somebody/else")
    monkeypatch.setenv("ERRATA_STATISTICS__SELF_TEXT_TOKENS", "3000")
    monkeypatch.setenv("ERRATA_STATISTICS__MAX_LENGTH", "24")
    return load_settings()


@pytest.fixture(scope="module")
def base():
    from editing.almanac.world import MODEL

    return load_base_model(str(MODEL))


def test_text_is_written_once_and_statistics_are_computed_over_it(settings, base, monkeypatch):
    own = open_self_text(settings, base)
    assert own.tokens >= 3000
    assert own.path.is_relative_to(settings.home)
    assert json.loads((own.path.parent / "self-text.json").read_text())["digest"] == own.digest
    monkeypatch.setattr(self_text, "write_batch", None)  # nothing is written again
    assert open_self_text(settings, base) == own
    assert own.digest[:16] in open_corpus(settings, base).origin
    assert open_statistics(settings, base, [1]).n_tokens > 1500


def test_a_writing_cut_short_goes_on_and_ends_the_same(settings, base, monkeypatch):
    whole = open_self_text(settings, base)
    shutil.rmtree(whole.path.parent)
    write, written = self_text.write_batch, []

    def dying(base, spec, index):
        if index == 1 and 1 not in written:
            written.append(index)
            raise KeyboardInterrupt
        written.append(index)
        return write(base, spec, index)

    monkeypatch.setattr(self_text, "write_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        open_self_text(settings, base)
    assert list(whole.path.parent.glob("part-*"))
    assert open_self_text(settings, base) == whole
    assert written.count(0) == 1
    assert not list(whole.path.parent.glob("part-*"))


def test_an_altered_text_is_refused(settings, base):
    own = open_self_text(settings, base)
    rows = self_text._read(own.path)
    self_text._write(own.path, rows[:-1])
    with pytest.raises(SelfTextError, match="altered"):
        open_self_text(settings, base)
    own.path.write_bytes(b"nothing")
    with pytest.raises(SelfTextError, match="cannot be read"):
        open_self_text(settings, base)
