"""The error sheet: wrong test samples for a person to annotate, and what they wrote, ranked. Needs no model.

python errors.py --dataset mrpc           after evaluate.py: writes errors.csv; fill in its columns cause and solution
python errors.py --dataset mrpc           again: merges the sheet with what you wrote, ranks causes and solutions
python errors.py --dataset mrpc --check   renews the report and lists what is missing for handing in
"""

import argparse
import codecs
import csv
import difflib
import io
import itertools
import math
import re
import sys
import textwrap
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import (
    KINDS,
    Parser,
    UserError,
    add_run_flags,
    command,
    figure_note,
    find_run,
    hold,
    new_figure,
    positive_int,
    read_csv,
    read_predictions,
    save_figure,
    set_title,
    stratified_rows,
    text_columns,
    unescape_formula,
    write_atomically,
    write_csv,
)
from visualize import shorten, write_report

# Columns of errors.csv. Those of COMPUTED are renewed by every call and llm_prediction is llm_compare.py's; all others
# are a person's, and so is any column that they add. A second annotator adds cause_2 and solution_2.
NUMBERS = ["confidence", "gold_confidence", "margin"]
COMPUTED = ["id", "input", "gold", "predicted", *NUMBERS, "error_type", "auto_tags"]
ANNOTATIONS = ["cause", "solution", "cause_2", "solution_2", "notes"]
SHEET_COLUMNS = [*COMPUTED, "cause", "solution", "notes", "llm_prediction"]
RATE_COLUMNS = ["n_inside", "errors_inside", "error_rate_inside", "ci_low", "ci_high", "n_outside", "errors_outside",
                "error_rate_outside", "outside_ci_low", "outside_ci_high"]
RANKING_COLUMNS = ["rank", "name", "count", "share", "ci_low", "ci_high", "n_annotated", "n_errors"]
MAX_INPUT = 32_000  # characters; a cell of Excel holds 32,767
NEGATION = re.compile(r"\b(no|not|never|none|nobody|nothing|nowhere|neither|nor|without|cannot)\b|n['’]t\b", re.I)
MORE_DATA = re.compile(r"(more|additional) (training )?(data|examples|samples)\W*")  # no solution by itself
STRAIGHT_QUOTES = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")

