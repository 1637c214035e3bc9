"""The run folder's files: what is written comes back, and is there whole or not at all; a run is found by its name."""

import os
import random
import signal
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_readers import refused

import common

TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("'=+-@＝＋－＠\t\r\n\0\",; \ufeff"), max_size=30)


@pytest.mark.parametrize(("text", "cell"), [
    ("=1+1", "'=1+1"), ("+x", "'+x"), ("-x", "'-x"), ("@user hi", "'@user hi"), ("\tx", "'\tx"), ("\rx", "'\rx"),
    ("  =1", "'  =1"), ("'=1", "''=1"), ("＝1+1", "'＝1+1"), ("＠a", "'＠a"), ("-5", "-5"), ("+1.5e-3", "+1.5e-3"),
    ("plain", "plain"), ("'tis", "'tis"), ("", ""), ("a=b", "a=b"), ("-", "'-"), ("-5 degrees", "'-5 degrees")])
def test_formulas_are_escaped_and_numbers_are_not(text, cell):
    assert common.escape_formula(text) == cell
    assert common.unescape_formula(cell) == text


@settings(deadline=None, max_examples=60)
@given(TEXTS.filter(lambda name: name not in ("", "id") and not name.startswith("prob_")),
       st.lists(st.tuples(TEXTS, st.floats(allow_nan=True, allow_infinity=False)), max_size=5))
def test_any_table_comes_back(tmp_path_factory, name, rows):
    """Headers too: a label or a column of one's own may be called anything."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    table = pd.DataFrame({"id": [str(i) for i in range(len(rows))], name: [text for text, _ in rows],
                          "prob_x": [number for _, number in rows]})
    common.write_csv(path, table)
    back = common.read_csv(path, numbers=("prob_",), required=["id", "prob_x"])
    assert list(back) == list(table)
    assert back[name].tolist() == table[name].tolist()
    np.testing.assert_array_equal(back["prob_x"], table["prob_x"])


@pytest.mark.parametrize(("name", "content", "rows"), [
    ("a.csv", "id,text\n1,né; ok\n\n2\n".encode(), [["1", "né; ok"], ["2", ""]]),  # a blank row, a short one
    ("a.csv", 'id;text\n1;"“né”; ok"\n'.encode("cp1252"), [["1", "“né”; ok"]]),
    ("a.tsv", f'id\ttext\n1\t"{"word " * 40_000}\n2\tb\n'.encode(), [["1", '"' + "word " * 40_000], ["2", "b"]])])
def test_what_spreadsheets_and_people_write_is_read(tmp_path, capsys, name, content, rows):
    (tmp_path / name).write_bytes(content)
    assert common.read_csv(tmp_path / name, required=["id", "text"], ours=False).to_numpy().tolist() == rows
    assert ("Windows-1252" in capsys.readouterr().out) == (b"\x93" in content)


@pytest.mark.parametrize(("content", "said"), [
    (b"id,x\n1,2,3\n", "row 2 has 3 cells under 2 column names"), (b"", "has no column x"),
    (b"id,x,x\n1,2,3\n", "has the column 'x' twice"), (b"PK\3\4\xff\0", "is no text")])
def test_what_can_not_be_read_is_one_line(tmp_path, capsys, content, said):
    (tmp_path / "a.csv").write_bytes(content)
    refused(capsys, lambda: common.read_csv(tmp_path / "a.csv", required=["x"]), said)


def test_what_can_not_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(common.UserError):
        common.write_json(tmp_path / "a.json", {})
    assert "a.json: Is a directory; what was written before is whole" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path):
    """SIGKILL at random moments: files are of one version from beginning to end and never go back."""
    def write(version):
        common.write_csv(tmp_path / "a.csv", pd.DataFrame({"version": [version] * 2000, "text": ["é" * 20] * 2000}))
        common.write_whole(tmp_path / "a.npz", lambda part: np.savez(part, version=np.full(300_000, version)))

    def read():
        table = common.read_csv(tmp_path / "a.csv", numbers=("version",))
        with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
            parts = [table["version"], arrays["version"]]
        assert [(len(part), len(set(part))) for part in parts] == [(2000, 1), (300_000, 1)]
        return [int(part[0]) for part in parts]

    start = time.monotonic()
    write(0)
    span, rng, latest, caught = 2 * (time.monotonic() - start), random.Random(0), [0, 0], 0
    while not (caught and max(latest) > 8) and time.monotonic() < start + 60:
        child = os.fork()
        if child == 0:
            for version in range(max(latest) + 1, 10**6):
                write(version)
        time.sleep(rng.random() * span)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = read()
        assert all(new >= old for new, old in zip(found, latest, strict=True))
        latest, caught = found, caught + len(list(tmp_path.glob(".*")))
    assert latest[0] > 0 and caught > 0  # some wrote to the end, some were caught in the middle


@pytest.mark.filterwarnings("error")
def test_a_figure_takes_any_text(tmp_path):
    """A dollar sign is no formula, a line may break, and what no font has becomes a box."""
    figure, axes = common.new_figure()
    for text in ("$5 for $x_1$", "a\\b{c}%", "नमस्ते ቋንቋ 猫 🐈", "two\nlines", "\u202ebidi \x07", "_" * 50):
        axes.plot([0, 1], label=text)
    axes.set(title="\\frac{$", xlabel="$")
    axes.legend()
    common.save_figure(figure, tmp_path / "a.png", note="a $ and a very long note " * 9)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert max(image.size) < 3000
