"""SQuAD 2.0: a stretch of the context that answers the question, or none. The kind span, its windows and scores."""

import math
import re
import string
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import softmax
from torch import Tensor

from common import Array, Kind, Table, Task, TokenDataset, UserError, fit_temperature, pad_values, ratio

MAX_ANSWER_TOKENS, N_BEST = 30, 20  # those of transformers' run_qa.py


class WindowDataset(TokenDataset):
    """Windows over long contexts. labels: int64 (windows, 3): first and last token of the answer, tokens.

    columns, pads: as TokenDataset's, a sequence per window.
    labels: as above; both positions are the null position where the window holds no answer.
    examples: int, (windows,): the row of the table that each is cut from, ascending.
    offsets: per window int (tokens, 2): the characters of the context that a token stands for; -1 outside it.
    nulls: int, (windows,): the null position, whose score is that of "no answer".
    """

    def __init__(self, columns: dict[str, list[Any]], labels: Array, pads: dict[str, int], examples: list[int],
                 offsets: list[Array], nulls: list[int]):
        super().__init__(columns, labels, pads)
        self.examples, self.nulls = np.array(examples, dtype=np.int64), np.array(nulls, dtype=np.int64)
        self.offsets = np.concatenate(offsets)  # flat, (tokens of all windows, 2)


