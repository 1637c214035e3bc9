"""A file of one's own: what is read and refused, what its labels are, and that a run is held to the data it had."""

import json
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
from conftest import run

import common

COLUMNS = ["--text-column", "text", "--label-column", "label"]
SMALL = [*COLUMNS, "--sample", "--precision", "fp32", "--num-train-epochs", 2]
FILMS = ["--dataset", "films.csv", *SMALL]


def rows(count=40, label=lambda i: "ab"[i % 2], header="text,label", text=lambda i: f"text {i}"):
    return header + "\n" + "".join(f"{text(i)},{label(i)}\n" for i in range(count))


def objects(labels):
    return "".join(json.dumps({"text": f"text {i}", "label": label}) + "\n" for i, label in enumerate(labels))


def load(path, content=None):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return common.load_data(str(path), text_column=["text"], label_column="label")


def line_of(capsys):
    """The one line on stderr."""
    line, = capsys.readouterr().err.splitlines()
    return line


# --- What is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content", "said"), [
    ("nothing.csv", "", "no column label, text"), ("header.csv", "text,label\n", "holds 0 labels in 0 rows"),
    ("one.csv", rows(label=lambda i: "a"), "holds 1 labels in 40 rows"),
    ("ids.csv", rows(label=lambda i: f"id-{i}"), "is it another column that holds the label?"),
    ("no texts.csv", rows(text=lambda i: " "), "holds no example with a label and a text"),
    ("one left.csv", rows(text=lambda i: f"t {i}" if i % 2 else ""), "all training examples that are left"),
    ("long row.csv", rows() + "a,b,c\n", "row 42 has 3 cells under 2 column names"),
    ("twice.csv", rows(header="text,text,label", label=lambda i: "a,b"), "the column 'text' twice"),
    ("missing.csv", rows(header="texts,label"), "no column text; its first line, which names them, has texts, label"),
    ("sheet.csv", b"PK\x03\x04\0\0\xff", "save the sheet as CSV UTF-8"),
    ("cut.jsonl", objects("ab" * 20) + '{"text": "a', "line 41 is no JSON object"),
    ("numbers.jsonl", objects("ab" * 20).replace('"text 7"', "7"), "holds 1 cells that are no text, such as 7 in row"),
    ("list.jsonl", objects([["a"], ["b"], ["a", "b"]] * 9), "a label is a text or a number, not ['a']"),
    ("half.jsonl", objects("ab" * 20).replace("text 7", "\\ud83d"), "cells that are no text"),
    ("none.parquet", "no parquet", "is it what its ending says?"), ("missing.tsv", None, "missing.tsv is missing")])
def test_what_is_no_table_of_texts_and_labels_is_refused(tmp_path, capsys, name, content, said):
    with pytest.raises(SystemExit):
        load(tmp_path / name, content)
    assert said in line_of(capsys)


# --- Labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "labels", "missing"), [
    (rows(label=lambda i: ["01", "1", "10", "1.1", "1.10"][i % 5]), ["01", "1", "1.1", "1.10", "10"], 0),
    (rows(label=lambda i: "" if i == 3 else f"{i % 4 + 1}.0"), ["1.0", "2.0", "3.0", "4.0"], 1),
    (rows(label=lambda i: [" a", "-1", "NA"][i % 3]), ["-1", "NA", "a"], 0),
    (objects([1, 1.0, 2, None, 2**53 + 1] * 8), ["1", "2", str(2**53 + 1)], 8),
    (objects([True, False] * 20), ["False", "True"], 0),
    (pd.array([1, 2, None, 3] * 10, "Int64"), ["1", "2", "3"], 10),
    (pd.array([0.5, 1.0, None, 0.1] * 10, "Float32"), ["0.1", "0.5", "1"], 10),
    (pd.array(["a", "b", None, "b"] * 10, "string"), ["a", "b"], 10)])
def test_labels_are_text_as_it_stands_one_per_number_and_missing_ones_are_counted(tmp_path, content, labels, missing):
    if isinstance(content, str):
        data = load(tmp_path / ("a.jsonl" if content.startswith("{") else "a.csv"), content)
    else:
        pd.DataFrame({"text": [f"text {i}" for i in range(40)], "label": content}).to_parquet(tmp_path / "a.parquet")
        data = load(tmp_path / "a.parquet")
    assert data.task["labels"] == labels
    assert data.record["dropped"].get("all", {}).get("without a label", 0) == missing


@pytest.mark.parametrize("twin", ["pos\u200b", "Pos"])
def test_labels_that_look_alike_are_named(tmp_path, capsys, twin):
    assert load(tmp_path / "a.csv", rows(label=lambda i: ["pos", twin, "neg"][i % 3])).task["labels"] != ["neg", "pos"]
    assert "look alike" in capsys.readouterr().out


