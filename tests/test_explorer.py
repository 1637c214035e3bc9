"""explorer.html: it holds the points with their texts and tags, reaches for nothing, and no text leaves its script."""

import json
import re

import pandas as pd
from conftest import run
from test_visualize import write_run

import common

HOSTILE = "</script><img src=x onerror=alert(1)> & \u2028 'quoted\" <!-- <script>"


def explorer_of(folder, texts, **task):
    write_run(folder, texts=texts, **task)
    common.write_csv(folder / "tags.csv", pd.DataFrame({
        "id": ["test-000001", "test-000009"], "auto_tags": ["negation | <b>", "negation"]}))
    assert run("visualize", "--run", folder, "--method", "pca") == 0
    page = (folder / "explorer.html").read_text(encoding="utf-8")
    return page, json.loads(re.search(r'id="data">(.*)</script>\n<script>', page)[1])


def test_the_page_holds_the_points_and_hostile_texts_stay_in_their_script(tmp_path):
    page, data = explorer_of(tmp_path, [HOSTILE] * 12, title=HOSTILE)
    table = common.read_csv(tmp_path / "embedding_pca.csv", ("x", "y"))
    assert data["methods"] == {"PCA": table[["x", "y"]].to_numpy().tolist()}
    points = data["points"]
    assert [[point[name] for name in ("id", "gold", "predicted")] for point in points] == table[
        ["id", "gold", "predicted"]].to_numpy().tolist()
    wrong = points[1]
    assert wrong["texts"] == {"text": " ".join(HOSTILE.split())} and wrong["confidence"] == "0.800"
    assert (wrong["correct"], wrong["tags"], wrong["color"]) == (False, ["negation", "<b>"], "rgba(0 0 0 / 0.80)")
    assert [point["tags"] for point in points].count([]) == 10 and len(data["legend"]) == 3
    bare = re.sub(r"(?s)<script.*?</script>", "", page)
    assert "<img" not in page and page.count("</script>") == page.count("<script") == 2 and "alert" not in re.sub(
        r"(?s)(?<=<title>).*?</title>|<h1>.*?</h1>", "", bare)
    assert set(re.findall(r"https?://[^\"]*", page)) == {"http://www.w3.org/2000/svg"} and "innerHTML" not in page
