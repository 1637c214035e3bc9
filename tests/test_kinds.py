"""The kinds beside classification: figures against hand-worked cases, scikit-learn and scipy, and the loop on each."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import make_arguments

import common
from common import KINDS, UserError

TEXTS = ["the red cat sat on a mat", "a dog", "nobody saw the blue bird that sang", "one two three four"]
TASKS = {
    "regression": {"text": ["text"], "label": "value", "scale": [-2.0, 2.0], "metrics": ["pearson", "spearman", "mse"],
                   "steps": ["very impolite", "impolite", "neutral", "polite", "very polite"]},
    "multilabel": {"text": ["text"], "label": ["a", "b", "c"], "labels": ["a", "b", "c"], "metrics": ["macro_f1"]},
    "multiple_choice": {"text": ["text"], "options": ["one", "two"], "label": "label", "labels": ["1", "2"],
                        "metrics": ["accuracy"]},
    "span": {"text": ["question", "context"], "label": "answers", "doc_stride": 4, "metrics": ["f1", "exact"]},
    "answers": {"text": ["text"], "label": "answer", "labels": ["cat", "dog", "no"], "metrics": ["accuracy"]},
    "visual": {"text": ["text"], "image": "image", "label": "answer", "labels": ["cat", "dog", "no"],
               "metrics": ["accuracy"]},
}


def task_of(name, **changes):
    return {"key": f"toy-{name}", "kind": name, "scores": [], **TASKS[name], **changes}


def table_of(name, rows=12):
    """A split as load_data makes it."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"id": [f"train-{i}" for i in range(rows)], "text": [TEXTS[i % 4] for i in range(rows)]})
    if name == "span":
        table = table.rename(columns={"text": "context"}).assign(question="who sat where")
        words = [context.split()[-1] for context in table["context"]]
        table["label"] = [{"text": [word], "answer_start": [len(context) - len(word)]} if i % 3 else
                          {"text": [], "answer_start": []}
                          for i, (word, context) in enumerate(zip(words, table["context"], strict=True))]
        return table
    table["label"] = {
        "regression": rng.normal(size=rows), "multilabel": [tuple(row) for row in rng.integers(0, 2, (rows, 3))],
        "multiple_choice": rng.integers(0, 2, rows)}.get(name, rng.choice(["cat", "dog", "no"], rows))
    return table.assign(one="the red cat", two="a dog that sang", image=[str(i % 3) for i in range(rows)])


class Pictures(dict):
    """Images by id, with a count of how many were opened."""

    opened = 0

    def __getitem__(self, name):
        self.opened += 1
        return super().__getitem__(name)


def pictures():
    from PIL import Image

    rng = np.random.default_rng(2)
    shapes = {"0": (40, 40, 3), "1": (40, 80, 3), "2": (60, 40, 3)}
    return Pictures({name: Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
                     for name, shape in shapes.items()})


def build(name, rows=12, **changes):
    """Kind, task, table, data set and a tiny model without dropout."""
    import torch

    torch.manual_seed(0)
    task, table = task_of(name, **changes), table_of(name, rows)
    data = common.Data(task, {"train": table}, {}, pictures())
    tokenizer, model = common.build_sample_model(data, dropout=0.0)
    kind = KINDS[name]
    return kind, task, table, kind.encode(table, task, tokenizer, 14, data.images), model


def test_no_kind_is_left_out():
    assert {"classification", *TASKS} == set(KINDS)  # the first is what all other files test


