"""What users hand in by mistake: for each case the exit code and what is said, or what has to come out all the same.

Code 2 is one line on stderr and nothing lost; code 0 means that the input is fine, and the check says how it was used.
Texts are taken as they stand. Rows without a text or a label (nothing, white space, null, NaN) are dropped and counted.
"""

import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import common
import errors
import evaluate
import llm_compare
import train
import visualize
from common import UserError

READERS = (errors, visualize, llm_compare)  # of predictions.csv
FAST = ["--sample", "--precision", "fp32", "--num-train-epochs", "1", "--max-train-samples", "24"]
KIND_KEYS = {"classification": "mrpc", "multilabel": "sbic", "regression": "str-eng", "multiple_choice": "csqa",
             "span": "squad2", "visual": "gqa", "answers": "gqa-blind"}
QUIET = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def call(capsys, script, *flags):
    """Exit code, stdout, and the lines on stderr that are no progress bar."""
    capsys.readouterr()
    code = script.main([str(flag) for flag in flags])
    output = capsys.readouterr()
    lines = [line.strip() for line in output.err.replace("\r", "\n").splitlines()]
    return code, output.out, [line for line in lines if line and "%|" not in line]


def refused(capsys, script, flags, said, code=2):
    """The script ends with `code` and one line that holds `said`."""
    found, _, lines = call(capsys, script, *flags)
    assert found == code
    assert len(lines) == 1, lines
    assert said in lines[0]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run_of(runs_dir):
    """The folder of a finished and evaluated run on the sample rows of a catalog key; made once, to be copied."""
    @functools.cache
    def make(key):
        assert train.main(["--dataset", key, *FAST, "--runs-dir", str(runs_dir)]) == 0
        folder = runs_dir / key / "sample" / "seed42"
        assert evaluate.main(["--run", str(folder), "--max-eval-samples", "24"]) == 0
        return folder

    return make


@pytest.fixture
def run_dir(run_of, tmp_path):
    """A run on mrpc to spoil."""
    return shutil.copytree(run_of("mrpc"), tmp_path / "run")


# ---- Files of one's own ---------------------------------------------------------------------------------------------


def rows(count=40, text=lambda i: f"text {i}", label=lambda i: "ab"[i % 2], header="text,label"):
    return header + "\n" + "".join(f"{text(i)},{label(i)}\n" for i in range(count))


def objects(*changed, count=40):
    """A .jsonl file whose first rows are `changed`."""
    plain = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(count)]
    return "".join(json.dumps(row | change) + "\n" for row, change in
                   zip(plain, [*changed, *[{}] * (count - len(changed))], strict=True))


