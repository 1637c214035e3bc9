"""The catalog and what becomes of a source's rows: labels, splits, samples."""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import common
import evaluate
from common import UserError

KEYS = sorted(common.catalog())


def flags(dataset, **changes):
    return argparse.Namespace(**{
        "dataset": dataset, "sample": True, "text_column": None, "label_column": None, "train_per_class": None,
        "max_train_samples": None, "max_eval_samples": None, "max_images": None, "data_dir": Path("data"), **changes})


@pytest.fixture(scope="module", params=KEYS)
def entry(request):
    return common.catalog()[request.param]


class TestEveryEntry:
    def test_is_complete(self, entry):
        strings = ("row", "title", "kind", "why", "task", "licence", "source", "cite")
        assert all(isinstance(entry[name], str) and entry[name].strip() for name in strings)
        kind = common.KINDS[entry["kind"]]
        assert 0 < entry["max_length"] <= 512
        assert len(entry["title"]) <= 80
        assert entry["metrics"]
        if kind.closed_set and entry["labels"] != "from data":
            assert len(set(entry["labels"])) == len(entry["labels"]) >= 2
            assert {entry.get("positive", entry["labels"][0]), *entry.get("averaged", [])} <= set(entry["labels"])
        if "train" in entry["splits"]:
            assert "test" in entry["splits"] or 0 < entry["test_share"] < 0.5
            assert "validation" in entry["splits"] or 0 < entry["validation_share"] < 0.5
        else:
            assert set(entry["trained_on"]) <= set(KEYS)

    def test_scores_say_where_they_come_from(self, entry):
        for score in entry.get("scores", []):
            assert score["role"] in ("paper", "leaderboard", "reference")
            assert isinstance(score["checked"], bool)
            assert 0 < score["value"] <= 100
            assert score["url"].startswith("https://")
            assert all(score[name] for name in ("metric", "split", "model", "cite"))
            assert score["size"] in {*evaluate.SIZES, *evaluate.OTHER_SIZES}
            assert score["checked"] or score["note"]  # what is wrong with it
            assert all(word not in score.get("note", "") for word in ("ours", "hidden test, "))  # computed, not written

    def test_sample_rows_load_into_disjoint_splits(self, entry):
        data = common.load_data(flags(entry["key"]), test_only="train" not in entry["splits"])
        texts = {name: set(map(tuple, table[common.text_columns(data.task)].to_numpy()))
                 for name, table in data.splits.items()}
        for first, second in itertools.combinations(texts, 2):
            assert not texts[first] & texts[second]
        assert all(table["id"].is_unique and len(table) for table in data.splits.values())
        if "train" in entry["splits"]:
            assert list(data.splits) == ["train", "validation", "test"]
            assert len(data.splits["train"]) >= 60

    def test_metrics_of_random_predictions_lie_in_their_intervals(self, entry):
        """Every metric is there, finite and inside its bootstrap interval; accuracy is counted by hand."""
        data = common.load_data(flags(entry["key"]), test_only="train" not in entry["splits"])
        kind, test = common.KINDS[entry["kind"]], data.splits["test"]
        if entry["kind"] == "span":
            pytest.skip("needs windows: tests/test_kinds.py")
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(len(test), len(kind.output_names(data.task)))).astype(np.float32)
        predictions = kind.predict(logits, test, data.task, None)
        scores, drawn = kind.metrics(predictions, data.task), kind.resample(predictions, data.task, draws=200)
        assert list(scores)[:len(entry["metrics"])] == entry["metrics"]
        assert set(scores) == set(drawn)
        assert {score["metric"] for score in entry["scores"]} <= set(scores)
        for name, value in scores.items():
            assert np.isfinite(value)
            assert drawn[name].min() <= value <= drawn[name].max()
        assert (predictions["gold"].to_numpy() == kind.gold(test, data.task)).all()


def test_keys_are_unique_over_all_files():
    keys = [key for path in common.CATALOG_DIR.glob("*.toml") for key in tomllib.loads(path.read_text("utf-8"))]
    assert len(keys) == len(set(keys)) == len(KEYS)


def test_hand_worked_metrics():
    """8 examples, tp 3, fp 1, fn 2, tn 2: precision 3/4, recall 3/5, F1 2/3, accuracy 5/8."""
    task = {"labels": ["no", "yes"], "positive": "yes", "metrics": ["f1"]}
    predictions = pd.DataFrame({"gold": ["yes"] * 5 + ["no"] * 3,
                                "predicted": ["yes"] * 3 + ["no"] * 2 + ["yes", "no", "no"]})
    kind = common.KINDS["classification"]
    scores = kind.metrics(predictions, task)
    assert scores["precision_yes"] == 3 / 4
    assert scores["recall_yes"] == 3 / 5
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == 5 / 8
    assert scores["f1_no"] == pytest.approx(4 / 7)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 4 / 7) / 2)
    assert scores["weighted_f1"] == pytest.approx((5 * 2 / 3 + 3 * 4 / 7) / 8)
    assert kind.confusion(predictions, task).to_dict("list") == {"gold": ["no", "yes"], "no": [2, 2], "yes": [1, 3]}
    assert kind.error_types(predictions, task)[3:6] == ["FN of yes", "FN of yes", "FP of yes"]


