"""The run folder's files: what is written comes back, and is there whole or not at all."""

import argparse
import csv
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import common
from common import UserError

TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("'=+-@\t\r\n\0\",; "), max_size=30)


@pytest.mark.parametrize(("text", "cell"), [
    ("=1+1", "'=1+1"), ("+x", "'+x"), ("-x", "'-x"), ("@user hi", "'@user hi"), ("\tx", "'\tx"), ("\rx", "'\rx"),
    ("  =1", "'  =1"), ("'=1", "''=1"), ("-5", "-5"), ("+1.5e-3", "+1.5e-3"), ("plain", "plain"), ("'tis", "'tis"),
    ("", ""), ("a=b", "a=b"), ("-", "'-"), ("-5 degrees", "'-5 degrees")])
def test_formulas_are_escaped_and_numbers_are_not(text, cell):
    assert common.escape_formula(text) == cell
    assert common.unescape_formula(cell) == text


@given(TEXTS)
def test_any_text_comes_back(text):
    assert common.unescape_formula(common.escape_formula(text)) == text


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXTS, st.floats(allow_nan=True, allow_infinity=False)), max_size=5))
def test_any_table_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    table = pd.DataFrame({"text": [text for text, _ in rows], "prob_x": [number for _, number in rows]})
    common.write_csv(path, table)
    back = common.read_csv(path, numbers=("prob_",))
    assert back["text"].tolist() == table["text"].tolist()
    for mine, theirs in zip(back["prob_x"], table["prob_x"], strict=True):
        assert mine == theirs or (math.isnan(mine) and math.isnan(theirs))


def test_csv_is_what_a_spreadsheet_reads(tmp_path):
    common.write_csv(tmp_path / "a.csv", pd.DataFrame({"a": ["=x", "é, \"q\"\nline 2"], "b": [np.float64(0.1), None]}))
    assert (tmp_path / "a.csv").read_bytes().startswith(b"\xef\xbb\xbfa,b\r\n")
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["'=x", "0.1"], ["é, \"q\"\nline 2", ""]]


@pytest.mark.parametrize(("content", "message"), [
    ("id,x\n1,2,3\n", "row 2: 3 cells under 2 column names"), ("id\n1\n", "has no column x; it has id"),
    ("", "has no column x; it has none"), ("id,x\n1,abc\n", "column x: .*abc")])
def test_a_csv_that_was_spoilt_by_hand_is_named(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        common.read_csv(tmp_path / "a.csv", numbers=("x",), required=("x",))


def test_a_missing_csv_says_so(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        common.read_csv(tmp_path / "none.csv")


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    common.write_json(path, {"old": 1})

    def break_off(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        common.write_atomically(path, break_off)
    assert common.read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_breaks_off_leaves_the_old_one(tmp_path):
    with common.folder_atomically(tmp_path / "model") as folder:
        (folder / "a").write_text("old")

    def break_off():
        with common.folder_atomically(tmp_path / "model") as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_path_that_can_not_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not write"):
        common.write_json(tmp_path / "file" / "a.json", {})


class TestFindRun:
    def flags(self, folder, **changes):
        return argparse.Namespace(**{"run": None, "dataset": "mrpc", "model": None, "seed": None, "sample": False,
                                     "runs_dir": folder, **changes})

    def make(self, folder, name, finished, sample=False):
        path = folder / name
        path.mkdir(parents=True)
        common.write_json(path / "run.json", {
            "finished": finished, "sample": sample, "task": {"kind": "classification"}})
        return path

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

    def test_says_what_is_missing(self, tmp_path):
        with pytest.raises(UserError, match=r"no run in .*train one first: python train\.py --dataset mrpc"):
            common.find_run(self.flags(tmp_path))
        folder = self.make(tmp_path, "mrpc/c/seed3", None)
        with pytest.raises(UserError, match="only unfinished runs"):
            common.find_run(self.flags(tmp_path))
        with pytest.raises(UserError, match="did not finish"):
            common.find_run(self.flags(tmp_path, run=folder))
        with pytest.raises(UserError, match="is no run folder"):
            common.find_run(self.flags(tmp_path, run=tmp_path))
        with pytest.raises(UserError, match="neither --dataset nor --run"):
            common.find_run(self.flags(tmp_path, dataset=None))