REFUSED_FILES = {  # name: (content, flags beside --text-column text --label-column label, what is said)
    "nothing.csv": ("", [], "can't be read as .csv: No columns"),
    "blank.csv": ("\n\n\n", [], "can't be read as .csv"),
    "header.csv": ("text,label\n", [], "holds no rows"),
    "one row.csv": (rows(1), [], "holds 1 label(s), not two or more"),
    "two rows.csv": (rows(2), [], "split holds no example with a label and a text"),
    "one class.csv": (rows(label=lambda i: "a"), [], "holds 1 label(s), not two or more"),
    "no texts.csv": (rows(text=lambda i: " "), [], "holds no example with a label and a text"),
    "no texts of a label.csv": (rows(text=lambda i: " "), ["--train-per-class", "2"], "holds no example with a label"),
    "no labels.csv": (rows(label=lambda i: ""), [], "holds 0 label(s)"),
    "one class left.csv": (rows(text=lambda i: f"t {i}" if i % 2 else ""), [], "all training examples that are left"),
    "latin-1.csv": (rows().encode() + b"caf\xe9,a\n", [], "'utf-8' codec can't decode byte 0xe9"),
    "utf-16.csv": (rows().encode("utf-16"), [], "can't be read as .csv"),
    "long row.csv": (rows() + "a,b,c\n", [], "Expected 2 fields in line 42, saw 3"),
    "all rows too long.csv": (rows(label=lambda i: f"{'ab'[i % 2]},x"), [], "more cells than the 2 column names"),
    "open quote.csv": (rows() + '"a,b\n', [], "EOF inside string"),
    "text twice.csv": (rows(label=lambda i: f"x,{'ab'[i % 2]}", header="text,text,label"), [], "'text' is there twice"),
    "label twice.csv": (rows(label=lambda i: f"x,{'ab'[i % 2]}", header="text,label,label"), [],
                        "'label' is there twice"),
    "semicolons.csv": (rows().replace(",", ";"), [], "no column 'text' among text;label"),
    "numbers.csv": (rows(text=str), [], "column 'text' holds numbers (0 in row 1, 40 in all)"),
    "ids for labels.csv": (rows(label=lambda i: f"id-{i}"), [], "holds 40 labels in 40 rows, too many to learn"),
    "scores for labels.csv": (rows(label=lambda i: i / 7), [], "too many to learn"),
    "gold.csv": (rows(header="gold,label"), ["--text-column", "gold"], "has a column 'gold' of its own"),
    "prob.csv": (rows(header="prob_a,label"), ["--text-column", "prob_a"], "has a column 'prob_a' of its own"),
    "llm.csv": (rows(header="llm_label,label"), ["--text-column", "llm_label"], "rename the text column"),
    "called label.csv": (rows(header="label,mood"), ["--text-column", "label", "--label-column", "mood"],
                         "has a column 'label' of its own"),
    "label as text.csv": (rows(), ["--text-column", "label"], "all different"),
    "one text as two.csv": (rows(), ["--text-column", "text", "text"], "all different"),
    "three texts.csv": (rows(label=lambda i: "b,c,d", header="text,b,c,label"), ["--text-column", "text", "b", "c"],
                        "takes one text column or two"),
    "misspelt.csv": (rows(), ["--text-column", "texts"], "no column 'texts' among text, label; did you mean text?"),
    "long row.tsv": (rows().replace(",", "\t") + "a\tb\tc\n", [], "Expected 2 fields in line 42"),
    "twice.tsv": (rows(header="text,text").replace(",", "\t"), [], "'text' is there twice"),
    "cut short.jsonl": (objects() + '{"text": "a', [], "line 41: Unterminated string"),
    "array.jsonl": ('[{"text": "a", "label": "b"}]', [], "line 1 is no object in braces"),
    "deep.jsonl": ("[" * 100_000, [], "maximum recursion depth exceeded"),
    "nothing.jsonl": ("", [], "holds no rows"),
    "numbers.jsonl": (objects({"text": 5}, {"text": 6}), [], "cells that are no text (5 in row 1, 2 in all)"),
    "lists.jsonl": (objects({}, {"text": ["a"]}), [], "cells that are no text (['a'] in row 2"),
    "half a character.jsonl": (objects({"text": "\ud83d cut"}), [], "surrogates not allowed"),
    "no.parquet": ("no parquet", [], "can't be read as .parquet"),
}


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_a_file_of_ones_own_is_refused(capsys, tmp_path, name):
    content, flags, said = REFUSED_FILES[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(capsys, train, ["--dataset", path, "--text-column", "text", "--label-column", "label", *flags, *FAST,
                            "--runs-dir", tmp_path / "runs"], said)
    assert not list(tmp_path.glob("runs/**/run.json"))


def test_a_file_that_is_not_there(capsys, tmp_path):
    flags = ["--text-column", "text", "--label-column", "label", "--run", tmp_path / "run"]
    refused(capsys, train, ["--dataset", tmp_path / "none.csv", *flags], "no file")
    (tmp_path / "folder.csv").mkdir()
    refused(capsys, train, ["--dataset", tmp_path / "folder.csv", *flags], "no file")
    (tmp_path / "a.csv").write_text(rows())
    refused(capsys, train, ["--dataset", tmp_path / "a.csv", "--run", tmp_path / "run"], "needs --text-column A [B]")


def kept(texts):
    """Every one of the texts stands, unchanged, in train_texts.csv or predictions.csv."""
    def check(folder, run, out):
        found = {*common.read_csv(folder / "train_texts.csv")["text"], *common.read_predictions(folder)["text"]}
        assert found <= set(map(texts, range(40)))
        assert not run["data"]["dropped"]
    return check


def dropped(**counts):
    """So many rows were dropped, and the screen says so."""
    def check(folder, run, out):
        counted = {why.replace("_", " "): n for why, n in counts.items()}
        assert {why: n for why, n in run["data"]["dropped"]["all"].items() if n} == counted
        assert all(f"{n} {why}" in out for why, n in counted.items())
        assert sum(run["data"]["rows"].values()) == 40 - sum(counts.values())
    return check


def labels(*names):
    """These are the labels."""
    def check(folder, run, out):
        assert run["task"]["labels"] == list(names)
        assert set(common.read_predictions(folder)["gold"]) == set(names)
    return check


def unseen(folder, run, out):
    assert run["data"]["labels"]["train"]["c"] == 0 < run["data"]["labels"]["test"]["c"]
    assert "no training example has the label c: the model can't learn it" in out


def many(folder, run, out):
    assert len(run["task"]["labels"]) == 200
    assert "and 180 labels more" in out
    assert len(pd.read_csv(folder / "confusion.csv")) == 200
    assert (folder / "confusion.png").stat().st_size < 2**20  # of 30 labels


HOSTILE = ["=1+1", "'quoted", "a\0b", "\u202eabc\u202c", "😀 é \u0301", '"', "\u2028x", "NA", "nan", "None", "null",
           "-"]
TAKEN_FILES = {  # name: (content, check of the finished and evaluated run)
    "ten rows.csv": (rows(10), lambda folder, run, out: None),
    "byte order mark.csv": ("\ufeff" + rows(), labels("a", "b")),
    "hostile.jsonl": (objects(*({"text": f"{HOSTILE[i % 12]} {i}"} for i in range(40))),
                      kept(lambda i: f"{HOSTILE[i % 12]} {i}")),
    "bare.jsonl": (objects(*({"text": HOSTILE[i % 12]} for i in range(40))), kept(lambda i: HOSTILE[i % 12])),
    "nul.csv": (rows(text=lambda i: f"a\0b {i}"), kept(lambda i: f"a\0b {i}")),
    "bidi.tsv": (rows(text=lambda i: f"\u202e\"a\u202c 😀 {i}").replace(",", "\t"),
                 kept(lambda i: f"\u202e\"a\u202c 😀 {i}")),
    "long.csv": (rows(text=lambda i: f"{'word ' * 20_000 if i % 2 else 'x' * 100_000}{i}"),
                 kept(lambda i: f"{'word ' * 20_000 if i % 2 else 'x' * 100_000}{i}")),
    "not a number.csv": (rows(text=lambda i: ["nan", "None", "NA", "null", "inf"][i % 5]),
                         kept(lambda i: ["nan", "None", "NA", "null", "inf"][i % 5])),
    "empty texts.csv": (rows(text=lambda i: ["", "  ", "\t"][i % 3] if i < 6 else f"t {i}"), dropped(without_a_text=6)),
    "null.jsonl": (objects({"text": None}, {"text": float("nan")}, {"label": None}, {"label": ""}),
                   dropped(without_a_text=2, without_a_label=2)),
    "short row.csv": (rows(39) + "only a text\n", dropped(without_a_label=1)),
    "minus one.csv": (rows(label=lambda i: ["-1", "0", "1", "1"][i % 4]), labels("-1", "0", "1")),
    "float labels.csv": (rows(label=lambda i: ["0.0", "1.0", "1"][i % 3]), labels("0", "1")),
    "stray spaces.csv": (rows(label=lambda i: ["a", " a", "b ", "b"][i % 4]), labels("a", "b")),
    "true and false.csv": (rows(label=lambda i: ["True", "False"][i % 2]), labels("False", "True")),
    "odd labels.csv": (rows(label=lambda i: ["gold", '"=1, <b>\n| x"'][i % 2]), labels("=1, <b>\n| x", "gold")),
    "rare label.csv": (rows(label=lambda i: "c" if i == 7 else "ab"[i % 2]), unseen),
    "many labels.csv": (rows(500, label=lambda i: f"l{i % 200:03}"), many),
}


@pytest.mark.parametrize("name", TAKEN_FILES)
def test_a_file_of_ones_own_is_taken(capsys, tmp_path, name):
    content, check = TAKEN_FILES[name]
    (tmp_path / name).write_bytes(content.encode())
    flags = ["--dataset", tmp_path / name, "--sample", "--runs-dir", tmp_path / "runs"]
    code, out, lines = call(capsys, train, *flags, "--text-column", "text", "--label-column", "label", "--precision",
                            "fp32", "--num-train-epochs", "1", "--max-length", "64")
    assert (code, lines) == (0, [])
    assert call(capsys, evaluate, *flags)[0] == 0
    folder = next(tmp_path.glob("runs/*/sample/seed42"))
    check(folder, common.read_json(folder / "run.json"), out)


def test_a_path_with_spaces_and_umlauts_through_all_five_scripts(capsys, tmp_path):
    place = tmp_path / "meine Läufe"
    place.mkdir()
    (place / "Bücher & Co.csv").write_text(rows(60, label=lambda i: ["gut", "übel"][i % 2]), encoding="utf-8")
    flags = ["--dataset", place / "Bücher & Co.csv", "--sample", "--runs-dir", place / "Läufe"]
    assert call(capsys, train, *flags, "--text-column", "text", "--label-column", "label", *FAST)[0] == 0
    for script in (evaluate, errors, visualize, llm_compare):
        assert call(capsys, script, *flags)[0] == 0
    assert (place / "Läufe" / "Bücher-Co" / "sample" / "seed42" / "llm_predictions.csv").is_file()


def test_the_same_words_in_train_and_test_are_counted(capsys, tmp_path):
    """Every text is there twice, once in capitals and with other punctuation; two are a lone emoji and an arrow."""
    texts = [f"this is film {i}" for i in range(38)] + ["😀", "->"]
    table = pd.DataFrame({"text": [*texts, *(f"{text.upper()}!" for text in texts)], "label": [*"ab"] * 40})
    table.to_csv(tmp_path / "a.csv", index=False)
    code, out, _ = call(capsys, train, "--dataset", tmp_path / "a.csv", "--text-column", "text", "--label-column",
                        "label", "--run", tmp_path / "run", *FAST[:-2])
    assert code == 0
    run = common.read_json(tmp_path / "run" / "run.json")
    train_texts = {text.casefold().strip("!") for text in common.read_csv(tmp_path / "run" / "train_texts.csv")["text"]}
    data = common.load_data(train.build_parser().parse_args(
        ["--dataset", str(tmp_path / "a.csv"), "--text-column", "text", "--label-column", "label"]))
    for name in ("test", "validation"):
        same = sum(text.casefold().strip("!") in train_texts and any(map(str.isalnum, text))
                   for text in data.splits[name]["text"])
        assert 0 < same == run["leakage"][f"train/{name}"]["n"]
        assert run["leakage"][f"train/{name}"]["share"] == same / 8
        assert f"train/{name}: {same} examples of {name} ({same / 8:.1%}) have the words of a training example" in out


def test_no_leak_is_zero_and_not_mentioned(capsys, tmp_path):
    _, out, _ = call(capsys, train, "--dataset", "mrpc", *FAST, "--run", tmp_path)
    assert common.read_json(tmp_path / "run.json")["leakage"] == {
        f"train/{name}": {"n": 0, "share": 0.0} for name in ("validation", "test")}
    assert "train/" not in out


# ---- Flags ----------------------------------------------------------------------------------------------------------

MRPC = ["--dataset", "mrpc", "--sample"]


@pytest.mark.parametrize(("script", "flags", "said"), [
    (train, [], "no --dataset given"),
    (train, ["--dataset", "mrcp"], "did you mean mrpc"),
    (train, ["--dataset", ""], "no --dataset given"),
    (train, ["--dataset", "wsc273", "--sample"], "wsc273 has no train split; train on winogrande"),
    (train, [*MRPC, "--learnin-rate", "1"], "did you mean --learning-rate"),
    (train, [*MRPC, "--learning-rate", "0"], "'0' is not a finite number above 0"),
    (train, [*MRPC, "--learning-rate=-1e-5"], "'-1e-5' is not a finite number above 0"),
    (train, [*MRPC, "--learning-rate", "nan"], "'nan' is not a finite number above 0"),
    (train, [*MRPC, "--learning-rate", "inf"], "'inf' is not a finite number above 0"),
    (train, [*MRPC, "--learning-rate", "5e-5x"], "'5e-5x' is not a finite number above 0"),
    (train, [*MRPC, "--num-train-epochs", "1.5"], "'1.5' is not a whole number of 1 or more"),
    (train, [*MRPC, "--max-train-samples", "0"], "'0' is not a whole number of 1 or more"),
    (train, [*MRPC, "--max-train-samples", "1"], "all training examples that are left have the same label"),
    (train, [*MRPC, "--max-length", "513"], "--max-length 513 is more than the 512 tokens"),
    (train, [*MRPC, "--warmup-steps", "-1"], "'-1' is not a finite number of 0 or more"),
    (train, [*MRPC, "--warmup-steps", "9", "--lr-scheduler-type", "step"], "--warmup-steps does nothing with --lr-sch"),
    (train, [*MRPC, "--dropout", "1"], "'1' is not a number from 0 up to"),
    (train, [*MRPC, "--seed", "4294967296"], "below 2^32"),
    (train, [*MRPC, "--seeds", "1", "-1"], "'-1' is not a whole number of 0 or more"),
    (train, [*MRPC, "--seed", "1", "--seeds", "1"], "not both"),
    (train, [*MRPC, "--keep-epochs", "0", "13"], "--keep-epochs 13 is beyond the 12 epochs"),
    (train, [*MRPC, "--resume", "--overwrite"], "not both"),
    (train, [*MRPC, "--resume"], "nothing to resume"),
    (train, [*MRPC, "--text-column", "sentence1"], "are for a file of your own, not for mrpc"),
    (train, ["--dataset", "str-eng", "--sample", "--class-weights", "balanced"], "is for classification, not for"),
    (train, [*MRPC, "--model", "no/such-model"], "HF_HUB_OFFLINE is set"),
    (train, ["--dataset", "mrpc"], "HF_HUB_OFFLINE is set; check the network, or go on without it: --sample"),
    (train, ["--dataset", "peerread-iclr2017", "--data-dir", "none"], "is missing and can't be fetched"),
    (evaluate, [], "neither --dataset nor --run given"),
    (evaluate, MRPC, "train one first: python train.py --dataset mrpc --sample"),
    (evaluate, [*MRPC, "--max-eval-samples", "0"], "'0' is not a whole number of 1 or more"),
    (evaluate, ["--run", "nowhere"], "nowhere is no run folder"),
    (errors, ["--run", "."], "is no run folder"),
    (errors, [*MRPC, "--n", "0"], "'0' is not a whole number of 1 or more"),
    (visualize, [*MRPC, "--perplexity", "0"], "'0' is not a finite number above 0"),
    (visualize, [*MRPC, "--method", "umap"], "invalid choice: 'umap'"),
    (llm_compare, MRPC, "train one first"),
    (llm_compare, [*MRPC, "--shots", "-1"], "'-1' is not a whole number of 0 or more"),
    (llm_compare, [*MRPC, "--mode", "chat"], "invalid choice: 'chat'"),
])
def test_flags_that_can_not_be(capsys, tmp_path, monkeypatch, script, flags, said):
    monkeypatch.chdir(tmp_path)
    refused(capsys, script, flags, said)


def test_half_precision_without_a_gpu(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "pick_device", lambda: torch.device("cpu"))
    refused(capsys, train, [*MRPC, "--precision", "fp16", "--run", tmp_path], "--precision fp16 takes a GPU")


def test_a_learning_rate_far_too_high_ends_with_code_1(capsys, tmp_path):
    refused(capsys, train, [*MRPC, *FAST[:-2], "--learning-rate", "1e30", "--run", tmp_path],
            "the training loss is nan at step", code=1)


# ---- Places that can't be written -----------------------------------------------------------------------------------


def test_a_file_in_the_way_of_the_run_folder(capsys, tmp_path):
    (tmp_path / "runs").write_text("in the way")
    refused(capsys, train, [*MRPC, "--runs-dir", tmp_path / "runs"], "can't be opened as a folder: Not a directory")
    refused(capsys, train, [*MRPC, "--run", tmp_path / "runs"], "can't be opened as a folder: File exists")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, in which not even root can make a folder")
def test_a_read_only_output_folder(capsys):
    refused(capsys, train, [*MRPC, "--runs-dir", "/proc/runs"], "/proc/runs")


@pytest.mark.parametrize(("script", "name"), [
    (evaluate, "predictions.csv"), (evaluate, "hidden_states.npz"), (evaluate, "confusion.png"), (errors, "slices.csv"),
    (visualize, "embedding_pca.png"), (visualize, "explorer.html"), (llm_compare, "llm_metrics.csv")])
def test_a_folder_in_the_way_of_a_file(capsys, run_dir, script, name):
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).mkdir()
    before = (run_dir / "metrics.csv").read_bytes()
    refused(capsys, script, ["--run", run_dir, "--max-eval-samples", "24"],
            f"could not write {run_dir / name}: Is a directory")
    assert (run_dir / "metrics.csv").read_bytes() == before
    assert not list(run_dir.glob(".*"))


