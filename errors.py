"""The error sheet: wrong test samples for a person to annotate, and what they wrote, ranked. Needs no model.

    python errors.py --dataset mrpc                  after evaluate.py: writes errors.csv; fill in cause and solution
    python errors.py --dataset mrpc                  again: merges the sheet with what you wrote, and ranks it
    python errors.py --dataset mrpc --sheet FILE     takes the sheet from FILE, as Google Sheets saved it
    python errors.py --dataset mrpc --check          lists what is missing for handing in; exit code 1 if anything

What you wrote goes with its sample, by id and input, and is never overwritten. codebook.md says what to write.
"""

import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
add = parser.add_argument
add("--dataset", metavar="KEY|FILE", help="what the run was trained on; with --run: what it was tested on")
add("--model", metavar="ID|FOLDER", help="the run's model (of several the newest run)")
add("--seed", type=int, help="the run's seed (of several the newest run)")
add("--run", type=Path, metavar="DIR", help="the run folder, named outright")
add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder that holds the runs (runs)")
add("--sample", action="store_true", help="the run of --sample")
add("--n", type=int, default=20, help="errors in the sheet (20); annotated ones always stay")
add("--sheet", type=Path, metavar="FILE", help="the annotated sheet, in place of the run's errors.csv")
add("--check", action="store_true", help="write nothing, list what is missing for handing in")
args = parser.parse_args()
if args.n < 1:
    parser.error(f"--n {args.n} is not 1 or more")
if args.sheet and not args.sheet.is_file():
    parser.error(f"--sheet {args.sheet}: there is no such file")

import math
import re
import sys
import textwrap
import unicodedata
from collections import Counter

import jinja2
import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control, fisher_exact
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import cohen_kappa_score
from sklearn.neighbors import NearestNeighbors

import common

# Columns of errors.csv. Every call renews those of COMPUTED, llm_compare.py writes those of LLM; all others are a
# person's, and so is any column that they add. A second annotator adds cause_2 and solution_2.
NUMBERS = ["confidence", "gold_confidence", "margin"]
NEAREST = ["nearest_train", "nearest_label", "nearest_similarity"]
COMPUTED = ["id", "input", "gold", "predicted", *NUMBERS, "error_type", "auto_tags", *NEAREST]
ANNOTATIONS = ["cause", "solution", "cause_2", "solution_2", "notes"]
LLM = ["llm_how", "llm_prediction"]
SHEET = [*COMPUTED, "cause", "solution", "notes", "llm_prediction"]
SLICES = ["tag", "n_inside", "errors_inside", "error_rate_inside", "ci_low", "ci_high", "n_outside", "errors_outside",
          "error_rate_outside", "outside_ci_low", "outside_ci_high", "fisher_p"]
MOST_CHARACTERS = 32_000  # of a cell: Excel's holds 32,767
OF_WRONG_ONES = ["suspect gold label", "LLM agrees with the model, against gold"]  # tags that no right sample can have
NEGATION = re.compile(r"\b(no|not|never|none|nobody|nothing|nowhere|neither|nor|without|cannot)\b|n['’]t\b", re.I)
MORE_DATA = re.compile(r"(more|additional) (training )?(data|examples|samples)\W*")  # no solution by itself
STRAIGHT_QUOTES = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")


def types_of_labels(wrong, task):
    """FP or FN of the positive label where there are two, else `gold -> predicted`."""
    if task["kind"] == "classification" and len(task["labels"]) == 2:
        positive = task.get("positive", task["labels"][1])
        return [f"{'FP' if predicted == positive else 'FN'} of {positive}" for predicted in wrong["predicted"]]
    return (wrong["gold"] + " -> " + wrong["predicted"]).tolist()


def types_of_sets(wrong, _task):
    """`missing a, b; extra c`."""
    types = []
    for cells in zip(wrong["gold"], wrong["predicted"], strict=True):
        gold, predicted = ([name for name in cell.split(" | ") if name != "none"] for cell in cells)
        names = {"missing": [name for name in gold if name not in predicted],
                 "extra": [name for name in predicted if name not in gold]}
        types.append("; ".join(f"{what} {', '.join(found)}" for what, found in names.items() if found))
    return types


def types_of_numbers(wrong, _task):
    """`over by 1.5` or `under by 1.5`; drawn and counted by their first word."""
    errors = wrong["predicted"].astype(float) - wrong["gold"].astype(float)
    return [f"{'over' if error > 0 else 'under'} by {abs(error):.3g}" for error in errors]


