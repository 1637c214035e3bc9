"""What becomes of a source's rows: columns, labels, splits, samples, and what is counted."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers import refused

import common


def load(folder, key, *, test_only=False, train_per_class=None, **splits):
    """What becomes of rows as the hub has them, by its splits: texts and label of each, or an object."""
    task = common.catalog()[key]
    columns = [*task["text"], *task.get("options", []), task["label"]]
    for name, rows in splits.items():
        path = folder / task["hub"] / task.get("configs", {}).get(name, task.get("config") or "default")
        path.mkdir(parents=True, exist_ok=True)
        rows = [row if isinstance(row, dict) else dict(zip(columns, row, strict=True)) for row in rows]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return common.load_data(key, data_dir=folder, test_only=test_only, train_per_class=train_per_class)


def reviews(count, label=lambda i: i % 2):
    return [(f"review number {i}", label(i)) for i in range(count)]


@pytest.mark.parametrize("column", [
    [0, 1, -1, 1], ["negative", " positive ", "", "positive"], [0, 1, None, 1], [0.0, 1.0, None, 1.0]])
def test_labels_are_read_from_numbers_and_names_and_hidden_ones_are_counted(tmp_path, column):
    test = [(f"text {i}", label) for i, label in enumerate(column)]
    data = load(tmp_path, "sst2", train=reviews(20), validation=test)
    assert data.splits["test"]["label"].tolist() == ["negative", "positive", "positive"]
    assert data.splits["test"]["id"].tolist() == ["validation-000000", "validation-000001", "validation-000003"]
    assert data.record["dropped"] == {"validation": {"without a label": 1, "without a text": 0}}


@pytest.mark.parametrize(("rows", "said"), [
    *([[("a", one), ("b", other)], "is not one that it knows"] for one, other in (
        ("negative", "maybe"), (0, 2), (0.5, 1.0), ("0", "1"))),  # "0" is no position
    ([("a", -1), (" ", 1)], "the test split holds no example with a label and a text"),
    ([("a", 0), (5, 1)], "holds 1 cells that are no text, such as 5 in row 2"),
    ([{"sentences": "a", "label": 0}], "no column 'sentence' among sentences, label; did you mean sentences?")])
def test_rows_that_can_not_be_tested_on_are_refused(tmp_path, capsys, rows, said):
    refused(capsys, lambda: load(tmp_path, "sst2", train=reviews(20), validation=rows), said)


def test_labels_found_in_the_data_are_found_in_train_and_validation_alone(tmp_path):
    splits = {"train": ["yes", "no"] * 5, "val": ["red", "yes"], "testdev": ["blue", "no"]}
    data = load(tmp_path, "gqa-blind", **{name: [
        {"question": f"{name} {i}?", "answer": answer, "imageId": f"{i}"} for i, answer in enumerate(answers)]
        for name, answers in splits.items()})
    assert data.task["labels"] == ["no", "red", "yes"]
    assert data.splits["test"]["label"].tolist() == ["blue", "no"]  # outside of them, and so always wrong


WSC = {"text": "Mark told Pete lies, which he should have.", "span1_text": "Mark", "span2_text": "he"}


@pytest.mark.parametrize(("key", "row", "expected"), [
    ("csqa", {"question": "where?", "answerKey": "B", "choices": {"label": list("ABCDE"), "text": list("vwxyz")}},
     ["where?", "v", "w", "x", "y", "z", "B"]),
    ("wsc-superglue", WSC | {"span2_index": 5, "label": 1},
     ["Mark told Pete lies, which *he* should have.", "Mark", common.catalog()["wsc-superglue"]["labels"][1]]),
    *(("wsc273", {"text": text, "pronoun": pronoun, "pronoun_loc": text.index(pronoun), "options": [one, other],
                  "label": 1}, expected) for text, pronoun, one, other, *expected in [
        ("The man lifted the boy onto his shoulders.", "his", "The man", "the boy",
         "The man lifted the boy onto _ shoulders.", "the man's", "the boy's", "2"),
        ("Emma drove. It shone for her and him.", "It", "the trophy", "Emma",
         "Emma drove. _ shone for her and him.", "The trophy", "Emma", "2"),
        ("She saw her hat.", "her", "Emma's", "Emma's mother", "She saw _ hat.", "Emma's", "Emma's mother's", "2")])])
def test_the_hubs_columns_become_the_tasks(tmp_path, key, row, expected):
    """Choices become columns; options stand where the pronoun stood, which SuperGLUE's question puts in asterisks."""
    name = common.catalog()[key]["splits"]["test"]
    test = load(tmp_path, key, test_only=True, **{name: [row]}).splits["test"]
    assert test.iloc[0].tolist() == [f"{name}-000000", *expected]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=200), st.integers(0, 250), st.integers(0, 9))