def test_two_processes_in_one_run_folder(capsys, run_dir):
    fcntl = pytest.importorskip("fcntl")
    handle = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # as train.py and evaluate.py hold it
        for script, flags in ((train, [*MRPC, "--overwrite"]), (evaluate, []), *((reader, []) for reader in READERS)):
            refused(capsys, script, [*flags, "--run", run_dir], f"another process is at work in {run_dir}; wait until")
        fcntl.flock(handle, fcntl.LOCK_SH)  # as the others hold it
        refused(capsys, evaluate, ["--run", run_dir], "another process is at work")
        assert call(capsys, errors, "--run", run_dir)[0] == 0
    finally:
        os.close(handle)
    assert call(capsys, evaluate, "--run", run_dir)[0] == 0


# ---- Files of a run that were changed -------------------------------------------------------------------------------

PREDICTED = ["id", "split", "sentence1", "gold", "predicted", "correct", "confidence", "gold_confidence", "margin"]


def spoil(folder, change):
    """Apply `change` to predictions.csv, a table of texts."""
    path = folder / "predictions.csv"
    table = change(pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig"))
    table.to_csv(path, index=False, encoding="utf-8-sig")


def cell(column, value):
    """Put `value` into the second row of `column`."""
    return lambda table: table.assign(**{column: [table[column][0], value, *table[column][2:]]})


SPOILT_PREDICTIONS = {
    **{f"no {name}": (lambda table, name=name: table.drop(columns=name), f"has no column {name}; it has")
       for name in PREDICTED},
    "no rows": (lambda table: table.iloc[:0], "has no rows; run evaluate.py again"),
    "an id twice": (lambda table: cell("id", table["id"][0])(table), "can't be the id there"),
    "an id gone": (cell("id", ""), "row 3:  can't be the id there"),
    "a gold label of no task": (cell("gold", "Equivalent"), "row 3: Equivalent can't be the gold there"),
    "a prediction gone": (cell("predicted", ""), "can't be the predicted there"),
    "gold labels changed": (lambda table: table.assign(gold=table["gold"].iloc[::-1].tolist()), "can't be the correct"),
    "correct in other words": (cell("correct", "yes"), "row 3: yes can't be the correct there"),
    "all of it correct": (lambda table: table.assign(correct="True"), "True can't be the correct there"),
    "a decimal comma": (cell("confidence", "0,75"), "column confidence"),
    "percent": (cell("confidence", "75"), "row 3: 75.0 can't be the confidence there"),
    "an infinite margin": (cell("margin", "inf"), "row 3: inf can't be the margin there"),
    "a negative probability": (cell("prob_equivalent", "-0.1"), "row 3: -0.1 can't be the prob_equivalent there"),
}


@pytest.mark.parametrize("name", SPOILT_PREDICTIONS)
def test_predictions_changed_by_hand(capsys, run_dir, name):
    change, said = SPOILT_PREDICTIONS[name]
    spoil(run_dir, change)
    for script in READERS:
        refused(capsys, script, ["--run", run_dir], said)


@pytest.mark.parametrize(("change", "said"), [
    (lambda text: "", "has no column id"), (lambda text: text.replace(",", ";"), "has no column id"),
    (lambda text: text.replace(",gold,", ",gold,gold,"), "has the column gold twice"),
    (lambda text: text + "a,b\n", "row 26: 2 cells under 12 column names"), (lambda text: text + '"', "1 cells under"),
    (lambda text: text.encode("utf-16"), "is no CSV in UTF-8"), (lambda text: text.encode() + b"\xff", "is no CSV")])
def test_a_predictions_file_that_is_none(capsys, run_dir, change, said):
    path = run_dir / "predictions.csv"
    content = change(path.read_text(encoding="utf-8-sig"))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for script in READERS:
        refused(capsys, script, ["--run", run_dir], said)


def test_a_spreadsheets_capitals_are_taken(capsys, run_dir):
    before = common.read_predictions(run_dir)
    spoil(run_dir, lambda table: table.assign(correct=table["correct"].str.upper()))
    pd.testing.assert_frame_equal(common.read_predictions(run_dir), before)


@pytest.mark.parametrize("kind", KIND_KEYS)
def test_every_kind_knows_its_own_predictions_and_no_others(capsys, tmp_path, run_of, kind):
    run_dir = shutil.copytree(run_of(KIND_KEYS[kind]), tmp_path / "run")
    assert len(common.read_predictions(run_dir)) > 0  # what evaluate.py wrote passes
    assert call(capsys, errors, "--run", run_dir)[0] == 0
    spoil(run_dir, cell("predicted", "no such answer"))
    if kind in ("span", "answers", "visual"):  # any text can be an answer, but not the right one
        spoil(run_dir, cell("correct", "True"))
    if kind != "span":
        refused(capsys, errors, ["--run", run_dir], "there; it was changed by hand: run evaluate.py again")
    spoil(run_dir, lambda table: table.drop(columns="predicted"))
    refused(capsys, errors, ["--run", run_dir], "has no column predicted")


def change_run(**changes):
    """run.json with other values; None takes a key out."""
    def change(folder):
        run = common.read_json(folder / "run.json") | changes
        common.write_json(folder / "run.json", {name: value for name, value in run.items() if value is not None})
    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name, share):
    """Keep a share of a file's bytes."""
    return lambda folder: (folder / name).write_bytes(
        (content := (folder / name).read_bytes())[:int(len(content) * share)])