@pytest.mark.parametrize("name", TASKS)
class TestEveryKind:
    def test_accumulation_equals_the_full_batch(self, name, tmp_path, monkeypatch):
        monkeypatch.setattr(common.LengthGroupedBatches, "order", lambda self: np.arange(12))
        weights = []
        for batch, steps in ((2, 4), (8, 1)):
            kind, _, _, dataset, model = build(name)
            arguments = make_arguments(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
                                       num_train_epochs=1, eval_strategy="no", max_grad_norm=0.5, optim="sgd",
                                       learning_rate=0.1)
            trainer = common.CustomTrainer(model=model, args=arguments, data_collator=dataset.collate,
                                           train_dataset=dataset, kind=kind)
            trainer.train()
            weights.append({key: value.clone() for key, value in model.state_dict().items()})
        for key, value in weights[0].items():
            np.testing.assert_allclose(value.numpy(), weights[1][key].numpy(), atol=2e-5, err_msg=key)

    def test_trainer_and_predict_agree_and_the_tables_are_whole(self, name, tmp_path):
        kind, task, table, dataset, model = build(name)
        found = {}

        def compute_metrics(outputs):
            found["logits"] = outputs.predictions
            tuned = kind.tune(outputs.predictions, table, task, dataset)
            assert set(tuned) == set(kind.tuned)
            return kind.metrics(kind.predict(outputs.predictions, table, task | tuned, dataset), task)

        trainer = common.CustomTrainer(
            model=model, args=make_arguments(tmp_path, num_train_epochs=1), data_collator=dataset.collate,
            train_dataset=dataset, eval_dataset=dataset, kind=kind, compute_metrics=compute_metrics)
        trainer.train()
        outputs = common.predict(model, dataset, kind, 5, "fp32")
        assert len(outputs.vectors) == len(table)
        theirs = kind.predict(found["logits"], table, task, dataset)
        ours = kind.predict(outputs.logits, table, task, dataset)
        pd.testing.assert_frame_equal(theirs, ours, atol=1e-5)
        assert list(ours.columns[:6]) == ["gold", "predicted", "correct", "confidence", "gold_confidence", "margin"]
        assert ours["correct"].dtype == bool
        scores, drawn = kind.metrics(ours, task), kind.resample(ours, task, draws=50)
        assert list(scores)[:len(task["metrics"])] == task["metrics"]
        for metric, value in scores.items():
            assert drawn[metric].shape == (50,)
            assert drawn[metric].min() - 1e-9 <= value <= drawn[metric].max() + 1e-9
        wrong = ours[~ours["correct"]]
        assert len(kind.error_types(wrong, task)) == len(wrong)
        assert all(kind.error_types(wrong, task))
        assert sum(kind.label_counts(table, task).values()) >= len(table)
        assert len(kind.strata(table, task)) == len(table)

    def test_padding_does_not_change_outputs_or_loss(self, name):
        import torch

        kind, _, _, dataset, model = build(name)
        model.eval()
        together, loss = self.collected(kind, model, dataset, range(4))
        for i in range(4):
            alone, loss_alone = self.collected(kind, model, dataset, [i])
            loss -= loss_alone
            torch.testing.assert_close(together[i, :alone.shape[1]], alone[0], atol=1e-5, rtol=1e-4)
        assert abs(float(loss)) < 1e-4

    @staticmethod
    def collected(kind, model, dataset, rows):
        import torch

        batch = dataset.collate([dataset[i] for i in rows])
        labels = batch.pop("labels")
        assert len(labels) == len(batch["input_ids"])
        with torch.no_grad():
            outputs = model(**batch)
        return kind.collect(outputs, batch), kind.loss(outputs, labels, None)