ERROR_TYPES = {"multilabel": types_of_sets, "regression": types_of_numbers}  # all other kinds: types_of_labels


def joined(table, names):
    """The texts of each row, a line each."""
    return ["\n".join(texts) for texts in zip(*(table[name] for name in names), strict=True)]


def as_input(table, most):
    """The inputs of each row, `name: text` where there are several, cut to `most` characters."""
    names = common.text_columns(task)
    texts = joined({name: table[name] if len(names) == 1 else f"{name}: " + table[name] for name in names}, names)
    return [text if len(text) <= most else f"{text[:most]} [of {len(text)}]" for text in texts]


def decimals(numbers):
    """Each as text, with four decimals at most; "" for NaN."""
    return ["" if math.isnan(number) else f"{round(number, 4):g}" for number in numbers]


def words_of(text):
    """The distinct words of `text`, as the vectorizer below sees them."""
    return set(re.findall(r"\w+", text.lower()))


def suspects(predictions, labels):
    """Which gold labels may be mistakes, by confident learning (Northcutt, Jiang & Chuang 2021, JAIR 70, section 3.1).

    A label's threshold is its mean probability over the samples that have it. Suspect is a wrong prediction whose
    likeliest label, of those that reach their thresholds, is another than the gold one.
    """
    probabilities = predictions[[f"prob_{label}" for label in labels]].set_axis(labels, axis=1)
    thresholds = [probabilities.loc[predictions["gold"] == label, label].mean() for label in labels]
    reached = probabilities.where(probabilities >= thresholds, 0.0)  # of a label without a sample the mean is NaN
    return reached.any(axis=1) & (reached.idxmax(axis=1) != predictions["gold"]) & ~predictions["correct"]


def tag_samples(predictions, names, vocabulary):
    """Which of codebook.md's tags hold for each sample, right or wrong: bool (samples, tags)."""
    texts = joined(predictions, names)
    lengths = pd.Series(texts).str.len()
    tags = {"very long": lengths > lengths.quantile(0.95), "very short": lengths < lengths.quantile(0.05),
            "negation": [NEGATION.search(text) is not None for text in texts]}
    if len(names) == 2:  # a pair; 9 of 10 words: McCoy, Pavlick & Linzen 2019 call it lexical overlap
        first, second = ([words_of(text) for text in predictions[name]] for name in names)
        tags["high overlap"] = [len(a & b) >= 0.9 * min(len(a), len(b)) > 0 for a, b in zip(first, second, strict=True)]
        first, second = (predictions[name].str.findall(r"\d+(?:[.,]\d+)*").map(set) for name in names)
        tags["numbers differ"] = [bool(a and b and a != b) for a, b in zip(first, second, strict=True)]
    if vocabulary:
        tags["unseen words"] = [len(words - vocabulary) >= max(1, 0.2 * len(words)) for words in map(words_of, texts)]
    tags["high confidence"] = predictions["confidence"] >= 0.9
    if task["kind"] in ("classification", "multiple_choice"):
        tags["suspect gold label"] = suspects(predictions, task["labels"])
    if (folder / "llm_predictions.csv").is_file():
        llm = common.read_csv(folder / "llm_predictions.csv", required=["id", "llm_label", "llm_generated_label"])
        answers = llm["llm_generated_label"].where(llm["llm_generated_label"] != "", llm["llm_label"])
        same = predictions["id"].map(dict(zip(llm["id"], answers, strict=True))) == predictions["predicted"]
        tags["LLM agrees with the model, against gold"] = same & ~predictions["correct"]
    return pd.DataFrame(tags).astype(bool)


def fold(text):
    """`text` without what hands and spreadsheets vary: case, white space, curly quotes."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(STRAIGHT_QUOTES).casefold().split())


def read_sheet(path):
    """The sheet as a spreadsheet left it, all of it text: columns in any order, and those added."""
    sheet = common.read_csv(path, required=["id", "input"])
    named = [bool(name.strip()) or sheet.iloc[:, i].str.strip().any() for i, name in enumerate(sheet.columns)]
    sheet.columns = [name if name.strip() else f"column {i}" for i, name in enumerate(sheet.columns, start=1)]
    return sheet.loc[:, named].assign(**{name: "" for name in SHEET if name not in sheet}).astype(object)


def sample_keys(sheet):
    """What rows are merged by: id, and the input's letters and digits, as a spreadsheet may change the rest."""
    return [(name.strip(), re.sub(r"[\W_]+", "", fold(text)))
            for name, text in zip(sheet["id"], sheet["input"], strict=True)]


