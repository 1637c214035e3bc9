"""The kinds: loss, padding and figures beside scikit-learn, scipy, the models' own loss and hand-worked cases.

Every kind goes through the first class; what is said of one kind alone follows, of span and GQA's in their own files.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_arguments
from scipy import stats
from sklearn import metrics
from toys import KINDS, TASKS, TEXTS, batch_of, build, task_of

import common
from common import UserError


def test_no_kind_is_left_out():
    assert set(TASKS) == set(KINDS) == {entry["kind"] for entry in common.catalog().values()}


@pytest.mark.parametrize("name", TASKS)
class TestEveryKind:
    def test_accumulation_equals_the_full_batch(self, name, tmp_path, monkeypatch):
        monkeypatch.setattr(common.LengthGroupedBatches, "__iter__", lambda self: iter(
            np.split(np.arange(len(self.lengths)), range(self.batch_size, len(self.lengths), self.batch_size))))
        weights = []
        for batch, steps in ((1, 4), (4, 1)):
            kind, _, _, dataset, model = build(name, rows=6)
            arguments = make_arguments(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
                                       num_train_epochs=1, eval_strategy="no", max_grad_norm=0.5, optim="sgd",
                                       learning_rate=0.1)
            common.CustomTrainer(model=model, args=arguments, train_dataset=dataset, kind=kind).train()
            weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        assert (weights[0] - weights[1]).abs().max() < 2e-5

    def test_trainer_and_predict_agree_and_the_tables_are_whole(self, name, tmp_path):
        kind, task, table, dataset, model = build(name, rows=6, dropout=0.1)
        found = {}

        def compute_metrics(outputs):
            found["logits"] = outputs.predictions
            tuned = kind.tune(outputs.predictions, table, task, dataset)
            assert set(tuned) == set(kind.tuned)
            return kind.metrics(kind.predict(outputs.predictions, table, task | tuned, dataset), task)

        trainer = common.CustomTrainer(
            model=model, args=make_arguments(tmp_path, num_train_epochs=1), train_dataset=dataset,
            eval_dataset=dataset, kind=kind, compute_metrics=compute_metrics)
        trainer.train()
        outputs = common.predict(model, dataset, kind, 4)
        assert len(outputs.vectors) == len(table)
        theirs = kind.predict(found["logits"], table, task, dataset)
        ours = kind.predict(outputs.logits, table, task, dataset)
        pd.testing.assert_frame_equal(theirs, ours, atol=1e-5)
        assert list(ours.columns[:6]) == ["gold", "predicted", "correct", "confidence", "gold_confidence", "margin"]
        assert ours["correct"].dtype == bool
        assert ours["gold"].tolist() == kind.gold(table).tolist()
        scores, drawn = kind.metrics(ours, task), kind.resample(ours, task, draws=50)
        assert list(scores)[:len(task["metrics"])] == task["metrics"]
        for metric, value in scores.items():
            assert drawn[metric].shape == (50,)
            assert drawn[metric].min() - 1e-9 <= value <= drawn[metric].max() + 1e-9

    def test_padding_changes_neither_outputs_nor_loss(self, name):
        kind, _, _, dataset, model = build(name)
        together, labels = batch_of(dataset, range(4))
        outputs, logits, _ = common.forward(model, together, kind, "fp32")
        loss = kind.loss(outputs, labels, None)
        for i in range(4):
            alone, label = batch_of(dataset, [i])
            outputs, one, _ = common.forward(model, alone, kind, "fp32")
            loss = loss - kind.loss(outputs, label, None)
            torch.testing.assert_close(logits[i, :one.shape[1]], one[0], atol=1e-5, rtol=1e-4)
        assert abs(float(loss)) < 1e-4

    def test_the_temperature_changes_no_prediction_and_makes_none_surer_at_20(self, name):
        kind, task, table, dataset, _ = build(name, rows=24)
        if not kind.confidence_is:
            assert kind.tuned == () and kind.tune(np.zeros((24, 1)), table, task, dataset) == {}
            return
        shape = (dataset.lengths.max(), 2) if name == "span" else (len(task["labels"]),)
        logits = np.random.default_rng(7).normal(0, 3, (len(dataset), *shape)).astype(np.float32)
        raw = kind.predict(logits, table, task, dataset)
        cool = kind.predict(logits / 20, table, task, dataset)
        assert cool["predicted"].tolist() == raw["predicted"].tolist()
        assert (cool["confidence"] <= raw["confidence"] + 1e-12).all()


@pytest.mark.parametrize("name", ["classification", "multilabel", "regression", "multiple_choice", "answers"])
def test_loss_is_the_models_own_times_the_examples(name):
    """The heads of transformers compute it when they are given labels: a mean over the batch."""
    kind, _, _, dataset, model = build(name)
    batch, labels = batch_of(dataset, range(5))
    outputs = model(**batch, labels=labels)
    torch.testing.assert_close(kind.loss(outputs, labels, None) / 5, outputs.loss)


def label_predictions(rows=60, seed=0):
    """Gold, logits and predictions.csv of a classification with three labels."""
    rng = np.random.default_rng(seed)
    task = task_of("classification", positive="dog", averaged=["cat", "no"], metrics=["f1", "auroc", "mean_f1"])
    gold, logits = rng.choice(task["labels"], rows), rng.normal(size=(rows, 3)).round(1)  # rounded: there are ties
    return task, KINDS["classification"].predict(logits, pd.DataFrame({"label": gold}), task, None)


class TestClassification:
    kind = KINDS["classification"]

    def scores(self, task, predictions):
        """By scikit-learn."""
        gold, predicted, labels = predictions["gold"], predictions["predicted"], task["labels"]
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(gold, predicted, labels=labels)
        return {"accuracy": metrics.accuracy_score(gold, predicted), "macro_f1": f1.mean(),
                "weighted_f1": metrics.f1_score(gold, predicted, average="weighted"), "macro_recall": recall.mean(),
                "f1": f1[1], "mean_f1": f1[[0, 2]].mean(),
                "auroc": metrics.roc_auc_score(gold == "dog", predictions["prob_dog"]),
                **{f"{name}_{label}": values[i] for name, values in
                   {"precision": precision, "recall": recall, "f1": f1}.items() for i, label in enumerate(labels)}}

    def test_figures_equal_scikit_learn(self):
        task, predictions = label_predictions()
        found = self.kind.metrics(predictions, task)
        assert found == pytest.approx(self.scores(task, predictions))
        assert list(found)[:3] == ["f1", "auroc", "mean_f1"]

    def test_a_resampled_figure_is_that_of_the_rows_drawn(self):
        task, predictions = label_predictions()
        rows = np.random.default_rng(3).integers(0, 60, 60)
        weights = np.bincount(rows, minlength=60)[None]
        found = {name: values[0] for name, values in self.kind.figures(predictions, task, weights).items()}
        assert found == pytest.approx(self.scores(task, predictions.iloc[rows]))

    def test_a_label_that_never_occurs_scores_0(self):
        task, predictions = label_predictions(4)
        predictions[["gold", "predicted"]] = [["cat", "cat"]] * 4
        found = self.kind.metrics(predictions, task)
        assert (found["accuracy"], found["f1_dog"], found["macro_f1"]) == (1, 0, 1 / 3)

    def test_prediction_columns_by_hand(self):
        task, table = task_of("classification"), pd.DataFrame({"label": ["no", "cat"]})
        found = self.kind.predict(np.log([[0.5, 0.2, 0.3], [0.7, 0.2, 0.1]]), table, task, None)
        assert found["predicted"].tolist() == ["cat", "cat"]
        assert found["correct"].tolist() == [False, True]
        numbers = {"confidence": [0.5, 0.7], "gold_confidence": [0.3, 0.7], "margin": [0.2, 0.5], "prob_no": [0.3, 0.1]}
        for name, values in numbers.items():
            assert found[name].tolist() == pytest.approx(values)

    @pytest.mark.parametrize(("changes", "column", "names"), [
        ({}, [2, 0, -1, None], ["no", "cat", None, None]),  # positions, a hidden label, a missing one
        ({}, ["dog", "", "-1"], ["dog", None, None]),
        ({"raw_labels": [1, 2, 3]}, [3.0, 1.0], ["no", "cat"]),
        ({"raw_labels": ["c", "d", "n"]}, [" n", "c"], ["no", "cat"])])
    def test_labels(self, changes, column, names):
        found = self.kind.read_labels(pd.Series(column), task_of("classification", **changes))
        assert found.tolist() == names

    def test_a_label_that_the_task_does_not_know_is_refused(self, capsys):
        with pytest.raises(UserError):
            self.kind.read_labels(pd.Series(["dog", "zebra"]), task_of("classification"))
        assert "label 'zebra' (1 rows) is not one that it knows" in capsys.readouterr().err


class TestIntervals:
    def test_draws_repeat_and_spread_as_theory_says(self):
        task, predictions = label_predictions(400)
        first, second = (KINDS["classification"].resample(predictions, task) for _ in range(2))
        assert all((first[name] == second[name]).all() and first[name].shape == (2000,) for name in first)
        p = predictions["correct"].mean()
        assert first["accuracy"].std() == pytest.approx(math.sqrt(p * (1 - p) / 400), rel=0.1)
        assert np.isfinite(np.concatenate(list(first.values()))).all()

    def test_rows_of_one_group_are_drawn_together(self):
        """40 groups of ten equal rows say as much as 40 rows."""
        task, few = label_predictions(40)
        many = few.loc[np.repeat(range(40), 10)].assign(group=np.repeat(range(40), 10))
        drawn = KINDS["classification"].resample(many, task)["accuracy"]
        p = few["correct"].mean()
        assert drawn.std() == pytest.approx(math.sqrt(p * (1 - p) / 40), rel=0.1)


class TestRegression:
    kind, task = KINDS["regression"], task_of("regression")
    gold = (-1.5, -0.5, 0.0, 0.5, 0.5, 1.5)
    predicted = (-1.0, -1.0, 0.25, 0.25, 0.0, 3.0)

    def predictions(self, predicted=predicted):
        table = pd.DataFrame({"label": self.gold})
        return self.kind.predict(np.array(predicted, dtype=np.float32)[:, None], table, self.task, None)

    @pytest.mark.parametrize("rows", [range(6), [0, 0, 3, 4, 5, 1]])  # as they are, and a sample of them
    def test_figures_equal_scipy(self, rows):
        weights = np.bincount(rows, minlength=6)[None]
        gold, predicted = np.array(self.gold)[rows], np.array(self.predicted)[rows]
        found = {name: value[0] for name, value in self.kind.figures(self.predictions(), self.task, weights).items()}
        assert found == pytest.approx({
            "pearson": stats.pearsonr(gold, predicted).statistic,
            "spearman": stats.spearmanr(gold, predicted).statistic, "mse": np.mean((gold - predicted) ** 2)})

    def test_a_constant_prediction_scores_0(self):
        scores = self.kind.metrics(self.predictions([0.0] * 6), self.task)
        assert scores["pearson"] == scores["spearman"] == 0

    def test_steps(self):
        predictions = self.predictions()
        assert predictions["gold_step"].tolist() == [
            "very impolite", "impolite", "neutral", "polite", "polite", "very polite"]
        assert predictions["predicted_step"].tolist() == [
            "impolite", "impolite", "neutral", "neutral", "neutral", "very polite"]
        assert predictions["correct"].tolist() == [False, True, True, False, False, True]
        assert predictions["abs_error"].tolist() == [0.5, 0.5, 0.25, 0.25, 0.5, 1.5]
        edges = self.task | {"edges": [-1, 0, 0.5, 0.8]}
        assert self.kind.steps([0.1, 0.9], edges).tolist() == ["neutral", "very polite"]

    def test_labels(self, capsys):
        labels = self.kind.read_labels(pd.Series(["0.5", "", "-2"]), self.task)
        np.testing.assert_equal(labels.tolist(), [0.5, np.nan, -2.0])
        with pytest.raises(UserError):
            self.kind.read_labels(pd.Series(["0.5", "high"]), self.task)
        assert "'high' (1 rows) is no number" in capsys.readouterr().err

    def test_a_smaller_error_is_better(self):
        assert self.kind.lower_is_better == ("mse",)


class TestMultilabel:
    kind, task = KINDS["multilabel"], task_of("multilabel")

    @pytest.mark.parametrize("rows", [range(50), [*range(25), *range(25)]])  # as they are, and a sample of them
    def test_figures_equal_scikit_learn(self, rows):
        rng = np.random.default_rng(0)
        gold, logits = rng.integers(0, 2, (50, 3)), rng.normal(size=(50, 3))
        table = pd.DataFrame({"label": self.kind.names(gold, self.task)})
        predictions = self.kind.predict(logits, table, self.task, None)
        weights = np.bincount(rows, minlength=50)[None]
        scores = {name: value[0] for name, value in self.kind.figures(predictions, self.task, weights).items()}
        gold, predicted = gold[rows], (logits >= 0).astype(int)[rows]
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(gold, predicted)
        assert scores == pytest.approx({
            **{f"{average}_f1": metrics.f1_score(gold, predicted, average=average) for average in ("macro", "micro")},
            "exact_match": metrics.accuracy_score(gold, predicted),
            "accuracy": 1 - metrics.hamming_loss(gold, predicted),
            **{f"{name}_{label}": values[i] for name, values in
               {"precision": precision, "recall": recall, "f1": f1}.items() for i, label in enumerate("abc")}})

    def test_prediction_columns_by_hand(self):
        table = pd.DataFrame({"label": ["a | c", "none"]})
        logits = np.log(np.array([[4.0, 0.25, 0.25], [0.25, 0.25, 1 / 9]]))  # probabilities .8 .2 .2, .2 .2 .1
        predictions = self.kind.predict(logits, table, self.task, None)
        assert predictions["predicted"].tolist() == ["a", "none"]
        assert predictions["correct"].tolist() == [False, True]
        assert predictions["confidence"].tolist() == pytest.approx([0.8**3, 0.8 * 0.8 * 0.9])
        assert predictions["gold_confidence"].tolist() == pytest.approx([0.8 * 0.8 * 0.2, 0.8 * 0.8 * 0.9])
        assert predictions["margin"].tolist() == pytest.approx([0.6, 0.6])
        assert predictions["prob_c"].tolist() == pytest.approx([0.2, 0.1])

    def test_labels(self, capsys):
        columns = pd.DataFrame({"a": [1, 0, 1], "b": ["1", "0", ""], "c": [True, False, True]})
        assert self.kind.read_labels(columns, self.task).fillna("").tolist() == ["a | b | c", "none", ""]
        with pytest.raises(UserError):
            self.kind.read_labels(columns.assign(a=2), self.task)
        assert "are not all 0 or 1" in capsys.readouterr().err

    def test_training_score_counts_whole_sets_from_probability_one_half_on(self):
        logits = torch.tensor([[0.0, -0.1, 2.0], [0.1, -0.1, 2.0]])
        assert self.kind.score({"logits": logits}, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])) == 1


class TestMultipleChoice:
    @pytest.mark.parametrize(("text", "first", "second"), [
        ("the cat saw _ sang", "[CLS] the cat saw [SEP] a dog sang [SEP]",
         "[CLS] the cat saw [SEP] the bird sang [SEP]"),
        ("the cat saw", "[CLS] the cat saw [SEP] a dog [SEP]", "[CLS] the cat saw [SEP] the bird [SEP]")])
    def test_input_layout(self, text, first, second):
        """Parted at the blank, as WinoGrande's own code fills it."""
        table = pd.DataFrame({"text": [text], "one": ["a dog"], "two": ["the bird"], "label": ["2"]})
        tokenizer = common.word_tokenizer([*TEXTS, "saw sang dog bird"])
        dataset = KINDS["multiple_choice"].encode(table, task_of("multiple_choice"), tokenizer, 16)
        batch, labels = batch_of(dataset, [0])
        assert labels.tolist() == [1]
        types = batch["token_type_ids"][0, 0].tolist()
        assert types == [0] * 5 + [1] * (len(types) - 5)
        decoded = [" ".join(word for word in tokenizer.convert_ids_to_tokens(ids) if word != "[PAD]")
                   for ids in batch["input_ids"][0]]
        assert decoded == [first, second]

    def test_options_are_compared_within_an_example(self):
        kind, task, table, dataset, model = build("multiple_choice")
        outputs = common.predict(model, dataset, kind, 5)
        predictions = kind.predict(outputs.logits, table, task, dataset)
        assert predictions[["prob_1", "prob_2"]].sum(axis=1).tolist() == pytest.approx([1] * 12)
        with torch.no_grad():  # an option's vector, through the head, is its logit
            scores = common.head_layer(model)[1](torch.from_numpy(outputs.vectors).reshape(12, 2, -1)).squeeze(-1)
        np.testing.assert_allclose(scores.numpy(), outputs.logits, atol=1e-5)