def change_config(**changes):
    def change(folder):
        path = folder / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return change


@pytest.mark.parametrize(("harm", "said"), [
    (cut("run.json", 0.5), "is not valid JSON"), (write("run.json", b""), "is not valid JSON"),
    (write("run.json", b"[]"), "holds no JSON object"), (write("run.json", b"\xff"), "is not valid JSON"),
    (write("run.json", b"[" * 100_000), "is not valid JSON"), (write("run.json", b"{}"), "did not finish"),
    (change_run(finished=None), "did not finish"), (change_run(task=None), "lacks 'task'"),
    (change_run(task={"key": "x"}), "lacks 'kind'"), (change_run(task={"kind": "x"}), "the kind of the task is not"),
    (change_run(seed="one"), "seed is not what train.py wrote"),
    (change_run(args=None), "lacks 'args'"), (change_run(data=[]), "data is not what train.py wrote"),
    (change_run(training=None), "lacks 'training'"), (change_run(hardware={}), "lacks 'precision'"),
    (lambda folder: shutil.rmtree(folder / "model"), "the run has lost its model"),
    (lambda folder: (folder / "model" / "model.safetensors").unlink(), "is without weights that can be read"),
    (cut("model/model.safetensors", 0.5), "could not load the model"),
    (write("model/model.safetensors", b"{}"), "SafetensorError"), (write("model/config.json", b"{"), "could not load"),
    (write("model/config.json", b"{}"), "could not load"), (change_config(model_type="gpt9"), "could not load"),
    (change_config(num_hidden_layers=3), "lacks 16 weights of a bert model"),
    (change_config(vocab_size=7), "has them in another shape, such as bert.embeddings.word_embeddings"),
    (change_config(model_type="t5"), "could not load the model"),
    (write("model/tokenizer.json", b"{}"), "could not load the model"),
    (lambda folder: [path.unlink() for path in folder.glob("model/tokenizer*")], "holds no tokenizer"),
])
def test_evaluate_with_a_spoilt_run(capsys, run_dir, harm, said):
    before = (run_dir / "metrics.csv").read_bytes()
    harm(run_dir)
    refused(capsys, evaluate, ["--run", run_dir], said)
    assert (run_dir / "metrics.csv").read_bytes() == before


