"""A toy task of every kind: a catalog entry, a dozen rows, a data set and a tiny model."""

import numpy as np
import pandas as pd
import torch
from PIL import Image

import common
from catalog.gqa import KINDS as GQA
from catalog.squad2 import KINDS as SQUAD

KINDS = {**common.KINDS, **SQUAD, **GQA}
TEXTS = ["the red cat sat on a mat", "a dog", "nobody saw the blue bird that sang", "one two three four"]
TASKS = {
    "classification": {"text": ["text"], "label": "label", "labels": ["cat", "dog", "no"], "metrics": ["macro_f1"]},
    "regression": {"text": ["text"], "label": "value", "scale": [-2.0, 2.0], "metrics": ["pearson", "spearman", "mse"],
                   "steps": ["very impolite", "impolite", "neutral", "polite", "very polite"]},
    "multilabel": {"text": ["text"], "label": ["a", "b", "c"], "labels": ["a", "b", "c"], "metrics": ["macro_f1"]},
    "multiple_choice": {"text": ["text"], "options": ["one", "two"], "label": "label", "labels": ["1", "2"],
                        "metrics": ["accuracy"]},
    "span": {"row_file": "squad2", "text": ["question", "context"], "label": "answers", "doc_stride": 4,
             "metrics": ["f1", "exact"]},
    "answers": {"row_file": "gqa", "text": ["text"], "label": "answer", "labels": ["cat", "dog", "no"],
                "metrics": ["accuracy"]},
}
TASKS["visual"] = {**TASKS["answers"], "image": "image"}


def task_of(name, **changes):
    return {"key": f"toy-{name}", "kind": name, **TASKS[name], **changes}


def table_of(name, rows=12):
    """A split as load_data makes it, with the texts of all kinds."""
    rng, texts = np.random.default_rng(1), [TEXTS[i % 4] for i in range(rows)]
    labels = {"regression": rng.normal(size=rows), "multiple_choice": rng.choice(["1", "2"], rows),
              "multilabel": [["none", "a | c", "b", "a | b | c"][i % 4] for i in range(rows)],
              "span": [{"text": [text.split()[-1]], "answer_start": [text.rindex(" ") + 1]} if i % 3 else
                       {"text": [], "answer_start": []} for i, text in enumerate(texts)]}
    return pd.DataFrame({
        "id": [f"train-{i}" for i in range(rows)], "text": texts, "context": texts, "question": "who sat where",
        "one": "the red cat", "two": "a dog that sang", "image": [str(i % 3) for i in range(rows)],
        "label": labels.get(name, rng.choice(["cat", "dog", "no"], rows))})


def pictures():
    """Images by id."""
    rng = np.random.default_rng(2)
    shapes = {"0": (40, 40, 3), "1": (40, 80, 3), "2": (60, 40, 3)}
    return {name: Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for name, shape in shapes.items()}


def build(name, rows=12, dropout=0.0):
    """Kind, task, table, data set and a tiny model."""
    torch.manual_seed(0)
    task, table = task_of(name), table_of(name, rows)
    kind = common.kind_of(task)
    tokenizer, model = common.build_sample_model(common.Data(task, {"train": table}, {}), dropout)
    if name == "visual":
        kind.images = pictures()
    return kind, task, table, kind.encode(table, task, tokenizer, 14), model


def batch_of(dataset, rows):
    """The model's inputs and the labels."""
    batch = dataset.collate([dataset[i] for i in rows])
    return batch, batch.pop("labels")