CODEBOOK = """# Codebook of errors.csv

Fill in `cause` and `solution` by hand, with these names or your own; several in a cell: `a | b`. `notes` and columns
that you add are yours too; a second annotator adds `cause_2` and `solution_2`. errors.py renews the other columns and
leaves yours. Bring the sheet back as CSV in UTF-8, under its old name; .xlsx is not read.

## cause (why the model is wrong)
- surface pattern: a word, a format or an overlap decided, whatever the text means
- over-generalisation: what holds for most training samples was applied where it does not
- negation or scope: a negation, a condition or a contrast was missed
- world knowledge: the answer takes a fact that the text does not state
- figurative language: irony, idiom, metaphor
- rare words: names, slang, spelling or a subject that the training texts lack
- numbers or names: quantities, dates, or who did what
- long input: the deciding part is cut off or buried
- ambiguous gold: people could defend both labels
- wrong gold: the gold label is a mistake

## solution (what would mend it)
- relabel: correct the gold label, or the guideline behind it
- more data of a kind: name it, as in `more data: negated questions`; `more data` alone does not count
- augment: make training samples out of others, as in `augment: swap names`
- features: give the model linguistic features beside the text; name them
- rule: before or after the model; name it
- larger context: longer inputs, or the text around the sample
- other model: one pretrained on such text, or a larger one
- other labels: merge, split or redefine labels

## auto_tags (hints that errors.py finds)
- very long, very short: among the longest or shortest 5 % of the evaluated samples, in characters
- negation: holds an English negation (not, no, never, nothing, without, -n't, ...)
- high overlap: 9 of 10 words of one text of a pair are in the other too
- numbers differ: both texts of a pair hold numbers, but not the same ones
- unseen words: 1 word of 5, or more, is not in the training texts
- near-duplicate in train: a training text of the same words, but for one on either side, has another label; left out
  where labels are numbers
- suspect gold label: wrong, and the gold label's probability is among the lowest 5 % of the evaluated samples; not in
  slices.csv, as no right sample can have it
- high confidence: the model gives its answer 0.9 or more

## confidence, gold_confidence, margin (which confidence they are)
{confidence}
"""


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = Parser(description="Write the error sheet of a run, and rank error types, causes and solutions. "
                    "errors.csv is merged with what a person wrote in it, never replaced, --overwrite or not.")
    add_run_flags(parser)
    group = parser.add_argument_group("the sheet")
    group.add_argument("--n", type=positive_int, default=20, help="errors in the sheet; annotated ones always stay")
    group.add_argument("--check", action="store_true", help="only renew the report and list what is missing to hand "
                       "in; exit code 1 if any")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Write errors.csv, tags.csv, slices.csv, codebook.md and the rankings; with --check, list what is missing."""
    args = build_parser().parse_args(argv)
    folder, run = find_run(args)
    hold(folder, shared=True)
    task = run["task"]
    predictions = read_predictions(folder)
    if args.check:
        write_report(folder)
        missing = missing_parts(folder, n_errors=int((~predictions["correct"]).sum()))
        print("\n".join(f"missing: {part}" for part in missing) or f"{folder}: nothing is missing")
        return 1 if missing else 0

    tags = tag_samples(predictions, task, read_train_texts(folder, text_columns(task)))
    predictions["auto_tags"] = [" | ".join(tags.columns[held]) for held in tags.to_numpy()]
    write_csv(folder / "tags.csv", predictions[["id", "auto_tags"]])
    errors = wrong_samples(predictions, task)
    classes = errors["error_type"].map(KINDS[task["kind"]].error_class)
    sheet = update_sheet(folder, errors, classes, args.n, run["seed"])
    write_slices(folder, predictions["correct"], tags)
    note = figure_note(run, len(predictions))
    caption = f"{task['title']}\n{run['model']}, seed {run['seed']}; {note or f'{len(predictions):,} test examples'}"
    write_rankings(folder, classes, sheet, caption)
    write_codebook(folder, confidence := confidence_note(folder, task))
    print(f"confidence: {confidence}")
    write_report(folder)
    how = "all" if len(sheet) == len(errors) else f"drawn at random within each error type (seed {run['seed']})"
    print(f"{folder / 'errors.csv'}: {len(sheet)} of {len(errors)} errors in {len(predictions)} samples, {how}"
          + f"; {note}" * bool(note))
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# The wrong samples, and what is true of them
# ---------------------------------------------------------------------------------------------------------------------


def read_train_texts(folder: Path, columns: list[str]) -> pd.DataFrame | None:
    """train_texts.csv of the run, or None where train.py did not write it (printed)."""
    if not (folder / "train_texts.csv").is_file():
        print("no train_texts.csv in the run folder: the tags unseen words and near-duplicate in train are left out")
        return None
    return read_csv(folder / "train_texts.csv", required=(*columns, "label"))


def tag_samples(predictions: pd.DataFrame, task: dict[str, Any], train: pd.DataFrame | None) -> pd.DataFrame:
    """Which of the codebook's tags hold for all samples, right and wrong: bool (samples, tags).

    Two fewer without `train`, one where labels are numbers: hardly two texts have the same.
    """
    columns = text_columns(task)
    texts = joined(predictions, columns)
    lengths = pd.Series(texts).str.len()
    tags = {"very long": lengths > lengths.quantile(0.95), "very short": lengths < lengths.quantile(0.05),
            "negation": [NEGATION.search(text) is not None for text in texts]}
    if len(columns) == 2:
        pairs = list(zip(*(predictions[name] for name in columns), strict=True))
        tags["high overlap"] = [high_overlap(words_of(first), words_of(second)) for first, second in pairs]
        numbers = [[set(re.findall(r"\d+(?:[.,]\d+)*", text)) for text in pair] for pair in pairs]
        tags["numbers differ"] = [bool(first and second and first != second) for first, second in numbers]
    if train is not None:
        words = [words_of(text) for text in texts]
        train_words = [words_of(text) for text in joined(train, columns)]
        vocabulary = set().union(*train_words)
        tags["unseen words"] = [len(unique - vocabulary) >= max(1, 0.2 * len(unique)) for unique in words]
        if not KINDS[task["kind"]].continuous:
            tags["near-duplicate in train"] = other_label_in_train(
                words, predictions["gold"], train_words, train["label"])
    # Confident learning (Northcutt, Jiang & Chuang 2021, JAIR 70, section 3.2) looks for wrong labels where the given
    # label's probability is lowest; ten well-known test sets have 3.3 % of wrong labels on average, or more (Northcutt,
    # Athalye & Mueller 2021, https://arxiv.org/abs/2103.14749).
    ranks = predictions["gold_confidence"].rank(pct=True, method="max")  # max: no tie counts that is longer than 5 %
    tags["suspect gold label"] = (ranks <= 0.05) & ~predictions["correct"]
    tags["high confidence"] = predictions["confidence"] >= 0.9
    return pd.DataFrame({name: np.asarray(holds, dtype=bool) for name, holds in tags.items()})


def joined(table: pd.DataFrame, columns: list[str]) -> list[str]:
    """The texts of each row, a line each."""
    return ["\n".join(texts) for texts in zip(*(table[name] for name in columns), strict=True)]


def words_of(text: str) -> set[str]:
    """The distinct words of `text`, case-folded."""
    return set(re.findall(r"\w+", text.casefold()))


def high_overlap(first: set[str], second: set[str]) -> bool:
    """Whether 9 of 10 words of the shorter text are in the other (McCoy, Pavlick & Linzen 2019: lexical overlap)."""
    return len(first & second) >= 0.9 * min(len(first), len(second)) > 0


def signatures(words: set[str]) -> set[int]:
    """Hashes of `words`, and of `words` less one each: who differs by one word on either side shares one.

    Under ten words only the hash of all: in a short text one word can make the label.
    """
    whole = sum(hash(word) for word in words)
    return {whole} | ({whole - hash(word) for word in words} if len(words) >= 10 else set())


def other_label_in_train(words: list[set[str]], gold: pd.Series, train_words: list[set[str]],
                         train_labels: pd.Series) -> list[bool]:
    """For each sample, whether a training text of nearly the same words has a label other than its gold one."""
    samples = [signatures(unique) for unique in words]
    wanted = set().union(*samples)  # a training set has too many to keep them all
    labels: dict[int, set[str]] = {}
    for unique, label in zip(train_words, train_labels, strict=True):
        for signature in signatures(unique) & wanted:
            labels.setdefault(signature, set()).add(label)
    return [any(labels.get(signature, set()) - {label} for signature in sample)
            for sample, label in zip(samples, gold, strict=True)]


def wrong_samples(predictions: pd.DataFrame, task: dict[str, Any]) -> pd.DataFrame:
    """Every wrong sample as a row of the sheet: the columns COMPUTED, all text, numbers with four decimals at most."""
    wrong = predictions[~predictions["correct"]].reset_index(drop=True)
    names = text_columns(task)
    inputs = joined(wrong, names) if len(names) == 1 else [
        "\n".join(f"{name}: {row[name]}" for name in names) for row in wrong[names].to_dict("records")]
    rows = wrong[["id", "gold", "predicted", "auto_tags"]].assign(
        input=[text if len(text) <= MAX_INPUT else f"{text[:MAX_INPUT]} [of {len(text)}]" for text in inputs],
        error_type=KINDS[task["kind"]].error_types(wrong, task),
        **{name: ["" if math.isnan(value) else f"{round(value, 4):g}" for value in wrong[name]] for name in NUMBERS})
    return rows[COMPUTED].astype(object)


# ---------------------------------------------------------------------------------------------------------------------
# The sheet: draw, read back, merge
# ---------------------------------------------------------------------------------------------------------------------


def draw(classes: pd.Series, n: int, seed: int, keep: set[int]) -> list[int]:
    """Positions of n rows: classes in proportion, at least one of each where n allows, at random within a class.

    All of `keep` are among them, in the place of others of their class: more than n rows if more than a class's share.
    """
    drawn = stratified_rows(classes.to_numpy(), n, np.random.default_rng(seed))
    positions = set(keep)
    for name in classes.unique():
        picked = [position for position in drawn if classes[position] == name]
        kept = [position for position in keep if classes[position] == name]
        others = [position for position in picked if position not in keep]
        positions.update(others[:max(0, len(picked) - len(kept))])
    return sorted(positions)


def fold(text: str) -> str:
    """`text` without what hands and spreadsheets vary: case, runs of white space, curly quotes."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(STRAIGHT_QUOTES).casefold().split())