def is_annotated(sheet):
    """The rows that a person wrote in."""
    return sheet.drop(columns=[*COMPUTED, *LLM], errors="ignore").map(str.strip).ne("").any(axis=1).astype(bool)


def match(errors, old):
    """The position in `errors` of each row of `old`, -1 where of none; of two rows for a sample the annotated one."""
    positions = dict(zip(sample_keys(errors), errors.index, strict=True))
    keys, written, found = sample_keys(old), is_annotated(old), pd.Series(-1, index=old.index)
    for row in [*old.index[written], *old.index[~written]]:
        found[row] = positions.pop(keys[row], -1)
    return found


def draw(classes, n, seed, keep):
    """Positions of n errors, classes in proportion, at random within a class; those of `keep` take others' places."""
    drawn = common.stratified_rows(classes.to_numpy(), n, np.random.default_rng(seed)).tolist()
    for position in sorted(keep - set(drawn)):
        others = [other for other in drawn if classes[other] == classes[position] and other not in keep]
        if others:  # else the sheet grows: annotated rows always stay
            drawn.remove(others[-1])
    return sorted({*drawn, *keep})


def share_of(count, n):
    """The share count / n and its 95 % score interval (Wilson 1927); nan for n = 0."""
    return (count / n, *binomtest(count, n).proportion_ci(method="wilson")) if n else (math.nan,) * 3


def names_in(cell):
    """The names in a cell, separated by |: folded -> as written."""
    return {fold(name): " ".join(name.split()) for name in cell.split("|") if name.strip()}


def write_ranking(stem, counts, sizes, what):
    """Write <stem>.csv and <stem>.png: names by frequency. A share is of the first of `sizes`, the last columns."""
    n = next(iter(sizes.values()))
    print(f"{stem}: {what}" + "".join(f"; {name} {count}" for name, count in counts.most_common(5)))
    if not counts:  # what an earlier call wrote must not stand for annotations that are gone
        for ending in ("csv", "png"):
            (folder / f"{stem}.{ending}").unlink(missing_ok=True)
        return
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [[rank, name, count, *share_of(count, n), *sizes.values()] for rank, (name, count) in enumerate(ranked, 1)]
    table = pd.DataFrame(rows, columns=["rank", "name", "count", "share", "ci_low", "ci_high", *sizes])
    common.write_csv(folder / f"{stem}.csv", table)
    draw_ranking(table, what, folder / f"{stem}.png")


def draw_ranking(table, what, path, most=15):
    """Draw the first `most` rows of a ranking as horizontal bars, the most frequent on top."""
    shown = table.head(most).iloc[::-1]
    names = [textwrap.fill(name, 26, max_lines=2, placeholder=" …") for name in shown["name"]]
    share, low, high = (100 * shown[name].to_numpy() for name in ("share", "ci_low", "ci_high"))
    limit, places = 1.45 * high.max() + 5, range(len(shown))  # room for the counts beside the bars
    figure, axes = common.new_figure(4.0, 0.9 + 0.36 * len(shown))
    bars = axes.barh(places, share, xerr=[share - low, high - share], height=0.6, color="#8fb8de", ecolor="0.3",
                     capsize=3)
    axes.bar_label(bars, [f"{n} ({part:.0f} %)" for n, part in zip(shown["count"], share, strict=True)], padding=3)
    axes.set(yticks=places, yticklabels=names, ylim=(-0.6, len(shown) - 0.4), xlim=(0, limit))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(limit, 100)])
    which = f"; the first {most} of {len(table)} names" if len(table) > most else ""
    axes.set_xlabel(f"% of {what},\nwith 95 % intervals{which}")
    common.save_figure(figure, path, common.describe_run(run, len(predictions)))


def missing_in_sheet(sheet, n_errors):
    """What the sheet lacks for handing in, and how to mend it, a line each."""
    if len(sheet) < min(20, n_errors):
        yield f"rows in errors.csv: {len(sheet)} of {n_errors} errors, 20 are asked for: run errors.py --n 20"
    for column, how in (("cause", "fill it in"), ("solution", "fill it in"), ("llm_prediction", "run llm_compare.py")):
        empty = sheet["id"][sheet[column].str.strip() == ""].tolist()
        which = f" ({', '.join(empty)})" if len(empty) < len(sheet) else ""
        if empty:
            yield f"{column} in {len(empty)} of {len(sheet)} rows of errors.csv{which}: {how}"
        if len(empty) < len(sheet) and column != "llm_prediction" and not (folder / f"error_{column}s.csv").is_file():
            yield f"error_{column}s.csv: run errors.py again"
    vague = [name for name, cell in zip(sheet["id"], sheet["solution"], strict=True)
             if names_in(cell) and all(map(MORE_DATA.fullmatch, names_in(cell)))]
    if vague:
        yield f"the kind of data where solution is only `more data` ({', '.join(vague)}): name it"