class TestRegression:
    kind = KINDS["regression"]
    gold = (-1.5, -0.5, 0.0, 0.5, 0.5, 1.5)
    predicted = (-1.0, -1.0, 0.25, 0.25, 0.0, 3.0)

    def predictions(self):
        table = pd.DataFrame({"label": self.gold})
        return self.kind.predict(np.array(self.predicted, dtype=np.float32)[:, None], table, task_of("regression"))

    def test_figures_equal_scipy(self):
        from scipy import stats

        scores = self.kind.metrics(self.predictions(), task_of("regression"))
        assert scores["pearson"] == pytest.approx(stats.pearsonr(self.gold, self.predicted).statistic)
        assert scores["spearman"] == pytest.approx(stats.spearmanr(self.gold, self.predicted).statistic)
        assert scores["mse"] == pytest.approx((0.25 + 0.25 + 0.0625 + 0.0625 + 0.25 + 2.25) / 6)

    def test_resampling_by_weights_equals_resampling_by_index(self):
        from scipy import stats

        predictions, rows = self.predictions(), np.array([0, 0, 3, 4, 5, 1])
        weights = np.bincount(rows, minlength=6)[None].astype(float)
        scores = self.kind.figures(predictions, task_of("regression"), weights)
        gold, predicted = np.array(self.gold)[rows], np.array(self.predicted)[rows]
        assert scores["pearson"][0] == pytest.approx(stats.pearsonr(gold, predicted).statistic)
        assert scores["spearman"][0] == pytest.approx(stats.spearmanr(gold, predicted).statistic)
        assert scores["mse"][0] == pytest.approx(np.mean((gold - predicted) ** 2))

    def test_bootstrap_has_2000_draws_and_repeats(self):
        first, second = (self.kind.resample(self.predictions(), task_of("regression")) for _ in range(2))
        assert {name: values.shape for name, values in first.items()} == dict.fromkeys(
            ("pearson", "spearman", "mse"), (2000,))
        for name, values in first.items():
            assert np.isfinite(values).all()
            assert (values == second[name]).all()

    def test_a_constant_prediction_scores_0(self):
        table = pd.DataFrame({"label": self.gold})
        predictions = self.kind.predict(np.zeros((6, 1)), table, task_of("regression"))
        scores = self.kind.metrics(predictions, task_of("regression"))
        assert scores["pearson"] == scores["spearman"] == 0

    def test_steps_and_errors(self):
        predictions, task = self.predictions(), task_of("regression")
        assert predictions["gold_step"].tolist() == [
            "very impolite", "impolite", "neutral", "polite", "polite", "very polite"]
        assert predictions["predicted_step"].tolist() == [
            "impolite", "impolite", "neutral", "neutral", "neutral", "very polite"]
        assert predictions["abs_error"].tolist() == [0.5, 0.5, 0.25, 0.25, 0.5, 1.5]
        wrong = predictions[~predictions["correct"]].astype({"gold": str, "predicted": str})  # as from predictions.csv
        types = self.kind.error_types(wrong, task)
        assert types == ["over by 0.5", "under by 0.25", "under by 0.5"]
        assert [self.kind.error_class(name) for name in types] == ["over", "under", "under"]
        assert self.kind.confusion(predictions, task)["neutral"].tolist() == [0, 0, 1, 2, 0]
        assert self.kind.steps([0.1, 0.9], task | {"edges": [-1, 0, 0.5, 0.8]}).tolist() == ["neutral", "very polite"]

    def test_labels(self):
        labels = self.kind.read_labels(pd.Series(["0.5", "", "-2"]), task_of("regression"))
        np.testing.assert_equal(labels.tolist(), [0.5, np.nan, -2.0])
        with pytest.raises(UserError, match=r"'high' \(1 rows\) is no number"):
            self.kind.read_labels(pd.Series(["0.5", "high"]), task_of("regression"))

    def test_loss_is_the_squared_error(self):
        import torch

        outputs = {"logits": torch.tensor([[1.0], [3.0]])}
        assert self.kind.loss(outputs, torch.tensor([0.0, 1.0]), None) == 5
        assert not self.kind.greater_is_better("mse")
        assert self.kind.greater_is_better("pearson")


class TestMultilabel:
    kind = KINDS["multilabel"]
    task = task_of("multilabel")

    def test_figures_equal_scikit_learn(self):
        from sklearn import metrics

        rng = np.random.default_rng(0)
        gold, logits = rng.integers(0, 2, (50, 3)), rng.normal(size=(50, 3))
        table = pd.DataFrame({"label": [tuple(row) for row in gold]})
        predictions = self.kind.predict(logits, table, self.task)
        scores, predicted = self.kind.metrics(predictions, self.task), (logits >= 0).astype(int)
        for average in ("macro", "micro"):
            assert scores[f"{average}_f1"] == pytest.approx(metrics.f1_score(gold, predicted, average=average))
        assert scores["exact_match"] == pytest.approx(metrics.accuracy_score(gold, predicted))
        assert scores["accuracy"] == pytest.approx(1 - metrics.hamming_loss(gold, predicted))
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(gold, predicted)
        for i, label in enumerate("abc"):
            assert [scores[f"{name}_{label}"] for name in ("precision", "recall", "f1")] == pytest.approx(
                [precision[i], recall[i], f1[i]])
        cells = self.kind.confusion(predictions, self.task)
        assert cells.iloc[:, 1:].to_numpy().sum() == 150
        assert cells["missing"].tolist() == [((gold > predicted)[:, i]).sum() for i in range(3)]

    def test_prediction_columns(self):
        table = pd.DataFrame({"label": [(1, 0, 1), (0, 0, 0)]})
        logits = np.log(np.array([[4.0, 0.25, 0.25], [0.25, 0.25, 1 / 9]]))  # probabilities .8 .2 .2, .2 .2 .1
        predictions = self.kind.predict(logits, table, self.task)
        assert predictions["gold"].tolist() == ["a | c", "none"]
        assert predictions["predicted"].tolist() == ["a", "none"]
        assert predictions["correct"].tolist() == [False, True]
        assert predictions["confidence"].tolist() == pytest.approx([0.8**3, 0.8 * 0.8 * 0.9])
        assert predictions["gold_confidence"].tolist() == pytest.approx([0.8 * 0.8 * 0.2, 0.8 * 0.8 * 0.9])
        assert predictions["margin"].tolist() == pytest.approx([0.6, 0.6])
        assert predictions["prob_c"].tolist() == pytest.approx([0.2, 0.1])

    def test_error_types(self):
        wrong = pd.DataFrame({"gold": ["a | c", "none", "b"], "predicted": ["b", "a | b", "none"]})
        assert self.kind.error_types(wrong, self.task) == ["missing a, c; extra b", "extra a, b", "missing b"]

    def test_labels(self):
        columns = pd.DataFrame({"a": [1, 0, 1], "b": ["1", "0", ""], "c": [True, False, True]})
        assert self.kind.read_labels(columns, self.task).tolist() == [(1, 1, 1), (0, 0, 0), None]
        with pytest.raises(UserError, match="not all 0 or 1"):
            self.kind.read_labels(columns.assign(a=2), self.task)

    def test_training_score_counts_whole_sets_from_probability_one_half_on(self):
        import torch

        logits = torch.tensor([[0.1, -0.1, 2.0], [0.1, -0.1, 2.0]])
        assert self.kind.score({"logits": logits}, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])) == 1

    def test_loss_is_the_mean_over_the_labels(self):
        import torch
        from sklearn.metrics import log_loss

        logits = torch.tensor([[2.0, -1.0, 0.5]])
        loss = self.kind.loss({"logits": logits}, torch.tensor([[1.0, 1.0, 0.0]]), None)
        assert float(loss) == pytest.approx(log_loss([1, 1, 0], torch.sigmoid(logits)[0].tolist()), rel=1e-5)