def sample_keys(sheet: pd.DataFrame) -> list[tuple[str, str]]:
    """What rows are merged by: the id, and the input's letters and digits.

    A spreadsheet changes the rest of a text: quotes, dashes, line ends, trailing spaces, a leading apostrophe.
    """
    return [(sample_id.strip(), re.sub(r"[\W_]+", "", fold(text)))
            for sample_id, text in zip(sheet["id"], sheet["input"], strict=True)]


def read_sheet(path: Path) -> pd.DataFrame:
    """The sheet as it comes back from a spreadsheet, every cell as text, with the columns that were added.

    Any order of columns, case and spaces in their names, comma, semicolon or tab, UTF-8 or UTF-16, blank rows and rows
    that end early are read. UserError: another encoding (.xlsx), no column id or input, a column name twice.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        header, rows = parse_sheet(content.decode(encoding, errors="surrogatepass"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV in UTF-8 ({error}); export the sheet as CSV UTF-8, not as .xlsx") from error
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated or not {"id", "input"} <= set(header):
        fault = f"has the column {repeated[0]} twice" if repeated else "has no columns id and input"
        raise UserError(f"{path} {fault}; mend it, or move it away and run errors.py again")
    sheet = pd.DataFrame(rows, columns=header, dtype=object)
    for name in SHEET_COLUMNS:
        if name not in header:
            sheet[name] = pd.Series("", index=sheet.index, dtype=object)
    return sheet


def parse_sheet(text: str) -> tuple[list[str], list[list[str]]]:
    """Column names, and rows of as many cells, by the one of comma, semicolon, tab that makes columns id and input."""
    for delimiter in ",;\t":
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if "".join(row).strip()]
        header = [column_name(cell) for cell in rows[0]] if rows else []
        if {"id", "input"} <= set(header):
            break
    width = max(map(len, rows), default=0)
    header += [""] * (width - len(header))
    body = [[unescape_formula(cell) for cell in row] + [""] * (width - len(row)) for row in rows[1:]]
    used = [i for i in range(width) if header[i] or any(row[i].strip() for row in body)]  # unnamed ones may be theirs
    return [header[i] or f"column {i + 1}" for i in used], [[row[i] for i in used] for row in body]


def column_name(cell: str) -> str:
    """The name of a column of ours however it is spelled (`Gold Confidence`), any other as it stands."""
    name = fold(cell).replace(" ", "_")
    return name if name in {*SHEET_COLUMNS, *ANNOTATIONS} else cell.strip()


def update_sheet(folder: Path, errors: pd.DataFrame, classes: pd.Series, n: int, seed: int) -> pd.DataFrame:
    """Write errors.csv, n of `errors` drawn by `classes` and merged with the sheet that is there, and return it.

    A row that a person wrote in stays as long as its sample is wrong, then goes to errors_orphans.csv. Their order of
    rows stays too; the file as it was is kept as errors.backup.csv before their rows or our columns in it change.
    """
    path = folder / "errors.csv"
    if path.with_suffix(".xlsx").is_file():
        print(f"{path.with_suffix('.xlsx')} is not read: export it as CSV UTF-8, {path.name}")
    old = read_sheet(path) if path.is_file() else pd.DataFrame(columns=SHEET_COLUMNS, dtype=object)
    theirs = [name for name in ANNOTATIONS if name in old.columns]
    theirs += [name for name in old.columns if name not in {*SHEET_COLUMNS, *ANNOTATIONS}]
    annotated = np.array(["".join(cells).strip() != "" for cells in old[theirs].to_numpy()], dtype=bool)
    position_of = {key: position for position, key in enumerate(sample_keys(errors))}
    keys, matched = sample_keys(old), np.full(len(old), -1)
    for row in [*np.flatnonzero(annotated), *np.flatnonzero(~annotated)]:  # of two rows for a sample theirs counts
        matched[row] = position_of.pop(keys[row], -1)

    drawn = draw(classes, n, seed, {*matched[annotated].tolist()} - {-1})
    kept = old[[*theirs, "llm_prediction"]].set_axis(matched)[matched >= 0]
    order = [position for position in kept.index if position in drawn]
    order += [position for position in drawn if position not in kept.index]
    sheet = errors.loc[order].join(kept).fillna("").astype(object).reset_index(drop=True)
    booleans = {label for label in [*errors["gold"], *errors["predicted"]] if label.upper() in ("TRUE", "FALSE")}
    sheet["llm_prediction"] = sheet["llm_prediction"].replace({label.upper(): label for label in booleans})  # by Excel
    if annotated.any() and not sheet.equals(old):
        content = path.read_bytes()
        write_atomically(folder / "errors.backup.csv", lambda temporary: temporary.write_bytes(content))
    add_orphans(folder / "errors_orphans.csv", old[annotated & (matched < 0)])
    write_csv(path, sheet)
    return sheet


def add_orphans(path: Path, orphans: pd.DataFrame) -> None:
    """Append annotated rows whose samples are not wrong any more to errors_orphans.csv, and say so."""
    if orphans.empty:
        return
    print(f"annotated, but no errors of this run any more; kept in {path}: {', '.join(orphans['id'])}")
    if path.is_file():
        orphans = pd.concat([read_sheet(path), orphans]).fillna("").drop_duplicates()
    write_csv(path, orphans)


# ---------------------------------------------------------------------------------------------------------------------
# The figures: error rates inside and outside of tags, rankings, agreement
# ---------------------------------------------------------------------------------------------------------------------


def wilson(count: int, n: int) -> tuple[float, float]:
    """95 % score interval of the share count / n (Wilson 1927, JASA 22, p. 209-212); nan for n = 0."""
    if n == 0:
        return math.nan, math.nan
    z = 1.959964  # 97.5th percentile of the normal distribution
    centre = (count + z**2 / 2) / (n + z**2)
    half = z * math.sqrt(count * (n - count) / n + z**2 / 4) / (n + z**2)
    return max(0.0, round(centre - half, 12)), min(1.0, round(centre + half, 12))  # rounded: exactly 0 for 0, 1 for n


def fisher_p(errors_inside: int, n_inside: int, errors_outside: int, n_outside: int) -> float:
    """Two-sided p-value of Fisher's exact test: the share of tables that are no likelier than this one."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n_inside + n_outside + 1)))])
    n_errors = errors_inside + errors_outside
    inside = np.arange(max(0, n_errors - n_outside), min(n_errors, n_inside) + 1)
    outside = n_errors - inside
    log_p = -sum(log_factorial[cell] for cell in (inside, n_inside - inside, outside, n_outside - outside))
    p = np.exp(log_p - log_p.max())
    return float(p[p <= p[errors_inside - inside[0]] * (1 + 1e-9)].sum() / p.sum())  # 1e-9: ties survive rounding