def missing_in_report():
    """What the pictures, report_notes.md and the report lack, a line each."""
    how = dict.fromkeys(("learning_curve.png", "embedding_*.png", "report_notes.md", "report.tex"), "run visualize.py")
    for name, way in {**how, "report.pdf": "tectonic or Overleaf makes it from report.tex"}.items():
        if not any(folder.glob(name)):
            yield f"{name}: {way}"
    notes, report = folder / "report_notes.md", folder / "report.tex"
    text = re.sub("(?s)<!--.*?-->", "", common.decode(notes)) if notes.is_file() else ""
    if empty := [title for title, part in common.sections_of(text).items() if not part]:
        yield f"your text in report_notes.md: {'; '.join(empty)}"
    newer = [path.name for path in (notes, folder / "errors.csv", folder / "llm_metrics.csv")
             if path.is_file() and report.is_file() and path.stat().st_mtime > report.stat().st_mtime]
    if newer:
        yield f"what is new in {', '.join(newer)} since report.tex was written: run visualize.py"


# 1. The run, and what evaluate.py predicted.
folder, run = common.find_run(args)
task, kind = run["task"], common.kind_of(run["task"])
predictions = common.read_predictions(folder)
path = folder / "errors.csv"
if args.check:
    there, n_errors = args.sheet or path, int((~predictions["correct"]).sum())
    missing = [*missing_in_sheet(read_sheet(there), n_errors)] if there.is_file() else ["errors.csv: run errors.py"]
    missing += missing_in_report()
    print("\n".join(f"missing: {part}" for part in missing) or f"{folder}: nothing is missing")
    sys.exit(1 if missing else 0)

# 2. The tags of all samples, right and wrong, and where errors are more frequent than elsewhere.
texts, train = [*task["text"], *task.get("options", [])], None  # without the image's id
vectorizer = TfidfVectorizer(token_pattern=r"\w+")
if (folder / "train_texts.csv").is_file():
    train = common.read_csv(folder / "train_texts.csv", required=[*texts, "label"])
    vectors = vectorizer.fit_transform(joined(train, texts))
else:
    print("no train_texts.csv in the run folder: the tag unseen words and the nearest training texts are left out")
tags = tag_samples(predictions, texts, set() if train is None else vectorizer.vocabulary_.keys())
predictions["auto_tags"] = [" | ".join(tags.columns[held]) for held in tags.to_numpy()]
common.write_csv(folder / "tags.csv", predictions[["id", "auto_tags"]])
rows = []
for name in tags.columns[tags.any()].difference(OF_WRONG_ONES, sort=False):
    sides = [(int((held & ~predictions["correct"]).sum()), int(held.sum())) for held in (tags[name], ~tags[name])]
    rates = [value for wrong, n in sides for value in (n, wrong, *share_of(wrong, n))]
    rows.append([name, *rates, fisher_exact([[wrong, n - wrong] for wrong, n in sides]).pvalue])
slices = pd.DataFrame(rows, columns=SLICES).sort_values("fisher_p", kind="stable")
slices["fdr"] = false_discovery_control(slices["fisher_p"].astype(float))  # Benjamini & Hochberg 1995
common.write_csv(folder / "slices.csv", slices)
shown = slices[["tag", "n_inside", "error_rate_inside", "error_rate_outside", "fisher_p", "fdr"]].head(3)
if len(shown):
    print(shown.to_string(index=False, float_format="{:.2g}".format))

# 3. The wrong samples: all cells as text.
wrong = predictions[~predictions["correct"]].reset_index(drop=True)
name_types = getattr(kind, "error_types", None) or ERROR_TYPES.get(task["kind"], types_of_labels)
errors = wrong[["id", "gold", "predicted", "auto_tags"]].assign(
    input=as_input(wrong, MOST_CHARACTERS), error_type=name_types(wrong, task), **dict.fromkeys(NEAREST, ""),
    **{name: decimals(wrong[name]) for name in NUMBERS})[COMPUTED]