def test_overwrite_replaces_a_spoilt_run(capsys, run_dir):
    (run_dir / "run.json").write_text("{")
    (run_dir / "notes.md").write_text("mine")
    refused(capsys, train, [*MRPC, *FAST, "--run", run_dir], "is not valid JSON")
    assert call(capsys, train, *MRPC, *FAST, "--run", run_dir, "--overwrite")[0] == 0
    assert (run_dir / "notes.md").read_text() == "mine"
    assert not (run_dir / "predictions.csv").exists()


def test_overwrite_keeps_the_old_run_until_the_new_one_can_begin(capsys, run_dir):
    before = {path.name for path in run_dir.iterdir()}
    flags = ["--overwrite", "--run", run_dir]
    refused(capsys, train, ["--dataset", "mrpc", *flags], "HF_HUB_OFFLINE is set")
    refused(capsys, train, [*MRPC, *flags, "--max-length", "600"], "--max-length 600 is more than")
    assert {path.name for path in run_dir.iterdir()} == before
    assert common.finished_run(run_dir)


def save_arrays(name, **arrays):
    return lambda folder: np.savez(folder / name, **arrays)


@pytest.mark.parametrize(("harm", "said"), [
    (cut("hidden_states.npz", 0.7), "hidden_states.npz cannot be read"),
    (write("hidden_states.npz", b""), "hidden_states.npz cannot be read"),
    (lambda folder: (folder / "hidden_states.npz").unlink(), "hidden_states.npz is missing"),
    (save_arrays("hidden_states.npz", id=np.array(["a"])), "hidden_states.npz cannot be read"),
    (save_arrays("hidden_states.npz", id=np.array(["a"]), vector=np.ones((1, 2))), "25 ids stand in one alone"),
    (save_arrays("hidden_states.npz", id=np.array(["a"]), vector=np.array([["x"]])), "vector is U2, not f2"),
    (save_arrays("hidden_states.npz", id=np.array(["a"]), vector=np.ones(1)), "vector is f1, not f2"),
    (save_arrays("epoch_states.npz", id=np.array(["a"])), "epoch_states.npz cannot be read"),
    (save_arrays("epoch_states.npz", id=np.array(["a"]), gold=np.array(["a"]), epoch=np.array([0, 1]),
                 vector=np.ones((1, 1, 2)), predicted=np.array([["a"]]), correct=np.array([[True]]),
                 confidence=np.ones((1, 1))), "its arrays are not of the same epochs and examples"),
    (cut("history.csv", 0.3), "history.csv has no row of the best epoch, 1"),
    (write("steps.csv", b"step\n"), "has no column epoch, loss"),
    (lambda folder: (folder / "steps.csv").unlink(), "steps.csv is missing"),
])
def test_visualize_with_a_spoilt_run(capsys, run_dir, harm, said):
    harm(run_dir)
    refused(capsys, visualize, ["--run", run_dir, "--method", "pca"], said)


