"""Stanford Politeness: a CSV file per domain, out of the publisher's zip."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import fetch, keep, read_strings


def read(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """One domain: Request, Normalized Score, and quartile (impolite, polite) where that is the label.

    The paper's two classes are the outer quarters of the domain's own scores; the middle half is left out.
    """
    path = data_dir / task["path"]
    table = read_strings(path) if path.is_file() else read_packed(path, task["url"])
    score = table["Normalized Score"] = table["Normalized Score"].astype("float64")
    if task["label"] == "quartile":
        low, high = score.quantile([0.25, 0.75])
        table["quartile"] = np.select([score <= low, score >= high], ["impolite", "polite"], "")
        table = keep(table, table["quartile"] != "", "in the middle half")
    return {"all": table}


def read_packed(path: Path, url: str) -> pd.DataFrame:
    """The file of `path`'s name, in whatever folder of the zip at `url`, which is kept beside `path`."""
    with zipfile.ZipFile(fetch(path.with_name(Path(url).name), url)) as archive:
        member = next(name for name in archive.namelist() if Path(name).name == path.name)
        with archive.open(member) as file:
            return read_strings(file)
