"""Predict the test split with the best epoch of a run, and score it beside the published figures.

    python evaluate.py --dataset mrpc                the newest finished run of the data set
    python evaluate.py --dataset mrpc --baselines    and, as a floor, what models without a neural network score
    python evaluate.py --run runs/mrpc/sample/seed42

Writes predictions.csv, metrics.csv, confusion.csv and .png, calibration.csv and .png, risk_coverage.csv, timing.csv and
hidden_states.npz into the run folder; with --baselines, baselines.csv.
"""

import argparse
import contextlib
import math
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import common
from common import KINDS, UserError, command
from errors import wilson
from visualize import write_report

METRICS_HEADER = ["metric", "value", "ci_low", "ci_high", "n", "split", "paper", "paper_model", "paper_split",
                  "paper_gap", "leaderboard", "leaderboard_model", "leaderboard_gap", "comparable", "source"]
BASELINES_HEADER = ["baseline", "metric", "value", "ci_low", "ci_high", "n"]
SHOWN_LABELS = 30  # rows of confusion.png
LATENCY_EXAMPLES = 50  # predicted one by one for the latency of a single example
SIZES = {"small": 80e6, "base": 300e6, "large": 800e6, "xl": math.inf}  # classes of models: fewer parameters than this
OTHER_SIZES = {"linear": "a linear model", "ensemble": "an ensemble", "human": "people",
               "other": "of another kind or an unknown size"}
MAX_BINS, MIN_PER_BIN = 15, 20  # of the calibration error: bins, and examples in a bin
FEW_EXAMPLES = 3000  # with fewer test examples an accuracy's interval is some three points wide or more


