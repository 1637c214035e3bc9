"""The Winograd family: the hub's columns as the task's."""

import pandas as pd


def prepare(table: pd.DataFrame) -> pd.DataFrame:
    """The task's columns, by what the hub's are.

    WinoGrande comes in twins, a sentence twice but for a word that turns the answer: they have the same two options,
    and `group` is the pair of these.
    """
    if "pronoun_loc" in table:
        return prepare_wsc(table)
    if "span2_index" in table:
        return prepare_superglue(table)
    pairs = table[["option1", "option2"]].apply(lambda column: column.str.casefold())
    return table.assign(group=pairs.min(axis=1) + " | " + pairs.max(axis=1))


def prepare_wsc(table: pd.DataFrame) -> pd.DataFrame:
    """WSC273 and WSC285 in WinoGrande's columns: sentence with the pronoun as `_`, option1, option2, answer (1, 2)."""
    rows = []
    for text, pronoun, place, options, label in zip(
            table["text"], table["pronoun"], table["pronoun_loc"], table["options"], table["label"], strict=True):
        first, second = (in_place_of(option, pronoun) for option in options)
        rows.append({"sentence": f"{text[:place]}_{text[place + len(pronoun):]}", "option1": first, "option2": second,
                     "answer": str(label + 1)})
    return pd.DataFrame(rows)


def in_place_of(option: str, pronoun: str) -> str:
    """`option` as it stands where the pronoun stood: the case of its article, and 's for his and her.

    In these sets "her" is a possessive wherever it is the pronoun.
    """
    if pronoun[0].isupper():
        option = option[0].upper() + option[1:]
    elif option.split()[0] in ("The", "A", "An", "My", "His", "Her"):
        option = option[0].lower() + option[1:]
    return option + "'s" if pronoun.lower() in ("his", "her") and not option.endswith("'s") else option


def prepare_superglue(table: pd.DataFrame) -> pd.DataFrame:
    """sentence with the pronoun in asterisks (as T5 reads it), candidate, label (1: the candidate is meant)."""
    sentences = []
    for text, word, pronoun in zip(table["text"], table["span2_index"], table["span2_text"], strict=True):
        words = text.split()
        words[word] = words[word].replace(pronoun, f"*{pronoun}*", 1)
        sentences.append(" ".join(words))
    return pd.DataFrame({"sentence": sentences, "candidate": table["span1_text"].tolist(),
                         "label": table["label"].astype("int64").tolist()})
