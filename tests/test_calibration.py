"""Calibration: the temperature beside scipy's minimum and by hand, the error worked out anew from a run's files."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from conftest import run
from scipy import optimize, stats
from scipy.special import expit, softmax
from sklearn.metrics import log_loss
from toys import KINDS, task_of

import common


def minimum(loss):
    """Where scipy's simplex search finds the temperature of the least loss."""
    return math.exp(optimize.minimize(lambda x: loss(math.exp(x[0])), [0.3], method="Nelder-Mead", tol=1e-8).x[0])


class TestTemperature:
    @pytest.mark.parametrize("factor", [0.25, 3.0])
    def test_equals_scipys_minimum_of_scikit_learns_loss(self, factor):
        rng, task = np.random.default_rng(0), task_of("classification")
        logits = rng.normal(0, 2, (400, 3))
        gold = np.array([rng.choice(task["labels"], p=p) for p in softmax(logits, axis=1)])  # the best is about 1
        tuned = KINDS["classification"].tune(np.float32(factor * logits), pd.DataFrame({"label": gold}), task, None)
        expected = minimum(lambda t: log_loss(gold, softmax(factor * logits / t, axis=1)))
        assert tuned == {"temperature": pytest.approx(expected, rel=1e-3)}
        assert tuned["temperature"] == pytest.approx(factor, rel=0.2)

    def test_of_multilabel_is_one_for_all_labels(self):
        rng, kind, task = np.random.default_rng(5), KINDS["multilabel"], task_of("multilabel")
        logits = rng.normal(0, 2, (300, 3))
        gold = rng.random((300, 3)) < expit(logits)
        tuned = kind.tune(2 * logits, pd.DataFrame({"label": kind.names(gold, task)}), task, None)
        expected = minimum(lambda t: log_loss(gold.ravel(), expit(2 * logits.ravel() / t)))
        assert tuned["temperature"] == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize(("gold", "expected"), [
        ("bbbbbbbbaa", 1 / math.log(4)),  # 4 of 5 right with a margin of 1: confidence 0.8, so 1 / T = log(4)
        ("bbbbbbbbbb", 0.05)])  # all right: an end of the range
    def test_by_hand(self, gold, expected):
        task, table = task_of("classification", labels=["a", "b"]), pd.DataFrame({"label": [*gold]})
        tuned = KINDS["classification"].tune(np.tile([0.0, 1.0], (10, 1)), table, task, None)
        assert tuned["temperature"] == pytest.approx(expected, rel=1e-2)


@pytest.fixture(scope="module")
def calibrated_run(tmp_path_factory):
    """A run, and its folder of a test on 300 other rows, of which 100 have one text and so one confidence."""
    folder, rng = tmp_path_factory.mktemp("calibration"), np.random.default_rng(0)
    words = ["good", "bad", "fine", "awful", "nice", "film", "plot", "actor", "story", "scene"]
    for name, rows, same in (("train", 60, 0), ("other", 300, 100)):
        texts = ["film film"] * same + [" ".join(rng.choice(words, 5)) for _ in range(rows - same)]
        labels = ["yes" if "good" in text or rng.random() < 0.2 else "no" for text in texts]
        common.write_csv(folder / f"{name}.csv", pd.DataFrame({"text": texts, "label": labels}))
    assert run("train", "--dataset", folder / "train.csv", "--text-column", "text", "--label-column", "label",
               "--sample", "--num-train-epochs", 2, "--run", folder / "run") == 0
    assert run("evaluate", "--run", folder / "run", "--dataset", folder / "other.csv") == 0
    return folder / "run", folder / "run" / "on-other"


def test_calibration_of_a_run_is_that_of_its_predictions(calibrated_run):
    """Every row of calibration.csv and both errors, worked out anew from predictions.csv."""
    folder, other = calibrated_run
    temperature = json.loads((folder / "run.json").read_text())["training"]["tuned"]["temperature"]
    bins = common.read_csv(other / "calibration.csv", ("bin", "n", "confidence", "accuracy", "ci_low", "ci_high"))
    scores = common.read_csv(other / "metrics.csv", ("value",)).set_index("metric")["value"]
    predictions = common.read_predictions(other)
    cooler = softmax(np.log(predictions[["prob_no", "prob_yes"]].to_numpy()) / temperature, axis=1).max(axis=1)
    for scale, metric, sure in (("raw", "ece", predictions["confidence"].to_numpy()),
                                ("temperature", "ece_temperature", cooler)):
        held, order, error = bins[bins["scale"] == scale], np.argsort(sure, kind="stable"), 0.0
        assert held["n"].sum() == 300
        assert 5 < len(held) <= 15
        parts = np.split(order, held["n"].cumsum().astype(int)[:-1])
        for part, row in zip(parts, held.itertuples(), strict=True):
            right = predictions["correct"].to_numpy()[part]
            assert (row.confidence, row.accuracy) == pytest.approx((sure[part].mean(), right.mean()))
            low, high = wilson(right.sum(), len(right))
            assert (row.ci_low, row.ci_high) == pytest.approx((low, high), abs=1e-9)
            error += len(part) / 300 * abs(right.mean() - sure[part].mean())
        assert scores[metric] == pytest.approx(error)
        edges = [(sure[left].max(), sure[right].min()) for left, right in itertools.pairwise(parts)]
        assert all(left < right for left, right in edges)  # equal confidences stand in one bin
        assert held["n"].max() >= 100


def wilson(right, n):
    """The 95 % interval of a share (Wilson 1927)."""
    z = stats.norm.ppf(0.975)
    middle, half = right + z * z / 2, z * math.sqrt(right * (n - right) / n + z * z / 4)
    return (middle - half) / (n + z * z), (middle + half) / (n + z * z)
