"""DynaSent: the publisher's zip, packed or unpacked."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from common import fetch, keep


def read(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """One round (`config`, part of the files' names): sentence, gold_label (negative, neutral, positive)."""
    archive = data_dir / "dynasent" / Path(task["url"]).name
    folder = archive.with_suffix("")  # also what the zip holds its files in
    root = folder if folder.is_dir() else zipfile.Path(fetch(archive, task["url"])) / folder.name
    tables = {}
    for name in ("train", "dev", "test"):
        lines = (root / f"{folder.name}-{task['config']}-{name}.jsonl").read_bytes().splitlines()
        table = pd.DataFrame([json.loads(line) for line in lines])[["sentence", "gold_label"]]
        table = keep(table, table["gold_label"].notna(), "without a majority label")
        tables[name] = keep(table, table["gold_label"] != "mixed", "labelled mixed")
    return tables
