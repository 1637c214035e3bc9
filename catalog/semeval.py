"""SemEval: the files of five publishers. The row's other keys come from the hub."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from common import fetch, keep, read_lines, read_strings


def read(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """The splits of the task's `publisher`, in its columns: see the function of its name below."""
    return PUBLISHERS[task["publisher"]](data_dir, task)


def read_isarcasm(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """iSarcasmEval, subtask A: text, sarcastic (0, 1). The English train file calls its text column tweet."""
    files = {"train": "train/train.En.csv", "test": "test/task_A_En_test.csv"}
    return {name: read_strings(fetch(data_dir / "isarcasm" / Path(file).name, f"{task['url']}/{file}"))
            .rename(columns={"tweet": "text"}) for name, file in files.items()}


def read_pcl(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Don't Patronize Me: text, label (0, 1); split by two lists of paragraph ids. 2 or more of 4 points are PCL."""
    lines = read_lines(fetch(data_dir / "pcl/dontpatronizeme_pcl.tsv", how=task["by_hand"]))
    rows = [cells for line in lines if len(cells := line.split("\t")) == 6]  # the notice on top has fewer
    table = pd.DataFrame(rows, columns=["par_id", "art_id", "keyword", "country", "text", "points"])
    table["label"] = (table["points"].astype(int) >= 2).astype(int)
    tables = {}
    for name in ("train", "dev"):
        file = f"{name}_semeval_parids-labels.csv"
        listed = read_strings(fetch(data_dir / "pcl" / file, f"{task['url']}/{file}"))
        tables[name] = table[table["par_id"].isin(listed["par_id"])]
    return tables


def read_edos(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """EDOS: text, label_sexist, label_category, label_vector; the last two are "none" unless the text is sexist."""
    table = read_strings(fetch(data_dir / "edos" / Path(task["url"]).name, task["url"]))
    return {name: keep(rows, rows[task["label"]] != "none", "not sexist") for name, rows in table.groupby("split")}


def read_afrisenti(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """AfriSenti, one language: tweet, label (a name). Quotation marks in the .tsv files are part of the tweets.

    Lines with too few cells, torn off by a line break within a tweet, are counted as dropped.
    """
    tables = {}
    for name in task["splits"].values():
        path = fetch(data_dir / task["path"].format(split=name), task["url"].format(split=name))
        header, *rows = (line.split("\t") for line in read_lines(path))
        table = pd.DataFrame([dict(zip(header, row, strict=False)) for row in rows])[["tweet", "label"]]
        tables[name] = keep(table, table.notna().all(axis=1), "torn off by a line break")
    return tables


def read_nli4ct(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """NLI4CT: premise (a section of one or two trial records), hypothesis, label. The gold test set is a file apart."""
    archive, test = (data_dir / "nli4ct" / name for name in ("training_data.zip", "gold_test.json"))
    folder = archive.with_suffix("")
    root = folder if folder.is_dir() else zipfile.Path(fetch(archive, f"{task['url']}/{archive.name}"))
    splits = {name: json.loads((root / f"{name}.json").read_bytes()) for name in ("train", "dev")}
    splits["test"] = json.loads(fetch(test, f"{task['url']}/{test.name}").read_bytes())
    needed = {row[role] for rows in splits.values() for row in rows.values()
              for role in ("Primary_id", "Secondary_id") if role in row}
    trials = {trial: json.loads((root / "CT json" / f"{trial}.json").read_bytes()) for trial in needed}

    def premise(row: dict[str, str]) -> str:
        sections = {name: " ".join(line.strip() for line in trials[row[f"{name}_id"]][row["Section_id"]])
                    for name in ("Primary", "Secondary") if f"{name}_id" in row}
        return " ".join(f"{name} trial: {text}" for name, text in sections.items())

    return {name: pd.DataFrame([{"premise": premise(row), "hypothesis": row["Statement"], "label": row["Label"]}
                                for row in rows.values()]) for name, rows in splits.items()}


PUBLISHERS = {"isarcasm": read_isarcasm, "pcl": read_pcl, "edos": read_edos, "afrisenti": read_afrisenti,
              "nli4ct": read_nli4ct}
