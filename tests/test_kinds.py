"""The kinds: loss, padding and figures beside scikit-learn, scipy, the models' own loss and hand-worked cases."""

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


@pytest.mark.parametrize("name", TASKS)
class TestEveryKind:
    def test_accumulation_equals_the_full_batch(self, name, tmp_path, monkeypatch):
        """The last group is short, and a micro-batch in it."""
        monkeypatch.setattr(common.LengthGroupedBatches, "__iter__", lambda self: iter(
            np.split(np.arange(len(self.lengths)), range(self.batch_size, len(self.lengths), self.batch_size))))
        weights, logs = [], []
        for batch, steps in ((2, 3), (6, 1)):
            kind, _, _, dataset, model = build(name, rows=9)
            arguments = make_arguments(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
                                       num_train_epochs=1, eval_strategy="no", max_grad_norm=0.5, optim="sgd",
                                       learning_rate=0.1)
            trainer = common.CustomTrainer(model=model, args=arguments, train_dataset=dataset, kind=kind)
            trainer.train()
            weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
            logs.append([[row["loss"], row["grad_norm"]] for row in trainer.state.log_history if "loss" in row])
        assert (weights[0] - weights[1]).abs().max() < 2e-5
        assert np.shape(logs) == (2, 2, 2)  # two updates
        assert np.allclose(*logs, rtol=1e-4)

    def test_trainer_and_predict_agree_and_the_tables_are_whole(self, name, tmp_path):
        kind, task, table, dataset, model = build(name, rows=6, dropout=0.1)
        found = {}

        def compute_metrics(outputs):
            found["logits"] = outputs.predictions
            tuned = kind.tune(outputs.predictions, table, task, dataset)
            assert set(tuned) == set(kind.tuned)
            return kind.metrics(kind.predict(outputs.predictions, table, task | tuned, dataset), task)

        common.CustomTrainer(model=model, args=make_arguments(tmp_path, num_train_epochs=1), train_dataset=dataset,
                             eval_dataset=dataset, kind=kind, compute_metrics=compute_metrics).train()
        outputs = common.predict(model, dataset, kind, 4)
        with torch.no_grad():  # an example's vector, or one per option, is what the head makes its logits of
            vectors = torch.from_numpy(outputs.vectors).reshape(len(table), dataset.sequences, -1)
            logits = common.head_layer(model.eval())[1](vectors).numpy().reshape(len(table), -1)
        np.testing.assert_allclose(logits, outputs.logits[:, 0] if name == "span" else outputs.logits, atol=1e-5)
        theirs, ours = (kind.predict(logits, table, task, dataset) for logits in (found["logits"], outputs.logits))
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