def cohen_kappa(first: list[Any], second: list[Any]) -> float:
    """Agreement of two annotators beyond chance (Cohen 1960, eq. 1); nan where both gave all samples one name."""
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    counts = Counter(second)
    expected = sum(count * counts[name] for name, count in Counter(first).items()) / len(first) ** 2
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def write_slices(folder: Path, correct: pd.Series, tags: pd.DataFrame) -> None:
    """Write slices.csv: the error rate inside and outside of each tag that occurs, over right and wrong samples."""
    rows = []
    for name in tags.columns[tags.any()].drop("suspect gold label", errors="ignore"):
        sides = [(int((held & ~correct).sum()), int(held.sum())) for held in (tags[name], ~tags[name])]
        rates = [(n, wrong, wrong / n if n else math.nan, *wilson(wrong, n)) for wrong, n in sides]
        rows.append([name, *rates[0], *rates[1], fisher_p(*sides[0], *sides[1])])
    table = pd.DataFrame(rows, columns=["tag", *RATE_COLUMNS, "fisher_p"]).sort_values("fisher_p", kind="stable")
    write_csv(folder / "slices.csv", table)
    found = table[(table["error_rate_inside"] > table["error_rate_outside"]) & (table["fisher_p"] < 0.05)].head(1)
    if found.empty:
        print(f"slices.csv: {len(table)} tags; with none are errors clearly more frequent (Fisher p 0.05, uncorrected)")
    for row in found.itertuples():
        print(f"slices.csv: {len(table)} tags; errors go most with {row.tag}: {row.errors_inside} of {row.n_inside} "
              f"wrong, {row.errors_outside} of {row.n_outside} without it (Fisher p {row.fisher_p:.2g}, uncorrected)")


