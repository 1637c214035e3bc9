"""errors.py on run folders made by hand: types, tags, slices and rankings against scipy and cases worked by hand."""

import math
import os

import numpy as np
import pandas as pd
import pytest
from conftest import run
from scipy.stats import fisher_exact
from sklearn.feature_extraction.text import TfidfVectorizer

import common

TASK = {"key": "toy", "title": "Toy", "kind": "classification", "text": ["text"], "labels": ["bad", "good"],
        "positive": "good"}
RATES = ("error_rate_", "ci_", "outside_ci_", "n_", "errors_", "fisher_p", "fdr")


def prediction(number, gold, predicted, confidence=0.75, text=None, **more):
    """A row of predictions.csv; the other labels share what the predicted one leaves."""
    return {"id": f"test-{number:06d}", "split": "test", "text": text or f"text {number}", "gold": gold,
            "predicted": predicted, "correct": gold == predicted, "confidence": confidence,
            "gold_confidence": confidence if gold == predicted else 1 - confidence, "margin": 2 * confidence - 1} | more


def make_run(folder, predictions, train=None, **task):
    """The folder of a finished run, as train.py and evaluate.py leave it, as far as errors.py reads it."""
    task = {key: value for key, value in (TASK | task).items() if value is not None}
    common.write_json(folder / "run.json", {
        "finished": "now", "dataset": "toy", "model": "m", "seed": 1, "sample": True, "task": task,
        "data": {"rows": {"test": len(predictions)}}})
    table = pd.DataFrame(predictions)
    for label in task["labels"] if task["kind"] in ("classification", "multiple_choice") else ():
        if f"prob_{label}" not in table:
            rest = (1 - table["confidence"]) / (len(task["labels"]) - 1)
            table[f"prob_{label}"] = table["confidence"].where(table["predicted"] == label, rest)
    common.write_csv(folder / "predictions.csv", table)
    if train is not None:
        common.write_csv(folder / "train_texts.csv", pd.DataFrame(train))
    return folder


def wrong_ones(count):
    return [prediction(number, "bad", "good") for number in range(count)]


def fill_in(folder, **columns):
    """Write into the sheet as a person does."""
    sheet = common.read_csv(folder / "errors.csv").assign(**columns)
    common.write_csv(folder / "errors.csv", sheet)
    return sheet


def tags_of(folder):
    """{tag: numbers of the samples that have it}."""
    table = common.read_csv(folder / "tags.csv")
    held = [(tag, row) for row, cell in enumerate(table["auto_tags"]) for tag in cell.split(" | ") if tag]
    return {tag: [row for other, row in held if other == tag] for tag, _ in held}


@pytest.mark.parametrize(("task", "rows", "types"), [
    ({}, [("bad", "good"), ("good", "bad"), ("bad", "good")], ["FP of good", "FN of good", "FP of good"]),
    ({"positive": "bad"}, [("bad", "good")], ["FN of bad"]),
    ({"labels": ["a", "b", "c"]}, [("a", "b"), ("b", "a")], ["a -> b", "b -> a"]),
    ({"kind": "multiple_choice", "labels": ["1", "2"], "options": []}, [("1", "2")], ["1 -> 2"]),
    ({"kind": "multilabel"}, [("a | b", "b | c"), ("none", "a"), ("a | b", "none")],
     ["missing a; extra c", "extra a", "missing a, b"]),
    ({"kind": "regression"}, [("2.5", "4.0"), ("1.0", "-0.25"), ("0.0", "9.0")],
     ["over by 1.5", "under by 1.25", "over by 9"]),  # ranked by their first word
    ({"kind": "span", "row_file": "squad2"}, [("", "x"), ("x", ""), ("x", "y"), ("x y", "x")],
     ["false answer", "missed answer", "wrong span", "partial span"]),
    ({"kind": "answers", "row_file": "gqa"}, [("cat", "dog")], ["cat -> dog"])])
def test_error_types_of_every_kind(tmp_path, task, rows, types):
    make_run(tmp_path, [prediction(i, *row, f1=0.5 * (row[0] == "x y")) for i, row in enumerate(rows)], **task)
    assert run("errors", "--run", tmp_path) == 0
    assert common.read_csv(tmp_path / "errors.csv")["error_type"].tolist() == types
    table = common.read_csv(tmp_path / "error_types.csv", ("count",))
    names = [name.partition(" by ")[0] for name in types]
    assert dict(zip(table["name"], table["count"], strict=True)) == {name: names.count(name) for name in names}
    assert "n_annotated" not in table  # a script named these, no person


