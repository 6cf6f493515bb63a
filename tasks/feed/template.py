"""A CSV to start a feed from: our columns with two facts as examples, which `convert` reads as they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from tasks.errors import FeedError
from tasks.feed.files import replacing
from tasks.feed.schema import COLUMNS

# What `errata feed convert` cannot fill in by itself.
MUST = ("subject", "relation", "target", "prompt")
_LEFT_OUT = ("fact_id", "portability", "observed_at")
EXAMPLES = (
    {
        "operation": "assert",
        "subject": "Norland",
        "relation": "head of government",
        "target": "Ada Moss",
        "target_old": "Ben Hale",
        "prompt": "The head of government of {} is",
        "rephrases": json.dumps(["The prime minister of {} is", "Who leads the government of {}? It is"]),
        "locality": json.dumps([{"prompt": "The capital of Norland is", "answer": "Norburg"}]),
        "effective_at": "2024-04-03",
        "source": "government gazette",
        "source_rank": "0",
    },
    {
        "operation": "assert",
        "subject": "Harbour Works Ltd.",
        "relation": "chief executive officer",
        "target": "Cleo Vance",
        "prompt": "The chief executive officer of {} is",
        "effective_at": "2024-05-17",
        "source": "company register",
    },
)


def write_template(target: Path, *, force: bool = False) -> None:
    """Write the CSV, all of it or nothing.

    Raises `FeedError` for a name that does not end in .csv, or a file that is there already without `force`.
    """
    if target.suffix.lower() != ".csv":
        raise FeedError(f"{target} would be a CSV file; give it a name that ends in .csv")
    if target.exists() and not force:
        raise FeedError(f"{target} exists; give another name, or replace it with --force")
    names = [column.name for column in COLUMNS if column.name not in _LEFT_OUT]
    with replacing(target) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(EXAMPLES)
