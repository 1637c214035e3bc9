"""evaluate.py: its files against the run's model, scikit-learn and scipy; the floor; other data; several seeds."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import run
from safetensors.numpy import load_file
from scipy import optimize, sparse, stats
from scipy.special import softmax
from sklearn import linear_model, metrics, multiclass
from sklearn.feature_extraction.text import TfidfVectorizer
from toys import KINDS, task_of

import common

FAST = ["--sample", "--precision", "fp32", "--num-train-epochs", 1, "--max-train-samples", 48]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def scores_of(folder, name="metrics"):
    return pd.read_csv(folder / f"{name}.csv", encoding="utf-8-sig")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run on the sample rows that has learned something, evaluated with its floor."""
    folder = tmp_path_factory.mktemp("run")
    assert run("train", "--dataset", "mrpc", "--sample", "--precision", "fp32", "--run", folder) == 0
    assert run("evaluate", "--run", folder, "--baselines") == 0
    return folder


@pytest.fixture
def copy(run_dir, tmp_path):
    """The same run, to be changed."""
    return shutil.copytree(run_dir, tmp_path / "run")


class TestFiles:
    def test_predictions_are_the_test_split_with_probabilities(self, run_dir):
        table = common.read_predictions(run_dir)
        assert list(table.columns) == [
            "id", "split", "sentence1", "sentence2", "gold", "predicted", "correct", "confidence", "gold_confidence",
            "margin", "prob_not_equivalent", "prob_equivalent"]
        assert len(table) == 48
        probabilities = table[["prob_not_equivalent", "prob_equivalent"]].to_numpy()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        np.testing.assert_allclose(table["confidence"], probabilities.max(axis=1))
        assert (table["correct"] == (table["gold"] == table["predicted"])).all()

    def test_the_vectors_are_what_the_models_head_read(self, run_dir):
        states, table = np.load(run_dir / "hidden_states.npz", allow_pickle=False), common.read_predictions(run_dir)
        assert states["id"].tolist() == table["id"].tolist()
        assert states["vector"].dtype == np.float32
        head = load_file(run_dir / "model" / "model.safetensors")
        logits = states["vector"] @ head["classifier.weight"].T + head["classifier.bias"]
        np.testing.assert_allclose(softmax(logits, axis=1)[:, 1], table["prob_equivalent"], atol=1e-6)

    def test_metrics_equal_scikit_learns(self, run_dir):
        table, scores = common.read_predictions(run_dir), scores_of(run_dir).set_index("metric")
        gold, predicted, labels = table["gold"], table["predicted"], ["not_equivalent", "equivalent"]
        assert scores.index[:2].tolist() == ["accuracy", "f1"]
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(gold, predicted, labels=labels)
        expected = {"accuracy": metrics.accuracy_score(gold, predicted), "f1": f1[1], "macro_f1": f1.mean(),
                    "weighted_f1": metrics.f1_score(gold, predicted, average="weighted"), "macro_recall": recall.mean()}
        for i, label in enumerate(labels):
            expected |= {f"precision_{label}": precision[i], f"recall_{label}": recall[i], f"f1_{label}": f1[i]}
        assert scores["value"].drop(["ece", "ece_temperature"]).to_dict() == pytest.approx(expected)
        assert scores.loc["accuracy", "value"] > 31 / 48  # better than the majority label
        assert set(scores["n"]) == {48} and set(scores["split"]) == {"test"}

    def test_intervals_equal_scipys_percentile_bootstrap(self, run_dir):
        table, scores = common.read_predictions(run_dir), scores_of(run_dir).set_index("metric")
        gold, right = (table["gold"] == "equivalent").to_numpy(), table["correct"].to_numpy()
        said = gold == right
        for metric, statistic in {
                "accuracy": lambda i, axis=-1: right[i].mean(axis=-1),
                "f1": lambda i, axis=-1: 2 * (gold & said)[i].sum(-1) / (gold[i].sum(-1) + said[i].sum(-1))}.items():
            theirs = stats.bootstrap((np.arange(48),), statistic, method="percentile", n_resamples=9999,
                                     rng=np.random.default_rng(1))
            for ours, end in zip(scores.loc[metric, ["ci_low", "ci_high"]], theirs.confidence_interval, strict=True):
                assert abs(ours - end) < 0.35 * theirs.standard_error  # draws of right answers are whole: 1 / 48 apart

    def test_confusion_counts_the_predictions(self, run_dir):
        table, confusion = common.read_predictions(run_dir), scores_of(run_dir, "confusion")
        labels = confusion["gold"].tolist()
        assert confusion[labels].to_numpy().tolist() == metrics.confusion_matrix(
            table["gold"], table["predicted"], labels=labels).tolist()

    def test_again_with_other_batches_gives_the_same_and_a_part_says_so(self, copy, run_dir):
        """From inside the run folder too; the floor is renewed once it is there."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(copy)
            assert run("evaluate", "--run", ".", "--per-device-eval-batch-size", 7) == 0
        pd.testing.assert_frame_equal(*map(common.read_predictions, (run_dir, copy)), rtol=1e-5)
        assert run("evaluate", "--run", copy, "--max-eval-samples", 20) == 0
        assert set(scores_of(copy)["n"]) == set(scores_of(copy, "baselines")["n"]) == {20}
        assert "ours uses 20 of 48 test examples" in scores_of(copy)["comparable"][1]
        assert scores_of(copy, "timing")["examples"].tolist() == [20]


# ---- The floor, from train_texts.csv and predictions.csv by scikit-learn --------------------------------------------


def features(train, test, columns):
    """TF-IDF of every word and mark; of two texts a and b also |a - b| and a * b."""
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]").fit(pd.concat([train[name] for name in columns]))
    found = []
    for table in (train, test):
        parts = [vectorizer.transform(table[name]) for name in columns]
        if len(parts) == 2:
            parts += [abs(parts[0] - parts[1]), parts[0].multiply(parts[1])]
        found.append(sparse.hstack(parts).tocsr())
    return found


@pytest.fixture
def floor_of(tmp_path):
    """A run on a key's sample rows: baselines.csv as {baseline: {metric: value}}, training texts, predictions, task."""
    def make(key):
        assert run("train", "--dataset", key, *FAST, "--run", tmp_path) == 0
        assert run("evaluate", "--run", tmp_path, "--baselines") == 0
        values = {name: part.set_index("metric")["value"].to_dict()
                  for name, part in scores_of(tmp_path, "baselines").groupby("baseline")}
        train, test = common.read_csv(tmp_path / "train_texts.csv"), common.read_predictions(tmp_path)
        return values, train, test, common.read_run(tmp_path)["task"]
    return make