def test_hidden_states_of_another_run(capsys, run_dir, run_of):
    shutil.copy(run_of("csqa") / "hidden_states.npz", run_dir)
    refused(capsys, visualize, ["--run", run_dir], "write both again with evaluate.py")


@pytest.mark.parametrize(("harm", "flags", "said"), [
    (None, ["--shots", "25"], "--shots 25 is more than the 24 training examples"),
    (None, ["--prompt-file", "none.txt"], "--prompt-file none.txt can't be read"),
    (write("p.txt", b"no sample"), ["--prompt-file", "p.txt"], "p.txt has no {input}"),
    (write("p.txt", b"\xff{input}"), ["--prompt-file", "p.txt"], "p.txt can't be read"),
    (None, ["--llm", "no/such-llm"], "HF_HUB_OFFLINE is set"),
    (None, ["--llm", "model"], "model lacks"),  # a classifier
    (lambda folder: (folder / "train_texts.csv").unlink(), ["--shots", "1"], "train_texts.csv is missing"),
])
def test_llm_compare_with_what_does_not_fit(capsys, run_dir, monkeypatch, harm, flags, said):
    monkeypatch.chdir(run_dir)
    if harm:
        harm(run_dir)
    refused(capsys, llm_compare, ["--run", run_dir, *flags], said)