def names_in(cell: str) -> dict[str, str]:
    """The names in a cell, separated by |: folded -> as written."""
    return {fold(name): " ".join(name.split()) for name in cell.split("|") if name.strip()}


def write_rankings(folder: Path, classes: pd.Series, sheet: pd.DataFrame, caption: str) -> None:
    """Rank the classes of error of all wrong samples, and the causes and solutions of the annotated ones."""
    n = len(classes)
    write_ranking(folder, "error_types", Counter(classes), n, n, f"Types of all {n} errors\n{caption}")
    for column in ("cause", "solution"):
        cells = [names for names in map(names_in, sheet[column]) if names]
        spelling = {key: name for names in reversed(cells) for key, name in names.items()}  # the first one stands
        counts = Counter(spelling[key] for names in cells for key in names)
        title = f"{column.capitalize()}s: {len(cells)} annotated of {n} errors\n{caption}"
        write_ranking(folder, f"error_{column}s", counts, len(cells), n, title)
        for first, second in itertools.combinations(sorted(spelling), 2):
            if difflib.SequenceMatcher(None, first, second).ratio() >= 0.85:
                print(f"{column}: `{spelling[first]}` and `{spelling[second]}` look alike; if they are one, write one")
        if f"{column}_2" in sheet.columns:
            print_agreement(sheet, column)


