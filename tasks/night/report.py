"""The night's report on disk, before anything is registered: whatever was decided can be read."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from editing.storage import replace_file
from tasks.artifacts import show_markdown
from tasks.faults import checkpoint
from tasks.night.plan import NightWork
from tasks.report.content import gather, report_path
from tasks.report.page import html, markdown
from tasks.workspace import open_workspace


@task(name="write report", cache_policy=NO_CACHE)
def write_report(work: NightWork) -> str:
    """Write the page into the night's folder, and the same as a text on Prefect's pages; the page's path."""
    space = open_workspace()
    content = gather(space, work)
    path = report_path(space, work.key)
    page = html(content)
    replace_file(path, lambda file: file.write_text(page, encoding="utf-8"))
    show_markdown("verdict", markdown(content), f"The gate's verdict on the night of {work.time:%Y-%m-%d}")
    checkpoint("reported")
    return str(path)
