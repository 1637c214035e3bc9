"""xSLUE: SOCKET's pairs of text files, or xSLUE's own .tsv files, split by split."""

from pathlib import Path
from typing import Any

import pandas as pd

from common import fetch, keep, read_lines


def read(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """One style: text, label (a name, 1 or 0, or a score, as the files have it)."""
    read_split = read_columns if "columns" in task else read_pair
    return {name: read_split(data_dir, task, name) for name in task["splits"].values()}


def read_pair(data_dir: Path, task: dict[str, Any], name: str) -> pd.DataFrame:
    """A split from SOCKET: a text per line of one file of `folder`, its label on the same line of the other."""
    texts, labels = (read_lines(fetch(data_dir / task["folder"] / file, f"{task['url']}/{file}"))
                     for file in (f"{name}_text.txt", f"{name}_labels.txt"))
    return pd.DataFrame({"text": texts, "label": labels})  # ValueError unless equally many


def read_columns(data_dir: Path, task: dict[str, Any], name: str) -> pd.DataFrame:
    """A split from a .tsv file without a header, in which quotation marks are part of the text.

    `columns` are the places of text and label; lines with too few cells, torn off by a line break within a text, are
    counted as dropped.
    """
    rows = read_lines(fetch(data_dir / task["path"].format(split=name), how=task["by_hand"]))
    cells = pd.DataFrame([dict(enumerate(row.split("\t"))) for row in rows])
    table = cells[list(task["columns"].values())].set_axis(list(task["columns"]), axis=1)
    return keep(table, table.notna().all(axis=1), "torn off by a line break")