@pytest.mark.parametrize("name", [name for name in TASKS if name != "visual"])
def test_loss_is_the_models_own_times_the_examples(name):
    """The heads of transformers compute it when they are given labels: a mean over the batch."""
    kind, _, _, dataset, model = build(name)
    batch, labels = batch_of(dataset, [0, 4, 8])  # texts of one length, as their loss of a span counts the padding in
    given = {"labels": labels} if name != "span" else {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
    outputs = model(**batch, **given)
    torch.testing.assert_close(kind.loss(outputs, labels, None) / 3, outputs.loss)


def samples(kind, predictions, task):
    """Predictions and their figures: as they are, and of a sample in which some are missing and some repeated."""
    n = len(predictions)
    for rows in (np.arange(n), np.random.default_rng(3).integers(0, n, n)):
        found = kind.figures(predictions, task, np.bincount(rows, minlength=n)[None])
        yield predictions.iloc[rows], {name: values[0] for name, values in found.items()}


def by_label(gold, predicted, names, **which):
    """Precision, recall and F1 of each label by scikit-learn."""
    scores = metrics.precision_recall_fscore_support(gold, predicted, **which)
    return {f"{figure}_{name}": value for figure, values in zip(("precision", "recall", "f1"), scores, strict=False)
            for name, value in zip(names, values, strict=True)}


def label_predictions(rows=60):
    """Task and predictions.csv of a classification with three labels."""
    rng = np.random.default_rng(0)
    task = task_of("classification", positive="dog", averaged=["cat", "no"], metrics=["f1", "auroc", "mean_f1"])
    gold, logits = rng.choice(task["labels"], rows), rng.normal(size=(rows, 3)).round(1)  # rounded: there are ties
    return task, KINDS["classification"].predict(logits, pd.DataFrame({"label": gold}), task, None)


def test_figures_of_classification_equal_scikit_learn():
    task, predictions = label_predictions()
    for drawn, found in samples(KINDS["classification"], predictions, task):
        gold, predicted = drawn["gold"], drawn["predicted"]
        labels = by_label(gold, predicted, task["labels"], labels=task["labels"])
        f1 = [labels[f"f1_{label}"] for label in task["labels"]]
        assert found == pytest.approx({
            "accuracy": metrics.accuracy_score(gold, predicted), "macro_f1": np.mean(f1), **labels,
            "weighted_f1": metrics.f1_score(gold, predicted, average="weighted"),
            "macro_recall": metrics.recall_score(gold, predicted, average="macro"), "f1": f1[1],
            "mean_f1": (f1[0] + f1[2]) / 2, "auroc": metrics.roc_auc_score(gold == "dog", drawn["prob_dog"])})
    predictions[["gold", "predicted"]] = "cat"
    found = KINDS["classification"].metrics(predictions, task)
    assert (found["accuracy"], found["f1_dog"], found["macro_f1"]) == (1, 0, 1 / 3)  # 0 for what never occurs


def test_figures_of_multilabel_equal_scikit_learn():
    rng, kind, task = np.random.default_rng(0), KINDS["multilabel"], task_of("multilabel")
    table = pd.DataFrame({"label": rng.choice(["none", "a", "b | c", "a | b | c"], 50)})
    for drawn, found in samples(kind, kind.predict(rng.normal(size=(50, 3)), table, task, None), task):
        gold, predicted = (drawn[name].str.get_dummies(" | ")[list("abc")] for name in ("gold", "predicted"))
        assert found == pytest.approx({
            **{f"{average}_f1": metrics.f1_score(gold, predicted, average=average) for average in ("macro", "micro")},
            "exact_match": metrics.accuracy_score(gold, predicted), **by_label(gold, predicted, "abc"),
            "accuracy": 1 - metrics.hamming_loss(gold, predicted)})


def test_figures_of_regression_equal_scipy():
    rng, kind, task = np.random.default_rng(0), KINDS["regression"], task_of("regression")
    table, logits = pd.DataFrame({"label": rng.normal(size=9).round()}), rng.normal(size=(9, 1))  # there are ties
    for drawn, found in samples(kind, kind.predict(logits, table, task, None), task):
        gold, predicted = drawn["gold"], drawn["predicted"]
        assert found == pytest.approx({
            "pearson": stats.pearsonr(gold, predicted).statistic,
            "spearman": stats.spearmanr(gold, predicted).statistic, "mse": np.mean((gold - predicted) ** 2)})


def test_draws_repeat_and_spread_as_theory_says():
    """40 groups of ten equal rows say as much as 40 rows."""
    task, predictions = label_predictions(40)
    predictions = predictions.loc[np.repeat(range(40), 10)].assign(group=np.repeat(range(40), 10))
    first, second = (KINDS["classification"].resample(predictions, task) for _ in range(2))
    assert all((first[name] == second[name]).all() and first[name].shape == (2000,) for name in first)
    p = predictions["correct"].mean()
    assert first["accuracy"].std() == pytest.approx(math.sqrt(p * (1 - p) / 40), rel=0.1)


@pytest.mark.parametrize(("name", "changes", "gold", "logits", "columns"), [
    ("classification", {}, ["no", "cat"], np.log([[0.5, 0.2, 0.3], [0.7, 0.2, 0.1]]), {
        "predicted": ["cat", "cat"], "correct": [False, True], "confidence": [0.5, 0.7], "gold_confidence": [0.3, 0.7],
        "margin": [0.2, 0.5], "prob_no": [0.3, 0.1]}),
    ("multilabel", {}, ["a | c", "none"], np.log([[4.0, 0.25, 0.25], [0.25, 0.25, 1 / 9]]), {  # .8 .2 .2, .2 .2 .1
        "predicted": ["a", "none"], "correct": [False, True], "confidence": [0.8**3, 0.8 * 0.8 * 0.9],
        "gold_confidence": [0.8 * 0.8 * 0.2, 0.8 * 0.8 * 0.9], "margin": [0.6, 0.6], "prob_c": [0.2, 0.1]}),
    ("regression", {}, [-1.5, -0.5, 0.0, 0.5, 0.5, 1.5], np.array([[-1.0], [-1.0], [0.25], [0.25], [0.0], [3.0]]), {
        "gold_step": ["very impolite", "impolite", "neutral", "polite", "polite", "very polite"],
        "predicted_step": ["impolite", "impolite", "neutral", "neutral", "neutral", "very polite"],
        "correct": [False, True, True, False, False, True], "abs_error": [0.5, 0.5, 0.25, 0.25, 0.5, 1.5]}),
    ("regression", {"edges": [-1, 0, 0.5, 0.8]}, [0.1, 0.9], np.array([[0.6], [-2.0]]), {
        "gold_step": ["neutral", "very polite"], "predicted_step": ["polite", "very impolite"]})])
def test_prediction_columns_by_hand(name, changes, gold, logits, columns):
    found = KINDS[name].predict(logits, pd.DataFrame({"label": gold}), task_of(name, **changes), None)
    assert {column: found[column].tolist() for column in columns} == {
        column: pytest.approx(values) for column, values in columns.items()}


@pytest.mark.parametrize(("name", "changes", "column", "labels"), [
    ("classification", {}, [2, 0, -1, None], ["no", "cat", None, None]),  # positions, a hidden label, a missing one
    ("classification", {"raw_labels": [1, 2, 3]}, [3.0, 1.0], ["no", "cat"]),
    ("classification", {"raw_labels": ["c", "d", "n"]}, [" n", "c"], ["no", "cat"]),
    ("regression", {}, ["0.5", "", "-2"], [0.5, None, -2.0]),
    ("answers", {}, [2.0, " dog ", None, ""], ["2", "dog", None, None]),
    ("multilabel", {}, {"a": [1, 0, 1], "b": ["1", "0", ""], "c": [True, False, True]}, ["a | b | c", "none", None])])
def test_labels(name, changes, column, labels):
    column = (pd.DataFrame if name == "multilabel" else pd.Series)(column)
    found = KINDS[name].read_labels(column, task_of(name, **changes))
    assert found.astype(object).where(found.notna(), None).tolist() == labels


@pytest.mark.parametrize(("name", "column", "said"), [
    ("regression", pd.Series(["0.5", "high"]), "'high' (1 rows) is no number"),
    ("multilabel", pd.DataFrame({"a": [2], "b": ["1"], "c": [True]}), "are not all 0 or 1")])
def test_a_label_that_the_task_does_not_know_is_refused(capsys, name, column, said):
    with pytest.raises(UserError):
        KINDS[name].read_labels(column, task_of(name))
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("text", "rest"), [("the cat saw _ sang", " sang"), ("the cat saw", "")])
def test_an_option_is_a_pair_with_the_text_up_to_the_blank(text, rest):
    """Parted there as WinoGrande's own code fills it."""
    table = pd.DataFrame({"text": [text], "one": ["a dog"], "two": ["the bird"], "label": ["2"]})
    tokenizer = common.word_tokenizer([*TEXTS, "saw sang dog bird"])
    dataset = KINDS["multiple_choice"].encode(table, task_of("multiple_choice"), tokenizer, 16)
    batch, labels = batch_of(dataset, [0])
    assert labels.tolist() == [1]
    types = batch["token_type_ids"][0, 0].tolist()
    assert types == [0] * 5 + [1] * (len(types) - 5)
    decoded = [tokenizer.decode(ids).replace(" [PAD]", "") for ids in batch["input_ids"][0]]
    assert decoded == [f"[CLS] the cat saw [SEP] {option}{rest} [SEP]" for option in ("a dog", "the bird")]