def build_parser() -> argparse.ArgumentParser:
    """Every flag of evaluate.py."""
    parser = common.Parser(prog="evaluate.py", description="Score a run on its test split, beside published figures.")
    common.add_run_flags(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument("--text-column", nargs="+", metavar="NAME",
                       help="text column of your own file given as --dataset; off: as in the run")
    group.add_argument("--label-column", metavar="NAME", help="label column of that file; off: as in the run")
    group.add_argument("--per-device-eval-batch-size", type=common.positive_int, default=32, metavar="N",
                       help="examples per forward pass")
    group.add_argument("--precision", choices=["auto", "fp32", "fp16", "bf16"],
                       help="off: the precision that the run was trained in")
    group.add_argument("--baselines", action="store_true",
                       help="also score the most frequent label and TF-IDF with a linear model, fitted to the run's "
                       "training texts: seconds, minutes for hundreds of thousands; once there, every call renews them")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Evaluate the run that the flags name; returns the exit code."""
    args = build_parser().parse_args(argv)
    is_first = common.launched()[0] == 0
    with contextlib.redirect_stdout(sys.stdout if is_first else None):  # one of several processes speaks and writes
        run, metrics = evaluate_run(args)
        if is_first:
            print_worth(run, metrics.iloc[0])
    return 0


def evaluate_run(args: argparse.Namespace) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Load the run, predict, score, write, print; returns run.json of the results and metrics.csv.

    Of several processes the first alone writes; the others return None for metrics.csv.
    """
    with common.first_process_first():
        folder, run = find_run(args)
        common.hold(folder)
        flags = run_flags(args, run)
        data = common.load_data(flags, test_only=True, labels=run["task"].get("labels"),
                                whole_file=common.dataset_slug(flags.dataset) != common.dataset_slug(
                                    run["args"]["dataset"]))
        folder, run = adopt(folder, run, data, args.dataset)
    test, outputs, timing = predict(args, run, data)
    if common.launched()[0] > 0:
        return run, None
    predictions = write_predictions(folder, data, test, outputs)
    scales = confidence_scales(data, test, outputs, predictions)
    metrics = write_metrics(folder, run, data, predictions, scales)
    write_calibration(folder, run, data, predictions["correct"].to_numpy(), scales, metrics)
    baselines = pd.DataFrame(columns=BASELINES_HEADER)
    if args.baselines or (folder / "baselines.csv").is_file():
        baselines = write_baselines(folder, run, data, predictions)
    common.write_csv(folder / "timing.csv", timing)
    write_report(folder)
    print_summary(folder, run, data, metrics, timing, baselines)
    return run, metrics


def find_run(args: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The run that the flags name, also where it is to be tested on another data set than its own."""
    if args.run:
        return args.run, common.finished_run(args.run)
    return common.find_run(args)


def run_flags(args: argparse.Namespace, run: dict[str, Any]) -> argparse.Namespace:
    """The flags that the run's data was read with; those of this call that say which data come first."""
    flags = argparse.Namespace(**run["args"])
    tested_on = run["task"].get("file", run["dataset"]) if "trained_on" in run else flags.dataset
    flags.dataset = args.dataset or tested_on
    flags.text_column = args.text_column or flags.text_column
    flags.label_column = args.label_column or flags.label_column
    flags.data_dir = args.data_dir
    flags.max_eval_samples = args.max_eval_samples or flags.max_eval_samples
    return flags


def adopt(
    folder: Path, run: dict[str, Any], data: common.Data, dataset: str | None
) -> tuple[Path, dict[str, Any]]:
    """The folder for the results, with a run.json of its own for a `dataset` that the run was not trained on, and it.

    That run.json keeps what the run was trained on as `trained_on`. The task gets what the run tuned on its own
    validation split. UserError where the labels are not the same.
    """
    run["model_dir"] = str((folder.parent if "trained_on" in run else folder) / "model")
    if not Path(run["model_dir"]).is_dir():
        raise UserError(f"the run has lost its model: {run['model_dir']} is no folder; train again with --overwrite")
    place = common.tested_on(folder, run, dataset)
    if place != folder:
        own = run["task"]
        if own["kind"] != data.task["kind"] or own.get("labels") != data.task.get("labels"):
            raise UserError(f"the run is on {own['key']} ({own['kind']}, labels {own.get('labels')}); it can't be "
                            f"tested on {data.task['key']} ({data.task['kind']}, labels {data.task.get('labels')})")
        trained_on = {"dataset": run["dataset"], "data": run["data"]}
        run |= {"dataset": common.dataset_slug(dataset), "task": data.task, "data": data.record,
                "trained_on": trained_on}
        common.write_json(place / "run.json", run)
    data.task |= run["training"]["tuned"]
    return place, run


def predict(
    args: argparse.Namespace, run: dict[str, Any], data: common.Data
) -> tuple[common.TokenDataset, common.Outputs, pd.DataFrame]:
    """The test split as tensors, its logits and vectors, and what timing.csv says."""
    kind, precision = KINDS[data.task["kind"]], common.choose_precision(args.precision or run["hardware"]["precision"])
    tokenizer, model = common.load_model(run["model_dir"], data.task)
    model.to(common.pick_device())
    test = kind.encode(data.splits["test"], data.task, tokenizer, run["args"]["max_length"], data.images)
    latency_ms = latencies(model, test, kind, precision)
    outputs = common.predict(model, test, kind, args.per_device_eval_batch_size, precision)
    examples = len(data.splits["test"])
    timing = pd.DataFrame([{
        "split": "test", "examples": examples, "tokens": test.tokens, "seconds": outputs.seconds,
        "examples_per_second": examples / outputs.seconds, "tokens_per_second": test.tokens / outputs.seconds,
        "latency_ms_median": float(np.median(latency_ms)), "latency_ms_p95": float(np.percentile(latency_ms, 95)),
        "device": common.device_name(model.device), "precision": precision,
        "batch_size": args.per_device_eval_batch_size}])
    return test, outputs, timing


def latencies(model: Any, test: common.TokenDataset, kind: Any, precision: str) -> np.ndarray:
    """Milliseconds that one example takes on its own, for up to LATENCY_EXAMPLES examples; the first calls warm up."""
    count = min(LATENCY_EXAMPLES, len(test))
    picked = np.linspace(0, len(test) - 1, count).astype(int)
    singles = [test.collate([test[i]]) for i in picked]
    seconds = []
    for batch in [*singles[:3], *singles]:
        start = time.perf_counter()
        common.forward(model, batch, kind, precision)[1][0].cpu()  # the copy to the host waits for the device
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[-count:]) * 1000


def write_predictions(
    folder: Path, data: common.Data, encoded: common.TokenDataset, outputs: common.Outputs
) -> pd.DataFrame:
    """Write predictions.csv and hidden_states.npz; returns the former."""
    kind, test = KINDS[data.task["kind"]], data.splits["test"]
    inputs = test[["id", *common.text_columns(data.task)]]
    inputs.insert(1, "split", data.task["splits"].get("test", "test"))
    predictions = pd.concat([inputs, kind.predict(outputs.logits, test, data.task, encoded)], axis=1)
    common.write_csv(folder / "predictions.csv", predictions)
    arrays = {"id": test["id"].to_numpy(dtype=np.str_), "vector": outputs.vectors}
    common.write_atomically(folder / "hidden_states.npz", lambda path: np.savez(path, **arrays))
    return predictions


# ---------------------------------------------------------------------------------------------------------------------
# metrics.csv, and what was published
# ---------------------------------------------------------------------------------------------------------------------


def write_metrics(
    folder: Path, run: dict[str, Any], data: common.Data, predictions: pd.DataFrame, scales: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Write metrics.csv, confusion.csv and confusion.png; returns the first.

    ci_low and ci_high: 95 % percentile bootstrap over the test examples (Efron 1979), 2,000 resamples seeded.
    """
    kind, task = KINDS[data.task["kind"]], data.task
    scores, draws = kind.metrics(predictions, task), kind.resample(predictions, task)
    intervals = {metric: np.percentile(draws[metric], [2.5, 97.5]) for metric in scores}
    rows = [{"metric": metric, "value": value, "ci_low": intervals[metric][0], "ci_high": intervals[metric][1],
             **published(metric, value, run, data)} for metric, value in scores.items()]
    rows += calibration_rows(predictions["correct"].to_numpy(), scales)
    metrics = pd.DataFrame(rows, columns=METRICS_HEADER)
    counts = [kind.examples_of(metric, predictions) for metric in metrics["metric"]]
    metrics = metrics.assign(n=counts, split=predictions["split"].iloc[0])
    common.write_csv(folder / "metrics.csv", metrics)
    confusion = kind.confusion(predictions, task)
    if confusion is not None:
        common.write_csv(folder / "confusion.csv", confusion)
        draw_confusion(confusion, folder / "confusion.png", run)
    return metrics


def published_scores(task: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """The catalog's scores for a metric: one of the paper, one of the leaderboard, and all checked references.

    Of several for a role, the first whose source was checked, or else the first.
    """
    scores = [score for score in task["scores"] if score["metric"] == metric]
    chosen = []
    for role in ("paper", "leaderboard"):
        ranked = sorted(scores, key=lambda score: not score["checked"])
        chosen += [score for score in ranked if score["role"] == role][:1]
    return chosen + [score for score in scores if score["role"] == "reference" and score["checked"]]


def published(metric: str, value: float, run: dict[str, Any], data: common.Data) -> dict[str, Any]:
    """The paper's and the leaderboard's columns of a row of metrics.csv; a figure that was not checked says so.

    Figures are shares of 1 as ours are, gaps are in points (ours less theirs, times 100). comparable: `yes`, or `no`
    and why; where one of the two figures is comparable all the same, it is named at the end.
    """
    scores = [score for score in published_scores(data.task, metric) if score["role"] != "reference"]
    others = dict.fromkeys(score["metric"] for score in data.task["scores"] if score["role"] != "reference")
    if not scores:
        is_told = metric in data.task["metrics"] and others
        return {"comparable": f"no: what is published is {', '.join(others)}, not {metric}"} if is_told else {}
    columns: dict[str, Any] = {}
    ours, theirs, sources = what_is_ours(run, data), {}, []
    for score in scores:
        role = score["role"]
        columns |= {role: score["value"] / 100, f"{role}_model": model_name(score),
                    f"{role}_gap": 100 * value - score["value"]}
        if role == "paper":
            columns["paper_split"] = score["split"]
        theirs[role] = ", ".join(differences(score, run, data).values())
        sources.append(f"{role}: " + ", ".join(score[name] for name in ("cite", "url", "note") if name in score))
    reasons = [*ours, *(f"{role}: {why}" for role, why in theirs.items() if why)]
    alike = [f"{role}: yes" for role, why in theirs.items() if not why and not ours]
    columns["comparable"] = f"no: {'; '.join(reasons + alike)}" if reasons else "yes"
    columns["source"] = " | ".join(sources)
    return columns


def model_name(score: dict[str, Any]) -> str:
    """The model of a published figure, and that its source was not checked, if so."""
    return score["model"] if score["checked"] else f"{score['model']}, unchecked"


def size_class(parameters: int) -> str:
    """The class of our model by all its parameters, embeddings included: SIZES.

    BERT-, RoBERTa- and XLM-R-base have 110, 125 and 278 million, their large sisters 335, 355 and 560, DistilBERT 66.
    """
    return next(name for name, limit in SIZES.items() if parameters < limit)


def what_is_ours(run: dict[str, Any], data: common.Data) -> list[str]:
    """What sets our figures apart from any published one: sample rows, other training data, a part of the examples."""
    trained = run.get("trained_on", run)
    facts = ["ours is on sample rows"] if run["sample"] else []
    if trained["dataset"] not in (run["dataset"], *data.task.get("trained_on", ())):
        facts.append(f"ours was trained on {trained['dataset']}")
    for split, record in (("train", trained["data"]), ("test", data.record)):
        if record["used"][split] < record["rows"][split]:
            facts.append(f"ours uses {record['used'][split]} of {record['rows'][split]} {split} examples")
    return facts


def differences(score: dict[str, Any], run: dict[str, Any], data: common.Data) -> dict[str, str]:
    """In what a published figure differs from ours (source, split, size, way), and how; empty where the two compare.

    size: the one that the catalog names is not the class of our model (size_class). way: what the catalog adds.
    """
    ours, parameters = data.task["splits"].get("test", "a cut of train"), run["model_info"]["parameters"]
    facts = {} if score["checked"] else {"source": "its source was not checked"}
    if score["split"] != ours:
        facts["split"] = f"its split is {score['split']} and ours {ours}"
    if score["size"] != size_class(parameters):
        theirs = OTHER_SIZES.get(score["size"], f"of size {score['size']}")
        facts["size"] = f"its model is {theirs} and ours {size_class(parameters)} ({parameters / 1e6:.1f} M parameters)"
    return facts | ({"way": score["differs"]} if "differs" in score else {})


def draw_confusion(confusion: pd.DataFrame, path: Path, run: dict[str, Any]) -> None:
    """Draw the confusion matrix: a row per gold label, shaded by its share of the row, with the counts.

    Of more than SHOWN_LABELS labels it shows the most frequent ones; confusion.csv has all.
    """
    counts = confusion.iloc[:, 1:].to_numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    is_square = counts.shape[0] == counts.shape[1]  # else a label's columns are kinds of outcome
    frequency = counts.sum(axis=1) + (counts.sum(axis=0) if is_square else 0)
    rows = np.sort(np.argsort(-frequency, kind="stable")[:SHOWN_LABELS])
    columns = rows if is_square else np.arange(counts.shape[1])
    note = f"; the {len(rows)} most frequent of {len(counts)} labels" if len(rows) < len(counts) else ""
    total, counts, shares = counts.sum(), counts[np.ix_(rows, columns)], shares[np.ix_(rows, columns)]
    names, labels = confusion.iloc[rows, 0].tolist(), confusion.columns[1:][columns].tolist()
    size = max(3.5, 0.6 * len(labels) + 2)
    figure, axes = common.new_figure(size + 1, size)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center",
                  color="white" if shares[row, column] > 0.6 else "black")
    turned = {"rotation": 45, "ha": "right"} if max(map(len, labels)) > 8 or len(labels) > 4 else {}
    axes.set_xticks(range(len(labels)), labels, **turned)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="gold", title=f"{run['dataset']}, {run['model']}, seed {run['seed']}{note}\n"
             + common.figure_note(run, total))
    common.save_figure(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# Calibration: is a prediction right as often as the model is sure of it?
# ---------------------------------------------------------------------------------------------------------------------


def confidence_scales(
    data: common.Data, test: common.TokenDataset, outputs: common.Outputs, predictions: pd.DataFrame
) -> dict[str, np.ndarray]:
    """The confidence in each prediction: `raw`, that of predictions.csv, and with the logits divided by `temperature`.

    The temperature was fitted to the validation split of the run, at its best epoch. Empty for a kind whose predictions
    come without a confidence.
    """
    kind, task = KINDS[data.task["kind"]], data.task
    if not kind.confidence_is:
        return {}
    scaled = kind.confidences(outputs.logits, data.splits["test"], task, test, task["temperature"])
    return {"raw": predictions["confidence"].to_numpy(np.float64), "temperature": scaled}


def calibration_rows(correct: np.ndarray, scales: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The last rows of metrics.csv: aurc (of the raw confidence), ece and ece_temperature, with their intervals.

    aurc has a percentile bootstrap. Chance alone makes a calibration error greater than 0 and resampling makes it
    greater again, so that percentiles of the draws would lie too high: ece has the basic bootstrap's interval, twice
    the figure less the percentiles (Davison & Hinkley 1997, eq. 5.6). It begins at 0 where answers that are right
    with the very probabilities that the model states have as great an error in 5 % of draws or more (Bröcker & Smith
    2007): such a model may be calibrated.
    """
    if not scales:
        return []
    groups, rng = np.unique(-scales["raw"], return_inverse=True)[1], np.random.default_rng(common.SPLIT_SEED)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {"aurc": np.array([risks(groups, correct, row).mean() for row in weights])}
        for scale, confidence in scales.items():
            by_chance = rng.random(weights.shape) < confidence
            found[scale] = calibration_error(confidence, correct, weights)
            found[f"calibrated {scale}"] = calibration_error(confidence, by_chance)
        return found

    value = figures(np.ones((1, len(correct))))
    draws = common.resampled(len(correct), 2000, figures)
    rows = [("aurc", value["aurc"][0], *np.percentile(draws["aurc"], [2.5, 97.5]))]
    for scale in scales:
        error = value[scale][0]
        low, high = 2 * error - np.percentile(draws[scale], [97.5, 2.5])
        low = 0.0 if (draws[f"calibrated {scale}"] >= error).mean() >= 0.05 else max(0.0, low)
        rows.append(("ece" if scale == "raw" else f"ece_{scale}", error, low, max(error, high)))
    return [dict(zip(("metric", "value", "ci_low", "ci_high"), row, strict=True)) for row in rows]


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """The bin of each example, int (examples,), by ascending confidence: MAX_BINS of equal mass, or fewer.

    Equal confidences share a bin, that of their mean rank.
    """
    n = len(confidence)
    bins = min(MAX_BINS, max(1, n // MIN_PER_BIN))
    ranks = common.weighted_ranks(confidence, np.ones((1, n)))[0]
    return np.minimum((bins * (ranks - 0.5) / n).astype(np.int64), bins - 1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """ECE, (samples,): sum over bins of equal mass of n_bin / n * |accuracy - mean confidence| of the bin.

    Naeini, Cooper & Hauskrecht 2015, with the bins of Nguyen & O'Connor 2015 (Nixon et al. 2019 compare the two).

    Args:
        confidence: (examples,).
        correct: bool, (examples,) or (samples, examples).
        weights: (samples, examples), how often an example occurs in each sample.
    """
    in_bin = np.eye(MAX_BINS)[confidence_bins(confidence)]  # (examples, bins)
    gaps = np.atleast_2d(weights * (correct - confidence)) @ in_bin
    return np.abs(gaps).sum(axis=1) / len(confidence)


def risks(groups: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of wrong predictions among the k surest, for k = 1 .. n, (n,); their mean is the AURC.

    Geifman, Uziel & El-Yaniv 2019 (section 2). Of equally sure predictions, the mean over their orders counts.

    Args:
        groups: int, (examples,): 0 for the surest, equal where the confidence is.
        correct: bool, (examples,).
        weights: (examples,), how often each occurs.
    """
    kept, wrong = (np.cumsum(np.bincount(groups, counted)) for counted in (weights, weights * ~correct))
    numbers = np.arange(1, round(kept[-1]) + 1)
    return np.interp(numbers, [0, *kept], [0, *wrong]) / numbers


def write_calibration(
    folder: Path, run: dict[str, Any], data: common.Data, correct: np.ndarray, scales: dict[str, np.ndarray],
    metrics: pd.DataFrame,
) -> None:
    """Write calibration.csv, risk_coverage.csv and calibration.png, which shows both.

    calibration.csv: a row per bin; accuracy is the share of right predictions (`correct` of predictions.csv), ci_low
    and ci_high its Wilson interval. risk_coverage.csv: `risk` is the share of wrong ones among the `n` surest, which
    are `coverage` of all and whose confidence is `confidence` or more; up to 100 rows per scale.
    """
    bins, curve = [], []
    for scale, confidence in scales.items():
        places = confidence_bins(confidence)
        for place in np.unique(places):
            held = places == place
            right, n = int(correct[held].sum()), int(held.sum())
            low, high = wilson(right, n)
            bins.append({"scale": scale, "bin": place + 1, "n": n, "confidence": confidence[held].mean(),
                         "accuracy": right / n, "ci_low": low, "ci_high": high})
        risk = risks(np.unique(-confidence, return_inverse=True)[1], correct, np.ones(len(correct)))
        numbers = np.unique(np.ceil(np.arange(1, 101) / 100 * len(correct)).astype(int))
        curve.append(pd.DataFrame({
            "scale": scale, "coverage": numbers / len(correct), "n": numbers,
            "confidence": -np.sort(-confidence)[numbers - 1], "risk": risk[numbers - 1]}))
    if scales:
        tables = pd.DataFrame(bins), pd.concat(curve, ignore_index=True)
        common.write_csv(folder / "calibration.csv", tables[0])
        common.write_csv(folder / "risk_coverage.csv", tables[1])
        draw_calibration(*tables, metrics.set_index("metric")["value"], folder / "calibration.png", run, data.task)


def draw_calibration(
    bins: pd.DataFrame, curve: pd.DataFrame, values: pd.Series, path: Path, run: dict[str, Any], task: dict[str, Any]
) -> None:
    """Draw calibration.csv on the left, risk_coverage.csv on the right."""
    figure, (left, right) = common.new_figure(9, 4.2, ncols=2)
    lowest = math.floor(10 * bins[["confidence", "ci_low"]].min(axis=None)) / 10
    left.plot([lowest, 1], [lowest, 1], color="0.6", linewidth=1, label="calibrated")
    looks = {"raw": ("#0072B2", "o", "as the model gives it", "ece"),
             "temperature": ("#D55E00", "s", f"at temperature {task['temperature']:.2f}", "ece_temperature")}
    for scale, (color, marker, name, metric) in looks.items():
        points, line = bins[bins["scale"] == scale], curve[curve["scale"] == scale]
        bars = [points["accuracy"] - points["ci_low"], points["ci_high"] - points["accuracy"]]
        left.errorbar(points["confidence"], points["accuracy"], yerr=bars, color=color, marker=marker, markersize=4,
                      linewidth=1, elinewidth=0.6, label=f"{name}: ECE {values[metric]:.3f}")
        right.plot(line["coverage"], line["risk"], color=color, linestyle="-" if scale == "raw" else "--",
                   label=f"{name}: AURC {values['aurc']:.3f}" if scale == "raw" else name)
    left.set(xlim=(lowest, 1.01), ylim=(lowest, 1.02), ylabel="share of right predictions",
             xlabel=textwrap.fill(f"confidence: {KINDS[task['kind']].confidence_is}", 55))
    right.set(xlim=(0, 1.01), ylim=(0, None), xlabel="coverage: share of predictions kept, the surest first",
              ylabel="risk: share of wrong ones among them")
    for axes in (left, right):
        axes.legend(fontsize=8)
    note = common.figure_note(run, int(bins.loc[bins["scale"] == "raw", "n"].sum()))
    figure.suptitle(f"{run['dataset']}, {run['model']}, seed {run['seed']}: calibration\n{note}".strip(), fontsize=10)
    common.save_figure(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# Baselines
# ---------------------------------------------------------------------------------------------------------------------


def write_baselines(folder: Path, run: dict[str, Any], data: common.Data, predictions: pd.DataFrame) -> pd.DataFrame:
    """Write baselines.csv and return it: the main metrics of what kind.baselines() learns from the run's own texts."""
    kind, task = KINDS[data.task["kind"]], data.task
    path, names = Path(run["model_dir"]).parent / "train_texts.csv", ["id", *common.text_columns(task), "label"]
    train = common.read_csv(path, required=["id", "label"])
    if len(train.columns) != len(names):
        raise UserError(f"--baselines: {path} has the columns {', '.join(train.columns)}, {task['key']} "
                        f"{', '.join(names)}: what learns from the one can't be tested on the other")
    rows = []
    for name, table in kind.baselines(train.set_axis(names, axis=1), predictions, task).items():
        values, draws = kind.metrics(table, task), kind.resample(table, task)
        for metric in task["metrics"]:
            low, high = np.percentile(draws[metric], [2.5, 97.5])
            rows.append([name, metric, values[metric], low, high, kind.examples_of(metric, table)])
    baselines = pd.DataFrame(rows, columns=BASELINES_HEADER)
    common.write_csv(folder / "baselines.csv", baselines)
    return baselines


# ---------------------------------------------------------------------------------------------------------------------
# What is printed
# ---------------------------------------------------------------------------------------------------------------------


def print_summary(
    folder: Path, run: dict[str, Any], data: common.Data, metrics: pd.DataFrame, timing: pd.DataFrame,
    baselines: pd.DataFrame,
) -> None:
    """Print the figures a reader looks for first; metrics.csv has them all."""
    main = metrics.head(len(data.task["metrics"]))
    table = pd.DataFrame({
        "metric": main["metric"], "ours": main["value"].map("{:.4f}".format),
        "95 % interval": [f"{low:.4f}-{high:.4f}" for low, high in zip(main["ci_low"], main["ci_high"], strict=True)]})
    for name, rows in baselines.groupby("baseline", sort=False):
        table[name] = rows["value"].map("{:.4f}".format).tolist()
    print(f"{data.task['title']}: {run['model']}, best epoch {run['training']['best_epoch']:g} (by validation "
          f"{run['training']['metric']}), {len(data.splits['test'])} test examples ({main['split'].iloc[0]})")
    print(common.as_text(table))
    if not run["sample"]:
        print_published(run, data, main)
    calibration = metrics[metrics["metric"].str.startswith("ece")]
    if len(calibration):
        print(f"calibration error of the confidence ({KINDS[data.task['kind']].confidence_is}): " + "; ".join(
            f"{row.metric} {row.value:.4f} ({row.ci_low:.4f}-{row.ci_high:.4f})" for row in calibration.itertuples())
            + f"; temperature {data.task['temperature']:.2f}, fitted on validation")
    row = timing.iloc[0]
    print(f"{row['examples_per_second']:.0f} examples/s, {row['tokens_per_second']:.0f} tokens/s, one example alone "
          f"{row['latency_ms_median']:.1f} ms (p95 {row['latency_ms_p95']:.1f}), {row['precision']} on {row['device']}")
    if run["sample"]:
        print("sample rows: the figures mean nothing")
    print(f"written to {folder}")


def print_published(run: dict[str, Any], data: common.Data, main: pd.DataFrame) -> None:
    """Print the published figures for the main metrics, our gap to each, and facts that may explain it."""
    rows, remarks = [], {}
    for ours in main.itertuples():
        for score in published_scores(data.task, ours.metric):
            gap, low, high = (100 * value - score["value"] for value in (ours.value, ours.ci_low, ours.ci_high))
            rows.append({"published": score["role"], "metric": ours.metric, "theirs": f"{score['value'] / 100:.4f}",
                         "ours less theirs, points": f"{gap:+.1f} ({low:+.1f} to {high:+.1f})",
                         "model": model_name(score), "size": score["size"], "split": score["split"],
                         "differs in": ", ".join(differences(score, run, data)) or "nothing", "by": score["cite"]})
            told = [score[name] for name in ("differs", "note") if name in score]
            remarks |= {f"- {score['model']} ({score['cite']}): {'; '.join(told)}": None} if told else {}
    if rows:
        parameters = run["model_info"]["parameters"]
        print(common.as_text(pd.DataFrame(rows)))
        print("; ".join([f"ours: size {size_class(parameters)} ({parameters / 1e6:.1f} M parameters), split "
                         f"{main['split'].iloc[0]}", *what_is_ours(run, data)]))
        print("".join(f"{remark}\n" for remark in remarks), end="")


def print_worth(run: dict[str, Any], row: pd.Series) -> None:
    """Print what the main figure of a single seed on a small test set is worth; nothing where there are more seeds."""
    seeds = [common.read_json(path) for path in Path(run["model_dir"]).parents[1].glob("seed*/run.json")]
    if row["n"] < FEW_EXAMPLES and sum(bool(seed.get("finished")) for seed in seeds) < 2 and not run["sample"]:
        width = 100 * (row["ci_high"] - row["ci_low"])
        print(f"one seed, {row['n']} test examples: another test set of that size may move {row['metric']} within an "
              f"interval of {width:.1f} points; another seed moves it too: train.py --seeds 1 2 3 says how much")


if __name__ == "__main__":
    sys.exit(main())