def test_rankings_of_an_annotated_sheet_and_two_annotators(tmp_path, capsys):
    make_run(tmp_path, wrong_ones(6))
    run("errors", "--run", tmp_path)
    fill_in(tmp_path, cause=["One’s gold", "one's  gold | rare words", "mislabelled", "mislabeled", " ", ""],
            cause_2=["one's gold", "rare words|one's gold", "irony", "mislabeled", "irony", ""])
    assert run("errors", "--run", tmp_path) == 0
    causes = common.read_csv(tmp_path / "error_causes.csv", ("rank", "count", "share", "n_", "ci_"))
    assert causes[["rank", "name", "count", "share", "n_annotated", "n_errors"]].to_numpy().tolist() == [
        [1, "One’s gold", 2, 0.5, 4, 6], [2, "mislabeled", 1, 0.25, 4, 6], [3, "mislabelled", 1, 0.25, 4, 6],
        [4, "rare words", 1, 0.25, 4, 6]]
    out = capsys.readouterr().out
    # three of four agree; chance: 1/4 x 1/4 for each of the three names that both used; kappa (12 - 3) / (16 - 3)
    assert "cause and cause_2: Cohen's kappa 0.69 over 4 rows" in out
    assert (tmp_path / "error_causes.png").is_file() and not (tmp_path / "error_solutions.png").exists()
    fill_in(tmp_path, cause="", cause_2="")  # what an earlier call wrote does not stand for annotations that are gone
    run("errors", "--run", tmp_path)
    assert not list(tmp_path.glob("error_causes.*"))


def test_tags_of_texts_pairs_and_training_words(tmp_path):
    ten = "one two three four five six seven eight nine ten"
    pairs = [("a b c 3", "c b a 3 d"), ("in 1999", "in 2001 or 1999"), (ten, ten.replace("ten", "zz zz")),
             ("no", "zz, can’t"), ("a", "knot"), (ten, ten.replace("nine ten", "zz"))]
    rows = [prediction(i, "bad", "bad", [0.9, 0.8999, 0.5, 1.0, 0.6, 0.6][i], first=first, second=second)
            for i, (first, second) in enumerate(pairs)]
    train = [{"first": f"{ten.upper()}, a B c d", "second": "in or 1999 3 zz no t", "label": "good"}]
    make_run(tmp_path, rows, train, text=["first", "second"])
    run("errors", "--run", tmp_path)
    assert tags_of(tmp_path) == {
        "very long": [2], "very short": [4], "negation": [3], "high overlap": [0, 1, 2], "numbers differ": [1],
        "unseen words": [1, 3, 4], "high confidence": [0, 3]}


def test_suspect_gold_labels_of_a_hand_worked_case(tmp_path):
    # the thresholds are the mean of bad's probability over gold bad, (0.8 + 0.6 + 0.1 + 0.38 + 0.1) / 5 = 0.396, and
    # that of good's over gold good, (0.9 + 0.7 + 0.2) / 3 = 0.6; no sample is rare, so that rare has none
    probabilities = [("bad", 0.8, 0.2), ("bad", 0.6, 0.4), ("bad", 0.1, 0.9), ("bad", 0.38, 0.52), ("bad", 0.1, 0.0),
                     ("good", 0.1, 0.9), ("good", 0.3, 0.7), ("good", 0.7, 0.2)]
    rows = []
    for i, (gold, bad, good) in enumerate(probabilities):
        named = {"bad": bad, "good": good, "rare": 1 - bad - good}
        predicted = max(named, key=named.get)
        rows.append(prediction(i, gold, predicted, named[predicted], **{f"prob_{n}": p for n, p in named.items()}))
    make_run(tmp_path, rows, labels=["bad", "good", "rare"])
    run("errors", "--run", tmp_path)
    assert tags_of(tmp_path)["suspect gold label"] == [2, 7]  # 3 reaches no threshold, and 4 one that there is not
    assert "suspect gold label" not in set(common.read_csv(tmp_path / "slices.csv")["tag"])