def test_a_sample_keeps_every_label_in_proportion(strata, total, seed):
    strata = np.array(strata, dtype=int)
    rows = common.stratified_rows(strata, total, np.random.default_rng(seed))
    assert len(rows) == min(total, len(strata))
    assert (np.diff(rows) > 0).all()
    taken, there = np.bincount(strata[rows], minlength=6), np.bincount(strata, minlength=6)
    if total >= (there > 0).sum():
        assert (taken[there > 0] > 0).all()
        assert (np.abs(taken - there * (len(rows) / max(len(strata), 1))) < 6).all()
    assert (rows == common.stratified_rows(strata, total, np.random.default_rng(seed))).all()
    strata = np.repeat([0, 1, 2], [1, 90, 909])  # the rest by largest remainder
    rows = common.stratified_rows(strata, 100, np.random.default_rng(seed))
    assert np.bincount(strata[rows]).tolist() == [1, 9, 90]


def test_a_rare_label_does_not_shrink_the_others(tmp_path):
    data = load(tmp_path, "sst2", train=reviews(60, lambda i: int(i > 3)), validation=reviews(4), train_per_class=8)
    assert data.record["labels"]["train"] == {"negative": 3, "positive": 8}  # one of the four is in validation


def test_every_training_draws_the_same_examples_and_the_record_counts_them():
    first, second = (common.load_data("hsd", sample=True, train_per_class=4, max_eval_samples=4) for _ in range(2))
    for name in first.splits:
        pd.testing.assert_frame_equal(first.splits[name], second.splits[name])
    assert set(first.record["labels"]["train"].values()) == {4}
    assert first.record["used"] == {name: len(table) for name, table in first.splits.items()}
    assert first.record["used"]["test"] == 4 < first.record["rows"]["test"]
    whole = common.load_data("hsd", sample=True)
    assert first.record["digests"] == whole.record["digests"]  # of the splits, before the sample is drawn


@pytest.mark.parametrize(("key", "rows", "cut"), [
    ("sst2", 45, 5), ("sst2", 3_000, 300), ("sst2", 11_000, 1_000), ("hsd", 11_000, 1_100)])
def test_a_cut_is_a_share_of_train_and_no_less_than_a_tenth_up_to_1000(tmp_path, key, rows, cut):
    kept = load(tmp_path, key, train=reviews(rows), validation=reviews(4)).record["rows"]  # shares are 2 % and 10 %
    assert kept["validation"] == cut
    assert kept["train"] == rows - cut - (cut if key == "hsd" else 0)  # whose test is cut too


def test_winogrande_twins_stay_together(tmp_path):
    """The same two options, in whatever order and case: the one's answer is not the other's."""
    rows = []
    for i in range(60):
        rows += [(f"Twin {i} wanted the _ because it was large.", f"the Box {i}", f"the bag {i}", "1"),
                 (f"Twin {i} left the _ because it was large.", f"The bag {i}", f"the box {i}", "2")]
    data = load(tmp_path, "winogrande-xl", train=rows, validation=rows[:4])
    assert (data.splits["train"]["group"].value_counts() == 2).all()
    assert not set(data.splits["train"]["group"]) & set(data.splits["validation"]["group"])
    assert data.record["rows"] == {"train": 108, "validation": 12, "test": 4}


def test_the_same_words_in_train_are_counted(tmp_path):
    """Case, punctuation and white space do not count; of a text without a word all of it does."""
    test = [("REVIEW number 3!", 0), ("review  number\t4", 1), ("number 5 review", 1), ("😀", 0), ("->", 1)]
    train = [*reviews(40), *[("😀", 0), ("<-", 1)] * 2]
    found = load(tmp_path, "mrpc", train=[(text, "b", label) for text, label in train], validation=[("a", "b", 0)],
                 test=[(text, "B.", label) for text, label in test]).record["leakage"]
    assert found == {"train/validation": {"n": 0, "share": 0.0}, "train/test": {"n": 3, "share": 0.6}}
