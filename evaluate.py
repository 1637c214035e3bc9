"""Predict the test split with the best epoch of a run, and score it beside the published figures and a floor.

    python evaluate.py --dataset mrpc                the newest finished run of the data set
    python evaluate.py --dataset mrpc --baselines    and, as a floor, what models without a neural network score
    python evaluate.py --run runs/winogrande-m/sample/seed42 --dataset wsc273      another data set than the run's
    python evaluate.py --run DIR --dataset new.csv --text-column text              predict a file without labels

Writes predictions.csv, metrics.csv, published.csv, confusion and calibration .csv and .png, timing.csv and
hidden_states.npz into the run folder, or into on-<dataset> in it; with --baselines baselines.csv; of several seeds
seeds.csv beside them.
"""

import argparse
import os
import urllib.request
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
add = parser.add_argument
add("--dataset", metavar="KEY|FILE", help="the run's data set; with --run: what to test the run on")
add("--model", metavar="ID|FOLDER", help="the run's model (the newest run)")
add("--seed", type=int, help="the run's seed (the newest run)")
add("--run", type=Path, metavar="DIR", help="the run folder, named outright")
add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder that holds the runs (runs)")
add("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="folder for files that the hub lacks (data)")
add("--sample", action="store_true", help="a run of --sample")
add("--overwrite", action="store_true", help="replace a test on another file of the same name")
add("--text-column", nargs="+", metavar="NAME", help="text column of your own file given as --dataset (the run's)")
add("--label-column", metavar="NAME", help="label column of that file (the run's; none with --text-column alone)")
add("--max-eval-samples", type=int, metavar="N", help="test on at most N, each label in proportion (the run's)")
add("--per-device-eval-batch-size", type=int, default=32, metavar="N", help="examples per forward pass (32)")
add("--precision", choices=["auto", "fp32", "fp16", "bf16"], help="(the run's)")
add("--baselines", action="store_true", help="also score the most frequent label and TF-IDF with a linear model")
args = parser.parse_args()
if args.max_eval_samples == 0 or min(args.per_device_eval_batch_size, args.max_eval_samples or 1) < 1:
    parser.error("--per-device-eval-batch-size and --max-eval-samples are 1 or more")
if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    parser.error("this script is one process: start it without torchrun or accelerate")
if args.sample:
    os.environ["HF_HUB_OFFLINE"] = "1"
elif "HF_HUB_OFFLINE" not in os.environ:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=5).close()
    except OSError as error:
        if getattr(error, "code", 500) >= 500:  # any other answer is a sign of life
            os.environ["HF_HUB_OFFLINE"] = "1"
            print(f"{hub} can't be reached ({error}): taking what was fetched before", flush=True)

import json
import math
import sys
import time
import warnings

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from scipy import sparse
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import confusion_matrix
from sklearn.multiclass import OneVsRestClassifier

import common
from common import UserError

# Flags of train.py that change nothing in the figures, and the seed.
FREE = {"list", "resume", "overwrite", "run", "runs_dir", "data_dir", "save_steps", "logging_steps", "report_to",
        "keep_epochs", "per_device_eval_batch_size", "seed"}
SCORES = common.read_csv(common.CATALOG / "scores.csv", ("value",), ours=False)
METRICS_HEADER = ["metric", "value", "ci_low", "ci_high", "n", "split", "paper", "paper_model", "paper_split",
                  "paper_gap", "leaderboard", "leaderboard_model", "leaderboard_gap", "comparable", "source"]


def scored(table):
    """A row per metric, the task's own first, with percentile bootstrap intervals over the examples (Efron 1979)."""
    draws, rows = kind.resample(table, task), []
    for metric, value in kind.metrics(table, task).items():
        low, high = np.percentile(draws[metric], [2.5, 97.5])
        rows.append({"metric": metric, "value": value, "ci_low": low, "ci_high": high,
                     "n": kind.examples_of(metric, table)})
    return rows