def write_ranking(folder: Path, stem: str, counts: Counter[str], n_annotated: int, n_errors: int, title: str) -> None:
    """Write <stem>.csv and <stem>.png, names by frequency; a name's share is of the annotated rows."""
    most = "".join(f"; {name} {count}" for name, count in counts.most_common(5))
    print(f"{stem}: {n_annotated} annotated of {n_errors} errors{most}")
    if not counts:  # what an earlier call wrote must not stand for annotations that are gone
        for ending in ("csv", "png"):
            (folder / f"{stem}.{ending}").unlink(missing_ok=True)
        return
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [[rank, name, count, count / n_annotated, *wilson(count, n_annotated), n_annotated, n_errors]
            for rank, (name, count) in enumerate(ranked, 1)]
    table = pd.DataFrame(rows, columns=RANKING_COLUMNS)
    write_csv(folder / f"{stem}.csv", table)
    draw_ranking(table, title, folder / f"{stem}.png")


def on_two_lines(name: str, width: int = 34) -> str:
    """`name` on at most two lines of `width` characters; a pair of labels is parted before its arrow."""
    first, arrow, second = name.partition(" -> ")
    if arrow and len(name) > width:
        return f"{shorten(first, width)}\n-> {shorten(second, width - 3)}"
    return textwrap.fill(name, width, max_lines=2, placeholder=" ...")


def draw_ranking(table: pd.DataFrame, title: str, path: Path, n_bars: int = 15) -> None:
    """Draw the first `n_bars` rows of a ranking as horizontal bars, the most frequent on top."""
    shown = table.head(n_bars).iloc[::-1]
    names = [on_two_lines(name) for name in shown["name"]]
    share, low, high = (100 * shown[name].to_numpy() for name in ("share", "ci_low", "ci_high"))
    limit = 1.25 * high.max() + 5  # room for the counts beside the bars
    rows = range(len(shown))
    figure, axes = new_figure(6.0, 1.2 + 0.42 * len(shown))
    axes.barh(rows, share, height=0.6, color="#8fb8de")
    axes.errorbar(share, rows, xerr=[share - low, high - share], fmt="none", ecolor="0.3", capsize=3)
    for row, end, count, percent in zip(rows, high, shown["count"], share, strict=True):
        axes.text(end + 0.02 * limit, row, f"{count} ({percent:.0f} %)", va="center")
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(0, limit)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(limit, 100)])
    which = f"; the first {n_bars} of {len(table)}" if len(table) > n_bars else ""
    axes.set_xlabel(f"share in %, with its 95 % interval{which}")
    set_title(figure, title.splitlines())
    save_figure(figure, path)


