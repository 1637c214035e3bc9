"""SBIC: three CSV files, out of the publisher's .tgz."""

import tarfile
from pathlib import Path
from typing import Any

import pandas as pd

from common import fetch, keep, read_strings

# Of whoTarget 1.0 is a group and 0.0 an individual, as in the paper; the hub's card has it the other way round.
COLUMNS = {"offensive": "offensiveYN", "intent": "intentYN", "lewd": "sexYN", "group": "whoTarget"}


def read(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """post, offensive, intent, lewd, group: 1.0 where the mean vote is 0.5 or more, NaN without any vote.

    The files hold a row per annotator and stereotype; an annotator has one vote on a post. A blank answer is no vote,
    but for intent and group the votes of those who found the post not offensive are 0: they were not asked.
    """
    tables = {}
    for name, theirs in {"train": "trn", "dev": "dev", "test": "tst"}.items():
        path = data_dir / f"sbic/SBIC.v2.{theirs}.csv"
        rows = read_strings(path) if path.is_file() else read_packed(path, task["url"])
        table = keep(rows, ~rows.duplicated(["WorkerId", "post"]), "further rows of the same annotator")
        votes = pd.DataFrame({label: pd.to_numeric(table[column]) for label, column in COLUMNS.items()})
        votes.loc[votes["offensive"] == 0, ["intent", "group"]] = votes[["intent", "group"]].fillna(0)
        means = votes.groupby(table["post"], sort=False).mean()
        tables[name] = (means >= 0.5).astype(float).where(means.notna()).reset_index()
        tables[name].attrs = table.attrs
    return tables


def read_packed(path: Path, url: str) -> pd.DataFrame:
    """The file of `path`'s name, in whatever folder of the .tgz at `url`, which is kept beside `path`."""
    with tarfile.open(fetch(path.with_name(Path(url).name), url)) as archive:
        return read_strings(archive.extractfile(next(member for member in archive
                                                     if Path(member.name).name == path.name)))