class TestMultipleChoice:
    def test_input_layout_with_a_blank(self):
        table = pd.DataFrame({"text": ["the cat saw _ sang"], "one": ["a dog"], "two": ["the bird"], "label": [1]})
        assert self.decoded(table) == ["[CLS] the cat saw [SEP] a dog sang [SEP]",
                                       "[CLS] the cat saw [SEP] the bird sang [SEP]"]

    def test_input_layout_without_one(self):
        table = pd.DataFrame({"text": ["the cat saw"], "one": ["a dog"], "two": ["the bird"], "label": [1]})
        assert self.decoded(table) == ["[CLS] the cat saw [SEP] a dog [SEP]", "[CLS] the cat saw [SEP] the bird [SEP]"]

    @staticmethod
    def decoded(table):
        tokenizer = common.word_tokenizer([*TEXTS, "saw sang dog bird"])
        dataset = KINDS["multiple_choice"].encode(table, task_of("multiple_choice"), tokenizer, 16)
        batch = dataset.collate([dataset[0]])
        assert batch["input_ids"].shape[:2] == (1, 2)
        assert batch["labels"].tolist() == [1]
        assert batch["token_type_ids"][0, 0].tolist() == [0, 0, 0, 0, 0, *[1] * (batch["input_ids"].shape[2] - 5)]
        return [" ".join(word for word in tokenizer.convert_ids_to_tokens(ids) if word != "[PAD]")
                for ids in batch["input_ids"][0]]

    def test_options_are_compared_within_an_example(self):
        import torch

        kind, task, table, dataset, model = build("multiple_choice")
        outputs = common.predict(model, dataset, kind, 5, "fp32")
        assert outputs.logits.shape == (12, 2)
        assert outputs.vectors.shape == (12, 2 * 64)
        predictions = kind.predict(outputs.logits, table, task)
        assert predictions[["prob_1", "prob_2"]].sum(axis=1).tolist() == pytest.approx([1] * 12)
        head = common.head_layer(model)[1]
        with torch.no_grad():
            scores = head(torch.from_numpy(outputs.vectors).reshape(12, 2, 64)).squeeze(-1)
        np.testing.assert_allclose(scores.numpy(), outputs.logits, atol=1e-5)

    def test_error_types_and_families_without_the_head(self):
        from transformers import GPT2Config

        wrong = pd.DataFrame({"gold": ["1"], "predicted": ["2"]})
        assert KINDS["multiple_choice"].error_types(wrong, task_of("multiple_choice")) == ["2 -> 1"]
        with pytest.raises(UserError, match="no MultipleChoice head for a gpt2 model"):
            KINDS["multiple_choice"].check_model(GPT2Config())
        KINDS["span"].check_model(GPT2Config())