def print_agreement(sheet: pd.DataFrame, column: str) -> None:
    """Print Cohen's kappa of a column and the second annotator's, over the rows that both filled in."""
    pairs = [(frozenset(names_in(first)), frozenset(names_in(second)))
             for first, second in zip(sheet[column], sheet[f"{column}_2"], strict=True)]
    both = [pair for pair in pairs if all(pair)]
    if both:
        kappa = cohen_kappa(*map(list, zip(*both, strict=True)))
        print(f"{column} and {column}_2: Cohen's kappa {kappa:.2f} over {len(both)} rows that both filled in")


def confidence_note(folder: Path, task: dict[str, Any]) -> str:
    """Which confidence the sheet shows, with its calibration error where evaluate.py has written metrics.csv."""
    meaning, path = KINDS[task["kind"]].confidence_is, folder / "metrics.csv"
    if not meaning:
        return "none: a number comes without one"
    note = f"{meaning}, raw: without the temperature of calibration.csv"
    if path.is_file():
        numbers = ["value", "ci_low", "ci_high"]
        rows = read_csv(path, numbers, ["metric", *numbers])
        for value, low, high in rows[rows["metric"] == "ece"][numbers].itertuples(index=False):
            note += f"; its calibration error (ece in metrics.csv) is {value:.3f} ({low:.3f}-{high:.3f})"
    return note


def write_codebook(folder: Path, confidence: str) -> None:
    """Print the codebook's names; write codebook.md unless it is there, as a person may have added to it."""
    for section in CODEBOOK.split("\n## ")[1:3]:
        title, *entries = section.strip().splitlines()
        print(f"codebook.md, {title}: " + ", ".join(entry[2:].split(":")[0] for entry in entries))
    if not (folder / "codebook.md").is_file():
        text = CODEBOOK.replace("{confidence}", confidence)
        write_atomically(folder / "codebook.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def missing_parts(folder: Path, n_errors: int) -> list[str]:
    """What the run folder lacks for handing in and how to mend it, a line each."""
    missing = missing_in_sheet(folder, n_errors) if (folder / "errors.csv").is_file() else ["errors.csv: run errors.py"]
    missing += [f"{name}: run visualize.py" for name in ("learning_curve.png", "embedding_*.png")
                if not any(folder.glob(name))]
    marks = re.findall(r"TO WRITE: ([^.]+)", (folder / "report.tex").read_text(encoding="utf-8"))
    if marks:
        missing.append(f"your text in report_notes.md: {'; '.join(marks)}")
    return missing


def missing_in_sheet(folder: Path, n_errors: int) -> list[str]:
    """What errors.csv lacks, and the rankings of what is in it."""
    sheet, missing = read_sheet(folder / "errors.csv"), []
    if len(sheet) < min(20, n_errors):
        missing.append(f"rows in errors.csv: {len(sheet)} of {n_errors} errors, 20 are asked for: run errors.py --n 20")
    filled = {column: sheet[column].str.strip() != "" for column in ("cause", "solution", "llm_prediction")}
    for column, how in (("cause", "fill it in"), ("solution", "fill it in"), ("llm_prediction", "run llm_compare.py")):
        empty = sheet["id"][~filled[column]].tolist()
        if empty:
            which = f" ({', '.join(empty)})" if len(empty) < len(sheet) else ""
            missing.append(f"{column} in {len(empty)} of {len(sheet)} rows of errors.csv{which}: {how}")
    vague = sheet["id"][[bool(names) and all(map(MORE_DATA.fullmatch, names))
                         for names in map(names_in, sheet["solution"])]].tolist()
    if vague:
        missing.append(f"the kind of data where solution is only `more data` ({', '.join(vague)}): name it")
    missing += [f"error_{column}s.csv: run errors.py again" for column in ("cause", "solution")
                if filled[column].any() and not (folder / f"error_{column}s.csv").is_file()]
    return missing


if __name__ == "__main__":
    sys.exit(main())
