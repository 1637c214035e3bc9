"""CommonsenseQA: the hub's columns as the task's."""

import pandas as pd


def prepare(table: pd.DataFrame) -> pd.DataFrame:
    """question, answerKey (a letter), and the choices' texts in the columns A to E."""
    options = pd.DataFrame([dict(zip(choices["label"], choices["text"], strict=True)) for choices in table["choices"]])
    return pd.concat([table[["question", "answerKey"]].reset_index(drop=True), options], axis=1)
