"""README's notebook cell, run by Jupyter's own kernel: the scripts end, and their progress bars leave no trace."""

import re

import pytest
from conftest import ROOT

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")


def test_the_cell_ends_shows_its_picture_and_no_progress_bar(tmp_path):
    cell = re.search(r"```ipython\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    cell = "\n".join(line for line in cell.splitlines() if not line.startswith(("!git clone", "%cd", "!pip")))
    assert "!python train.py" in cell and "--sample" in cell
    for path in (*ROOT.glob("*.py"), ROOT / "catalog", ROOT / "templates"):
        (tmp_path / path.name).symlink_to(path)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = notebook.cells[0].outputs
    text = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]  # \r: the line is written anew
    assert any(line.startswith("best epoch:") for line in shown)
    assert not [line for line in shown if re.search(r"Traceback|\d+%\||\d+/\d+ \[", line)], shown
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for name in ("metrics.csv", "errors.csv", "report.tex"):
        assert list(tmp_path.glob(f"runs/mrpc/sample/seed42/{name}"))