class TestSquadScores:
    @pytest.mark.parametrize(("predicted", "accepted", "exact", "f1"), [
        ("The  Cat!", ["cat"], 1, 1),
        ("a cat", ["An cat"], 1, 1),
        ("the big cat", ["a cat", "big red cat"], 0, 4 / 5),  # P = 2/2, R = 2/3 with the second
        ("cat cat", ["cat"], 0, 2 / 3),  # a word counts as often as it occurs
        ("cat cat dog", ["cat cat"], 0, 4 / 5),  # in both: P = 2/3, R = 2/2
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("the", [], 1, 1),  # nothing is left of "the"
        ("", ["the", "cat"], 0, 0),  # an accepted answer of which nothing is left does not count
        ("U.S.-led", ["us led"], 0, 0),  # punctuation goes without leaving a space
        ("“cat”", ["cat"], 0, 0),  # only ASCII punctuation goes
    ])
    def test_hand_worked(self, predicted, accepted, exact, f1):
        assert common.squad_scores(predicted, accepted) == (exact, pytest.approx(f1))


class TestSpan:
    kind = KINDS["span"]
    task = task_of("span", doc_stride=2)
    context = "zero one two three four five six seven eight nine"

    def encode(self, answers, context=context, max_length=9):
        tokenizer = common.word_tokenizer([self.context, "who"])
        table = pd.DataFrame({"question": ["who"] * len(answers), "context": [context] * len(answers), "label": [
            {"text": [text] if text else [], "answer_start": [context.index(text)] if text else []}
            for text in answers]})
        return table, self.kind.encode(table, self.task, tokenizer, max_length)

    def test_windows_overlap_and_hold_the_answer_or_the_null_position(self):
        table, dataset = self.encode(["three four", ""])
        # [CLS] who [SEP], 5 words, [SEP]; the next window begins 5 - 2 words on: zero.. three.. six.. (eight nine)
        assert dataset.examples.tolist() == [0, 0, 0, 1, 1, 1]
        words = [[self.context[slice(*span)] for span in
                  dataset.offsets[dataset.starts[i]:dataset.starts[i + 1]] if span[0] >= 0] for i in range(3)]
        assert words == [self.context.split()[0:5], self.context.split()[3:8], self.context.split()[6:10]]
        assert dataset.labels.tolist() == [[6, 7, 9], [3, 4, 9], [0, 0, 8], [0, 0, 9], [0, 0, 9], [0, 0, 8]]
        assert self.kind.strata(table, self.task).tolist() == ["answerable", "unanswerable"]

    def logits(self, dataset, scores):
        """Zeros (-5 for nulls), but scores[window] = (null, first token, last token, score of start and of end)."""
        logits = np.zeros((len(dataset), 12, 2), dtype=np.float32)  # 12: as padded by a longer window elsewhere
        logits[:, 9:] = 50  # padding must not be read
        logits[:, 1:3] = 50  # nor the question
        for window, (null, first, last, score) in enumerate(scores):
            logits[window, 0] = null / 2
            logits[window, first, 0] = logits[window, last, 1] = score
            logits[window, dataset.labels[window, 2] - 1:] = 50  # nor the last [SEP]
        return logits

    def test_the_vector_of_an_example_is_that_of_its_first_window(self):
        _, _, _, _, model = build("span")
        _, dataset = self.encode(["three four", ""])
        outputs = common.predict(model, dataset, self.kind, 2, "fp32")
        batch = dataset.collate([dataset[0], dataset[3]])
        expected = common.forward(model, batch, self.kind, "fp32")[1][1].numpy()
        np.testing.assert_allclose(outputs.vectors, expected, atol=1e-6)

    def test_a_tokenizer_that_knows_no_characters_is_refused(self):
        with pytest.raises(UserError, match="can't say which characters its tokens stand for"):
            self.kind.encode(pd.DataFrame(), self.task, SimpleNamespace(is_fast=False), 9)

    def test_null_score_is_the_least_of_the_windows(self):
        table, dataset = self.encode(["three four"])
        logits = self.logits(dataset, [(3, 6, 7, 2), (9, 3, 4, 2.5), (6, 3, 3, 1)])
        nulls, spans = self.kind._candidates(logits, dataset)
        assert nulls.tolist() == [3]
        assert next(iter(spans[0].items())) == ((13, 23), 5.0)  # "three four", in two windows: the better score
        assert self.context[13:23] == "three four"
        assert len(spans[0]) == self.kind.n_best
        predictions = self.kind.predict(logits, table, self.task, dataset)
        assert predictions.loc[0, ["predicted", "correct", "f1"]].tolist() == ["three four", True, 1]
        weights = np.exp([*spans[0].values(), 3.0])
        assert predictions.loc[0, "confidence"] == pytest.approx(weights[0] / weights.sum())
        assert predictions.loc[0, "prob_no_answer"] == pytest.approx(weights[-1] / weights.sum())

    def test_threshold_decides_and_the_prediction_is_the_most_probable(self):
        table, dataset = self.encode(["three four"])
        logits = self.logits(dataset, [(8, 6, 7, 2), (9, 3, 4, 2.5), (8.5, 3, 3, 1)])  # null 8, best span 5
        for threshold, predicted in ((0.0, ""), (2.9, ""), (3.1, "three four")):
            row = self.kind.predict(logits, table, self.task | {"null_threshold": threshold}, dataset).iloc[0]
            assert row["predicted"] == predicted
            assert row["margin"] >= 0
            assert row["confidence"] == max(row["confidence"], row["prob_no_answer"])

    def test_spans_end_where_they_begin_or_later_and_within_the_limit(self):
        _, dataset = self.encode(["three four"])
        logits = self.logits(dataset, [(0, 7, 4, 9), (0, 3, 3, 0), (0, 3, 3, 0)])  # the end before the start
        _, spans = self.kind._candidates(logits, dataset)
        assert all(first < last for first, last in spans[0])
        assert max(spans[0].values()) == 9

    def test_tuned_threshold(self):
        table, dataset = self.encode(["three four", "", "five", "six"], max_length=15)
        assert dataset.examples.tolist() == [0, 1, 2, 3]
        # null - span: 0 right at -4, 1 (no answer) at -1, 2 wrong ("six") at 1, 3 right at 3
        logits = np.full((4, 15, 2), -20, dtype=np.float32)
        for row, (first, last, null) in enumerate(((6, 7, -4), (5, 5, -1), (9, 9, 1), (9, 9, 3))):
            logits[row, first, 0] = logits[row, last, 1] = 0
            logits[row, 0] = null / 2
        tuned = self.kind.tune(logits, table, self.task, dataset)
        # answered:  none 1 right; 0: 2; 0, 1: 1; 0, 1, 2: 1; all: 2 -> the first of the best, between -4 and -1
        assert tuned["null_threshold"] == -2.5
        predictions = self.kind.predict(logits, table, self.task | tuned, dataset)
        assert predictions["predicted"].tolist() == ["three four", "", "", ""]
        assert self.kind.metrics(predictions, self.task) == pytest.approx({
            "f1": 0.5, "exact": 0.5, "has_ans_exact": 1 / 3, "has_ans_f1": 1 / 3, "no_ans_exact": 1, "no_ans_f1": 1})
        counts = {metric: self.kind.examples_of(metric, predictions) for metric in ("f1", "has_ans_f1", "no_ans_exact")}
        assert counts == {"f1": 4, "has_ans_f1": 3, "no_ans_exact": 1}

    def test_figures_where_every_question_has_an_answer(self):
        table = pd.DataFrame({"gold": ["a b", "c"], "correct": [True, False], "f1": [1.0, 0.5]})
        task = self.task | {"metrics": ["f1", "exact", "has_ans_f1", "no_ans_f1", "no_ans_exact"]}
        assert self.kind.metrics(table, task) == pytest.approx({
            "f1": 0.75, "exact": 0.5, "has_ans_f1": 0.75, "has_ans_exact": 0.5, "no_ans_f1": np.nan,
            "no_ans_exact": np.nan}, nan_ok=True)
        assert np.isnan(self.kind.resample(table, task)["no_ans_f1"]).all()

    def test_error_types_and_confusion(self):
        table = pd.DataFrame(
            {"gold": ["", "a b", "a b", "c"], "predicted": ["x", "", "b c", "x"], "f1": [0, 0, 0.5, 0]})
        assert self.kind.error_types(table, self.task) == [
            "false answer", "missed answer", "partial span", "wrong span"]
        assert self.kind.confusion(table, self.task).to_dict("list") == {
            "gold": ["answer", "no answer"], "answer": [2, 1], "no answer": [1, 0]}

    def test_answers_are_cut_at_characters(self):
        context = "São   Tomé, “Príncipe” 🐈 and more"
        tokenizer = common.word_tokenizer([context, "who"])
        table = pd.DataFrame({"question": ["  who  "], "context": [context],
                              "label": [{"text": ["Tomé, “Príncipe”"], "answer_start": [6]}]})
        dataset = self.kind.encode(table, self.task, tokenizer, 30)
        first, last, _ = dataset.labels[0]
        logits = np.zeros((1, 30, 2), dtype=np.float32)
        logits[0, first, 0] = logits[0, last, 1] = 5
        assert self.kind.predict(logits, table, self.task, dataset)["predicted"].tolist() == ["Tomé, “Príncipe”"]

    def test_a_question_longer_than_the_window_is_cut(self):
        tokenizer = common.word_tokenizer([self.context])
        table = pd.DataFrame({"question": [self.context * 5], "context": [self.context],
                              "label": [{"text": [], "answer_start": []}]})
        dataset = self.kind.encode(table, self.task, tokenizer, 16)
        assert dataset.lengths.max() <= 16

    def test_loss_without_padding_equals_the_models_own(self):
        import torch

        kind, _, _, dataset, model = build("span")
        batch = dataset.collate([dataset[0], dataset[4]])  # equal lengths
        assert batch["attention_mask"].all()
        labels = batch.pop("labels")
        outputs = model(**batch, start_positions=labels[:, 0], end_positions=labels[:, 1])
        torch.testing.assert_close(kind.loss(outputs, labels, None) / 2, outputs.loss)

    def test_models_without_types_or_a_cls_token(self):
        """A byte-level tokenizer and GPT-2: the null position is the first token."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import GPT2Config, GPT2ForQuestionAnswering, PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate([*alphabet, "<end>"])}, []))
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>",
                                            model_input_names=["input_ids", "attention_mask"])
        context = "the cat 🐈 sat"
        table = pd.DataFrame({"question": ["who"] * 2, "context": [context] * 2, "label": [
            {"text": ["🐈"], "answer_start": [8]}, {"text": [], "answer_start": []}]})
        dataset = self.kind.encode(table, self.task, tokenizer, 40)
        assert list(dataset.columns) == ["input_ids"]
        assert dataset.nulls.tolist() == [0, 0]
        assert dataset.labels[0, 1] - dataset.labels[0, 0] >= 3  # a cat is four bytes
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, pad_token_id=tokenizer.pad_token_id)
        outputs = common.predict(GPT2ForQuestionAnswering(config), dataset, self.kind, 2, "fp32")
        assert outputs.logits.shape == (2, dataset.lengths.max(), 2)
        assert outputs.vectors.shape == (2, 16)
        assert len(self.kind.predict(outputs.logits, table, self.task, dataset)) == 2


class TestAnswers:
    kind = KINDS["answers"]
    task = task_of("answers")

    def test_an_answer_outside_the_set_counts_as_wrong(self):
        table = pd.DataFrame({"label": ["dog", "zebra"]})
        predictions = self.kind.predict(np.array([[0.0, 1, 0], [0.0, 1, 0]]), table, self.task)
        assert predictions["gold"].tolist() == ["dog", "zebra"]
        assert predictions["predicted"].tolist() == ["dog", "dog"]
        assert predictions["correct"].tolist() == [True, False]
        assert predictions["gold_confidence"].tolist()[1] == 0
        assert not any(name.startswith("prob_") for name in predictions)
        assert self.kind.metrics(predictions, self.task) == {"accuracy": 0.5}
        assert self.kind.error_types(predictions[1:], self.task) == ["dog -> zebra"]

    def test_counts_name_ten_answers(self):
        table = pd.DataFrame({"label": [str(i) for i in range(15) for _ in range(20 - i)]})
        counts = self.kind.label_counts(table, self.task)
        assert list(counts)[:2] == ["0", "1"]
        assert list(counts.items())[-1] == ("5 others", 10 + 9 + 8 + 7 + 6)


class TestVisual:
    kind = KINDS["visual"]

    def test_images_are_opened_one_by_one_and_padded(self):
        kind, task, table, _, _ = build("visual")
        images, tokenizer = pictures(), common.word_tokenizer(TEXTS)
        dataset = kind.encode(table, task, tokenizer, 14, images)
        assert images.opened == 0
        batch = dataset.collate([dataset[0], dataset[1]])
        assert images.opened == 2
        # 40 x 80 becomes 320 x 608: the longer edge is at most 639, and both are multiples of 32
        assert batch["pixel_values"].shape == (2, 3, 384, 608)
        assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [384 * 384, 320 * 608]
        assert (batch["pixel_values"][0][:, :, 384:] == 0).all()

    def test_missing_images_and_other_families(self):
        from transformers import BertConfig

        table = table_of("visual").assign(image="99")
        with pytest.raises(UserError, match="12 of 12 examples lack their image, such as 99"):
            self.kind.encode(table, task_of("visual"), common.word_tokenizer(TEXTS), 14, pictures())
        with pytest.raises(UserError, match="not a bert model"):
            self.kind.check_model(BertConfig())

    def test_images_from_a_folder_and_from_a_dataset(self, tmp_path):
        import datasets
        from PIL import Image

        Image.new("RGB", (4, 4), "red").save(tmp_path / "n1.png")
        Image.new("L", (4, 4), 255).save(tmp_path / "n2.jpg")
        rows = datasets.Dataset.from_dict(
            {"id": ["n1", "n2"], "image": [str(tmp_path / "n1.png"), str(tmp_path / "n2.jpg")]}
        ).cast_column("image", datasets.Image())
        for images in (common.Images(tmp_path), common.Images(rows)):
            assert "n1" in images
            assert "n3" not in images
            assert images["n1"].getpixel((0, 0)) == (255, 0, 0)
            assert images["n2"].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("max_images", "there"), [(None, 6), (2, 4)])
def test_images_of_the_hub_are_those_of_each_split(monkeypatch, max_images, there):
    """--max-images takes the first ones, from a stream, so that the others are never fetched."""
    import argparse

    import datasets
    from PIL import Image

    def load_dataset(hub, config, split, revision, streaming):
        rows = {"id": [f"{split}-{i}" for i in range(3)], "image": [Image.new("RGB", (4, 4), "red")] * 3, "more": "abc"}
        columns = datasets.Features({name: datasets.Image() if name == "image" else datasets.Value("string")
                                     for name in rows})
        dataset = datasets.Dataset.from_dict(rows | {"more": ["x"] * 3}, features=columns)
        assert streaming == (max_images is not None)
        return dataset.to_iterable_dataset() if streaming else dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = {"hub": "a/b", "splits": {"train": "train", "test": "val"}, "images": {"train": "t", "val": "v"}}
    images = common.read_images(task, argparse.Namespace(sample=False, max_images=max_images))
    assert len(images) == there
    assert all(f"{split}-{i}" in images for split in ("train", "val") for i in range(there // 2))
    assert images["val-0"].getpixel((0, 0)) == (255, 0, 0)


class TestPrepare:
    def test_csqa(self):
        raw = pd.DataFrame({"id": ["x"], "question": ["where?"], "question_concept": ["y"], "answerKey": ["B"],
                            "choices": [{"label": np.array(list("ABCDE")), "text": np.array(list("vwxyz"))}]})
        assert common.PREPARE["csqa"](raw).to_dict("records") == [
            {"question": "where?", "answerKey": "B", "A": "v", "B": "w", "C": "x", "D": "y", "E": "z"}]

    def test_wsc(self):
        text = "The man lifted the boy onto his shoulders."
        raw = pd.DataFrame({"text": [text], "pronoun": ["his"], "pronoun_loc": [text.index("his")],
                            "options": [["The man", "the boy"]], "label": [0]})
        assert common.PREPARE["wsc"](raw).to_dict("records") == [
            {"sentence": "The man lifted the boy onto _ shoulders.", "option1": "the man's", "option2": "the boy's",
             "answer": "1"}]

    @pytest.mark.parametrize(("option", "pronoun", "filled"), [
        ("the trophy", "It", "The trophy"), ("The trophy", "it", "the trophy"), ("Emma's", "her", "Emma's"),
        ("Emma's mother", "her", "Emma's mother's"), ("Jim", "him", "Jim")])
    def test_option_in_place_of_the_pronoun(self, option, pronoun, filled):
        assert common.in_place_of(option, pronoun) == filled

    def test_wsc_superglue(self):
        raw = pd.DataFrame({"text": ["Mark told Pete lies, which he should have."], "span1_text": ["Mark"],
                            "span2_index": [5], "span2_text": ["he"], "label": [1]})
        assert common.PREPARE["wsc_superglue"](raw).to_dict("records") == [
            {"sentence": "Mark told Pete lies, which *he* should have.", "candidate": "Mark", "label": 1}]