def what_is_ours():
    """What sets our figures apart from any published one: a sample run, other training data, a part of the examples."""
    trained = run.get("trained_on", run)
    facts = ["ours is a sample run"] if run["sample"] else []
    if trained["dataset"] not in (run["dataset"], *task.get("trained_on", ())):
        facts.append(f"ours was trained on {trained['dataset']}")
    for split, record in (("train", trained["data"]), ("test", data.record)):
        if record["used"][split] < record["rows"][split]:
            facts.append(f"ours uses {record['used'][split]} of {record['rows'][split]} {split} examples")
    return facts


def published_scores(ours):
    """Figures of catalog/scores.csv for a row of metrics.csv: the paper's, the leaderboard's, all checked references.

    Of several for a role the one that is checked and of the size nearest to our model's; references in that order. Gaps
    are ours less theirs, in points, with our interval's ends. differs: what sets it apart from ours.
    """
    sizes = {"small": 80e6, "base": 300e6, "large": 800e6, "xl": math.inf}  # fewer parameters than this
    size = next(name for name in sizes if run["model_info"]["parameters"] < sizes[name])
    places = {name: abs(place - [*sizes].index(size)) for place, name in enumerate(sizes)}
    scores = SCORES[(SCORES["key"] == task["key"]) & (SCORES["metric"] == ours["metric"])].to_dict("records")
    scores.sort(key=lambda score: (score["checked"] != "true", places.get(score["size"], 9)))
    best = [next((score for score in scores if score["role"] == role), None) for role in ("paper", "leaderboard")]
    references = [score for score in scores if score["role"] == "reference" and score["checked"] == "true"]
    rows, split = [], task["splits"].get("test", "a cut of train")
    for score in filter(None, [*best, *references]):
        checked = score["checked"] == "true"
        facts = {"its source was not checked": not checked, score["note"]: checked and score["note"],
                 f"its split is {score['split']} and ours {split}": score["split"] != split,
                 f"its model is of size {score['size']} and ours {size}": score["size"] != size}
        gap, gap_low, gap_high = (100 * ours[end] - score["value"] for end in ("value", "ci_low", "ci_high"))
        value, model = round(score["value"] / 100, 6), score["model"] + ", unchecked" * (not checked)
        rows.append({"metric": ours["metric"], "role": score["role"], "value": value, "gap": gap, "gap_low": gap_low,
                     "gap_high": gap_high, "model": model, "split": score["split"], "cite": score["cite"],
                     "differs": "; ".join(fact for fact, holds in facts.items() if holds), "url": score["url"]})
    return rows


def published_columns(scores):
    """What metrics.csv says of the paper's and the leaderboard's figure; comparable: `yes`, or `no` and why."""
    scores = {score["role"]: score for score in scores if score["role"] != "reference"}
    reasons = what_is_ours() + [f"{role}: {score['differs']}" for role, score in scores.items() if score["differs"]]
    columns = {"comparable": f"no: {'; '.join(reasons)}" if reasons else "yes", "source": " | ".join(
        f"{role}: {score['cite']}, {score['url']}" for role, score in scores.items())}
    for role, score in scores.items():
        columns |= {role: score["value"], f"{role}_model": score["model"], f"{role}_split": score["split"],
                    f"{role}_gap": score["gap"]}
    return columns if scores else {}


def label_confusion(predictions, gold="gold", predicted="predicted", names="labels"):
    """Rows: gold labels, or steps of the scale; columns: predicted ones; cells: examples."""
    counts = confusion_matrix(predictions[gold], predictions[predicted], labels=task[names])
    return pd.DataFrame(counts, task[names], task[names])


def set_confusion(predictions):
    """A row per label: how often it is right, missing, extra, and rightly absent."""
    gold, predicted = (kind.sets(predictions[name], task) for name in ("gold", "predicted"))
    cells = {"right": gold & predicted, "missing": gold & ~predicted, "extra": ~gold & predicted,
             "rightly absent": ~gold & ~predicted}
    return pd.DataFrame({name: cell.sum(axis=0) for name, cell in cells.items()}, task["labels"])


CONFUSION = {"classification": label_confusion, "multiple_choice": label_confusion, "multilabel": set_confusion,
             "regression": lambda table: label_confusion(table, "gold_step", "predicted_step", "steps")}