def test_a_label_that_does_not_occur_counts_0_in_a_mean_over_the_labels():
    """So does zero_division; a test set without a rare label must not score higher for it."""
    task = {"labels": ["a", "b", "c"], "metrics": ["macro_f1"]}
    predictions = pd.DataFrame({"gold": ["a", "a", "b", "b"], "predicted": ["a", "a", "b", "a"]})
    kind = common.KINDS["classification"]
    scores = kind.metrics(predictions, task)
    assert scores["macro_f1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert scores["macro_recall"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert kind.resample(predictions, task)["macro_f1"].max() == pytest.approx(2 / 3)


def test_prediction_columns_of_three_labels():
    """margin: the highest probability less the second highest."""
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
    table, task = pd.DataFrame({"label": [1, 2]}), {"labels": ["a", "b", "c"]}
    predictions = common.KINDS["classification"].predict(logits, table, task)
    assert predictions[["gold", "predicted"]].to_numpy().tolist() == [["b", "a"], ["c", "c"]]
    numbers = predictions[["confidence", "gold_confidence", "margin", "prob_a", "prob_b", "prob_c"]].to_numpy()
    np.testing.assert_allclose(numbers, [[0.5, 0.3, 0.2, 0.5, 0.3, 0.2], [0.7, 0.7, 0.5, 0.1, 0.2, 0.7]])


def test_bootstrap_resamples_examples():
    """The interval of the accuracy against the binomial distribution; F1 against resampling the rows one by one."""
    from scipy import stats
    from sklearn import metrics

    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, 300)
    predicted = np.where(rng.random(300) < 0.8, gold, 1 - gold)
    names = np.array(["no", "yes"])
    table = pd.DataFrame({"gold": names[gold], "predicted": names[predicted]})
    task = {"labels": ["no", "yes"], "positive": "yes", "metrics": ["f1"]}
    drawn = common.KINDS["classification"].resample(table, task)
    share = (gold == predicted).mean()
    expected = stats.binom.ppf([0.025, 0.975], 300, share) / 300
    assert np.percentile(drawn["accuracy"], [2.5, 97.5]) == pytest.approx(expected, abs=0.008)
    rows = [rng.integers(0, 300, 300) for _ in range(1000)]
    by_rows = [metrics.f1_score(gold[row], predicted[row]) for row in rows]
    assert drawn["f1"].mean() == pytest.approx(np.mean(by_rows), abs=0.003)
    assert drawn["f1"].std() == pytest.approx(np.std(by_rows), rel=0.1)


TOY = {"key": "toy", "labels": ["no", "yes"]}


class TestLabels:
    @pytest.mark.parametrize(("column", "expected"), [
        ([0, 1, -1], [0, 1, None]), (["yes", " no ", ""], [1, 0, None]), (["yes", None, "no"], [1, None, 0]),
        ([0.0, 1.0, float("nan")], [0, 1, None])])
    def test_are_read(self, column, expected):
        ids = common.label_ids(pd.Series(column), TOY)
        assert [None if np.isnan(number) else int(number) for number in ids] == expected

    @pytest.mark.parametrize("column", [["yes", "maybe"], [0, 2], [0.5, 1.0]])
    def test_that_the_catalog_does_not_know_are_refused(self, column):
        with pytest.raises(UserError, match="is not one that toy knows: 'no', 'yes'"):
            common.label_ids(pd.Series(column), TOY)

    def test_hidden_ones_are_dropped_counted_and_never_scored(self, monkeypatch):
        raw = {"train": pd.DataFrame({"sentence": list("abcdefgh"), "label": [0, 1] * 4}),
               "validation": pd.DataFrame({"sentence": list("klmn"), "label": [0, -1, 1, -1]}),
               "test": pd.DataFrame({"sentence": list("op"), "label": [-1, -1]})}
        monkeypatch.setattr(common, "read_raw", lambda task, args: (raw, {"source": "toy", "revision": None}))
        data = common.load_data(flags("sst2"))
        assert data.splits["test"]["id"].tolist() == ["validation-000000", "validation-000002"]
        assert data.record["dropped"]["validation"] == {"without a label": 2, "without a text": 0}

    def test_those_found_in_the_data_are_found_in_train_and_validation_alone(self):
        task = {**TOY, "labels": "from data", "label": "answer",
                "splits": {"train": "a", "validation": "b", "test": "c"}}
        raw = {split: pd.DataFrame({"answer": [answer]}) for split, answer in (("a", "x"), ("b", "y"), ("c", "z"))}
        common.name_labels(task, raw, common.KINDS["answers"])
        assert task["labels"] == ["x", "y"]

    def test_a_split_of_hidden_labels_alone_is_refused(self, monkeypatch):
        raw = {"train": pd.DataFrame({"sentence": list("abcdefgh"), "label": [0, 1] * 4}),
               "validation": pd.DataFrame({"sentence": list("op"), "label": [-1, -1]})}
        monkeypatch.setattr(common, "read_raw", lambda task, args: (raw, {"source": "toy", "revision": None}))
        with pytest.raises(UserError, match="the test split holds no example with a label"):
            common.load_data(flags("sst2"))