# --- A run and its data ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with films.csv and its run, evaluated."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "films.csv").write_text(rows(60))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("train", *FILMS, "--run", "run") == run("evaluate", "--run", "run") == 0
    return folder


@pytest.fixture
def films(trained, tmp_path, monkeypatch):
    """films.csv of a copy, in which the scripts are run."""
    monkeypatch.chdir(shutil.copytree(trained, tmp_path / "own"))
    return Path("films.csv")


@pytest.mark.parametrize("content", [
    rows(61), rows(59), rows(60, label=lambda i: "bc"[i % 2]), rows(60, text=lambda i: f"text {i}!")])
def test_a_run_is_held_to_its_own_rows(films, capsys, content):
    """A file of the same name in another folder is no more its own."""
    before = {path.name: path.read_bytes() for path in Path("run").glob("*.*")}
    films.write_text(content)
    Path("other").mkdir()
    for flags in ([], ["--dataset", shutil.move("films.csv", "other")]):
        assert run("evaluate", "--run", "run", *flags) == 2
        line_of(capsys)
    shutil.copy("other/films.csv", films)
    assert run("train", *FILMS, "--run", "run") == 2
    assert "are not those of the run in run" in line_of(capsys)
    assert run("train", "--dataset", "other/films.csv", *SMALL, "--run", "run") == 2
    line = line_of(capsys)
    assert "holds a finished run of other flags (--dataset" in line and "--overwrite replaces it" in line
    assert {path.name: path.read_bytes() for path in Path("run").glob("*.*")} == before


def test_a_resumed_run_goes_on_with_the_rows_that_it_began_with(films, capsys, monkeypatch):
    real, calls = common.CustomTrainer.compute_loss, []

    def compute_loss(*given, **named):
        calls.append(signal.raise_signal(signal.SIGTERM) if len(calls) == 3 else None)
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(common.CustomTrainer, "compute_loss", compute_loss)
        assert run("train", *FILMS, "--run", "part") == 130
    whole = films.read_text()
    films.write_text(whole.replace(",a", ",z"))
    capsys.readouterr()
    assert run("train", *FILMS, "--run", "part", "--resume") == 2
    assert "the train and validation and test rows are not those of the run in part" in line_of(capsys)
    films.write_text(whole)
    assert run("train", *FILMS, "--run", "part", "--resume") == 0
    for name in ("model/model.safetensors", "train_texts.csv"):
        assert Path("part", name).read_bytes() == Path("run", name).read_bytes()


def test_another_file_is_tested_beside_the_run_and_the_rows_that_were_trained_on_are_named(films, capsys):
    texts = common.read_csv(Path("run/train_texts.csv"))["text"]
    seen = [text.upper() + "!" for text in texts[:3]]
    Path("new.csv").write_text(rows(4) + "".join(f"{text},b\n" for text in seen))
    test = ["--run", "run", "--dataset", "new.csv"]
    assert run("evaluate", *test) == 0
    known = [f"all-{i:06d}" for i in range(7) if i > 3 or f"text {i}" in set(texts)]
    assert f"trained on {len(known)} of these 7 texts: {', '.join(known)}\n" in capsys.readouterr().out
    table = common.read_predictions(Path("run/on-new"))
    assert table["text"].tolist() == [*(f"text {i}" for i in range(4)), *seen]
    assert table["gold"].tolist() == [*"abab", *"bbb"]
    Path("new.csv").write_text(rows(5))
    capsys.readouterr()
    assert run("evaluate", *test) == 2
    assert "run/on-new holds a test on other rows" in line_of(capsys)
    assert run("evaluate", *test, "--overwrite") == 0
    assert len(common.read_predictions(Path("run/on-new"))) == 5
    capsys.readouterr()
    Path("numbers.csv").write_text(rows(6, label=lambda i: i % 2))  # which are no positions in a file of one's own
    assert run("evaluate", "--run", "run", "--dataset", "numbers.csv") == 2
    assert "label '0' (6 rows) is not one that it knows: 'a', 'b'" in line_of(capsys)


def test_a_file_without_labels_is_predicted(films):
    labelled = common.read_predictions(Path("run"))
    labelled[["text"]].to_csv("new.csv", index=False)
    assert run("evaluate", "--run", "run", "--dataset", "new.csv", "--text-column", "text") == 0
    assert {path.name for path in Path("run/on-new").iterdir()} == {"run.json", "timing.csv", "predictions.csv"}
    table = common.read_csv(Path("run/on-new/predictions.csv"), ("confidence",))
    assert table[["text", "label"]].to_numpy().tolist() == labelled[["text", "predicted"]].to_numpy().tolist()
    assert table["confidence"].to_numpy() == pytest.approx(labelled["confidence"].to_numpy(), abs=1e-6)
    assert not {"gold", "correct", "gold_confidence"} & set(table.columns)