def draw_confusion(confusion, path, most=30):
    """Draw the counts, shaded by their share of the row; of more than `most` labels the most frequent ones."""
    rows = np.sort(np.argsort(-confusion.sum(axis=1).to_numpy(), kind="stable")[:most])
    is_square = confusion.shape[0] == confusion.shape[1]  # else a label's columns are kinds of outcome
    part = confusion.iloc[rows, rows] if is_square else confusion.iloc[rows]
    counts, names = part.to_numpy(), [[str(name)[:40] for name in axis] for axis in part.axes]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = max(3, 0.4 * len(names[1]) + 1.5)
    figure, axes = common.new_figure(size + 1, size)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center",
                  color="white" if shares[row, column] > 0.6 else "black")
    axes.set_xticks(range(len(names[1])), names[1], rotation=45, ha="right")
    axes.set_yticks(range(len(names[0])), names[0])
    axes.set(xlabel="predicted", ylabel="gold")
    note = f"; the {len(rows)} most frequent of {len(confusion)} labels" if len(rows) < len(confusion) else ""
    common.save_figure(figure, path, common.describe_run(run, len(predictions)) + note)


def calibration_bins(confidence, correct):
    """Bins of equal mass (of 20 or more, 15 at most): n, mean confidence, share of right ones, its Wilson interval."""
    count, rows = min(15, max(1, len(correct) // 20)), []
    for place, right in correct.groupby(pd.qcut(confidence.rank(), count, labels=False, duplicates="drop")):
        low, high = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
        rows.append({"bin": place + 1, "n": len(right), "confidence": confidence[right.index].mean(),
                     "accuracy": right.mean(), "ci_low": low, "ci_high": high})
    return pd.DataFrame(rows)


def calibration_error(bins):
    """ECE: sum over bins of n_bin / n * |accuracy - mean confidence| (Naeini, Cooper & Hauskrecht 2015)."""
    return float((bins["n"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / bins["n"].sum())


def draw_calibration(scales, path):
    """Draw accuracy against confidence, a line per scale with its error."""
    figure, axes = common.new_figure(4, 3.6)
    lowest = math.floor(10 * min(bins[["confidence", "ci_low"]].min(axis=None) for bins in scales.values())) / 10
    axes.plot([lowest, 1], [lowest, 1], color="0.6", linewidth=1, label="calibrated")
    looks = [("#0072B2", "o", "as the model gives it"), ("#D55E00", "s", f"at temperature {task['temperature']:.2f}")]
    for bins, (color, marker, name) in zip(scales.values(), looks, strict=True):
        bars = [bins["accuracy"] - bins["ci_low"], bins["ci_high"] - bins["accuracy"]]
        axes.errorbar(bins["confidence"], bins["accuracy"], yerr=bars, color=color, marker=marker, markersize=4,
                      linewidth=1, elinewidth=0.6, label=f"{name}: ECE {calibration_error(bins):.3f}")
    axes.set(xlabel="confidence", ylabel="share of right predictions", xlim=(lowest, 1.01), ylim=(lowest, 1.02))
    axes.legend()
    common.save_figure(figure, path, common.describe_run(run, len(predictions)))


# The floor: what models without a neural network, fitted to train_texts.csv, predict for the test split.


def tfidf(train, test, columns):
    """TF-IDF over the words and marks of `train`, sparse float64 (examples, features), of train and of test.

    A pair of texts a and b is [a, b, |a - b|, a * b] (Conneau et al. 2017, section 3.1), so that a linear model sees
    what they share.
    """
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", max_features=50_000)
    vectorizer.fit(train[columns].to_numpy().ravel())
    features = []
    for table in (train, test):
        texts = [vectorizer.transform(table[name]) for name in columns]
        if len(texts) == 2:
            texts += [abs(texts[0] - texts[1]), texts[0].multiply(texts[1])]
        features.append(sparse.hstack(texts, format="csr"))
    return features


def judged(test, predicted):
    """gold of `test`, predicted (a column, or one value for all) and whether they are equal."""
    return test[["gold"]].assign(predicted=predicted, correct=test["gold"] == predicted)


def text_floors(train, test, task):
    """The most frequent label, or the mean; a linear model over TF-IDF, of a set of labels one for each of them."""
    features, test_features = tfidf(train, test, task["text"])
    if task["kind"] == "regression":
        numbers = train["label"].astype("float64")
        return {"mean": judged(test, numbers.mean()),
                "tfidf + ridge": judged(test, Ridge().fit(features, numbers).predict(test_features))}
    model = LogisticRegression(max_iter=1000)
    if task["kind"] == "multilabel":
        with warnings.catch_warnings(action="ignore"):  # that a label which all or no training texts have is predicted
            model = OneVsRestClassifier(model).fit(features, kind.sets(train["label"], task))
        predicted = kind.names(model.predict(test_features), task)
    else:
        predicted = model.fit(features, train["label"]).predict(test_features)
    tables = {"majority": judged(test, train["label"].mode()[0]),
              "tfidf + logistic regression": judged(test, predicted)}
    if "positive" in task:  # auroc takes its probability
        probabilities = model.predict_proba(test_features)[:, list(model.classes_).index(task["positive"])]
        for table, column in zip(tables.values(), (0.5, probabilities), strict=True):
            table[f"prob_{task['positive']}"] = column
    return tables


def choice_floors(train, test, task):
    """The most frequent place; the option whose pair with the text a logistic regression finds likeliest."""
    text, options, labels = task["text"][0], task["options"], np.array(task["labels"], dtype=object)
    pairs = [pd.DataFrame({"text": table[text].repeat(len(options)), "option": table[options].to_numpy().ravel()})
             for table in (train, test)]
    is_gold = (train["label"].to_numpy()[:, None] == labels).ravel()
    features, test_features = tfidf(*pairs, ["text", "option"])
    scores = LogisticRegression(max_iter=1000).fit(features, is_gold).decision_function(test_features)
    likeliest = labels[scores.reshape(-1, len(options)).argmax(axis=1)]
    return {"majority": judged(test, train["label"].mode()[0]), "tfidf + logistic regression": judged(test, likeliest)}




# 1. The run, and where the results go: its folder, or on-<dataset> in it for a data set that it was not trained on.
folder, run = (args.run, common.read_run(args.run)) if args.run else common.find_run(args)
model_dir = (folder.parent if "trained_on" in run else folder) / "model"
lock = FileLock(model_dir.parent / ".lock", timeout=0, is_singleton=True)
try:
    lock.acquire()
except Timeout:
    raise UserError(f"another process is at work in {model_dir.parent}; wait until it has ended") from None
trained = run["args"]
dataset = args.dataset or (run["task"].get("file", run["dataset"]) if "trained_on" in run else trained["dataset"])
is_other = common.slug(dataset) != common.slug(trained["dataset"])
unlabelled = is_other and args.text_column and not args.label_column

# 2. The data.
data = common.load_data(
    dataset, sample=trained["sample"], data_dir=args.data_dir, text_column=args.text_column or trained["text_column"],
    label_column=args.label_column or trained["label_column"], test_only=True, labels=run["task"].get("labels"),
    max_eval_samples=args.max_eval_samples or trained["max_eval_samples"], max_images=trained["max_images"],
    whole_file=is_other, revision=None if is_other else run["data"]["revision"],
    like=run["task"] if unlabelled else None)
task, test = data.task, data.splits["test"]
kind = common.kind_of(task)
digest = data.record["digests"]["test"]
if not is_other and digest != run["data"]["digests"]["test"]:
    raise UserError(f"the test split is not the run's: {data.record['rows']['test']} rows of {data.record['source']}, "
                    f"then {run['data']['rows']['test']} of {run['data']['source']}; put them back or train again, or "
                    f"test a file of another name as another data set: --run {folder} --dataset FILE")
if common.slug(dataset) != run["dataset"]:
    own = run["task"]
    if (own["kind"], own.get("labels")) != (task["kind"], task.get("labels")):
        raise UserError(f"the run is on {own['key']} ({own['kind']}, labels {own.get('labels')}); it can't be tested "
                        f"on {task['key']} ({task['kind']}, labels {task.get('labels')})")
    folder = model_dir.parent / f"on-{common.slug(dataset)}"
    before = json.loads((folder / "run.json").read_text("utf-8")) if (folder / "run.json").is_file() else None
    if before and before["data"]["digests"]["test"] != digest and not args.overwrite:
        raise UserError(f"{folder} holds a test on other rows, of {before['data']['source']}; --overwrite replaces it")
    run |= {"trained_on": {"dataset": run["dataset"], "data": run["data"]}, "dataset": common.slug(dataset),
            "task": task, "data": data.record}
    common.write_json(folder / "run.json", run)
task |= run["training"]["tuned"]
texts = common.text_columns(task)
train = common.read_csv(model_dir.parent / "train_texts.csv", required=["id", "label"])
if is_other and len(train.columns) == len(texts) + 2:
    seen = test["id"][common.stand_in(test, train.set_axis(["id", *texts, "label"], axis=1), task)].tolist()
    if seen:
        print(f"the run was trained on {len(seen)} of these {len(test)} texts: "
              f"{', '.join(seen[:10])}{', ...' * (len(seen) > 10)}")

# 3. The model, one example at a time (the first calls warm up), then all of them.
precision = common.choose_precision(args.precision or run["hardware"]["precision"])
tokenizer, model = common.load_model(str(model_dir), task, own=True)
model.to(common.pick_device())
test_set = kind.encode(test, task, tokenizer, trained["max_length"])
picked, milliseconds = np.linspace(0, len(test_set) - 1, min(50, len(test_set))).astype(int), []
singles = [test_set.collate([test_set[i]]) for i in picked]
for batch in [*singles[:3], *singles]:
    start = time.perf_counter()
    common.forward(model, batch, kind, precision)[1].cpu()  # the copy to the host waits for the device
    milliseconds.append(1000 * (time.perf_counter() - start))
milliseconds = milliseconds[-len(singles):]
outputs = common.predict(model, test_set, kind, args.per_device_eval_batch_size, precision)
timing = {"split": "test", "examples": len(test), "tokens": test_set.tokens, "seconds": outputs.seconds,
          "examples_per_second": len(test) / outputs.seconds, "tokens_per_second": test_set.tokens / outputs.seconds,
          "latency_ms_median": np.median(milliseconds), "latency_ms_p95": np.percentile(milliseconds, 95),
          "device": common.device_name(model.device), "precision": precision,
          "batch_size": args.per_device_eval_batch_size}
common.write_csv(folder / "timing.csv", pd.DataFrame([timing]))

# 4. The predictions, and the vectors that the head read.
inputs = test[["id", *texts, *(["group"] if "group" in test else [])]]
inputs.insert(1, "split", task["splits"].get("test", "test"))
predictions = pd.concat([inputs, kind.predict(outputs.logits, test, task, test_set)], axis=1)
if unlabelled:
    of_gold = ["gold", "correct", "gold_confidence", "abs_error", "gold_step"]
    predictions = predictions.drop(columns=of_gold, errors="ignore").rename(columns={"predicted": "label"})
common.write_csv(folder / "predictions.csv", predictions)
if unlabelled:
    print(f"{len(test)} texts without labels: {folder / 'predictions.csv'}")
    sys.exit(0)
arrays = {"id": test["id"].to_numpy(dtype=np.str_), "vector": outputs.vectors}
common.write_whole(folder / "hidden_states.npz", lambda part: np.savez(part, **arrays))

# 5. The scores, beside the published ones.
rows, scales = scored(predictions), {}
published = {row["metric"]: published_scores(row) for row in rows}
rows = [row | published_columns(published[row["metric"]]) for row in rows]
if kind.confidence_is:
    temperature = task["temperature"]
    scaled = task | {"null_threshold": task.get("null_threshold", 0.0) / temperature}  # it is of the logits' scale
    cooler = kind.predict(outputs.logits / temperature, test, scaled, test_set)["confidence"]
    scales = {"raw": calibration_bins(predictions["confidence"], predictions["correct"]),
              "temperature": calibration_bins(cooler, predictions["correct"])}
    rows += [{"metric": name, "value": calibration_error(scales[scale]), "n": len(predictions)}
             for name, scale in (("ece", "raw"), ("ece_temperature", "temperature"))]
    common.write_csv(folder / "calibration.csv", pd.concat(scales, names=["scale"]).reset_index("scale"))
    draw_calibration(scales, folder / "calibration.png")
metrics = pd.DataFrame(rows, columns=METRICS_HEADER).assign(split=inputs["split"].iloc[0])
common.write_csv(folder / "metrics.csv", metrics)
compared = pd.DataFrame([score for metric in task["metrics"] for score in published.get(metric, [])])
if len(compared):
    common.write_csv(folder / "published.csv", compared)
if confusion := getattr(kind, "confusion", CONFUSION.get(task["kind"])):
    table = confusion(predictions)
    common.write_csv(folder / "confusion.csv", table.rename_axis("gold").reset_index(allow_duplicates=True))
    draw_confusion(table, folder / "confusion.png")

# 6. The floor; once it is there, every call renews it.
main = metrics.head(len(task["metrics"]))
shown = pd.DataFrame({"metric": main["metric"], "ours": main["value"].map("{:.4f}".format),
                      "95 % interval": [f"{row.ci_low:.4f}-{row.ci_high:.4f}" for row in main.itertuples()]})
if args.baselines or (folder / "baselines.csv").is_file():
    names = ["id", *texts, "label"]
    if len(train.columns) != len(names):
        raise UserError(f"--baselines: the run's training texts have {len(train.columns)} columns, {task['key']} "
                        f"{len(names)}: what learns from the one can't be tested on the other")
    floors = getattr(kind, "floors", choice_floors if task["kind"] == "multiple_choice" else text_floors)
    rows = []
    for name, table in floors(train.set_axis(names, axis=1), predictions, task).items():
        scores = scored(table.join(predictions.filter(["group"])))[:len(main)]  # where there is one, groups are drawn
        rows += [{"baseline": name, **score} for score in scores]
        shown[name] = [f"{score['value']:.4f}" for score in scores]
    common.write_csv(folder / "baselines.csv", pd.DataFrame(rows))

# 7. What is printed; the CSV files have all of it.
print(f"{task['title']}: {run['model']}, best epoch {run['training']['best_epoch']:g} (by validation "
      f"{run['training']['metric']}), {len(test)} examples ({metrics['split'][0]})\n{shown.to_string(index=False)}")
if len(compared) and not run["sample"]:
    print("published scores, and ours less theirs in points; published.csv has all, and in what each differs from ours")
    short = compared.groupby("metric").head(6).round({"value": 4, "gap": 1, "gap_low": 1, "gap_high": 1})
    short["by"] = short["cite"].str.replace(r"(\(\d{4}\)).*", r"\1", regex=True)
    print(short.drop(columns=["differs", "cite", "url"]).to_string(index=False))
    print("; ".join([f"ours: {run['model_info']['parameters'] / 1e6:.1f} M parameters", *what_is_ours()]))
if scales:
    print(f"calibration error of the {kind.confidence_is}: {calibration_error(scales['raw']):.4f}, at temperature "
          f"{temperature:.2f} (fitted on validation) {calibration_error(scales['temperature']):.4f}")
print(f"{timing['examples_per_second']:.0f} examples/s, {timing['tokens_per_second']:.0f} tokens/s, one example alone "
      f"{timing['latency_ms_median']:.1f} ms (p95 {timing['latency_ms_p95']:.1f}), {precision} on {timing['device']}")

# 8. seeds.csv: the runs beside this one that differ in the seed alone.
seeds = {}
for path in folder.parent.glob("seed*/metrics.csv") if "trained_on" not in run else ():
    other = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
    if all(other["args"].get(name) == trained[name] for name in trained.keys() - FREE):
        seeds[other["seed"]] = common.read_csv(path, ("value",)).set_index("metric")["value"]
if len(seeds) > 1:
    values = pd.DataFrame(seeds)
    summary = pd.DataFrame({"mean": values.mean(axis=1), "sd": values.std(axis=1), "n": len(seeds),
                            "min": values.min(axis=1), "max": values.max(axis=1),
                            "seeds": " ".join(map(str, sorted(seeds)))}, index=metrics["metric"])
    common.write_csv(folder.parent / "seeds.csv", summary.reset_index(names="metric"))
    print(f"{len(seeds)} seeds, mean +- standard deviation: " + ", ".join(
        f"{row.Index} {row.mean:.4f} +- {row.sd:.4f}" for row in summary.loc[task["metrics"]].itertuples()))
print("--sample: the figures mean nothing\n" * run["sample"] + f"written to {folder}")