class TestSampling:
    def test_a_rare_label_does_not_shrink_the_others(self):
        strata = np.array([0] + [1] * 51)
        rows = common.sample_rows(strata, "train", flags("x", train_per_class=8))
        assert np.bincount(strata[rows]).tolist() == [1, 8]

    @pytest.mark.parametrize("kind_of_label", [int, object])
    def test_of_no_rows(self, kind_of_label):
        strata = np.array([], dtype=kind_of_label)
        assert common.sample_rows(strata, "train", flags("x", train_per_class=8)).tolist() == []

    def test_in_proportion_and_no_label_goes_empty(self):
        strata = np.repeat([0, 1, 2], [1, 90, 909])
        rows = common.stratified_rows(strata, 100, np.random.default_rng(0))
        assert np.bincount(strata[rows]).tolist() == [1, 9, 90]

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 5), max_size=200), st.integers(0, 250), st.integers(0, 9))
    def test_any_counts(self, strata, total, seed):
        strata = np.array(strata, dtype=int)
        rows = common.stratified_rows(strata, total, np.random.default_rng(seed))
        assert len(rows) == min(total, len(strata))
        assert (np.diff(rows) > 0).all()
        taken, there = np.bincount(strata[rows], minlength=6), np.bincount(strata, minlength=6)
        if total >= (there > 0).sum():
            assert (taken[there > 0] > 0).all()
        assert (rows == common.stratified_rows(strata, total, np.random.default_rng(seed))).all()

    def test_seeds_share_one_data_set_and_the_record_counts_it(self):
        first, second = (common.load_data(flags("hsd", seed=seed, train_per_class=20, max_eval_samples=9))
                         for seed in (1, 2))
        for name in first.splits:
            pd.testing.assert_frame_equal(first.splits[name], second.splits[name])
        assert set(first.record["labels"]["train"].values()) == {20}
        assert first.record["used"]["test"] == 9 < first.record["rows"]["test"]

    @pytest.mark.parametrize(("rows", "share", "cut"), [
        (45, 0.01, 5), (3_000, 0.01, 300), (40_000, 0.01, 1_000), (200_000, 0.01, 2_000), (3_000, 0.2, 600)])
    def test_a_cut_is_a_share_or_a_tenth_up_to_1000(self, rows, share, cut):
        train = pd.DataFrame({"id": range(rows), "label": np.arange(rows) % 2})
        task = {"splits": {"train": "train", "test": "test"}, "labels": ["a", "b"], "validation_share": share}
        splits = common.make_splits({"train": train, "test": train[:4]}, task, common.KINDS["classification"])
        assert [len(splits[name]) for name in ("train", "validation", "test")] == [rows - cut, cut, 4]

    def test_groups_stay_together(self):
        texts = [f"context {i // 3}" for i in range(300)]
        train = pd.DataFrame({"id": range(300), "context": texts, "label": 0})
        task = {"splits": {"train": "train", "test": "test"}, "labels": ["a"], "validation_share": 0.1,
                "group": "context"}
        splits = [common.make_splits({"train": train, "test": train[:4]}, task, common.KINDS["classification"])
                  for _ in range(2)]
        assert splits[0]["validation"].equals(splits[1]["validation"])
        assert splits[0]["validation"]["context"].value_counts().tolist() == [3] * 10
        assert len(splits[0]["train"]) == 270
        assert not set(splits[0]["validation"]["context"]) & set(splits[0]["train"]["context"])

    def test_squads_validation_has_contexts_of_its_own(self):
        splits = common.load_data(flags("squad2")).splits
        assert len(splits["validation"]) >= 17
        assert not set(splits["validation"]["context"]) & set(splits["train"]["context"])

    def test_one_split_is_cut_80_10_10_in_proportion(self):
        record = common.load_data(flags("hsd")).record
        assert record["rows"] == {"train": 120, "validation": 15, "test": 15}
        shares = [record["labels"][name]["offensive language"] / record["rows"][name] for name in record["rows"]]
        assert shares == pytest.approx([88 / 150] * 3, abs=0.02)

    def test_snli_rows_without_a_gold_label_are_counted(self):
        dropped = common.load_data(flags("snli")).record["dropped"]
        assert dropped == {"train": {"without a label": 2, "without a text": 0}}


