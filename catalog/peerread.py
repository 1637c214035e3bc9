"""PeerRead: a folder of JSON files per venue, a file per paper."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from common import fetch, keep


def read(data_dir: Path, task: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """One venue: title, abstract, accepted (0, 1). The files' other fields give the decision away."""
    venue, tables = fetch(data_dir / task["path"], how=task["by_hand"]), {}
    for name in ("train", "dev", "test"):
        papers = [json.loads(path.read_bytes()) for path in sorted(venue.glob(f"{name}/reviews/*.json"))]
        table = pd.DataFrame([[paper.get(field) for field in ("title", "abstract", "accepted")] for paper in papers],
                             columns=["title", "abstract", "accepted"])
        table = keep(table, table["accepted"].isin([True, False]), "without a decision")
        tables[name] = table.astype({"accepted": int})
    return tables
