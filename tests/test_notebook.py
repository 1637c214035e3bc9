"""The README's Colab cell, run as a notebook cell: the scripts end, and their progress bars read well there."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def cell_of_the_readme():
    """The cell without its installation, on the sample rows and in a folder of its own."""
    cell = re.search(r"```ipython\n(.*?)```", README, re.DOTALL)[1]
    lines = [line for line in cell.splitlines() if not line.startswith(("!git clone", "%cd", "!pip"))]
    assert sum(line.startswith("!python") for line in lines) >= 1
    return "\n".join(lines)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What the cell printed and showed, as Jupyter keeps it."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("notebook")
    for path in (*ROOT.glob("*.py"), ROOT / "catalog"):
        (folder / path.name).symlink_to(path)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell_of_the_readme())])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={
        "metadata": {"path": str(folder)}}).execute()
    return notebook.cells[0].outputs


def as_shown(outputs):
    """The text of the streams as a notebook shows it: what follows a carriage return replaces the line."""
    text = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]


def test_the_scripts_end_and_the_picture_is_shown(outputs):
    shown = "\n".join(as_shown(outputs))
    assert "best epoch:" in shown
    assert re.search(r"errors\.csv: \d+ of \d+ errors", shown)
    assert "Traceback" not in shown
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_progress_bars_leave_no_trace(outputs):
    left = [line for line in as_shown(outputs) if re.search(r"\d+%\||\d+/\d+ \[", line)]
    assert not left
