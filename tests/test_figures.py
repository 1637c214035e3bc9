"""Intervals against scipy's bootstrap, and the comparison with published figures."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_kinds import task_of

import common
import evaluate
from common import KINDS

RNG = np.random.default_rng(0)
ROWS = 150
LABELS = np.array(["a", "b", "c"], dtype=object)
gold = RNG.choice(LABELS, ROWS, p=[0.5, 0.3, 0.2])
guess = np.where(RNG.random(ROWS) < 0.7, gold, RNG.choice(LABELS, ROWS))
NUMBERS = RNG.normal(size=ROWS).round(1)  # rounded: ranks are tied
GUESSES = (NUMBERS + RNG.normal(size=ROWS)).round(1)
SETS = RNG.random((ROWS, 3)) < 0.4
SET_GUESSES = SETS ^ (RNG.random((ROWS, 3)) < 0.2)
PROBABILITIES = (np.where(gold == "a", 0.6, 0.4) + RNG.normal(0, 0.2, ROWS)).round(2)
F1 = RNG.choice([0, 0.5, 1], ROWS)


def f1(gold, predicted):
    return 2 * (gold & predicted).sum(axis=-1) / (gold.sum(axis=-1) + predicted.sum(axis=-1))


def correlation(first, second):
    first, second = (values - values.mean(axis=-1, keepdims=True) for values in (first, second))
    return (first * second).sum(axis=-1) / np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))


def ranks(values):
    return stats.rankdata(values, axis=-1)


def auroc(positive, probability):
    positives = positive.sum(axis=-1)
    below = (ranks(probability) * positive).sum(axis=-1) - positives * (positives + 1) / 2
    return below / (positives * (positive.shape[-1] - positives))


# kind, metric, predictions, what the metric is of the rows i, (draws, rows)
CLASSES = pd.DataFrame({"gold": gold, "predicted": guess, "correct": gold == guess, "prob_a": PROBABILITIES})
PAIRS = pd.DataFrame({"gold": NUMBERS, "predicted": GUESSES})
CASES = {
    "classification accuracy": ("classification", "accuracy", CLASSES, lambda i: (gold == guess)[i].mean(axis=-1)),
    "classification f1": ("classification", "f1", CLASSES, lambda i: f1((gold == "a")[i], (guess == "a")[i])),
    "classification macro_f1": ("classification", "macro_f1", CLASSES, lambda i: np.mean(
        [f1((gold == label)[i], (guess == label)[i]) for label in LABELS], axis=0)),
    "classification macro_recall": ("classification", "macro_recall", CLASSES, lambda i: np.mean(
        [((gold == guess) & (gold == label))[i].sum(axis=-1) / (gold == label)[i].sum(axis=-1)
         for label in LABELS], axis=0)),
    "classification auroc": ("classification", "auroc", CLASSES, lambda i: auroc((gold == "a")[i], PROBABILITIES[i])),
    "regression pearson": ("regression", "pearson", PAIRS, lambda i: correlation(NUMBERS[i], GUESSES[i])),
    "regression spearman": ("regression", "spearman", PAIRS,
                            lambda i: correlation(ranks(NUMBERS[i]), ranks(GUESSES[i]))),
    "regression mse": ("regression", "mse", PAIRS, lambda i: ((NUMBERS - GUESSES)[i]**2).mean(axis=-1)),
    "multilabel macro_f1": ("multilabel", "macro_f1", pd.DataFrame({
        "gold": common.names_of_sets(SETS, list("abc")), "predicted": common.names_of_sets(SET_GUESSES, list("abc"))}),
        lambda i: np.mean([f1(SETS[:, k][i], SET_GUESSES[:, k][i]) for k in range(3)], axis=0)),
    "multiple_choice accuracy": ("multiple_choice", "accuracy", CLASSES.replace({"a": "1", "b": "2", "c": "2"}),
                                 lambda i: ((gold == "a") == (guess == "a"))[i].mean(axis=-1)),
    "span f1": ("span", "f1", CLASSES.assign(f1=F1), lambda i: F1[i].mean(axis=-1)),
    "span exact": ("span", "exact", CLASSES.assign(f1=F1), lambda i: (gold == guess)[i].mean(axis=-1)),
    "answers accuracy": ("answers", "accuracy", CLASSES, lambda i: (gold == guess)[i].mean(axis=-1)),
    "visual accuracy": ("visual", "accuracy", CLASSES, lambda i: (gold == guess)[i].mean(axis=-1)),
}


@pytest.mark.parametrize("case", CASES)
def test_intervals_equal_scipys_percentile_bootstrap(case):
    """A percentile of 2,000 draws is off by about 0.06 standard errors, one of 10,000 by 0.03: 0.3 is four of both."""
    name, metric, predictions, statistic = CASES[case]
    kind, task = KINDS[name], {"labels": list("abc"), "positive": "a", "metrics": [metric]}
    if name != "classification":
        task = task_of(name)
    assert kind.metrics(predictions, task)[metric] == pytest.approx(statistic(np.arange(ROWS)))
    theirs = stats.bootstrap((np.arange(ROWS),), lambda i, axis=-1: statistic(i), method="percentile", n_resamples=9999,
                             vectorized=True, rng=np.random.default_rng(1))
    draws = kind.resample(predictions, task)[metric]
    assert len(draws) == 2000
    assert draws.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.08)
    for ours, end in zip(np.percentile(draws, [2.5, 97.5]), theirs.confidence_interval, strict=True):
        assert abs(ours - end) < 0.3 * theirs.standard_error


# ---- Published figures ----------------------------------------------------------------------------------------------


def score(**changes):
    return {"role": "paper", "metric": "f1", "value": 80.0, "split": "test", "model": "BERT-base", "size": "base",
            "cite": "A (2020)", "url": "https://a", "checked": True, **changes}


def compare(scores, metric="f1", used=None, sample=False, parameters=110_000_000, **changes):
    """The columns that published() gives for 0.75 of a run on all of 100 training and 50 test examples."""
    data = {"rows": {"train": 100, "test": 50}, "used": {"train": 100, "test": 50, **(used or {})}}
    run = {"dataset": "k", "sample": sample, "data": data, "model_info": {"parameters": parameters}, **changes}
    task = {"key": "k", "scores": scores, "splits": {"test": "test"}, "metrics": ["f1", "accuracy"]}
    return evaluate.published(metric, 0.75, run, common.Data(task, {}, data))


class TestPublished:
    def test_a_figure_measured_as_ours_is_comparable(self):
        assert compare([score()]) == {
            "paper": 0.8, "paper_model": "BERT-base", "paper_gap": pytest.approx(-5.0), "paper_split": "test",
            "comparable": "yes", "source": "paper: A (2020), https://a"}

    @pytest.mark.parametrize(("changes", "why"), [
        ({"checked": False}, "paper: its source was not checked"),
        ({"split": "hidden test"}, "paper: its split is hidden test and ours test"),
        ({"size": "large"}, "paper: its model is of size large and ours base (110.0 M parameters)"),
        ({"size": "ensemble"}, "paper: its model is an ensemble and ours base (110.0 M parameters)"),
        ({"differs": "it is trained on xl"}, "paper: it is trained on xl"),
        ({"split": "dev", "checked": False}, "paper: its source was not checked, its split is dev and ours test")])
    def test_what_is_different_there_is_told(self, changes, why):
        assert compare([score(**changes)])["comparable"] == f"no: {why}"

    @pytest.mark.parametrize(("changes", "why"), [
        ({"used": {"train": 20}}, "ours uses 20 of 100 train examples"),
        ({"used": {"test": 7}}, "ours uses 7 of 50 test examples"),
        ({"sample": True}, "ours is on sample rows"),
        ({"parameters": 66_000_000}, "paper: its model is of size base and ours small (66.0 M parameters)"),
        ({"trained_on": {"dataset": "other", "data": {"rows": {"train": 9}, "used": {"train": 5}}}},
         "ours was trained on other; ours uses 5 of 9 train examples")])
    def test_what_is_different_here_is_told(self, changes, why):
        assert compare([score()], **changes)["comparable"] == f"no: {why}"

    def test_each_of_two_figures_has_its_verdict(self):
        both = [score(), score(role="leaderboard", value=90.0, model="T5", size="xl", note="second-hand")]
        columns = compare(both)
        assert columns["comparable"] == (
            "no: leaderboard: its model is of size xl and ours base (110.0 M parameters); paper: yes")
        assert columns["leaderboard_gap"] == pytest.approx(-15)
        assert columns["source"] == "paper: A (2020), https://a | leaderboard: A (2020), https://a, second-hand"
        assert "yes" not in compare(both, used={"train": 1})["comparable"]

    def test_another_metric_is_no_comparison(self):
        assert compare([score()], "accuracy") == {"comparable": "no: what is published is f1, not accuracy"}
        assert compare([score()], "macro_recall") == {}
        assert compare([score(role="reference", metric="accuracy")], "accuracy") == {}

    def test_a_checked_figure_goes_before_the_first(self):
        columns = compare([score(checked=False), score(value=70.0)])
        assert (columns["paper"], columns["paper_model"]) == (0.7, "BERT-base")
        assert compare([score(checked=False)])["paper_model"] == "BERT-base, unchecked"

    @pytest.mark.parametrize(("parameters", "size"), [
        (22_713_986, "small"), (66_955_010, "small"), (109_483_778, "base"), (184_423_682, "base"),
        (278_045_186, "base"), (335_143_938, "large"), (559_892_482, "large"), (1_500_000_000, "xl")])
    def test_size_classes(self, parameters, size):
        assert evaluate.size_class(parameters) == size

    def test_the_table_names_gap_interval_and_differences(self, capsys):
        main = pd.DataFrame({"metric": ["f1"], "value": [0.75], "ci_low": [0.7], "ci_high": [0.8], "split": ["test"]})
        data = {"rows": {"train": 100, "test": 50}, "used": {"train": 20, "test": 50}}
        run = {"dataset": "k", "sample": False, "data": data, "model_info": {"parameters": 110e6}}
        scores = [score(), score(role="reference", size="large", differs="it is the best of 9 runs"),
                  score(role="reference", checked=False, model="never shown")]
        evaluate.print_published(run, common.Data({"scores": scores, "splits": {"test": "test"}}, {}, data), main)
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split()[:7] == ["paper", "f1", "0.8000", "-5.0", "(-10.0", "to", "+0.0)"]
        assert "nothing" in lines[1]
        assert "size, way" in lines[2]
        assert lines[3] == ("ours: size base (110.0 M parameters), split test; ours uses 20 of 100 train examples")
        assert lines[4] == "- BERT-base (A (2020)): it is the best of 9 runs"
        assert len(lines) == 5
