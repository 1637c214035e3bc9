"""SQuAD 2.0's own kind: the official scores, windows over long contexts, "no answer", threshold."""

import numpy as np
import pandas as pd
import pytest
from toys import batch_of, build, task_of

import common
from catalog.squad2 import KINDS, N_BEST, squad_scores

KIND, TASK = KINDS["span"], task_of("span", doc_stride=2)
CONTEXT = "zero one two three four five six seven eight nine"


@pytest.mark.parametrize(("predicted", "accepted", "exact", "f1"), [
    ("The  Cat!", ["cat"], 1, 1),
    ("the big cat", ["a cat", "big red cat"], 0, 4 / 5),  # P = 2/2, R = 2/3 with the second
    ("cat cat", ["cat"], 0, 2 / 3),  # a word counts as often as it occurs
    ("cat cat dog", ["cat cat"], 0, 4 / 5),  # in both: P = 2/3, R = 2/2
    ("", ["cat"], 0, 0),
    ("", [], 1, 1),
    ("cat", [], 0, 0),
    ("the", [], 1, 1),  # nothing is left of "the"
    ("", ["the", "cat"], 0, 0),  # an accepted answer of which nothing is left does not count
    ("U.S.-led", ["us led"], 0, 0),  # punctuation goes without leaving a space
    ("“cat”", ["cat"], 0, 0)])  # only ASCII punctuation goes
def test_scores_by_the_official_definition(predicted, accepted, exact, f1):
    assert squad_scores(predicted, accepted) == (exact, pytest.approx(f1))


def squad(answers, context=CONTEXT, question="who"):
    """Questions on one context, "" for those without an answer."""
    return pd.DataFrame({"question": [question] * len(answers), "context": [context] * len(answers), "label": [
        {"text": [text] if text else [], "answer_start": [context.index(text)] if text else []} for text in answers]})


def encode(table, max_length=9):
    return KIND.encode(table, TASK, common.word_tokenizer([*table["context"], "who"]), max_length)


def scored(dataset, scores):
    """Logits: zeros, but scores[window] = (null, first token, last token, score of start and of end).

    50 stands wherever nothing must be read: in padding, in the question, in the last [SEP].
    """
    logits = np.zeros((len(dataset), 12, 2), dtype=np.float32)  # 12: as padded by a longer window elsewhere
    logits[:, 9:] = logits[:, 1:3] = 50
    for window, (null, first, last, score) in enumerate(scores):
        logits[window, 0] = null / 2
        logits[window, first, 0] = logits[window, last, 1] = score
        logits[window, dataset.labels[window, 2] - 1:] = 50
    return logits


def test_windows_overlap_and_hold_the_answer_or_the_null_position():
    table = squad(["three four", ""])
    dataset = encode(table)
    # [CLS] who [SEP], 5 words, [SEP]; the next window begins 5 - 2 words on: zero.. three.. six.. (eight nine)
    assert dataset.examples.tolist() == [0, 0, 0, 1, 1, 1]
    words = [[CONTEXT[slice(*span)] for span in dataset.offsets[dataset.starts[i]:dataset.starts[i + 1]]
              if span[0] >= 0] for i in range(3)]
    assert words == [CONTEXT.split()[0:5], CONTEXT.split()[3:8], CONTEXT.split()[6:10]]
    assert dataset.labels.tolist() == [[6, 7, 9], [3, 4, 9], [0, 0, 8], [0, 0, 9], [0, 0, 9], [0, 0, 8]]
    assert KIND.strata(table, TASK).tolist() == ["answerable", "unanswerable"]
    assert encode(squad([""], question=CONTEXT * 5), 16).lengths.max() <= 16  # a long question is cut


def test_the_vector_of_an_example_is_that_of_its_first_window():
    model, dataset = build("span")[-1], encode(squad(["three four", ""]))
    vectors = common.forward(model, batch_of(dataset, [0, 3])[0], KIND, "fp32")[2].numpy()
    np.testing.assert_allclose(common.predict(model, dataset, KIND, 2).vectors, vectors, atol=1e-6)