OWN_ROWS = [{"text": f"text {number} ä", "mood": ["good", "bad"][number % 2]} for number in range(40)]


class TestOwnFile:
    def write(self, path, rows=None):
        table = pd.DataFrame(OWN_ROWS if rows is None else rows)
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")), "utf-8")
        elif path.suffix == ".parquet":
            table.to_parquet(path)
        else:
            table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
        return flags(str(path), sample=False, text_column=["text"], label_column="mood")

    @pytest.mark.parametrize("ending", list(common.TABLE_READERS))
    def test_of_every_format(self, tmp_path, ending):
        data = common.load_data(self.write(tmp_path / f"my data{ending}"))
        assert data.task["labels"] == ["bad", "good"]
        assert data.record["rows"] == {"train": 32, "validation": 4, "test": 4}
        assert data.splits["test"]["text"].str.startswith("text ").all()

    def test_labels_that_are_numbers_keep_their_order(self, tmp_path):
        rows = [{"text": f"t {number}", "mood": number % 3 + 1} for number in range(60)]
        data = common.load_data(self.write(tmp_path / "a.csv", rows))
        assert data.task["labels"] == ["1", "2", "3"]
        number = data.splits["train"]["text"].str.removeprefix("t ").astype(int)
        assert (number % 3 == data.splits["train"]["label"]).all()

    @pytest.mark.parametrize(("changes", "message"), [
        ({"text_column": ["txt"]}, "no column 'txt' among text, mood; did you mean text?"),
        ({"label_column": "label"}, "no column 'label' among text, mood"),
        ({"text_column": None}, "needs --text-column"),
    ])
    def test_flags_that_do_not_fit(self, tmp_path, changes, message):
        args = self.write(tmp_path / "a.csv")
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            common.load_data(argparse.Namespace(**{**vars(args), **changes}))

    @pytest.mark.parametrize(("rows", "message"), [
        ([{"text": "a", "mood": "x"}] * 9, r"holds 1 label\(s\), not two or more"),
        ([{"text": number, "mood": "xy"[number % 2]} for number in range(20)], "holds numbers"),
    ])
    def test_rows_that_do_not_fit(self, tmp_path, rows, message):
        with pytest.raises(UserError, match=message):
            common.load_data(self.write(tmp_path / "a.csv", rows))

    @pytest.mark.parametrize(("content", "message"), [
        (b"", "can't be read as .csv"), (b"text,mood\n", "holds no rows"),
        (b"text,mood\na,b\nc,d,e\n", "can't be read"),
        (b"text,mood\n\xff\xfe,b\n", "can't be read")])
    def test_files_that_can_not_be_read(self, tmp_path, content, message):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(UserError, match=message):
            common.load_data(flags(str(tmp_path / "a.csv"), sample=False, text_column=["text"], label_column="mood"))

    def test_a_text_column_named_as_ours_is_refused(self, tmp_path):
        rows = [{"gold": f"t {number}", "mood": number % 2} for number in range(20)]
        args = self.write(tmp_path / "a.csv", rows)
        args.text_column = ["gold"]
        with pytest.raises(UserError, match="rename the text column"):
            common.load_data(args)


def test_unknown_dataset_offers_the_nearest_keys():
    with pytest.raises(UserError, match="did you mean mrpc"):
        common.load_data(flags("mrcp"))


@pytest.fixture(scope="module")
def hub(shared_dir):
    """The address of a stand-in for the hub that serves real rows."""
    server = subprocess.Popen([sys.executable, shared_dir / "hub" / "hub.py", shared_dir / "hub", "--port", "0"],
                              stdout=subprocess.PIPE, text=True)
    yield server.stdout.readline().strip()
    server.terminate()
    server.wait()


def load_from_hub(hub, cache, key):
    """`record` of load_data in a process of its own: the hub's address is read when its client is imported."""
    code = ("import json, common, train\nargs = train.build_parser().parse_args(['--dataset', " + repr(key) + "])\n"
            "print(json.dumps(common.load_data(args).record))")
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("key", "rows", "test_labels"), [
    ("mrpc", {"train": 3668, "validation": 408, "test": 1725}, {"not_equivalent": 578, "equivalent": 1147}),
    ("sst2", {"train": 66002, "validation": 1347, "test": 872}, {"negative": 428, "positive": 444})])
def test_real_rows_from_the_hub(hub, tmp_path, key, rows, test_labels):
    record = load_from_hub(hub, tmp_path, key)
    assert record["rows"] == rows
    assert record["labels"]["test"] == test_labels
    assert len(record["revision"]) == 40
    assert record["dropped"] == {}
