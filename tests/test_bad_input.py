"""What users hand in by mistake: one line on stderr, exit code 2, nothing lost; and files of any bytes at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import run
from hypothesis import given, settings
from hypothesis import strategies as st

import common

MRPC = ["--dataset", "mrpc", "--sample"]
FAST = [*MRPC, "--precision", "fp32", "--num-train-epochs", 1, "--max-train-samples", 24]


def refused(capsys, script, flags, said, code=2):
    """The script ends with `code` and one line that holds `said`."""
    capsys.readouterr()
    assert run(script, *flags) == code
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines()
             if line.strip() and "%|" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{script}.py: ") and said in lines[0]


@pytest.mark.parametrize(("script", "flags", "said"), [
    ("train", [], "no --dataset given"),
    ("train", ["--dataset", "mrcp"], "no dataset 'mrcp' in the catalog (mrpc"),
    ("train", [*MRPC, "--learnin-rate", "1"], "unrecognized arguments: --learnin-rate"),
    ("train", [*MRPC, "--learning-rate", "nan"], "invalid positive value: 'nan'"),
    ("train", [*MRPC, "--max-train-samples", "1"], "all training examples that are left have the same label"),
    ("train", [*MRPC, "--max-length", "513"], "--max-length 513 is not from 13 to 512"),
    ("train", [*MRPC, "--warmup-steps", "-1"], "--warmup-steps are 0 or more"),
    ("train", [*MRPC, "--warmup-steps", "9", "--lr-scheduler-type", "step"], "--warmup-steps does nothing with"),
    ("train", [*MRPC, "--dropout", "1"], "--dropout 1.0 is not from 0 up to"),
    ("train", [*MRPC, "--seed", "4294967296"], "is not from 0 to 2^32 - 1"),
    ("train", [*MRPC, "--keep-epochs", "0", "13"], "--keep-epochs takes epochs from 0 to 12"),
    ("train", [*MRPC, "--precision", "fp16"], "--precision fp16 takes a GPU"),
    ("train", ["--dataset", "csqa", "--sample", "--class-weights", "balanced"], "--class-weights is for classif"),
    ("train", [*MRPC, "--resume", "--overwrite"], "not both"),
    ("train", [*MRPC, "--resume"], "nothing to resume"),
    ("train", ["--dataset", "a.csv", "--sample"], "a.csv takes --text-column A [B] and --label-column L"),
    ("train", ["--dataset", "a.csv", "--text-column", "t", "--label-column", "l"], "a.csv is missing"),
    ("train", ["--dataset", "peerread-iclr2017", "--data-dir", "none"],
     "none/peerread/data/iclr_2017 is missing and can't be fetched; put it there by hand: "),
    ("train", [*MRPC, "--runs-dir", __file__], f"{Path(__file__).name}/mrpc"),
    ("evaluate", [], "neither --dataset nor --run given"),
    ("evaluate", MRPC, "train one first: python train.py --dataset mrpc --sample"),
    ("evaluate", [*MRPC, "--max-eval-samples", "0"], "are 1 or more"),
    ("errors", ["--run", "nowhere"], "nowhere holds no finished run"),
    ("llm_compare", [*MRPC, "--mode", "chat"], "invalid choice: 'chat'")])
def test_flags_that_can_not_be(capsys, tmp_path, monkeypatch, script, flags, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "pick_device", lambda: torch.device("cpu"))
    refused(capsys, script, flags, said)
    assert not list(tmp_path.rglob("*.json"))


def test_a_training_that_diverges_ends_with_code_1_and_a_line_of_its_own(capsys, tmp_path):
    refused(capsys, "train", [*FAST, "--learning-rate", "1e30", "--run", tmp_path], "the training loss is nan at", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert run("train", *FAST, "--run", folder) == 0
    assert run("evaluate", "--run", folder, "--max-eval-samples", 8) == 0
    return folder


@pytest.mark.parametrize(("script", "harm", "said"), [
    ("evaluate", lambda folder: shutil.rmtree(folder / "model"), "could not load the model"),
    ("evaluate", lambda folder: os.truncate(folder / "model/model.safetensors", 99_999), "could not load the model"),
    ("evaluate", lambda folder: (folder / "train_texts.csv").unlink(), "train_texts.csv is missing"),
    ("errors", lambda folder: (folder / "predictions.csv").unlink(), "predictions.csv is missing; the script that"),
    ("errors", lambda folder: (folder / "predictions.csv").write_text("a;b\n1;2\n"), "has no column correct")])
def test_a_run_that_was_harmed(capsys, finished, tmp_path, script, harm, said):
    folder = shutil.copytree(finished, tmp_path / "run")
    harm(folder)
    refused(capsys, script, ["--run", folder], said)
    assert (folder / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert not [path for path in folder.glob(".*") if path.name != ".lock"]


CELLS = st.text(st.characters(codec="utf-8") | st.sampled_from('",;\t\n\r\0\ufeff='), max_size=8) | st.sampled_from(
    ["a", "b", "1", "1.0", "-1", "nan", "NA", "text", "label", ""])
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=30)
OBJECTS = st.lists(st.dictionaries(st.sampled_from(["text", "label", "x"]), st.none() | st.booleans() | st.floats()
                                   | CELLS | st.lists(CELLS, max_size=2)).map(json.dumps))


@pytest.mark.parametrize("ending", common.OWN_FILES)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_a_file_of_any_content_is_taken_or_refused(ending, data):
    """Never a traceback; in what is taken no text and no label is empty, and no row is lost uncounted."""
    mark = "\t" if ending == ".tsv" else ","
    lines = OBJECTS if ending == ".jsonl" else ROWS.map(
        lambda rows: [f"text{mark}label", *map(mark.join, rows)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{ending}")
        path.write_bytes(data.draw(st.binary(max_size=60) | lines.map(lambda rows: "\n".join(rows).encode())))
        try:
            read = common.load_data(str(path), text_column=["text"], label_column="label")
        except common.UserError as error:
            assert error.code == 2
            return
    for table in read.splits.values():
        assert table["text"].str.strip().ne("").all() and table["label"].isin(read.task["labels"]).all()