def test_answers_are_cut_at_characters():
    table = squad(["Tomé, “Príncipe”"], "São   Tomé, “Príncipe” 🐈 and more", "  who  ")
    dataset = encode(table, 30)
    first, last, _ = dataset.labels[0]
    logits = np.zeros((1, 30, 2), dtype=np.float32)
    logits[0, first, 0] = logits[0, last, 1] = 5
    assert KIND.predict(logits, table, TASK, dataset)["predicted"].tolist() == ["Tomé, “Príncipe”"]


def test_null_score_is_the_least_of_the_windows_and_a_span_in_two_has_the_better_score():
    table = squad(["three four"])
    dataset = encode(table)
    logits = scored(dataset, [(3, 6, 7, 2), (9, 3, 4, 2.5), (6, 3, 3, 1)])
    nulls, spans = KIND.candidates(logits, dataset)
    assert nulls.tolist() == [3]
    assert next(iter(spans[0].items())) == ((13, 23), 5.0)
    assert len(spans[0]) == N_BEST
    row = KIND.predict(logits, table, TASK, dataset).iloc[0]
    assert row[["predicted", "correct", "f1"]].tolist() == ["three four", True, 1]
    weights = np.exp([*spans[0].values(), 3.0])
    assert row["confidence"] == row["gold_confidence"] == pytest.approx(weights[0] / weights.sum())
    assert row["prob_no_answer"] == pytest.approx(weights[-1] / weights.sum())
    for threshold, predicted in ((-2.1, ""), (-1.9, "three four")):  # null less the best span is -2
        row = KIND.predict(logits, table, TASK | {"null_threshold": threshold}, dataset).iloc[0]
        assert row["predicted"] == predicted
        assert row["confidence"] == max(row["confidence"], row["prob_no_answer"])  # the most probable one
    _, spans = KIND.candidates(scored(dataset, [(0, 7, 4, 9), (0, 3, 3, 0), (0, 3, 3, 0)]), dataset)
    assert all(first < last for first, last in spans[0])  # none ends before it begins
    assert max(spans[0].values()) == 9


def test_tuned_threshold_and_figures_by_hand():
    table = squad(["three four", "", "five", "six"])
    dataset = encode(table, max_length=15)
    # null - span: 0 right at -4, 1 (no answer) at -1, 2 wrong ("six") at 1, 3 right at 3
    logits = np.full((4, 15, 2), -20, dtype=np.float32)
    for row, (first, last, null) in enumerate(((6, 7, -4), (5, 5, -1), (9, 9, 1), (9, 9, 3))):
        logits[row, first, 0] = logits[row, last, 1] = 0
        logits[row, 0] = null / 2
    tuned = KIND.tune(logits, table, TASK, dataset)
    # answered:  none 1 right; 0: 2; 0, 1: 1; 0, 1, 2: 1; all: 2 -> the first of the best, between -4 and -1
    assert tuned["null_threshold"] == -2.5
    predictions = KIND.predict(logits, table, TASK | tuned, dataset)
    assert predictions["predicted"].tolist() == ["three four", "", "", ""]
    assert KIND.metrics(predictions, TASK) == pytest.approx({
        "f1": 0.5, "exact": 0.5, "has_ans_exact": 1 / 3, "has_ans_f1": 1 / 3, "no_ans_exact": 1, "no_ans_f1": 1})
    counts = {metric: KIND.examples_of(metric, predictions) for metric in ("f1", "has_ans_f1", "no_ans_exact")}
    assert counts == {"f1": 4, "has_ans_f1": 3, "no_ans_exact": 1}


def test_confusion_and_floor():
    table = pd.DataFrame({"gold": ["", "a b", "a b", "c"], "predicted": ["x", "", "b c", "x"], "f1": [0, 0, 0.5, 0]})
    assert KIND.confusion(table).to_numpy().tolist() == [[0, 1], [1, 2]]  # no answer, answerable
    (floor,) = KIND.floors(table, table, TASK).values()
    assert KIND.metrics(floor, TASK)["f1"] == 0.25
