import urllib.request

import pytest

from tasks import pages
from tasks.pages import PagesError, serve_pages
from tasks.settings import load_settings


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mlflows_page_comes_up_on_the_workspace(home, monkeypatch, server):
    (load_settings().home / "mlflow").mkdir(parents=True)
    with serve_pages(load_settings()) as served:
        assert served.urls["Prefect"] == server.removesuffix("/api")
        with urllib.request.urlopen(served.urls["MLflow"], timeout=30) as page:
            assert b"MLflow" in page.read()
    assert all(process.poll() is not None for process in served.processes.values())


def test_a_page_that_does_not_come_up_is_named(home, monkeypatch):
    monkeypatch.setattr(pages, "SECONDS_TO_START", 0.1)
    with pytest.raises(PagesError, match="MLflow's page"), serve_pages(load_settings()):
        pass