def test_llm_compare_passes_over_what_is_no_journal_of_its_own(capsys, run_dir):
    (run_dir / "llm_journal.jsonl").write_bytes(b'{"half": \n[]\n{"key"\n\xff\xfe\nnull\n{"a": 1}\n')
    assert call(capsys, llm_compare, "--run", run_dir)[0] == 0
    assert len(pd.read_csv(run_dir / "llm_predictions.csv")) == 24


def test_likelihood_takes_labels_that_can_be_listed(capsys, run_of):
    refused(capsys, llm_compare, ["--run", run_of("str-eng"), "--mode", "likelihood"], "has none: --mode generate")


def test_a_label_that_llm_compare_needs_for_itself(capsys, run_dir):
    spoil(run_dir, lambda table: table.replace("equivalent", "UNPARSED").rename(
        columns={"prob_equivalent": "prob_UNPARSED"}))
    task = common.read_json(run_dir / "run.json")["task"]
    change_run(task=task | {"labels": ["not_equivalent", "UNPARSED"]})(run_dir)
    refused(capsys, llm_compare, ["--run", run_dir], "has a label UNPARSED, which stands for answers")


@pytest.mark.parametrize(("content", "said"), [
    (b"PK\x03\x04\xff", "is no CSV in UTF-8"), (b"", "has no columns id and input"),
    (b"id,input,cause,cause\n1,a,b,c\n", "has the column cause twice"), (b"a;b\n1;2\n", "has no columns id and input")])
