"""What a night shows on Prefect's pages: tables, texts, links, and how a run ended. Outside a flow run nothing is
written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.states import Completed

T = TypeVar("T")


def _running() -> bool:
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def show_table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """A table artifact; `key` is lower case letters, digits and dashes."""
    if _running():
        create_table_artifact([dict(row) for row in rows], key=key, description=description)


def show_markdown(key: str, text: str, description: str) -> None:
    """A markdown artifact."""
    if _running():
        create_markdown_artifact(text, key=key, description=description)


def show_link(key: str, url: str, text: str, description: str) -> None:
    """A link artifact."""
    if _running():
        create_link_artifact(url, link_text=text, key=key, description=description)


def ended_as(name: str, message: str, result: T) -> T:
    """What a flow returns for its run to end as completed under another name; who calls the flow gets `result`."""
    return cast(T, Completed(name=name, message=message, data=result)) if _running() else result
