"""Hugging Face datasets as folders of Parquet files, one for each split: what the suites' loaders read."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from datasets import get_dataset_split_names, load_dataset
from huggingface_hub.errors import HfHubHTTPError

from editing.errors import SuiteError
from editing.evals.suites.files import EVALUATED, SHOWN


def fetch_dataset(dataset: str, folder: Path, *, subset: str | None = None, revision: str | None = None) -> Path:
    """The splits of `dataset` as `SPLIT-00000-of-00001.parquet` in a folder below `folder`, fetched once.

    `dataset` is a hub id or a local folder in the hub's layout, `subset` one of its configurations.
    Without a `revision` the newest is taken, and kept until the folder is removed. Raises
    `SuiteError` when it cannot be had, or has no split that a suite reads.
    """
    named = "-".join(re.sub(r"\W+", "_", part).strip("_") for part in (dataset, subset or "", revision or "") if part)
    target = folder / named
    if target.is_dir():
        return target
    place = f"dataset {dataset!r}{f' ({subset})' if subset else ''}{f' at revision {revision!r}' if revision else ''}"
    try:
        there = get_dataset_split_names(dataset, subset, revision=revision)
        wanted = [split for split in there if split in {*EVALUATED, *SHOWN}]
        if not wanted:
            raise SuiteError(
                f"{place} has the splits {', '.join(there)}; a suite reads {', '.join((*SHOWN, *EVALUATED))}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
            whole = Path(part) / named
            whole.mkdir()
            for split in wanted:
                table = load_dataset(dataset, subset, split=split, revision=revision)
                table.to_parquet(whole / f"{split}-00000-of-00001.parquet")
            whole.replace(target)
    except (OSError, ValueError, HfHubHTTPError) as error:
        if isinstance(error, SuiteError):
            raise
        raise SuiteError(f"{place} cannot be read: {error}; check the id, the subset and the network") from error
    return target