def test_the_floor_of_labels(floor_of):
    values, train, test, _ = floor_of("mrpc")
    x, y = features(train, test, ["sentence1", "sentence2"])
    predicted = linear_model.LogisticRegression(max_iter=1000).fit(x, train["label"]).predict(y)
    assert values["tfidf + logistic regression"] == pytest.approx({
        "accuracy": (predicted == test["gold"]).mean(),
        "f1": metrics.f1_score(test["gold"], predicted, pos_label="equivalent")})
    assert values["majority"] == pytest.approx({"accuracy": 31 / 48, "f1": 2 * 31 / (31 + 48)})


def test_the_floor_of_numbers(floor_of):
    values, train, test, _ = floor_of("str-eng")
    x, y = features(train, test, list(train.columns[1:-1]))
    predicted = linear_model.Ridge().fit(x, train["label"].astype(float)).predict(y)
    assert values["tfidf + ridge"]["spearman"] == pytest.approx(
        stats.spearmanr(test["gold"].astype(float), predicted)[0])
    assert values["mean"]["spearman"] == 0


def test_the_floor_of_sets(floor_of):
    values, train, test, task = floor_of("sbic")
    sets, gold = (np.array([[label in names.split(" | ") for label in task["labels"]] for names in column])
                  for column in (train["label"], test["gold"]))
    x, y = features(train, test, list(train.columns[1:-1]))
    model = multiclass.OneVsRestClassifier(linear_model.LogisticRegression(max_iter=1000)).fit(x, sets)
    found = {"majority": np.tile(sets[train["label"] == train["label"].mode()[0]][0], (len(test), 1)),
             "tfidf + logistic regression": model.predict(y).astype(bool)}
    for name, predicted in found.items():
        assert values[name]["macro_f1"] == pytest.approx(
            metrics.f1_score(gold, predicted, average="macro", zero_division=0))


def test_the_floor_of_options(floor_of):
    values, train, test, task = floor_of("csqa")
    text, options, labels = task["text"][0], task["options"], np.array(task["labels"])
    pairs = [pd.DataFrame({"text": table[text].repeat(5), "option": table[options].to_numpy().ravel()})
             for table in (train, test)]
    x, y = features(*pairs, ["text", "option"])
    right = np.concatenate([labels == label for label in train["label"]])
    scores = linear_model.LogisticRegression(max_iter=1000).fit(x, right).decision_function(y)
    predicted = labels[scores.reshape(-1, 5).argmax(axis=1)]
    assert values["tfidf + logistic regression"]["accuracy"] == (predicted == test["gold"]).mean()
    assert values["majority"]["accuracy"] == (train["label"].mode()[0] == test["gold"]).mean()


# ---- Several seeds --------------------------------------------------------------------------------------------------