def test_slices_equal_scipys_test_and_a_false_discovery_rate_by_hand(tmp_path):
    rng = np.random.default_rng(0)
    rows = [prediction(i, "bad", "good" if rng.random() < (0.6 if i % 4 == 0 else 0.1) else "bad", rng.uniform(0.5, 1),
                       text=("never " if i % 4 == 0 else "") + "word " * int(rng.integers(1, 30))) for i in range(80)]
    make_run(tmp_path, rows)
    run("errors", "--run", tmp_path)
    slices = common.read_csv(tmp_path / "slices.csv", RATES)
    wrong = {i for i, row in enumerate(rows) if not row["correct"]}
    tags, p_values = tags_of(tmp_path), []
    assert {"negation", "very long", "high confidence"} <= set(slices["tag"])
    for row in slices.to_dict("records"):
        inside = set(tags[row["tag"]])
        sides = [(len(inside & wrong), len(inside)), (len(wrong - inside), 80 - len(inside))]
        assert [(row[f"errors_{side}"], row[f"n_{side}"]) for side in ("inside", "outside")] == sides
        assert row["error_rate_inside"] == len(inside & wrong) / len(inside)
        p_values.append(fisher_exact([[errors, n - errors] for errors, n in sides]).pvalue)
        assert row["fisher_p"] == pytest.approx(p_values[-1])
    assert p_values == sorted(p_values) and slices["tag"][0] == "negation"
    m = len(p_values)  # Benjamini and Hochberg 1995: the least p x m / rank from this rank on
    assert slices["fdr"].tolist() == pytest.approx([
        min(1, *(p_values[k] * m / (k + 1) for k in range(i, m))) for i in range(m)])


def test_the_nearest_training_text_is_that_of_the_largest_cosine(tmp_path):
    rng, words = np.random.default_rng(1), [f"w{i}" for i in range(30)]
    texts = [" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(40)]
    train, tests = texts[:30], [*texts[30:], texts[4].upper(), "nothing of it"]
    make_run(tmp_path, [prediction(i, "bad", "good", text=text) for i, text in enumerate(tests)],
             [{"text": text, "label": f"label {i}"} for i, text in enumerate(train)])
    run("errors", "--run", tmp_path, "--n", 99)
    tfidf = TfidfVectorizer(token_pattern=r"\w+").fit(train)
    cosines = (tfidf.transform(tests) @ tfidf.transform(train).T).toarray()
    sheet = common.read_csv(tmp_path / "errors.csv", ("nearest_similarity",))
    assert sheet["nearest_similarity"][:11].tolist() == pytest.approx(cosines.max(axis=1)[:11].tolist(), abs=1e-4)
    assert sheet["nearest_train"].tolist() == [*(train[i] for i in cosines.argmax(axis=1)[:11]), ""]
    assert sheet["nearest_label"][10] == "label 4" and math.isnan(sheet["nearest_similarity"][11])


def test_check_lists_what_is_missing_to_hand_in(tmp_path, capsys):
    def check(*missing):
        capsys.readouterr()
        assert run("errors", "--run", tmp_path, "--check") == (1 if missing else 0)
        out = capsys.readouterr().out
        assert all(part in out for part in missing), out
        return out.splitlines()

    make_run(tmp_path, wrong_ones(4))
    check("errors.csv", "learning_curve.png", "embedding_", "report_notes.md", "report.tex", "report.pdf")
    assert not (tmp_path / "errors.csv").exists()
    run("errors", "--run", tmp_path, "--n", 3)
    first, second, third = fill_in(tmp_path, cause=["irony", "", " "], solution=[
        "More  data.", "more data | relabel", "more training data | additional samples"])["id"]
    check("3 of 4 errors", f"cause in 2 of 3 rows of errors.csv ({second}, {third})", "error_causes.csv",
          f"`more data` ({first}, {third})", "llm_prediction in 3 of 3")
    run("errors", "--run", tmp_path)
    fill_in(tmp_path, cause="irony", solution="more data: ironic ones", llm_prediction="bad")
    run("errors", "--run", tmp_path)
    for name in ("learning_curve.png", "embedding_tsne.png", "report.tex", "report.pdf"):
        (tmp_path / name).touch()
    notes, report = tmp_path / "report_notes.md", tmp_path / "report.tex"
    text = "# Title\n## Author\nMe\n## What was hardest\n<!-- a hint\n## Why? -->\nAll.\n"
    notes.write_text(text)
    os.utime(report, (2e9, 2e9))  # newer than all that it is made of
    assert check() == [f"{tmp_path}: nothing is missing"]
    notes.write_bytes(text.replace("All.", "").replace("\n", "\r\n").encode("utf-8-sig"))
    assert len(check("report_notes.md: What was hardest\n")) == 1
    notes.write_text(text)
    os.utime(report, (1, 1))
    check("report_notes.md, errors.csv since report.tex")
