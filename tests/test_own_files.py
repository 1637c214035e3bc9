"""A file of one's own: what is read and refused, what its labels are, and that a run is held to the data it had."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import test_readers
from conftest import run
from test_bad_input import refused
from test_stop import stop_at

import common

COLUMNS = ["--text-column", "text", "--label-column", "label"]
SMALL = [*COLUMNS, "--sample", "--precision", "fp32", "--num-train-epochs", 2]
FILMS = ["--dataset", "films.csv", *SMALL]


def rows(count=40, label=lambda i: "ab"[i % 2], header="text,label", text=lambda i: f"text {i}"):
    return header + "\n" + "".join(f"{text(i)},{label(i)}\n" for i in range(count))


def objects(labels):
    return "".join(json.dumps({"text": f"text {i}", "label": label}) + "\n" for i, label in enumerate(labels))


def load(path, content):
    if isinstance(content, str):
        path.write_text(content)
    else:
        pd.DataFrame({"text": [f"text {i}" for i in range(40)], "label": content}).to_parquet(path)
    return common.load_data(str(path), text_column=["text"], label_column="label")


@pytest.mark.parametrize(("name", "content", "said"), [
    ("one.csv", rows(label=lambda i: "a"), "holds 1 labels in 40 rows"),
    ("ids.csv", rows(label=lambda i: f"id-{i}"), "is it another column that holds the label?"),
    ("missing.csv", rows(header="texts,label"), "no column text; its first line, which names them, has texts, label"),
    ("cut.jsonl", objects("ab" * 20) + '{"text": "a', "line 41 is no JSON object"),
    ("half.jsonl", objects("ab" * 20).replace("text 7", "\\ud83d"), "holds 1 cells that are no text, such as"),
    ("list.jsonl", objects([["a"], ["b"], ["a", "b"]] * 9), "a label is a text or a number, not ['a']"),
    ("none.parquet", "no parquet", "is it what its ending says?")])
def test_what_is_no_table_of_texts_and_labels_is_refused(tmp_path, capsys, name, content, said):
    test_readers.refused(capsys, lambda: load(tmp_path / name, content), said)


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
    ending = "parquet" if not isinstance(content, str) else "jsonl" if content.startswith("{") else "csv"
    data = load(tmp_path / f"a.{ending}", content)
    assert data.task["labels"] == labels
    assert data.record["dropped"].get("all", {}).get("without a label", 0) == missing


@pytest.mark.parametrize("twin", ["pos\u200b", "Pos"])
def test_labels_that_look_alike_are_named(tmp_path, capsys, twin):
    assert load(tmp_path / "a.csv", rows(label=lambda i: ["pos", twin, "neg"][i % 3])).task["labels"] != ["neg", "pos"]
    assert "look alike" in capsys.readouterr().out


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
        refused(capsys, "evaluate", ["--run", "run", *flags], "films")
    shutil.copy("other/films.csv", films)
    refused(capsys, "train", [*FILMS, "--run", "run"], "are not those of the run in run")
    refused(capsys, "train", ["--dataset", "other/films.csv", *SMALL, "--run", "run"],
            "holds a finished run of other flags (--dataset")
    assert {path.name: path.read_bytes() for path in Path("run").glob("*.*")} == before


def test_a_resumed_run_goes_on_with_the_rows_that_it_began_with(films, capsys, monkeypatch):
    stop_at(monkeypatch, 4)
    assert run("train", *FILMS, "--run", "part") == 130
    whole, resume = films.read_text(), [*FILMS, "--run", "part", "--resume"]
    films.write_text(whole.replace(",a", ",z"))
    refused(capsys, "train", resume, "the train and validation and test rows are not those of the run in part")
    films.write_text(whole)
    assert run("train", *resume) == 0
    assert Path("part/train_texts.csv").read_bytes() == Path("run/train_texts.csv").read_bytes()


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
    refused(capsys, "evaluate", test, "run/on-new holds a test on other rows")
    assert run("evaluate", *test, "--overwrite") == 0
    assert len(common.read_predictions(Path("run/on-new"))) == 5
    Path("new.csv").write_text(rows(6, label=lambda i: i % 2))  # which are no positions in a file of one's own
    refused(capsys, "evaluate", test, "label '0' (6 rows) is not one that it knows: 'a', 'b'")


def test_a_file_without_labels_is_predicted(films):
    labelled = common.read_predictions(Path("run"))
    labelled[["text"]].to_csv("new.csv", index=False)
    assert run("evaluate", "--run", "run", "--dataset", "new.csv", "--text-column", "text") == 0
    assert {path.name for path in Path("run/on-new").iterdir()} == {"run.json", "timing.csv", "predictions.csv"}
    table = common.read_csv(Path("run/on-new/predictions.csv"), ("confidence",))
    assert table[["text", "label"]].to_numpy().tolist() == labelled[["text", "predicted"]].to_numpy().tolist()
    assert table["confidence"].to_numpy() == pytest.approx(labelled["confidence"].to_numpy(), abs=1e-6)
    assert not {"gold", "correct", "gold_confidence"} & set(table.columns)
