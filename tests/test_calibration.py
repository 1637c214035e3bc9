"""Calibration: ECE and risk-coverage by hand, the temperature against scipy's minimum, for every kind."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from sklearn import metrics
from test_kinds import build, task_of

import common
import evaluate
from common import KINDS


def by_hand():
    """40 predictions, so two bins: 20 of confidence 0.6, 10 of them right, and 20 of 0.9, 15 right."""
    return np.repeat([0.6, 0.9], 20), np.repeat([True, False, True, False], [10, 10, 15, 5])


class TestCalibrationError:
    def test_hand_worked(self):
        confidence, correct = by_hand()  # gaps |0.5 - 0.6| and |0.75 - 0.9|, half of the examples each
        assert evaluate.calibration_error(confidence, correct) == pytest.approx([0.5 * 0.1 + 0.5 * 0.15])

    def test_does_not_depend_on_the_order(self):
        confidence, correct = by_hand()
        order = np.random.default_rng(0).permutation(40)
        assert evaluate.calibration_error(confidence[order], correct[order]) == pytest.approx([0.125])

    def test_equals_cutting_the_sorted_examples_into_15_parts(self):
        rng = np.random.default_rng(1)
        confidence = rng.random(600)
        correct = rng.random(600) < confidence**2
        parts = np.array_split(np.argsort(confidence), 15)
        expected = sum(len(part) / 600 * abs(correct[part].mean() - confidence[part].mean()) for part in parts)
        assert evaluate.calibration_error(confidence, correct) == pytest.approx([expected])
        assert set(np.bincount(evaluate.confidence_bins(confidence))) == {40}

    def test_of_a_calibrated_model_is_about_0(self):
        confidence = np.repeat([0.5, 0.6, 0.7, 0.8, 0.9], 100)
        correct = np.concatenate([np.arange(100) < 100 * p for p in (0.5, 0.6, 0.7, 0.8, 0.9)])
        assert evaluate.calibration_error(confidence, correct)[0] < 1e-12
        rng = np.random.default_rng(2)
        confidence = rng.uniform(0.5, 1, 50_000)
        correct = rng.random(50_000) < confidence
        assert evaluate.calibration_error(confidence, correct)[0] < 0.01

    def test_bins_hold_20_examples_at_least_and_equal_confidences_together(self):
        for n, bins in ((5, 1), (39, 1), (48, 2), (299, 14), (3000, 15)):
            places = evaluate.confidence_bins(np.linspace(0, 1, n))
            assert len(set(places)) == bins
            assert np.bincount(places).min() >= min(n, 20)
        assert set(evaluate.confidence_bins(np.full(400, 0.7))) == {7}

    def test_weights_are_repetitions(self):
        confidence, correct = by_hand()
        weights = np.where(correct, 1.0, [[1.0], [2.0]])  # the second sample has every wrong answer twice
        found = evaluate.calibration_error(confidence, correct, weights)
        assert found == pytest.approx([0.125, (abs(10 - 30 * 0.6) + abs(15 - 25 * 0.9)) / 40])
        groups = np.unique(-confidence, return_inverse=True)[1]
        twice = np.repeat(np.arange(40), weights[1].astype(int))
        np.testing.assert_allclose(evaluate.risks(groups, correct, weights[1]),
                                   evaluate.risks(groups[twice], correct[twice], np.ones(55)))

    def test_intervals_hold_the_figure_and_reach_0_where_the_model_may_be_calibrated(self):
        rng = np.random.default_rng(4)
        confidence = rng.uniform(0.5, 1, 600)
        calibrated, overconfident = rng.random(600) < confidence, rng.random(600) < confidence - 0.3
        for correct, begins_at_0 in ((calibrated, True), (overconfident, False)):
            rows = evaluate.calibration_rows(correct, {"raw": confidence, "temperature": confidence})
            assert [row["metric"] for row in rows] == ["aurc", "ece", "ece_temperature"]
            for row in rows:
                assert 0 <= row["ci_low"] <= row["value"] <= row["ci_high"] <= 1
            assert (rows[1]["ci_low"] == 0) == begins_at_0
        assert rows[1]["ci_low"] < 0.3 < rows[1]["ci_high"]
        assert evaluate.calibration_rows(correct, {}) == []


    def test_intervals_equal_scipys_percentile_and_basic_bootstrap(self):
        rng = np.random.default_rng(8)
        confidence = rng.uniform(0.5, 1, 300)
        correct = rng.random(300) < confidence - 0.2
        gaps, bins = correct - confidence, np.argsort(np.argsort(confidence)) // 20  # 15 bins of 20

        def ece(rows):
            return np.abs(np.bincount(bins[rows], gaps[rows], 15)).sum() / 300

        def aurc(rows):
            surest_first = rows[np.argsort(-confidence[rows])]
            return (np.cumsum(~correct[surest_first]) / np.arange(1, 301)).mean()

        rows = evaluate.calibration_rows(correct, {"raw": confidence})
        for row, statistic, method in zip(rows, (aurc, ece), ("percentile", "basic"), strict=True):
            theirs = stats.bootstrap((np.arange(300),), statistic, vectorized=False, n_resamples=4999, method=method,
                                     rng=np.random.default_rng(9))
            assert row["value"] == pytest.approx(statistic(np.arange(300)))
            for ours, end in zip((row["ci_low"], row["ci_high"]), theirs.confidence_interval, strict=True):
                assert abs(ours - end) < 0.2 * theirs.standard_error


class TestRiskCoverage:
    def test_hand_worked(self):
        groups, correct = np.array([0, 1, 2, 3]), np.array([True, False, True, True])
        assert evaluate.risks(groups, correct, np.ones(4)).tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])

    def test_ties_count_as_the_mean_over_their_orders(self):
        groups, correct = np.array([0, 1, 1, 1, 2]), np.array([False, True, False, False, True])
        orders = [np.array([0, *order, 4]) for order in itertools.permutations([1, 2, 3])]
        expected = np.mean([np.cumsum(~correct[order]) / np.arange(1, 6) for order in orders], axis=0)
        np.testing.assert_allclose(evaluate.risks(groups, correct, np.ones(5)), expected)


def random_logits(rows=400, labels=3, seed=0):
    """Logits, and labels drawn from their softmax: the best temperature is about 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, labels))
    return logits, np.array([rng.choice(labels, p=p) for p in common.softmax(logits)])


