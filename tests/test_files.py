"""The run folder's files: what is written comes back, and is there whole or not at all; a run is found by its name."""

import argparse
import csv
import json
import math
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

import common
from common import UserError

TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("'=+-@＝＋－＠\t\r\n\0\",; \ufeff"), max_size=30)


@pytest.mark.parametrize(("text", "cell"), [
    ("=1+1", "'=1+1"), ("+x", "'+x"), ("-x", "'-x"), ("@user hi", "'@user hi"), ("\tx", "'\tx"), ("\rx", "'\rx"),
    ("  =1", "'  =1"), ("'=1", "''=1"), ("＝1+1", "'＝1+1"), ("＠a", "'＠a"), ("-5", "-5"), ("+1.5e-3", "+1.5e-3"),
    ("plain", "plain"), ("'tis", "'tis"), ("", ""), ("a=b", "a=b"), ("-", "'-"), ("-5 degrees", "'-5 degrees")])
def test_formulas_are_escaped_and_numbers_are_not(text, cell):
    assert common.escape_formula(text) == cell
    assert common.unescape_formula(cell) == text


@settings(deadline=None, max_examples=60)
@given(TEXTS.filter(lambda name: name not in ("", "id", "prob_x") and not name.startswith("prob_")),
       st.lists(st.tuples(TEXTS, st.floats(allow_nan=True, allow_infinity=False)), max_size=5))