class Span(Kind):
    """A stretch of the context, or no answer.

    label: {"text": [...], "answer_start": [...]}, the accepted answers; empty lists: the question has none. The
    model's examples are windows of up to max_length tokens that overlap by task["doc_stride"] (128) tokens.
    """

    auto_class = "AutoModelForQuestionAnswering"
    train_metric = "window_exact"
    closed_set = takes_class_weights = False
    outputs = ("start", "end")
    confidence_is = "probability of the answer among the n best spans and no answer"
    tuned = ("null_threshold", "temperature")
    GROUPS = ("no answer", "answerable")
    PARTS = {"": lambda gold: gold.notna(), "has_ans_": lambda gold: gold != "",
             "no_ans_": lambda gold: gold == ""}  # the questions that metrics are over, by how their names begin
    METRICS = dict.fromkeys(f"{part}{name}" for part in PARTS for name in ("exact", "f1"))  # figures() has them
    NEEDS = {}

    def read_labels(self, column: pd.Series, task: Task) -> pd.Series:
        """The accepted answers as plain lists; None where there is no cell."""
        return column.map(lambda answers: {
            "text": [str(text) for text in answers["text"]],
            "answer_start": [int(start) for start in answers["answer_start"]]} if isinstance(answers, dict) else None)

    def strata(self, table: Table, task: Task) -> Array:
        """Whether the question has an answer."""
        return np.array(["answerable" if answers["text"] else "unanswerable" for answers in table["label"]])

    def gold(self, table: Table) -> Array:
        """The accepted answers, joined by ` | `; "" where there is none."""
        return np.array([" | ".join(dict.fromkeys(answers["text"])) for answers in table["label"]], dtype=object)

    def encode(self, table: Table, task: Task, tokenizer: Any, max_length: int) -> WindowDataset:
        """Windows over question and context, in the order of `table`; a question is cut to half of max_length."""
        if not tokenizer.is_fast:
            raise UserError("this model's tokenizer can't say which characters its tokens stand for; take another")
        columns = {name: [] for name in pad_values(tokenizer)}
        labels, examples, offsets, nulls = [], [], [], []
        for first in range(0, len(table), 1000):
            rows = table.iloc[first:first + 1000]
            questions = rows[task["text"][0]].str.strip().tolist()
            asked = tokenizer(questions, truncation=True, max_length=max_length // 2, add_special_tokens=False,
                              return_offsets_mapping=True, split_special_tokens=True)["offset_mapping"]
            questions = [question[:max((end for _, end in pairs), default=0)]
                         for question, pairs in zip(questions, asked, strict=True)]
            encoded = tokenizer(
                questions, rows[task["text"][1]].tolist(), truncation="only_second", max_length=max_length,
                stride=min(task.get("doc_stride", 128), max_length // 4), return_overflowing_tokens=True,
                return_offsets_mapping=True, return_attention_mask=False, split_special_tokens=True)
            for name in columns:
                columns[name] += [np.array(ids, dtype=np.int32) for ids in encoded[name]]
            for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
                ids = encoded["input_ids"][window]
                in_context = np.array([part == 1 for part in encoded.sequence_ids(window)])
                offsets.append(np.where(in_context[:, None], encoded["offset_mapping"][window], -1).astype(np.int32))
                # cls_token is BERT's [CLS] and RoBERTa's <s>; where there is none, as in GPT-2, the first token serves
                nulls.append(ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0)
                labels.append([*answer_tokens(rows["label"].iloc[row], offsets[-1], nulls[-1]), len(ids)])
                examples.append(first + row)
        return WindowDataset(columns, np.array(labels, dtype=np.int64), pad_values(tokenizer), examples, offsets, nulls)

    def loss(self, outputs: Any, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Mean of the cross-entropies of the first and the last token in nats, summed; logits (batch, tokens) each.

        Padding is masked: the loss of a window must not depend on its neighbours in the batch.
        """
        starts, ends, lengths = labels.T
        return sum(F.cross_entropy(mask_padding(outputs[name].float(), lengths), positions, reduction="sum")
                   for name, positions in (("start_logits", starts), ("end_logits", ends))) / 2

    def score(self, outputs: Any, labels: Tensor) -> Tensor:
        """Number of windows whose first and last token are both right."""
        starts, ends, lengths = labels.T
        right = [mask_padding(outputs[name].detach(), lengths).argmax(dim=1) == positions
                 for name, positions in (("start_logits", starts), ("end_logits", ends))]
        return (right[0] & right[1]).sum()

    def logits(self, outputs: Any) -> Tensor:
        """Start and end logits, float32 (batch, tokens, 2)."""
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1).float()

    def head_vectors(self, hidden: Tensor, inputs: dict[str, Tensor], pad_token_id: int) -> Tensor:
        """The first token's vector, from which "no answer" is read, (batch, hidden size)."""
        return hidden[:, 0]

    def candidates(self, logits: Array, dataset: WindowDataset) -> tuple[Array, list[dict[Any, float]]]:
        """Per example: the null score, the least over its windows, and the n best spans, {(from, to): score}.

        from and to are characters of the context; a score is the start's logit plus the end's.
        """
        nulls = np.full(dataset.examples.max(initial=-1) + 1, math.inf)
        spans: list[dict[Any, float]] = [{} for _ in nulls]
        for window, example in enumerate(dataset.examples):
            tokens = slice(dataset.starts[window], dataset.starts[window + 1])
            start, end = logits[window, :tokens.stop - tokens.start].astype(np.float64).T
            null, offsets = dataset.nulls[window], dataset.offsets[tokens]
            nulls[example] = min(nulls[example], start[null] + end[null])
            context = np.flatnonzero(offsets[:, 0] >= 0)
            if len(context) == 0:
                continue
            end = np.pad(end[context], (0, MAX_ANSWER_TOKENS - 1), constant_values=-math.inf)
            ends = np.lib.stride_tricks.sliding_window_view(end, MAX_ANSWER_TOKENS)
            scores = start[context, None] + ends  # [i, k]: from the context's token i to its token i + k
            for best in np.argpartition(-scores, N_BEST, axis=None)[:N_BEST]:
                i, k = divmod(best, MAX_ANSWER_TOKENS)
                if i + k < len(context):
                    span = int(offsets[context[i], 0]), int(offsets[context[i + k], 1])
                    spans[example][span] = max(scores[i, k], spans[example].get(span, -math.inf))
        return nulls, [dict(sorted(found.items(), key=lambda item: -item[1])[:N_BEST]) for found in spans]

    def tune(self, logits: Array, table: Table, task: Task, dataset: TokenDataset) -> dict[str, float]:
        """null_threshold: how far the null score may be above the best span's, where F1 over `table` is highest.

        The official script's find_best_thresh, but for the place: halfway between two examples. temperature: where the
        log-likelihood of the predicted answers' being right or wrong is highest, as the gold answer may not be among
        the n best.
        """
        nulls, spans = self.candidates(logits, dataset)
        gaps = nulls - np.array([max(found.values(), default=-1e4) for found in spans])
        gains = [squad_scores(context[slice(*next(iter(found), (0, 0)))], answers["text"])[1] if answers["text"] else -1
                 for found, context, answers in zip(spans, table[task["text"][1]], table["label"], strict=True)]
        edges, places = np.unique(gaps, return_inverse=True)
        totals = np.concatenate([[0], np.cumsum(np.bincount(places, weights=gains))])
        cuts = np.concatenate([[edges[0] - 1], (edges[:-1] + edges[1:]) / 2, [edges[-1] + 1]])
        threshold = float(cuts[totals.argmax()])
        right = self.answers(nulls, spans, table, task | {"null_threshold": threshold})["correct"].to_numpy()
        scores = np.full((len(spans), N_BEST + 1), -math.inf)
        scores[:, -1] = nulls - threshold
        for row, found in zip(scores, spans, strict=True):
            row[:len(found)] = list(found.values())

        def loss(temperature: float) -> float:
            sure = softmax(scores / temperature, axis=1).max(axis=1).clip(1e-12, 1 - 1e-12)  # both logarithms finite
            return -np.log(np.where(right, sure, 1 - sure)).mean()

        return {"null_threshold": threshold, "temperature": fit_temperature(loss)}

    def predict(self, logits: Array, table: Table, task: Task, dataset: TokenDataset) -> Table:
        """Answers cut from the context, "" for none; probabilities over an example's n best spans and no answer.

        null_threshold is taken off the null score first, so that what is most probable is what is predicted.
        gold_confidence: of all spans that read like an accepted answer; correct: exact match; f1: the best over them.
        """
        return self.answers(*self.candidates(logits, dataset), table, task)

    def answers(self, nulls: Array, spans: list[dict[Any, float]], table: Table, task: Task) -> Table:
        """predict() of what candidates() found."""
        rows = []
        for null, found, context, answers, gold in zip(
                nulls, spans, table[task["text"][1]], table["label"], self.gold(table), strict=True):
            texts = [*(context[slice(*span)] for span in found), ""]
            probabilities = softmax(np.array([*found.values(), null - task.get("null_threshold", 0.0)]))
            best, accepted = probabilities.argmax(), {normalize_answer(text) for text in answers["text"] or [""]}
            ranked, (exact, f1) = np.sort(probabilities), squad_scores(texts[best], answers["text"])
            rows.append({
                "gold": gold, "predicted": texts[best], "correct": exact == 1,
                "confidence": probabilities[best],
                "gold_confidence": sum(p for p, text in zip(probabilities, texts, strict=True)
                                       if normalize_answer(text) in accepted),
                "margin": ranked[-1] - ranked[:-1].max(initial=0), "prob_no_answer": probabilities[-1], "f1": f1})
        return pd.DataFrame(rows)

    def figures(self, predictions: Table, task: Task, weights: Array) -> dict[str, Array]:
        """exact and f1 of all questions, of those that have an answer and of those that have none (NaN without any)."""
        scores = {}
        for part, is_in in self.PARTS.items():
            rows = is_in(predictions["gold"]).to_numpy()
            for name, column in (("exact", "correct"), ("f1", "f1")):
                values = predictions[column].to_numpy(np.float64)
                shares = ratio(weights @ (values * rows), weights @ rows)
                scores[part + name] = shares if rows.any() else np.full(len(shares), math.nan)
        return scores

    def examples_of(self, metric: str, predictions: Table) -> int:
        """The questions that have an answer, or none, where the metric is of these alone."""
        return int(self.PARTS.get(metric[:metric.rfind("_") + 1], self.PARTS[""])(predictions["gold"]).sum())

    # What the scripts' tables hold for the kinds of common.py.

    def confusion(self, predictions: Table) -> Table:
        """confusion.csv: whether there is an answer (rows), and whether one is predicted (columns)."""
        gold, predicted = (self.groups(predictions[name]) for name in ("gold", "predicted"))
        return pd.crosstab(gold, predicted).reindex(index=self.GROUPS, columns=self.GROUPS, fill_value=0)

    def groups(self, answers: pd.Series) -> pd.Series:
        """What colour and shape stand for in pictures: answerable or not, the positive last."""
        return answers.eq("").map({True: self.GROUPS[0], False: self.GROUPS[1]})

    def error_types(self, wrong: Table, task: Task) -> list[str]:
        """false answer, missed answer, wrong span, or partial span where a word is shared."""
        return ["false answer" if gold == "" else "missed answer" if predicted == "" else
                "partial span" if f1 > 0 else "wrong span"
                for gold, predicted, f1 in zip(wrong["gold"], wrong["predicted"], wrong["f1"], strict=True)]

    def floors(self, train: Table, test: Table, task: Task) -> dict[str, Table]:
        """No answer to any question: right, word for word, where there is none."""
        right = test["gold"] == ""
        return {"no answer": test[["gold"]].assign(predicted="", correct=right, f1=right.astype("float64"))}

    def judge(self, gold: pd.Series, answers: pd.Series) -> Table:
        """gold, predicted, correct and f1 of answers beside the accepted ones, as gold() joins them."""
        scores = np.array([squad_scores(answer, accepted.split(" | "))
                           for answer, accepted in zip(answers, gold, strict=True)]).reshape(-1, 2)
        return pd.DataFrame({"gold": gold, "predicted": answers, "correct": scores[:, 0] == 1, "f1": scores[:, 1]})

    def parse_answer(self, line: str) -> tuple[str | None, str]:
        """An LLM's answer, "" where it says that there is none; how it was read."""
        if re.search(r"\bunanswerable\b|^\W*no answer\W*$", line, re.IGNORECASE):
            return "", "no answer"
        return (line.strip("\"“”*`"), "text") if normalize_answer(line) else (None, "no word")

    @property
    def answer_form(self) -> dict[str, Any]:
        """What llm_compare.py asks an LLM for, and how it reads and judges the answers."""
        return {"request": "Answer with the shortest stretch of the context that answers the question, word for word, "
                           "or with unanswerable, and nothing else.", "new_tokens": 32, "right_metric": "exact",
                "example": lambda answers: answers.split(" | ")[0] or "unanswerable", "parse": self.parse_answer,
                "judge": self.judge}


KINDS = {"span": Span()}


def mask_padding(logits: Tensor, lengths: Tensor) -> Tensor:
    """Logits (batch, tokens), minus infinity from each row's length on."""
    return logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= lengths[:, None], -math.inf)


def answer_tokens(answers: dict[str, Any], offsets: Array, null: int) -> tuple[int, int]:
    """First and last token of the first accepted answer; (null, null) where the window does not hold all of it."""
    context = np.flatnonzero(offsets[:, 0] >= 0)
    if answers["text"] and len(context):
        first = answers["answer_start"][0]
        last = first + len(answers["text"][0])
        starts, ends = offsets[context].T
        if starts[0] <= first and last <= ends[-1]:
            return (int(context[np.searchsorted(ends, first, side="right")]),
                    int(context[np.searchsorted(starts, last, side="left") - 1]))
    return null, null


# SQuAD 2.0's score, by the definition of its official script:
# https://worksheets.codalab.org/rest/bundles/0x6b567e1cf2e041ec80d7098f031c5c9e/contents/blob/


def normalize_answer(text: str) -> str:
    """`text` in lower case, without ASCII punctuation, then without a, an and the, single spaces between the words."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_scores(predicted: str, accepted: list[str]) -> tuple[float, float]:
    """Exact match and F1 of the words, each the best over the accepted answers; none accepted: "" alone is right."""
    accepted = [text for text in accepted if normalize_answer(text)] or [""]
    exact = max(float(normalize_answer(predicted) == normalize_answer(text)) for text in accepted)
    return exact, max(word_f1(normalize_answer(predicted).split(), normalize_answer(text).split()) for text in accepted)


def word_f1(predicted: list[str], gold: list[str]) -> float:
    """2PR / (P + R) of the words, each as often as it occurs; with no word on a side, whether both have none."""
    if not predicted or not gold:
        return float(predicted == gold)
    shared = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * shared / (len(predicted) + len(gold))