def minimum(loss):
    """Where scipy's simplex search finds the temperature of the least loss."""
    return math.exp(optimize.minimize(lambda x: loss(math.exp(x[0])), [0.3], method="Nelder-Mead", tol=1e-8).x[0])


class TestTemperature:
    @pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
    def test_of_a_closed_set_equals_scipys_minimum_of_scikit_learns_loss(self, factor):
        logits, labels = random_logits()
        kind, task = KINDS["classification"], {"labels": ["a", "b", "c"]}
        tuned = kind.tune(np.float32(factor * logits), pd.DataFrame({"label": labels}), task, None)
        expected = minimum(lambda t: metrics.log_loss(labels, common.softmax(factor * logits / t)))
        assert tuned == {"temperature": pytest.approx(expected, rel=1e-3)}
        assert tuned["temperature"] == pytest.approx(factor, rel=0.2)

    def test_by_hand_where_all_margins_are_equal(self):
        """Right in 4 of 5 with a margin of 3: the best confidence is 0.8, so 3 / T = log(0.8 / 0.2)."""
        logits = np.tile([0.0, 3.0], (10, 1))
        table = pd.DataFrame({"label": [1] * 8 + [0] * 2})
        tuned = KINDS["classification"].tune(logits, table, {"labels": ["a", "b"]}, None)
        assert tuned["temperature"] == pytest.approx(3 / math.log(4), rel=1e-3)

    def test_ends_at_the_range_where_all_is_right(self):
        tuned = KINDS["classification"].tune(
            np.array([[0.0, 1.0]]), pd.DataFrame({"label": [1]}), {"labels": ["a", "b"]}, None)
        assert tuned["temperature"] == pytest.approx(0.05, rel=1e-2)

    def test_of_multilabel_is_one_for_all_labels(self):
        rng = np.random.default_rng(5)
        logits = rng.normal(0, 2, (300, 3))
        gold = rng.random((300, 3)) < 1 / (1 + np.exp(-logits))
        table = pd.DataFrame({"label": [tuple(row) for row in gold.astype(int)]})
        tuned = KINDS["multilabel"].tune(2 * logits, table, task_of("multilabel"), None)
        expected = minimum(lambda t: metrics.log_loss(gold.ravel(), 1 / (1 + np.exp(-2 * logits.ravel() / t))))
        assert tuned["temperature"] == pytest.approx(expected, rel=1e-3)

    def test_of_span_is_that_of_being_right(self):
        kind, task, table, dataset, _ = build("span", rows=60)
        rng = np.random.default_rng(6)
        logits = rng.normal(0, 2, (len(dataset), dataset.lengths.max(), 2)).astype(np.float32)
        for window, (start, end, _) in enumerate(dataset.labels):  # the right answer is likely, not certain
            logits[window, start, 0] += rng.choice([0, 6])
            logits[window, end, 1] += rng.choice([0, 6])
        tuned = kind.tune(logits, table, task, dataset)
        right = kind.predict(logits, table, task | tuned, dataset)["correct"]
        assert 0.2 < right.mean() < 0.9
        expected = minimum(lambda t: metrics.log_loss(right, kind.confidences(logits, table, task | tuned, dataset, t)))
        assert tuned["temperature"] == pytest.approx(expected, rel=1e-2)

    @pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.confidence_is])
    def test_changes_no_prediction_and_1_no_confidence(self, name):
        kind, task, table, dataset, _ = build("multiple_choice" if name == "classification" else name, rows=24)
        kind, rng = KINDS[name], np.random.default_rng(7)
        shape = (dataset.lengths.max(), 2) if name == "span" else (len(kind.output_names(task)),)
        logits = rng.normal(0, 3, (len(dataset), *shape)).astype(np.float32)
        task |= kind.tune(logits, table, task, dataset)
        raw = kind.predict(logits, table, task, dataset)
        np.testing.assert_allclose(kind.confidences(logits, table, task, dataset, 1.0), raw["confidence"])
        flat = kind.confidences(logits, table, task, dataset, 20.0)
        assert (flat <= raw["confidence"] + 1e-12).all()
        scaled = task | {"null_threshold": task.get("null_threshold", 0.0) / 2}
        assert kind.predict(logits / 2, table, scaled, dataset)["predicted"].tolist() == raw["predicted"].tolist()


def test_a_number_has_no_confidence_to_calibrate():
    kind = KINDS["regression"]
    assert kind.tune(np.zeros((2, 1)), pd.DataFrame({"label": [0.0, 1.0]}), task_of("regression"), None) == {}
    assert not kind.confidence_is
    assert kind.tuned == ()