def test_seeds_csv_holds_mean_and_deviation_of_the_seeds_that_differ_in_nothing_else(run_dir, tmp_path, capsys):
    """Beside the run stand a seed with other scores, and one that was trained with another flag."""
    for seed, changes in ((42, {}), (2, {}), (3, {"dropout": 0.3})):
        folder = shutil.copytree(run_dir, tmp_path / f"seed{seed}", ignore=shutil.ignore_patterns("baselines.csv"))
        record, table = read_json(folder / "run.json"), scores_of(folder)
        record |= {"seed": seed, "args": record["args"] | {"seed": seed, "run": str(folder)} | changes}
        (folder / "run.json").write_text(json.dumps(record))
        table.assign(value=np.linspace(0, 1, len(table))).to_csv(folder / "metrics.csv", index=False)
    assert run("evaluate", "--run", tmp_path / "seed42") == 0
    first, second = (scores_of(tmp_path / name).set_index("metric")["value"] for name in ("seed42", "seed2"))
    table = pd.read_csv(tmp_path / "seeds.csv", encoding="utf-8-sig").set_index("metric")
    assert table.index.tolist() == first.index.tolist()
    for name, a, b in zip(table.index, first, second, strict=True):
        assert table.loc[name, ["mean", "sd", "min", "max"]].tolist() == pytest.approx(
            [(a + b) / 2, abs(a - b) / 2**0.5, min(a, b), max(a, b)])  # sd of two: |a - b| / sqrt(2)
    assert set(table["n"]) == {2} and set(table["seeds"]) == {"2 42"}
    shown = "accuracy {:.4f} +- {:.4f}".format(*table.loc["accuracy", ["mean", "sd"]])
    assert shown in capsys.readouterr().out


# ---- Calibration: the temperature beside scipy's minimum and by hand, the error worked out anew ---------------------


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_the_temperature_equals_scipys_minimum_of_scikit_learns_loss(factor):
    rng, task = np.random.default_rng(0), task_of("classification")
    logits = rng.normal(0, 2, (400, 3))
    gold = np.array([rng.choice(task["labels"], p=p) for p in softmax(logits, axis=1)])  # the best is about 1
    tuned = KINDS["classification"].tune(np.float32(factor * logits), pd.DataFrame({"label": gold}), task, None)
    found = optimize.minimize(lambda x: metrics.log_loss(gold, softmax(factor * logits / math.exp(x[0]), axis=1)),
                              [0.3], method="Nelder-Mead", tol=1e-8)
    assert tuned == {"temperature": pytest.approx(math.exp(found.x[0]), rel=1e-3)}


@pytest.mark.parametrize(("gold", "expected"), [
    ("bbbbbbbbaa", 1 / math.log(4)),  # 4 of 5 right with a margin of 1: confidence 0.8, so 1 / T = log(4)
    ("bbbbbbbbbb", 0.05)])  # all right: an end of the range
def test_the_temperature_by_hand(gold, expected):
    task, table = task_of("classification", labels=["a", "b"]), pd.DataFrame({"label": [*gold]})
    tuned = KINDS["classification"].tune(np.tile([0.0, 1.0], (10, 1)), table, task, None)
    assert tuned["temperature"] == pytest.approx(expected, rel=1e-2)


def test_calibration_of_a_run_is_that_of_its_predictions(run_dir):
    """Every row of calibration.csv and both errors, worked out anew from predictions.csv."""
    temperature = read_json(run_dir / "run.json")["training"]["tuned"]["temperature"]
    bins = common.read_csv(run_dir / "calibration.csv", ("bin", "n", "confidence", "accuracy", "ci_low", "ci_high"))
    scores, predictions = scores_of(run_dir).set_index("metric")["value"], common.read_predictions(run_dir)
    logits = np.log(predictions[["prob_not_equivalent", "prob_equivalent"]].to_numpy())
    for scale, metric, sure in (("raw", "ece", predictions["confidence"].to_numpy()), (
            "temperature", "ece_temperature", softmax(logits / temperature, axis=1).max(axis=1))):
        held, order, error = bins[bins["scale"] == scale], np.argsort(sure, kind="stable"), 0.0
        assert held["n"].tolist() == [24, 24]
        for part, row in zip(np.split(order, 2), held.itertuples(), strict=True):
            right = predictions["correct"].to_numpy()[part]
            assert (row.confidence, row.accuracy) == pytest.approx((sure[part].mean(), right.mean()))
            wilson = stats.binomtest(right.sum(), len(right)).proportion_ci(method="wilson")
            assert (row.ci_low, row.ci_high) == pytest.approx(tuple(wilson))
            error += len(part) / 48 * abs(right.mean() - sure[part].mean())
        assert scores[metric] == pytest.approx(error)
