"""Intervals against scipy's bootstrap, baselines against scikit-learn, and the comparison with published figures."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import dummy, linear_model, metrics, multiclass, naive_bayes
from sklearn.feature_extraction.text import TfidfVectorizer
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


# ---- Baselines ------------------------------------------------------------------------------------------------------

TEXTS = ["good film, great cast", "a good story", "great fun", "bad film", "a bad, bad story", "no fun", "so good"]
TESTS = ["a great story", "bad cast", "fun!", "an unseen thing"]


def texts_of(texts, labels, column="label", **more):
    return pd.DataFrame({"id": [f"x-{i}" for i in range(len(texts))], "text": texts, **more, column: labels})


def features(train=TEXTS, test=TESTS):
    """Of one text: scikit-learn's own TF-IDF, every word and mark a term."""
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]").fit(train)
    return vectorizer.transform(train), vectorizer.transform(test)


class TestBaselines:
    def test_of_classification(self):
        labels = ["good", "good", "good", "bad", "bad", "bad", "good"]
        test = texts_of(TESTS, ["good", "bad", "good", "bad"], "gold")
        task = {"text": ["text"], "labels": ["bad", "good"], "positive": "good", "metrics": ["auroc"]}
        tables = KINDS["classification"].baselines(texts_of(TEXTS, labels), test, task)
        assert list(tables) == ["majority", "tfidf + logistic regression"]
        train_features, test_features = features()
        floor = dummy.DummyClassifier().fit(train_features, labels)
        model = linear_model.LogisticRegression().fit(train_features, labels)
        for table, reference in zip(tables.values(), (floor, model), strict=True):
            assert table["predicted"].tolist() == reference.predict(test_features).tolist()
            assert table["gold"].tolist() == test["gold"].tolist()
            assert table["correct"].tolist() == (table["gold"] == table["predicted"]).tolist()
        np.testing.assert_allclose(tables["tfidf + logistic regression"]["prob_good"],
                                   model.predict_proba(test_features)[:, 1])
        scores = [KINDS["classification"].metrics(table, task)["auroc"] for table in tables.values()]
        assert scores == pytest.approx([0.5, metrics.roc_auc_score(
            test["gold"] == "good", model.predict_proba(test_features)[:, 1])])

    def test_a_pair_shows_what_its_texts_share(self):
        """By the words alone the pairs can't be told apart: each word is in as many equal pairs as in others."""
        words = ["red", "blue", "green", "grey"]
        pairs = [(first, second) for first in words for second in words] * 3
        table = pd.DataFrame(pairs, columns=["one", "two"]).assign(
            label=["same" if first == second else "other" for first, second in pairs])
        table = pd.concat([table, table[table["label"] == "same"], table[table["label"] == "same"]])
        predicted = KINDS["classification"].baselines(
            table, table.rename(columns={"label": "gold"}), {"text": ["one", "two"], "labels": ["other", "same"]})
        assert predicted["tfidf + logistic regression"]["correct"].all()
        first, second = common.tfidf(table, table.head(2), ["one", "two"])
        assert first.shape == (72, 16)
        np.testing.assert_allclose(second.toarray()[0], np.concatenate([*2 * [second.toarray()[0, :4]], np.zeros(4),
                                                                        second.toarray()[0, :4]]))

    def test_of_regression(self):
        numbers = [2.0, 1.0, 1.5, -2.0, -1.5, -1.0, 1.0]
        task, test = task_of("regression"), texts_of(TESTS, [1.0, -1.0, 1.0, 0.0], "gold")
        tables = KINDS["regression"].baselines(texts_of(TEXTS, [str(number) for number in numbers]), test, task)
        train_features, test_features = features()
        ridge = linear_model.Ridge().fit(train_features, numbers).predict(test_features)
        np.testing.assert_allclose(tables["tfidf + ridge"]["predicted"], ridge)
        assert tables["mean"]["predicted"].tolist() == pytest.approx([np.mean(numbers)] * 4)
        scores = {name: KINDS["regression"].metrics(table, task) for name, table in tables.items()}
        assert scores["mean"]["pearson"] == 0
        assert scores["tfidf + ridge"]["mse"] == pytest.approx(metrics.mean_squared_error(test["gold"], ridge))

    def test_of_multilabel(self):
        sets = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1], [1, 0, 1]], dtype=bool)
        task, names = task_of("multilabel"), common.names_of_sets(sets, list("abc"))
        tables = KINDS["multilabel"].baselines(texts_of(TEXTS, names), texts_of(TESTS, ["a | c"] * 4, "gold"), task)
        train_features, test_features = features()
        model = multiclass.OneVsRestClassifier(linear_model.LogisticRegression()).fit(train_features, sets[:, :2])
        expected = np.column_stack([model.predict(test_features), np.ones(4)]) > 0  # all have c
        assert tables["tfidf + logistic regression"]["predicted"].tolist() == common.names_of_sets(
            expected, list("abc")).tolist()
        assert tables["majority"]["predicted"].tolist() == ["a | c"] * 4
        assert KINDS["multilabel"].metrics(tables["majority"], task)["exact_match"] == 1

    def test_of_multiple_choice(self):
        """The right option shares a word with the text, and mostly stands first."""
        rows = [("the cat sat", "a cat", "a dog", "1"), ("one dog ran", "big dog", "big cat", "1"),
                ("fish swim", "a bird", "fish", "2"), ("the bird sang", "bird", "cat", "1")] * 3
        train = pd.DataFrame(rows, columns=["text", "one", "two", "label"])
        test = pd.DataFrame([("a cat ran", "dog", "cat", "2"), ("the fish", "fish", "bird", "1")],
                            columns=["text", "one", "two", "gold"])
        tables = KINDS["multiple_choice"].baselines(train, test, task_of("multiple_choice"))
        assert tables["majority"]["predicted"].tolist() == ["1", "1"]
        assert tables["tfidf + logistic regression"]["predicted"].tolist() == ["2", "1"]

    def test_of_span(self):
        test = pd.DataFrame({"gold": ["cat", "", "a | b"]})
        tables = KINDS["span"].baselines(pd.DataFrame(), test, task_of("span"))
        assert KINDS["span"].metrics(tables["no answer"], task_of("span")) == pytest.approx({
            "f1": 1 / 3, "exact": 1 / 3, "has_ans_exact": 0, "has_ans_f1": 0, "no_ans_exact": 1, "no_ans_f1": 1})

    @pytest.mark.parametrize("name", ["answers", "visual"])
    def test_of_answers(self, name):
        answers = ["yes", "yes", "no", "cat", "cat", "cat", "dog"]
        test = texts_of(TESTS, ["yes", "zebra", "no", "cat"], "gold")
        tables = KINDS[name].baselines(texts_of(TEXTS, answers), test, task_of(name))
        train_features, test_features = features()
        model = naive_bayes.MultinomialNB().fit(train_features, answers)
        assert tables["tfidf + naive Bayes"]["predicted"].tolist() == model.predict(test_features).tolist()
        assert tables["majority"]["predicted"].tolist() == ["cat"] * 4
        assert KINDS[name].metrics(tables["majority"], task_of(name)) == {"accuracy": 0.25}

    def test_other_columns_than_the_runs_are_refused(self, tmp_path):
        common.write_csv(tmp_path / "train_texts.csv", texts_of(["a"], ["x"], second=["b"]))
        data = common.Data({"kind": "classification", "key": "k", "text": ["t"]}, {}, {})
        with pytest.raises(common.UserError, match="columns id, text, second, label, k id, t, label"):
            evaluate.write_baselines(tmp_path, {"model_dir": str(tmp_path / "model")}, data, pd.DataFrame())


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


@pytest.mark.parametrize(("n", "finished", "sample", "told"), [
    (50, 1, False, True), (5000, 1, False, False), (50, 2, False, False), (50, 1, True, False)])
def test_a_single_seed_on_a_small_test_set_says_what_it_is_worth(tmp_path, capsys, n, finished, sample, told):
    for seed in range(finished):
        common.write_json(tmp_path / f"seed{seed}" / "run.json", {"finished": "now"})
    row = pd.Series({"metric": "f1", "n": n, "ci_low": 0.7, "ci_high": 0.825})
    evaluate.print_worth({"sample": sample, "model_dir": str(tmp_path / "seed0" / "model")}, row)
    output = capsys.readouterr().out
    assert ("12.5 points" in output and "--seeds" in output) == told
    assert bool(output) == told