def test_any_table_comes_back(tmp_path_factory, name, rows):
    """Headers too: a label or a column of one's own may be called anything."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    table = pd.DataFrame({name: [text for text, _ in rows], "prob_x": [number for _, number in rows]})
    table.insert(0, "id", [str(i) for i in range(len(rows))])
    common.write_csv(path, table)
    back = common.read_csv(path, numbers=("prob_",), required=["id", "prob_x"])
    assert list(back) == list(table)
    assert back[name].tolist() == table[name].tolist()
    for mine, theirs in zip(back["prob_x"], table["prob_x"], strict=True):
        assert mine == theirs or (math.isnan(mine) and math.isnan(theirs))


def test_csv_is_what_a_spreadsheet_reads(tmp_path):
    common.write_csv(tmp_path / "a.csv", pd.DataFrame({"=a": ["=x", "é, \"q\"\nline 2"], "b": [np.float64(0.1), None]}))
    assert (tmp_path / "a.csv").read_bytes().startswith(b"\xef\xbb\xbf'=a,b\r\n")
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [["'=a", "b"], ["'=x", "0.1"], ["é, \"q\"\nline 2", ""]]


class TestReading:
    @pytest.mark.parametrize(("name", "content"), [
        ("a.csv", "id,text\n1,né; ok\n\n2\n".encode()), ("a.csv", "\ufeffid;text\r\n1;né; ok\r\n".encode()),
        ("a.csv", "id\ttext\r\n1\tné; ok\r\n2\t\r\n".encode("utf-16")),
        ("a.csv", 'id;text\n1;"né; ok"\n'.encode("cp1252")), ("a.tsv", 'id\ttext\n1\tné; ok\n'.encode())])
    def test_what_spreadsheets_write(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content.replace(b"1;n\xc3\xa9; ok", b'1;"n\xc3\xa9; ok"'))
        table = common.read_csv(tmp_path / name, required=["id", "text"], ours=False)
        assert table.iloc[0].tolist() == ["1", "né; ok"]
        assert table.iloc[1:].to_numpy().tolist() in ([], [["2", ""]])

    def test_quotation_marks_of_a_tsv_and_texts_of_any_length(self, tmp_path):
        text = '"' + "word " * 40_000
        (tmp_path / "a.tsv").write_text(f"id\ttext\n1\t{text}\n2\tb\n", encoding="utf-8")
        assert common.read_csv(tmp_path / "a.tsv", ours=False)["text"].tolist() == [text, "b"]

    def test_windows_1252_is_said(self, tmp_path, capsys):
        (tmp_path / "a.csv").write_bytes(b"id,x\n1,\x93caf\xe9\x94\n")
        assert common.read_csv(tmp_path / "a.csv")["x"].tolist() == ["“café”"]
        assert "Windows-1252" in capsys.readouterr().out

    @pytest.mark.parametrize(("content", "said"), [
        (b"id,x\n1,2,3\n", "row 2 has 3 cells under 2 column names"), (b"id\n1\n", "has no column x"),
        (b"", "has no column x"), (b"id,x,x\n1,2,3\n", "has the column 'x' twice"), (b"PK\3\4\xff\0", "is no text"),
        (None, "is missing")])
    def test_what_can_not_be_read_is_one_line(self, tmp_path, capsys, content, said):
        if content is not None:
            (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(UserError):
            common.read_csv(tmp_path / "a.csv", required=["x"])
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1


class TestWriting:
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
    def test_a_write_that_breaks_off_leaves_the_old_file(self, tmp_path, capsys, error):
        path = tmp_path / "a.json"
        common.write_json(path, {"old": 1})

        def break_off(part):
            part.write_text("half")
            raise error

        with pytest.raises((KeyboardInterrupt, UserError)):
            common.write_whole(path, break_off)
        assert json.loads(path.read_text()) == {"old": 1}
        assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
        full = isinstance(error, OSError)
        assert ("No space left on device; what was written before is whole" in capsys.readouterr().err) == full

    def test_a_file_that_may_not_grow(self, tmp_path, capsys):
        """As on a disk over its quota."""
        resource = pytest.importorskip("resource")
        common.write_csv(tmp_path / "a.csv", pd.DataFrame({"x": ["old"]}))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(UserError):
                common.write_csv(tmp_path / "a.csv", pd.DataFrame({"x": ["new"] * 50_000}))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "File too large" in capsys.readouterr().err
        assert common.read_csv(tmp_path / "a.csv")["x"].tolist() == ["old"]
        assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]

    def test_a_path_that_can_not_be_written_is_one_line(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError):
            common.write_json(tmp_path / "file" / "a.json", {})
        assert "could not write" in capsys.readouterr().err

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(self, tmp_path):
        """SIGKILL at random moments: files are of one version from beginning to end and never go back."""
        def write(version):
            table = pd.DataFrame({"version": [version] * 2000, "text": ["é" * 20] * 2000})
            common.write_csv(tmp_path / "a.csv", table)
            common.write_json(tmp_path / "a.json", {"versions": [version] * 3000})
            common.write_whole(tmp_path / "a.npz", lambda part: np.savez(part, version=np.full(300_000, version)))

        def read():
            table = common.read_csv(tmp_path / "a.csv", numbers=("version",))
            with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
                parts = [table["version"], json.loads((tmp_path / "a.json").read_text())["versions"], arrays["version"]]
            assert [len(part) for part in parts] == [2000, 3000, 300_000]
            assert all(len(set(part)) == 1 for part in parts)
            return [int(part[0]) for part in parts]

        start = time.monotonic()
        write(0)
        span, rng, latest, caught = 2 * (time.monotonic() - start), random.Random(0), [0, 0, 0], 0
        for _ in range(12):
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
    for number, text in enumerate(["$5 for $x_1$", "a\\b{c}%", "नमस्ते ቋንቋ 猫 🐈", "two\nlines", "\u202ebidi \x07", "_" * 50]):
        axes.plot([0, number], label=text)
    axes.set(title="\\frac{$", xlabel="$")
    axes.legend()
    common.save_figure(figure, tmp_path / "a.png", "sample rows; $note$ " * 20)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert max(image.size) < 3000


@pytest.mark.parametrize(("name", "folder"), [
    ("mrpc", "mrpc"), ("google-bert/bert-base-uncased", "google-bert--bert-base-uncased"), ("some/where/my data.csv",
     "my-data"), ("../../etc", "..--..--etc"), ("/", "unnamed"), ("a b:c", "a-b-c")])
def test_a_name_becomes_one_folder(name, folder):
    assert common.slug(name) == folder
    assert len(common.Path("runs", common.slug(name)).parts) == 2


class TestFindRun:
    def flags(self, folder, **changes):
        return argparse.Namespace(**{"run": None, "dataset": "mrpc", "model": None, "seed": None, "sample": False,
                                     "runs_dir": folder, **changes})

    def make(self, folder, name, finished, sample=False):
        common.write_json(folder / name / "run.json", {"finished": finished, "sample": sample, "dataset": "mrpc"})
        return folder / name

    def test_takes_the_newest_finished_one_and_says_so(self, tmp_path, capsys):
        self.make(tmp_path, "mrpc/a--b/seed1", "2026-01-01T00:00:00")
        newest = self.make(tmp_path, "mrpc/c/seed2", "2026-02-01T00:00:00")
        self.make(tmp_path, "mrpc/c/seed3", None)
        self.make(tmp_path, "mrpc/sample/seed42", "2026-03-01T00:00:00", sample=True)
        self.make(tmp_path, "mrpc/d/seed1", "2026-02-15T00:00:00", sample=True)  # a model of its own on sample rows
        assert common.find_run(self.flags(tmp_path))[0] == newest
        assert str(newest) in capsys.readouterr().out
        assert common.find_run(self.flags(tmp_path, model="a/b"))[0].parts[-2:] == ("a--b", "seed1")
        assert common.find_run(self.flags(tmp_path, sample=True))[0].parts[-2:] == ("sample", "seed42")

    def test_says_what_is_missing(self, tmp_path, capsys):
        folder = self.make(tmp_path, "mrpc/c/seed3", None)
        for changes, said in (({}, "train one first: python train.py --dataset mrpc"), ({"dataset": None}, "--dataset"),
                              ({"run": folder}, "no finished run"), ({"run": tmp_path}, "no finished run")):
            with pytest.raises(UserError):
                common.find_run(self.flags(tmp_path, **changes))
            assert said in capsys.readouterr().err