classes = errors["error_type"].str.split().str[0] if task["kind"] == "regression" else errors["error_type"]

# 4. The sheet: n errors, drawn; merged with what a person wrote; the rows in the order in which they came back.
here = read_sheet(path) if path.is_file() else pd.DataFrame(columns=SHEET, dtype=object)
old = read_sheet(args.sheet) if args.sheet else here
for name in set(LLM) & set(here) if args.sheet else ():  # the LLM may have answered since the sheet went out
    answers = dict(zip(here["id"], here[name], strict=True))
    old[name] = [answers.get(row["id"]) or row.get(name, "") for row in old.to_dict("records")]
position, written = match(errors, old), is_annotated(old)
drawn = draw(classes, args.n, run["seed"], {*position[written & (position >= 0)]})
order = [*(row for row in position if row in drawn), *(row for row in drawn if row not in {*position})]
theirs = [name for name in dict.fromkeys([*ANNOTATIONS, *old]) if name in old and name not in [*COMPUTED, *LLM]]
theirs += [name for name in LLM if name in old and (name in SHEET or old[name].any())]
sheet = errors.loc[order].join(old.set_axis(position)[theirs]).fillna("").reset_index(drop=True)
if train is not None and len(sheet):
    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectors)
    distances, rows = search.kneighbors(vectorizer.transform(joined(wrong.loc[order], texts)))
    nearest, similarity = train.iloc[rows[:, 0]], 1 - distances[:, 0]
    sheet[NEAREST] = [*zip(as_input(nearest, 300), nearest["label"], decimals(similarity), strict=True)]
    sheet.loc[similarity <= 0, NEAREST] = ""  # no word in common
sheet = sheet.astype(object)
if is_annotated(here).any() and not here.equals(sheet):
    before = path.read_bytes()
    common.write_whole(folder / "errors.backup.csv", lambda part: part.write_bytes(before))
    print(f"errors.csv as it was before: {folder / 'errors.backup.csv'}")
orphans = old[written & (position < 0)]
if len(orphans):
    kept = folder / "errors_orphans.csv"
    print(f"annotated, but no errors of this run any more; kept in {kept}: {', '.join(orphans['id'])}")
    orphans = pd.concat([read_sheet(kept), orphans]).fillna("").drop_duplicates() if kept.is_file() else orphans
    common.write_csv(kept, orphans)
common.write_csv(path, sheet)

# 5. The rankings: of all errors by type, of the annotated ones by cause and by solution; two annotators' agreement.
write_ranking("error_types", Counter(classes), {"n_errors": len(errors)}, f"all {len(errors)} errors")
for column in ("cause", "solution"):
    cells = [names for names in map(names_in, sheet[column]) if names]
    spelling = {key: name for names in reversed(cells) for key, name in names.items()}  # the first one stands
    counts = Counter(spelling[key] for names in cells for key in names)
    write_ranking(f"error_{column}s", counts, {"n_annotated": len(cells), "n_errors": len(errors)},
                  f"{len(cells)} annotated of {len(errors)} errors")
    pairs = zip(sheet[column], sheet.get(f"{column}_2", [""] * len(sheet)), strict=True)
    pairs = [["|".join(sorted(names_in(cell))) for cell in pair] for pair in pairs if all(map(names_in, pair))]
    if len({name for pair in pairs for name in pair}) > 1:  # of one name alone kappa is 0 / 0
        kappa = cohen_kappa_score(*zip(*pairs, strict=True))
        print(f"{column} and {column}_2: Cohen's kappa {kappa:.2f} over {len(pairs)} rows that both filled in")

# 6. The codebook, written once: a person may add to it.
confidence = (f"{kind.confidence_is}, raw: without the temperature of calibration.csv" if kind.confidence_is
              else "none: a number comes without one")
if not (folder / "codebook.md").is_file():
    template = Path(__file__).with_name("templates") / "codebook.md"
    filled = jinja2.Template(template.read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined)
    common.write_text(folder / "codebook.md", filled.render(confidence=confidence) + "\n")
print(f"confidence: {confidence}")
how = "all" if len(sheet) == len(errors) else f"drawn at random within each error type (seed {run['seed']})"
print(f"{path}: {len(sheet)} of {len(errors)} errors in {len(predictions)} samples, {how}; "
      f"{is_annotated(sheet).sum()} annotated\n{common.describe_run(run, len(predictions))}")