def test_a_sheet_that_can_not_be_read_is_left_alone(capsys, run_dir, content, said):
    (run_dir / "errors.csv").write_bytes(content)
    refused(capsys, errors, ["--run", run_dir], said)
    assert (run_dir / "errors.csv").read_bytes() == content


# ---- Models of one's own --------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_padding_token(run_of, tmp_path):
    """It takes the end-of-text token; one that has neither is refused."""
    import transformers

    model = shutil.copytree(run_of("mrpc") / "model", tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(model)
    task = {"kind": "classification", "labels": ["no", "yes"]}
    with pytest.raises(UserError, match="neither a padding nor an end-of-text token"):
        common.load_model(str(model), task)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(model)
    assert common.load_model(str(model), task)[1].config.pad_token_id == tokenizer.eos_token_id


def test_a_tokenizer_of_another_model(capsys, run_of, tmp_path):
    model = shutil.copytree(run_of("str-eng") / "model", tmp_path / "model")
    common.word_tokenizer([f"word{i}" for i in range(5000)]).save_pretrained(model)
    refused(capsys, train, [*MRPC, *FAST, "--model", model, "--run", tmp_path / "run"], "they are no pair")


def test_a_model_of_a_family_without_such_a_head(capsys, run_of, tmp_path):
    model = shutil.copytree(run_of("mrpc") / "model", tmp_path / "model")
    flags = ["--sample", "--model", model, "--run", tmp_path / "run"]
    refused(capsys, train, ["--dataset", "gqa", *flags], "questions about images take a ViLT model")
    change_config(model_type="gpt2")(tmp_path)
    refused(capsys, train, ["--dataset", "csqa", *flags], "transformers has no MultipleChoice head for a gpt2 model")


# ---- Any bytes at all -----------------------------------------------------------------------------------------------

CELLS = st.text(st.characters(codec="utf-8") | st.sampled_from('",;\t\n\r\0\ufeff='), max_size=8) | st.sampled_from(
    ["a", "b", "1", "1.0", "-1", "nan", "NA", "text", "label", ""])
LINES = st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=30)


@pytest.mark.parametrize("ending", common.TABLE_READERS)
@given(data=st.data())
@QUIET
def test_a_file_of_any_content_is_taken_or_refused(tmp_path_factory, ending, data):
    """Never a traceback; what is taken has texts and labels, none of them empty, and no row is lost uncounted."""
    path = tmp_path_factory.mktemp("any") / f"a{ending}"
    separator = "\t" if ending == ".tsv" else ","
    value = st.none() | st.booleans() | st.floats() | CELLS | st.lists(CELLS, max_size=2)
    lines = (st.lists(st.dictionaries(st.sampled_from(["text", "label", "x"]), value).map(json.dumps))
             if ending == ".jsonl" else LINES.map(lambda table: [separator.join(row) for row in table]))
    head = b"" if ending in (".jsonl", ".parquet") else separator.join(["text", "label"]).encode() + b"\n"
    path.write_bytes(data.draw(st.binary(max_size=60) | lines.map(lambda rows: head + "\n".join(rows).encode())))
    args = train.build_parser().parse_args(
        ["--dataset", str(path), "--text-column", "text", "--label-column", "label"])
    try:
        read = common.load_data(args)
    except UserError as error:
        assert "\n" not in str(error)
        return
    for table in read.splits.values():
        assert table["text"].str.strip().ne("").all()
        assert table["label"].between(0, len(read.task["labels"]) - 1).all()
    counted = sum(read.record["rows"].values()) + sum(read.record["dropped"].get("all", {}).values())
    assert counted == len(common.read_table(path))


@given(st.binary(max_size=80) | LINES.map(lambda table: "\n".join(",".join(row) for row in table).encode()))
@QUIET
def test_a_sheet_of_any_content_is_taken_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("sheet") / "errors.csv"
    for start in (b"", b"id,input\n", b"\xff\xfe", b"\xef\xbb\xbfid;input;cause\n"):
        path.write_bytes(start + content)
        try:
            sheet = errors.read_sheet(path)
        except UserError:
            continue
        assert {"id", "input", *errors.SHEET_COLUMNS} <= set(sheet.columns)
        assert sheet.map(lambda cell: isinstance(cell, str)).all(axis=None)


@given(data=st.data())
@QUIET
def test_predictions_with_any_bytes_changed_are_taken_or_refused(run_of, tmp_path_factory, data):
    """What is taken keeps the promise of its columns."""
    folder, source = tmp_path_factory.mktemp("predictions"), run_of("mrpc")
    shutil.copy(source / "run.json", folder)
    content = bytearray((source / "predictions.csv").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place:place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3) | st.sampled_from(
            [b",", b'"', b"\n", b"\r", b"\0", b"=", b"'"]))
    (folder / "predictions.csv").write_bytes(content)
    try:
        table = common.read_predictions(folder)
    except UserError:
        return
    assert table["id"].is_unique and table["correct"].dtype == bool
    assert (table["correct"] == (table["gold"] == table["predicted"])).all()
    assert table["confidence"].dropna().between(0, 1).all()
