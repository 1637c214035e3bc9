"""Draw what a run learned, from its folder alone: learning curve, hidden states in two dimensions; write the report.

    python evaluate.py --dataset mrpc               writes predictions.csv and hidden_states.npz
    python visualize.py --dataset mrpc              writes learning_curve.png, embedding_pca.png, embedding_tsne.png and
                                                    explorer.html, a page to look through the samples
    python visualize.py --dataset mrpc --runs DIR   draws the learning curve of the run in DIR over it

embedding_epochs.png needs what train.py --keep-epochs keeps; the tags in explorer.html come from errors.csv.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import re
import sys
import textwrap
import unicodedata
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import (
    ANSWERABLE,
    KINDS,
    NUMBER,
    Parser,
    UserError,
    add_run_flags,
    command,
    dataset_slug,
    figure_note,
    find_run,
    finished_run,
    hold,
    new_figure,
    positive_float,
    positive_int,
    read_csv,
    read_json,
    read_predictions,
    save_figure,
    stratified_rows,
    text_columns,
    write_atomically,
    write_csv,
)

EMBEDDING_COLUMNS = ["id", "x", "y", "gold", "predicted", "correct", "confidence"]
METHOD_NAMES = {"pca": "PCA", "tsne": "t-SNE"}
MIN_POINTS = 5  # below this a projection shows nothing but the sample itself
MAX_PANELS = 6  # epochs side by side at a column's width
MAX_CHARS = 1000  # of one input text in explorer.html

# Colours: red and blue for two labels; else Okabe & Ito's, told apart with every kind of colour blindness
# (https://jfly.uni-koeln.de/color/), less their black, which is for wrong samples here, plus Tol's olive.
RED, BLUE, BLACK, GREY = "#D7191C", "#2C7BB6", "#000000", "#999999"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#999933", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "p", "h")  # one per colour, so that colour is not the only sign
WRONG_MARKER, OTHER_MARKER = "X", "."
ALPHA_FLOOR = 0.15  # an unsure prediction stays visible
ALPHA_UNKNOWN = 0.8  # regression has no confidence
BEST_EPOCH = {"marker": "*", "markersize": 11, "markeredgecolor": BLACK}
WRONG = "wrongly predicted"
GOLD_COLORS = "coolwarm"  # regression: bright at both ends, so that black can stand for the error


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = Parser(description="Draw a run's learning curve and hidden states, and write a page to look through them. "
                    "Pictures are always drawn anew, --overwrite or not.")
    add_run_flags(parser)
    group = parser.add_argument_group("pictures")
    group.add_argument("--runs", type=Path, nargs="+", default=[], metavar="DIR",
                       help="further run folders whose learning curves are overlaid")
    group.add_argument("--method", nargs="+", choices=METHOD_NAMES, default=list(METHOD_NAMES),
                       help="projections to draw")
    group.add_argument("--max-correct", type=positive_int, default=500, metavar="N",
                       help="rightly predicted samples to show, drawn with the run's seed, stratified by label")
    group.add_argument("--perplexity", type=positive_float,
                       help="t-SNE's effective number of neighbours, below that of points; off: min(30, (points-1)/3)")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Draw everything that the files in the run folder allow."""
    args = build_parser().parse_args(argv)
    folder, run = find_run(args)
    hold(folder, shared=True)
    for other in args.runs:
        finished_run(other)
    draw_learning_curve([folder, *args.runs], folder / "learning_curve.png")
    draw_epochs(folder, run)
    draw_embeddings(folder, run, args)
    write_report(folder)
    return 0


# ---- The learning curve ---------------------------------------------------------------------------------------------


def draw_learning_curve(folders: list[Path], path: Path) -> None:
    """Write `path`, a PNG: losses above, below them the metric that chose the best epoch; one colour per run folder.

    Reads run.json, history.csv and steps.csv of each. Training is solid, evaluation dashed, the best epoch a star.
    """
    from matplotlib.lines import Line2D

    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    runs = [read_json(folder / "run.json") for folder in folders]
    colors = list(itertools.islice(itertools.cycle(PALETTE), len(runs)))
    figure, panels = new_figure(6, 5.5, nrows=2, sharex=True)
    metrics = [draw_run(panels, folder, run["training"], color)
               for folder, run, color in zip(folders, runs, colors, strict=True)]
    panels[0].set_ylabel("loss")
    panels[1].set_ylabel("\n".join(dict.fromkeys(metrics)))
    panels[1].set_xlabel("epoch")
    panels[1].xaxis.get_major_locator().set_params(integer=True)
    color = GREY if len(runs) > 1 else colors[0]
    handles = [Line2D([], [], color=color, alpha=0.4, linewidth=0.8, label="training, as logged"),
               Line2D([], [], color=color, label="training, moving average"),
               Line2D([], [], color=color, linestyle="--", marker="o", markersize=4, label="evaluation"),
               Line2D([], [], color=color, linestyle="", label="best epoch", **BEST_EPOCH)]
    if len(runs) > 1:
        names = [shorten(f"{run['dataset']}, {run['model']}, seed {run['seed']}", 90) for run in runs]
        handles += [Line2D([], [], color=color, label=name) for name, color in zip(names, colors, strict=True)]
    add_title(figure, runs, "learning curve")
    add_legend(figure, handles)
    save(figure, path)


def draw_run(panels: np.ndarray, folder: Path, training: dict[str, Any], color: str) -> str:
    """Add the curves of one run to the two panels; return what the second one shows.

    The moving average of the training loss spans a twentieth of the rows of steps.csv. Training has one score, which
    costs nothing to keep; where it is not the metric that chose the epoch, the name says so.
    """
    metric = training["metric"]
    steps = read_csv(folder / "steps.csv", ("epoch", "loss"), ("epoch", "loss"))
    history = read_csv(folder / "history.csv", ("epoch", "train_", "eval_"), ("epoch", "eval_loss", f"eval_{metric}"))
    smooth = steps["loss"].rolling(max(1, len(steps) // 20), center=True, min_periods=1).mean()
    panels[0].plot(steps["epoch"], steps["loss"], color=color, alpha=0.3, linewidth=0.6)
    panels[0].plot(steps["epoch"], smooth, color=color)
    best = history[history["epoch"] == training["best_epoch"]]
    if best.empty:
        raise UserError(f"{folder / 'history.csv'} has no row of the best epoch, {training['best_epoch']:g}")
    for panel, column in zip(panels, ("eval_loss", f"eval_{metric}"), strict=True):
        panel.plot(history["epoch"], history[column], color=color, linestyle="--", marker="o", markersize=4)
        panel.plot(best["epoch"], best[column], color=color, linestyle="", **BEST_EPOCH)
    scores = [name for name in history if name.startswith("train_") and name != "train_loss"]
    if not scores:
        return metric
    score = f"train_{metric}" if f"train_{metric}" in scores else scores[0]
    panels[1].plot(history["epoch"], history[score], color=color, marker="o", markersize=3)
    return metric if score == f"train_{metric}" else f"{metric} (training: {score.removeprefix('train_')})"


# ---- The points: which samples, which colour, which shape -----------------------------------------------------------


def read_arrays(path: Path, **shapes: str) -> list[np.ndarray]:
    """The named arrays of an .npz file; UserError where the file is missing, broken or lacks one.

    shapes: name -> numpy's letter for the kind of its values and the number of its axes; an array per name comes back.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; evaluate.py writes it")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = [arrays[name] for name in shapes]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for array, (name, shape) in zip(found, shapes.items(), strict=True):
        if f"{array.dtype.kind}{array.ndim}" != shape:
            raise UserError(f"{path} cannot be read: {name} is {array.dtype.kind}{array.ndim}, not {shape}")
    return found


def read_samples(folder: Path, task: dict[str, Any]) -> tuple[pd.DataFrame, np.ndarray]:
    """The samples of predictions.csv with their group and {column: input text}, and their vectors, float64 (n, hidden).

    Raises UserError where hidden_states.npz and predictions.csv do not hold the same samples.
    """
    predictions = read_predictions(folder)
    ids, vectors = read_arrays(folder / "hidden_states.npz", id="U1", vector="f2")
    row_of = {name: row for row, name in enumerate(ids.tolist())}
    alone = set(row_of) ^ set(predictions["id"])
    if alone or not len(row_of) == len(ids) == len(predictions) == len(vectors):
        raise UserError(f"{folder}: hidden_states.npz holds {len(ids)} samples, predictions.csv {len(predictions)}, "
                        f"and {len(alone)} ids stand in one alone; write both again with evaluate.py --overwrite")
    table = predictions[["id", "gold", "predicted", "correct", "confidence"]].copy()
    table["group"] = KINDS[task["kind"]].picture_groups(predictions, task)
    table["texts"] = predictions[text_columns(task)].to_dict("records")
    return table, vectors[[row_of[name] for name in table["id"]]].astype(np.float64)


def choose_points(groups: pd.Series, correct: pd.Series, max_correct: int, seed: int) -> np.ndarray:
    """Row numbers, ascending: every wrong sample, and `max_correct` right ones at random in the groups' proportions."""
    right = np.flatnonzero(correct)
    drawn = stratified_rows(groups.to_numpy()[right], max_correct, np.random.default_rng(seed))
    return np.sort(np.concatenate([np.flatnonzero(~correct), right[drawn]]))


def group_styles(groups: pd.Series, task: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each group, legend order; of more than eight, the less frequent ones share `N more`.

    Two groups: red is the positive one (the last label where the task names none), blue the other.
    """
    by_count = groups.value_counts().sort_index().sort_values(ascending=False, kind="stable").index.tolist()
    known = [[str(label) for label in task.get("labels") or []], list(ANSWERABLE)]
    names = next((names for names in known if set(by_count) <= set(names) and len(names) <= len(PALETTE)), by_count)
    if len(names) == 2:
        positive = task.get("positive") if task.get("positive") in names else names[-1]
        negative = next(name for name in names if name != positive)
        return {positive: (RED, "o"), negative: (BLUE, "s")}
    styles = dict(zip(names, zip(PALETTE, MARKERS, strict=True), strict=False))
    if len(names) > len(styles):
        styles[f"{len(names) - len(styles)} more"] = (GREY, OTHER_MARKER)
    return styles


def error_colors(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """RGB, 0..1, (n, 3): from blue at the lowest gold value to red at the highest, mixed with black by |error|/max."""
    from matplotlib import colormaps

    error = np.abs(gold - predicted)
    colors = colormaps[GOLD_COLORS]((gold - gold.min()) / (np.ptp(gold) or 1))[:, :3]
    return colors * (1 - error / (error.max() or 1))[:, None]


def add_looks(table: pd.DataFrame, task: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Add the columns legend, marker and color (RGBA, 0..1) to `table`; return colour and marker per legend entry.

    Wrong samples are black crosses. Alpha: confidence, 0.15 or more.
    """
    from matplotlib.colors import to_rgb

    wrong = table["correct"].eq(False)
    if KINDS[task["kind"]].continuous:
        styles = {"sample": (GREY, "o"), "predicted on another step": (GREY, WRONG_MARKER)}
        table["legend"] = np.where(wrong, *reversed(styles))
        rgb = error_colors(table["gold"].to_numpy(float), table["predicted"].to_numpy(float))
    else:
        styles = group_styles(table["group"], task)
        rest = list(styles)[-1]
        styles[WRONG] = (BLACK, WRONG_MARKER)
        table["legend"] = table["group"].where(table["group"].isin(styles), rest).mask(wrong, WRONG)
        rgb = np.array([to_rgb(styles[name][0]) for name in table["legend"]])
    alpha = np.nan_to_num(table["confidence"].to_numpy(float), nan=ALPHA_UNKNOWN).clip(ALPHA_FLOOR, 1)
    table["marker"] = [styles[name][1] for name in table["legend"]]
    table["color"] = list(np.column_stack([rgb, alpha]))
    return {name: style for name, style in styles.items() if name == WRONG or name in set(table["legend"])}


# ---- The projections ------------------------------------------------------------------------------------------------


def why_not_projectable(vectors: np.ndarray) -> str:
    """The reason why (n, hidden) vectors have no picture in two dimensions; empty where they have one."""
    if len(vectors) < MIN_POINTS:
        return f"there are {len(vectors)} samples, and a projection needs {MIN_POINTS}"
    if not np.isfinite(vectors).all():
        return "the hidden states hold NaN or infinite values"
    if (vectors == vectors[0]).all():
        return "the hidden states of all samples are the same"
    return ""


def project(method: str, vectors: np.ndarray, perplexity: float, seed: int) -> tuple[np.ndarray, str, tuple[str, str]]:
    """Coordinates (n, 2) of vectors (n, hidden), the method for the title, and the labels of the two axes.

    t-SNE is given the first 50 principal components, as scikit-learn's manual advises: it is fast and takes off noise.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    pca = PCA(min(2 if method == "pca" else 50, *vectors.shape), random_state=seed)
    components = pca.fit_transform(vectors)
    if method == "pca":
        first, second = pca.explained_variance_ratio_
        return components, "PCA", (f"PC 1 ({first:.1%} of the variance)", f"PC 2 ({second:.1%} of the variance)")
    footnote = "distances between clusters and cluster sizes carry no meaning"
    coordinates = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(components)
    return coordinates.astype(np.float64), f"t-SNE (perplexity {perplexity:.3g}, seed {seed})", (footnote, "")


def draw_embeddings(folder: Path, run: dict[str, Any], args: argparse.Namespace) -> None:
    """Write embedding_<method>.csv and .png for each method, and explorer.html."""
    table, vectors = read_samples(folder, run["task"])
    chosen = choose_points(table["group"], table["correct"], args.max_correct, run["seed"])
    vectors = vectors[chosen]
    perplexity = args.perplexity or min(30.0, (len(vectors) - 1) / 3)
    if problem := why_not_projectable(vectors):
        print(f"no embedding and no explorer.html: {problem}")
        return
    if "tsne" in args.method and perplexity >= len(vectors):
        raise UserError(f"--perplexity {perplexity:g} is not below the number of points, {len(vectors)}; leave it out")
    styles = add_looks(table, run["task"])
    points = table.iloc[chosen].reset_index(drop=True)
    right = points["correct"].sum()
    note = f"{len(points) - right:,} wrong and {right:,} of {table['correct'].sum():,} right samples"
    coordinates = {}
    for method in dict.fromkeys(args.method):
        xy, name, axis_labels = project(method, vectors, perplexity, run["seed"])
        points["x"], points["y"] = xy.T
        write_csv(folder / f"embedding_{method}.csv", points[EMBEDDING_COLUMNS])
        figure, axes = new_figure(6, 5)
        scatter(axes, points)
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
        if method == "tsne":  # its axes have no unit, and the label is a footnote
            axes.set(xticks=[], yticks=[])
            axes.xaxis.label.set_size(8)
        finish_embedding(figure, run, name, points, table, styles)
        save(figure, folder / f"embedding_{method}.png", note)
        coordinates[method] = xy
    write_explorer(folder, run, points, coordinates, styles)


def read_epochs(path: Path, task: dict[str, Any]) -> tuple[pd.DataFrame, np.ndarray]:
    """epoch_states.npz as one row per epoch and sample, and their vectors, float64 (epochs * n, hidden)."""
    ids, epochs, vectors, gold, predicted, correct, confidence = read_arrays(
        path, id="U1", epoch="i1", vector="f3", gold="U1", predicted="U2", correct="b2", confidence="f2")
    if {array.shape[:2] for array in (vectors, predicted, correct, confidence)} != {(len(epochs), len(gold))} or (
            len(ids) != len(gold)):
        raise UserError(f"{path} cannot be read: its arrays are not of the same epochs and examples")
    points = pd.DataFrame({"epoch": np.repeat(epochs, len(ids)), "id": np.tile(ids, len(epochs)),
                           "gold": np.tile(gold, len(epochs)), "predicted": predicted.ravel()})
    points["correct"] = correct.ravel()
    points["confidence"] = confidence.ravel().astype(np.float64)
    points["group"] = KINDS[task["kind"]].picture_groups(points, task)
    return points, vectors.reshape(len(points), -1).astype(np.float64)


def draw_epochs(folder: Path, run: dict[str, Any]) -> None:
    """Write embedding_epochs.csv, and .png with a panel per kept epoch: one PCA of all epochs together, same axes."""
    path = folder / "embedding_epochs.png"
    if not (folder / "epoch_states.npz").is_file():
        print(f"no {path.name}: train.py keeps the vectors for it with --keep-epochs")
        return
    points, vectors = read_epochs(folder / "epoch_states.npz", run["task"])
    if problem := why_not_projectable(vectors):
        print(f"no {path.name}: {problem}")
        return
    xy, name, axis_labels = project("pca", vectors, 0, run["seed"])
    points["x"], points["y"] = xy.T
    write_csv(path.with_suffix(".csv"), points[["epoch", *EMBEDDING_COLUMNS]])
    styles = add_looks(points, run["task"])
    epochs = points["epoch"].unique()
    shown = epochs[np.unique(np.linspace(0, len(epochs) - 1, MAX_PANELS).round().astype(int))]
    columns = 2 if len(shown) == 4 else min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, panels = new_figure(6, 1.5 + 2 * rows, nrows=rows, ncols=columns, sharex=True, sharey=True, squeeze=False)
    for panel, epoch in itertools.zip_longest(panels.flat, shown):
        if epoch is None:
            panel.remove()
            continue
        scatter(panel, points[points["epoch"] == epoch], size=8)
        panel.set_title(f"epoch {epoch}" if epoch else "before training", fontsize=9)
    panels[-1, 0].set_xlabel(axis_labels[0], fontsize=8)
    panels[-1, 0].set_ylabel(axis_labels[1], fontsize=8)
    last = points[points["epoch"] == shown[-1]]
    finish_embedding(figure, run, f"{name} of all kept epochs together", last, last, styles, f" at epoch {shown[-1]}")
    save(figure, path, f"{len(shown)} of {len(epochs)} kept epochs")


# ---- The figures ----------------------------------------------------------------------------------------------------


def scatter(axes: Any, points: pd.DataFrame, size: float = 18) -> None:
    """Draw the points by their columns x, y, color and marker, the crosses of wrong samples last and larger."""
    for marker in sorted(points["marker"].unique(), key=lambda marker: marker == WRONG_MARKER):
        part = points[points["marker"] == marker]
        axes.scatter(part["x"], part["y"], s=size * (1.8 if marker == WRONG_MARKER else 1), c=np.stack(part["color"]),
                     marker=marker, linewidths=0)


def finish_embedding(figure: Any, run: dict[str, Any], method: str, points: pd.DataFrame, table: pd.DataFrame,
                     styles: dict[str, tuple[str, str]], when: str = "") -> None:
    """Add the title, the legend with the numbers of samples shown and in all, and regression's colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    of_test = None if when else len(table)  # kept epochs show validation examples
    add_title(figure, [run], f"{method} of {run['model_info']['vector']}", of_test)
    legend = f"shown / total{when}; opacity = confidence"
    if KINDS[run["task"]["kind"]].continuous:
        gold = table["gold"].astype(float)
        mappable = ScalarMappable(Normalize(gold.min(), gold.max()), GOLD_COLORS)
        figure.colorbar(mappable, ax=figure.axes, label="gold value", shrink=0.8)
        legend = f"shown / total{when}; the larger the error, the darker"
    shown, total = points["legend"].value_counts(), table["legend"].value_counts()
    handles = [Line2D([], [], color=color, marker=marker, linestyle="", markersize=7, markeredgewidth=0,
                      label=f"{shorten(name)}: {shown.get(name, 0):,} / {total.get(name, 0):,}")
               for name, (color, marker) in styles.items()]
    add_legend(figure, handles, legend)


def add_legend(figure: Any, handles: list[Any], title: str | None = None) -> None:
    """Put the handles below the axes, in as many columns as fit the figure's width."""
    inches_per_column = 0.5 + 0.065 * max(len(handle.get_label()) for handle in handles)  # at 8 points
    columns = int(np.clip(figure.get_figwidth() // inches_per_column, 1, 4))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=title, fontsize=8, title_fontsize=8)


def add_title(figure: Any, runs: list[dict[str, Any]], what: str, evaluated: int | None = None) -> None:
    """Say above the axes what is drawn, of which runs, of how many `evaluated` test examples where not of all."""
    title = " / ".join(dict.fromkeys(run["task"]["title"] for run in runs))
    whose = f"{runs[0]['model']}, seed {runs[0]['seed']}" if len(runs) == 1 else f"{len(runs)} runs"
    lines = [shorten(title, 140), f"{shorten(whose, 140)}: {what}"]
    lines += sorted({note for run in runs if (note := figure_note(run, evaluated))})
    figure.suptitle("\n".join(textwrap.fill(line, 72) for line in lines), fontsize=9)


def save(figure: Any, path: Path, note: str = "") -> None:
    """Write `figure` as PNG and print its path."""
    save_figure(figure, path)
    print(f"wrote {path}" + (f": {note}" if note else ""))


# ---- explorer.html --------------------------------------------------------------------------------------------------


def read_tags(folder: Path) -> dict[str, str]:
    """{id: auto_tags} of errors.csv; empty, with a printed line, where it is missing or no longer plain CSV."""
    if not (folder / "errors.csv").is_file():
        print("no tags in explorer.html: errors.py has not been run")
        return {}
    try:
        sheet = read_csv(folder / "errors.csv", required=("id", "auto_tags"))
    except UserError as error:
        print(f"no tags in explorer.html: {error}")
        return {}
    return dict(zip(sheet["id"], sheet["auto_tags"], strict=True))


def write_explorer(folder: Path, run: dict[str, Any], points: pd.DataFrame, coordinates: dict[str, np.ndarray],
                   styles: dict[str, tuple[str, str]]) -> None:
    """Write explorer.html: one file that needs no network, with every point's texts, to point at and to filter."""
    from matplotlib.markers import MarkerStyle

    tags = read_tags(folder)
    entries = [{"id": point["id"], "gold": point["gold"], "predicted": point["predicted"], "correct": point["correct"],
                "confidence": None if np.isnan(point["confidence"]) else round(point["confidence"], 4),
                "texts": {name: shorten(text, MAX_CHARS) for name, text in point["texts"].items()},
                "group": point["group"], "tags": [tag for tag in tags.get(point["id"], "").split(" | ") if tag],
                "marker": point["marker"],
                "color": "rgba({:.0f}, {:.0f}, {:.0f}, {:.2f})".format(*(point["color"] * [255, 255, 255, 1]))}
               for point in points.to_dict("records")]
    outlines = {marker: MarkerStyle(marker) for _, marker in styles.values()}
    title = [run["task"]["title"], f"{run['model']}, seed {run['seed']}"]
    title += [note for note in [figure_note(run, len(points))] if note]
    data = {"title": " | ".join(title),
            "methods": {METHOD_NAMES[method]: xy.tolist() for method, xy in coordinates.items()},
            "legend": [{"name": name, "color": color, "marker": marker} for name, (color, marker) in styles.items()],
            "outlines": {marker: style.get_path().transformed(style.get_transform()).to_polygons()[0].round(3).tolist()
                         for marker, style in outlines.items()},
            "points": entries}
    page = EXPLORER.replace("DATA", as_script_text(data))
    path = folder / "explorer.html"
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    print(f"wrote {path}: {len(entries):,} samples; open it in a browser")


def as_script_text(data: dict[str, Any]) -> str:
    """`data` as JSON that cannot end its <script>; half a surrogate pair, which UTF-8 lacks, becomes `?`."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode("utf-8", "replace").decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


EXPLORER = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>Hidden states</title>
<style>
  body { font: 15px/1.4 system-ui, sans-serif; margin: 1rem; color: #111; background: #fff; color-scheme: light }
  h1 { font-size: 1.1rem; margin: 0 }
  form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin: .6rem 0 }
  select { font: inherit; max-width: 16rem }
  main { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
  canvas { width: min(100%, 720px); aspect-ratio: 4 / 3; border: 1px solid #767676 }
  :focus-visible { outline: 3px solid #0072b2 }
  dl { flex: 1 1 18rem; min-width: 0; margin: 0; overflow-wrap: anywhere }
  dt { font-weight: 600 }
  dd { margin: 0 0 .4rem }
  ul { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .4rem 0; padding: 0; list-style: none }
</style>
<h1></h1>
<form>
  <label>Projection <select id="method"></select></label>
  <label>Label <select id="group"><option value="">all</option></select></label>
  <label>Prediction
    <select id="outcome"><option value="">all</option><option>wrong</option><option>right</option></select></label>
  <label>Tag <select id="tag"><option value="">all</option></select></label>
</form>
<p id="count" role="status"></p>
<ul id="legend"></ul>
<main>
  <canvas id="plot" tabindex="0" role="application" aria-describedby="help" aria-label="scatter plot"></canvas>
  <dl id="details" aria-live="polite"></dl>
</main>
<p id="help">Point at a sample, or press an arrow key in the plot to go to the next one that way. The more opaque, the
  more confident; where labels are numbers, the darker, the larger the error.</p>
<script type="application/json" id="data">DATA</script>
<script>
"use strict";
const element = id => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const canvas = element("plot"), pen = canvas.getContext("2d");
const margin = 14, radius = 5;
let visible = [], places = [], chosen = null;

function addOptions(id, names) {
  for (const name of names) element(id).add(new Option(name, name));
  element(id).disabled = element(id).options.length < 2;
}

function filter() {
  const group = element("group").value, outcome = element("outcome").value, tag = element("tag").value;
  visible = [...data.points.keys()].filter(i => {
    const point = data.points[i];
    return (!group || point.group === group) && (!outcome || point.correct === (outcome === "right"))
      && (!tag || point.tags.includes(tag));
  });
  visible.sort((a, b) => data.points[b].correct - data.points[a].correct);  // wrong ones last, so on top
  const wrong = visible.filter(i => !data.points[i].correct).length;
  element("count").textContent = `${visible.length} of ${data.points.length} samples, ${wrong} of them wrong`;
  if (!visible.includes(chosen)) choose(null);
  draw();
}

function draw() {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * scale;
  canvas.height = height * scale;
  pen.scale(scale, scale);
  const xy = data.methods[element("method").value];
  const range = values => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const [left, right] = range(xy.map(place => place[0])), [bottom, top] = range(xy.map(place => place[1]));
  places = xy.map(([x, y]) => [margin + (x - left) / (right - left || 1) * (width - 2 * margin),
                               height - margin - (y - bottom) / (top - bottom || 1) * (height - 2 * margin)]);
  for (const i of visible) {
    const [x, y] = places[i];
    pen.beginPath();
    for (const [dx, dy] of data.outlines[data.points[i].marker]) pen.lineTo(x + dx * 2 * radius, y - dy * 2 * radius);
    pen.fillStyle = data.points[i].color;
    pen.fill();
  }
  if (chosen !== null) {
    pen.beginPath();
    pen.arc(...places[chosen], 2 * radius, 0, 2 * Math.PI);
    pen.lineWidth = 2;
    pen.stroke();
  }
}

function choose(index) {
  chosen = index;
  element("details").replaceChildren();
  if (index === null) return;
  const point = data.points[index];
  const rows = [["id", point.id], ["gold", point.gold], ["predicted", point.predicted],
                ["right", point.correct ? "yes" : "no"], ["confidence", point.confidence ?? "none"],
                ["tags", point.tags.join(", ") || "none"], ...Object.entries(point.texts)];
  for (const [name, value] of rows) {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    element("details").append(term, text);
  }
}

function nearest(cost) {
  const costs = visible.map(cost), best = Math.min(...costs);
  return best < Infinity ? visible[costs.indexOf(best)] : null;
}

canvas.addEventListener("pointermove", event => {
  const found = nearest(i => {
    const distance = Math.hypot(places[i][0] - event.offsetX, places[i][1] - event.offsetY);
    return distance < 3 * radius ? distance : Infinity;
  });
  if (found !== null && found !== chosen) { choose(found); draw(); }
});
canvas.addEventListener("keydown", event => {
  const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!way) return;
  event.preventDefault();
  const from = chosen === null ? [canvas.clientWidth / 2, canvas.clientHeight / 2] : places[chosen];
  const found = nearest(i => {
    const dx = places[i][0] - from[0], dy = places[i][1] - from[1];
    const along = dx * way[0] + dy * way[1], across = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
    return i !== chosen && along > 0 ? along + 2 * across : Infinity;
  });
  if (found !== null) { choose(found); draw(); }
});
window.addEventListener("resize", draw);
document.querySelector("form").addEventListener("change", filter);

for (const {name, color, marker} of data.legend) {
  const item = document.createElement("li"), picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", "-0.6 -0.6 1.2 1.2");
  picture.setAttribute("width", "14");
  const shape = picture.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "polygon"));
  shape.setAttribute("points", data.outlines[marker].map(([x, y]) => `${x},${-y}`).join(" "));
  shape.setAttribute("fill", color);
  item.append(picture, " " + name);
  element("legend").append(item);
}
document.querySelector("h1").textContent = data.title;
addOptions("method", Object.keys(data.methods));
addOptions("group", [...new Set(data.points.map(point => point.group))].sort());
addOptions("tag", [...new Set(data.points.flatMap(point => point.tags))].sort());
filter();
</script>
</html>
"""

# =====================================================================================================================
# The report: report.md, report.tex and report.bib, written anew by each script from the files that are there
# =====================================================================================================================
# A report is a list of blocks, told once (tell_...) and rendered twice (to_markdown, to_latex). What only a person can
# say stands in report_notes.md, a section for each of NOTES: that file is written once, empty, and only read after.

NOTES = {  # section of report_notes.md: what it asks for
    "Author": "the name that stands under the title",
    "How the training went": "how one sees that it went right: whether the losses fall and level off, how far training "
    "and validation part, why the best epoch is where it is",
    "Why our figures differ": "what explains the gap to the paper and the leaderboard: model size, data, split, "
    "hyperparameters, chance",
    "What the model struggles with": "hypotheses: which inputs, why (over-generalisation, surface patterns, ...), and "
    "the samples and rates that speak for and against each",
    "How the errors could be mended": "ideas that follow from the causes, and how each could be tried; more data alone "
    "is none",
    "Why the LLM is better or worse": "where the two part, with samples, and what could explain it",
}
NOTES_HEADER = """# What only you can write

The text under each heading goes into report.md and report.tex whenever a script writes these; this file is never
written again. Plain paragraphs with an empty line between them; characters such as & % $ # _ stand for themselves.
A `##` heading of your own becomes a section.
"""
SETTINGS = {  # what the report calls a setting, and what it says of it, from run.json; left out where that lacks a part
    "model": "{model}", "revision": "{model_info.revision}", "model card": "{model_info.card}",
    "architecture": "{model_info.type}, {model_info.layers} layers, hidden size {model_info.hidden_size}",
    "parameters": "{model_info.parameters}", "dropout": "{model_info.dropout}",
    "input": "at most {args.max_length} tokens", "epochs": "{args.num_train_epochs}",
    "batch": "{args.per_device_train_batch_size} examples; batches per update: {args.gradient_accumulation_steps}",
    "optimizer": "{args.optim}, weight decay {args.weight_decay}, gradient norm clipped at {args.max_grad_norm}",
    "learning rate": "{args.learning_rate}, schedule {args.lr_scheduler_type}, warm-up {args.warmup_steps}",
    "class weights": "{args.class_weights}", "patience": "{args.early_stopping_patience} epochs", "seed": "{seed}",
    "hardware": "{hardware.name}; {hardware.precision}",
    "software": "torch {versions.torch}, transformers {versions.transformers}"}
MAX_ROWS = 12  # of most tables
CELL_CHARS = 150  # of a table's cell; the CSV file has the whole text
CELL_WORD = 12  # characters of a word in a cell, beyond which it may be broken
COLUMN_LINE, PAGE_LINE = 48, 112  # room in a table's line, in a column and across the page, in text_width's unit

PAPERS = {  # what reports cite beside the task's and the scores' own sources; models by their model_type
    "transformers": ("Wolf et al. (2020), Transformers: State-of-the-Art Natural Language Processing",
                     "https://aclanthology.org/2020.emnlp-demos.6"),
    "scikit-learn": ("Pedregosa et al. (2011), Scikit-learn: Machine Learning in Python",
                     "https://jmlr.org/papers/v12/pedregosa11a.html"),
    "adamw": ("Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization",
              "https://arxiv.org/abs/1711.05101"),
    "bootstrap": ("Efron (1979), Bootstrap Methods: Another Look at the Jackknife",
                  "https://doi.org/10.1214/aos/1176344552"),
    "temperature": ("Guo, Pleiss, Sun and Weinberger (2017), On Calibration of Modern Neural Networks",
                    "https://proceedings.mlr.press/v70/guo17a.html"),
    "mcnemar": ("McNemar (1947), Note on the Sampling Error of the Difference between Correlated Proportions or "
                "Percentages", "https://doi.org/10.1007/BF02295996"),
    "tsne": ("van der Maaten and Hinton (2008), Visualizing Data using t-SNE",
             "https://jmlr.org/papers/v9/vandermaaten08a.html"),
    "albert": ("Lan, Chen, Goodman, Gimpel, Sharma and Soricut (2020), ALBERT: A Lite BERT for Self-supervised "
               "Learning of Language Representations", "https://arxiv.org/abs/1909.11942"),
    "bert": ("Devlin, Chang, Lee and Toutanova (2019), BERT: Pre-training of Deep Bidirectional Transformers for "
             "Language Understanding", "https://aclanthology.org/N19-1423"),
    "deberta-v2": ("He, Liu, Gao and Chen (2021), DeBERTa: Decoding-enhanced BERT with Disentangled Attention",
                   "https://arxiv.org/abs/2006.03654"),
    "distilbert": ("Sanh, Debut, Chaumond and Wolf (2019), DistilBERT, a distilled version of BERT: smaller, faster, "
                   "cheaper and lighter", "https://arxiv.org/abs/1910.01108"),
    "electra": ("Clark, Luong, Le and Manning (2020), ELECTRA: Pre-training Text Encoders as Discriminators Rather "
                "Than Generators", "https://arxiv.org/abs/2003.10555"),
    "gpt2": ("Radford, Wu, Child, Luan, Amodei and Sutskever (2019), Language Models are Unsupervised Multitask "
             "Learners", "https://cdn.openai.com/better-language-models/"
             "language_models_are_unsupervised_multitask_learners.pdf"),
    "llama": ("Touvron et al. (2023), LLaMA: Open and Efficient Foundation Language Models",
              "https://arxiv.org/abs/2302.13971"),
    "modernbert": ("Warner et al. (2024), Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, "
                   "Memory Efficient, and Long Context Finetuning and Inference", "https://arxiv.org/abs/2412.13663"),
    "qwen2": ("Yang et al. (2024), Qwen2 Technical Report", "https://arxiv.org/abs/2407.10671"),
    "roberta": ("Liu et al. (2019), RoBERTa: A Robustly Optimized BERT Pretraining Approach",
                "https://arxiv.org/abs/1907.11692"),
    "vilt": ("Kim, Son and Kim (2021), ViLT: Vision-and-Language Transformer Without Convolution or Region "
             "Supervision", "https://arxiv.org/abs/2102.03334"),
    "xlm-roberta": ("Conneau et al. (2020), Unsupervised Cross-lingual Representation Learning at Scale",
                    "https://arxiv.org/abs/1911.02116"),
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A publication or a page, as report.bib has it."""

    title: str
    url: str = ""
    authors: tuple[str, ...] = ()
    year: str = ""

    @property
    def label(self) -> str:
        """How a text names it: `Dolan and Brockett (2005)`, or its title."""
        if not self.authors:
            return self.title
        several = len(self.authors) > 2 or self.authors[-1] == "others"
        return f"{f'{self.authors[0]} et al.' if several else ' and '.join(self.authors)} ({self.year})"

    @property
    def key(self) -> str:
        """Its key in report.bib."""
        name = " ".join([*self.authors[:1], self.year, self.title])
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        return re.sub(r"\W+", "-", plain.lower()).strip("-")[:60]


def reference(cite: str, url: str) -> Reference:
    """What the catalog cites as `A, B and C (year), title`; where it is not of that form, all of it is the title."""
    found = re.fullmatch(r"([^\d()]+) \((\d{4})\)(?:, (.+))?", cite)
    url = urllib.parse.quote(url, safe="/:?=&%#~+,;@")
    if not found:
        return Reference(cite, url)
    authors = re.split(", | and ", found[1].replace(" et al.", " and others"))
    return Reference(found[3] or "", url, tuple(authors), found[2])


# The blocks.


@dataclasses.dataclass
class Title:
    """Title, subtitle and author of the report."""

    title: str
    subtitle: str
    author: str


@dataclasses.dataclass
class Heading:
    """The title of a section; `appendix`: of one that comes after the references, in one column."""

    title: str
    appendix: bool = False


@dataclasses.dataclass
class Text:
    """A paragraph, and what it cites."""

    text: str
    cites: Iterable[Reference] = ()


@dataclasses.dataclass
class Note:
    """What a person wrote under `title` in report_notes.md; without it a mark that asks for it."""

    title: str
    text: str


@dataclasses.dataclass
class Table:
    """Rows, {column: text}, all with the same columns; `wide`: across the page, over as many pages as it takes."""

    rows: list[dict[str, str]]
    caption: str
    wide: bool = False


@dataclasses.dataclass
class Figure:
    """A picture of the run folder; `wide`: across the page."""

    name: str
    caption: str
    wide: bool = False


@dataclasses.dataclass
class References:
    """The list of references."""

    cited: list[Reference]


# Text as it stands: no character of it means anything to Markdown or LaTeX. LaTeX gets ASCII alone, so that every
# engine reads the same; what a Latin font lacks becomes a name (emoji) or a box.

LATEX_NAMES = {  # command by character
    "\\": "textbackslash", "{": "textbraceleft", "}": "textbraceright", "~": "textasciitilde", "^": "textasciicircum",
    "<": "textless", ">": "textgreater", "|": "textbar", '"': "textquotedbl", "`": "`",
    "“": "textquotedblleft", "”": "textquotedblright", "‘": "textquoteleft", "’": "textquoteright",
    "„": "quotedblbase", "‚": "quotesinglbase", "«": "guillemotleft", "»": "guillemotright", "–": "textendash",
    "—": "textemdash", "…": "textellipsis", "•": "textbullet", "·": "textperiodcentered", "−": "textminus",
    "§": "textsection", "¶": "textparagraph", "†": "textdagger", "‡": "textdaggerdbl", "©": "textcopyright",
    "®": "textregistered", "™": "texttrademark", "€": "texteuro", "£": "textsterling", "¥": "textyen", "¢": "textcent",
    "°": "textdegree", "±": "textpm", "×": "texttimes", "÷": "textdiv", "µ": "textmu", "μ": "textmu",
    "¹": "textonesuperior", "²": "texttwosuperior", "³": "textthreesuperior", "½": "textonehalf",
    "¼": "textonequarter", "¾": "textthreequarters", "¡": "textexclamdown", "¿": "textquestiondown",
    "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "dj",
    "Đ": "DJ", "ð": "dh", "Ð": "DH", "þ": "th", "Þ": "TH", "ı": "i"}
LATEX_ACCENTS = {  # command by combining mark
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0328": "k",
    "\u0331": "b"}
MARKS = "\u0300-\u036f"  # combining ones, which belong to the character before them
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff\U0001f3fb-\U0001f3ff]")
MARKDOWN_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "~": "&#126;"}


def shorten(text: str, length: int = 30) -> str:
    """`text` on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[:length - 1] + "…"


def spell_out(text: str) -> str:
    """`text` with emoji, arrows and mathematical symbols as [name], and without what has no width."""
    return "".join(f"[{unicodedata.name(character).lower()}]" if unicodedata.category(character) in ("So", "Sm")
                   and not character.isascii() and character not in LATEX_NAMES else character
                   for character in INVISIBLE.sub("", text))


def latex_character(character: str) -> str:
    r"""A character and its combining marks as LaTeX prints them; a box, \lacking{}, where a Latin font has no such."""
    if character in LATEX_NAMES:
        return f"\\{LATEX_NAMES[character]}{{}}"
    if character.isascii() and character.isprintable():
        return f"\\{character}" if character in "#$%&_" else character
    letter, *marks = unicodedata.normalize("NFD", character)
    if marks and letter.isascii() and letter.isalpha() and set(marks) <= set(LATEX_ACCENTS):
        marks.sort(key=unicodedata.combining, reverse=True)  # those below the letter go around those above it
        return functools.reduce(lambda inner, mark: f"\\{LATEX_ACCENTS[mark]}{{{inner}}}", marks, letter)
    plain = unicodedata.normalize("NFKD", character)  # ligatures, full-width and mathematical letters
    return plain if plain.isascii() and plain.isalnum() else "\\lacking{}"


def word_pieces(word: str, longest: int) -> list[str]:
    """`word` where it may be broken: not at all up to `longest` characters, else after marks and within long runs."""
    if len(word) <= longest:
        return [word]
    pieces = []
    for run in re.findall(rf"(?:[^\W_]|[{MARKS}])+[\W_]?|[\W_]", word):
        size = math.ceil(len(run) / math.ceil(len(run) / longest))
        pieces += re.findall(rf"(?:.[{MARKS}]*){{1,{size}}}", run, re.DOTALL)
    return pieces


def escape_latex(text: str, longest: int = 16) -> str:
    """`text` on one line of ASCII that LaTeX prints as it stands; words of more than `longest` characters may break."""
    words = []
    for word in unicodedata.normalize("NFC", spell_out(text)).split():
        pieces = word_pieces(word, longest)
        ends = [*("\\-" if piece.isalpha() else "\\allowbreak{}" for piece in pieces[:-1]), ""]
        words += ["".join("".join(map(latex_character, re.findall(f".[{MARKS}]*", piece, re.DOTALL))) + end
                          for piece, end in zip(pieces, ends, strict=True))]
    return re.sub(r"([-,'])(?=\1)", r"\1{}", " ".join(words))  # LaTeX would make one dash of --


def escape_markdown(text: str) -> str:
    """`text` on one line that Markdown shows as it stands, in a paragraph as in a table's cell."""
    line = re.sub(r"[\\`*_{}\[\]#|]|^[-+](?=[-\s]*$|\s)", r"\\\g<0>", " ".join(text.split()))
    line = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)  # would begin a list, as a dash does
    return "".join(MARKDOWN_ENTITIES.get(character, character) for character in line)


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a person's text: an empty line or a list's dash begins a new one."""
    return [part for part in re.split(r"\n\s*\n|\n(?=\s*[-*] )", text) if part.strip()]


def is_number_column(rows: list[dict[str, str]], name: str) -> bool:
    """Whether the column holds numbers alone, which stand on its right."""
    cells = [row[name].replace(",", "") for row in rows if row[name]]
    return bool(cells) and all(map(NUMBER.fullmatch, cells))


def to_markdown(block: Any) -> str:
    """A block as Markdown."""
    match block:
        case Title(title, subtitle, author):
            by = escape_markdown(author) or "> **TO WRITE: Author.** In report\\_notes.md."
            return f"# {escape_markdown(title)}\n\n{escape_markdown(subtitle)}\n\n{by}"
        case Heading(title):
            return f"## {escape_markdown(title)}"
        case Text(text, cites) if cites:
            links = (f"[{escape_markdown(cited.label)}]({cited.url})" for cited in cites)
            return f"{escape_markdown(text.removesuffix('.'))} ({'; '.join(links)})."
        case Text(text):
            return escape_markdown(text)
        case Note(title, ""):
            return f"> **TO WRITE: {title}.** In report\\_notes.md: {escape_markdown(NOTES[title])}."
        case Note(title, text):
            return "\n\n".join([f"**{title}**", *map(escape_markdown, paragraphs(text))])
        case Figure(name, caption):
            return f"![{Path(name).stem}]({name})\n\n*{escape_markdown(caption)}*"
        case Table(rows, caption):
            marks = ["---:" if is_number_column(rows, name) else "---" for name in rows[0]]
            cells = [[escape_markdown(shorten(cell, CELL_CHARS)) for cell in row]
                     for row in [rows[0], *(row.values() for row in rows)]]
            lines = (f"| {' | '.join(row)} |" for row in [cells[0], marks, *cells[1:]])
            return "\n".join([f"*{escape_markdown(caption)}*\n", *lines])
        case References(cited):
            entries = (". ".join(dict.fromkeys(filter(None, (one.label, one.title)))) for one in cited)
            return "\n".join(["## References\n", *(f"- {escape_markdown(entry)} {one.url}"
                                                   for entry, one in zip(entries, cited, strict=True))])


def to_latex(block: Any) -> str:
    """A block as LaTeX; PREAMBLE defines what it needs."""
    match block:
        case Title(title, subtitle, author):
            by = escape_latex(author) or "\\textbf{TO WRITE: Author.}"
            return (f"\\title{{{escape_latex(title)}\\\\\\large {escape_latex(subtitle)}}}\n"
                    f"\\author{{\\parbox{{0.8\\textwidth}}{{\\centering {by}}}}}\n\\date{{}}\n\\maketitle")
        case Heading(title, appendix):
            return "\\clearpage\\onecolumn\n\\appendix\n" * appendix + f"\\section{{{escape_latex(title)}}}"
        case Text(text, cites) if cites:
            return f"{escape_latex(text.removesuffix('.'))} \\citep{{{','.join(cited.key for cited in cites)}}}."
        case Text(text):
            return escape_latex(text)
        case Note(title, ""):
            return f"\\towrite{{\\textbf{{TO WRITE: {title}.}} In report\\_notes.md: {escape_latex(NOTES[title])}.}}"
        case Note(title, text):
            return "\n\n".join([f"\\paragraph{{{title}.}}", *map(escape_latex, paragraphs(text))])
        case Figure(name, caption, wide):
            figure = "figure*" if wide else "figure"
            return (f"\\begin{{{figure}}}[htbp]\n\\centering\n\\runpicture{{{name}}}\n"
                    f"\\caption{{{escape_latex(caption)}}}\n\\end{{{figure}}}")
        case Table():
            return latex_table(block)
        case References():
            return "\\bibliography{report}"


def latex_table(table: Table) -> str:
    """A table in the manner of booktabs, in a float or, across the page, as a longtable."""
    cells = [[shorten(spell_out(cell), CELL_CHARS) for cell in row]
             for row in [table.rows[0], *(row.values() for row in table.rows)]]
    widths = column_widths(cells, PAGE_LINE if table.wide else COLUMN_LINE)
    columns = "@{}" + "".join(f"{'R' if is_number_column(table.rows, name) else 'L'}{{{width / 2:.2f}em}}"
                              for name, width in zip(table.rows[0], widths, strict=True)) + "@{}"
    # \relax: LaTeX would take a [ or * that begins a row for a part of the \\ before it
    end = "\\\\[2pt]" if table.wide else "\\\\"
    names, *body = (f"\\relax {' & '.join(escape_latex(cell, CELL_WORD) for cell in row)} {end}" for row in cells)
    caption = f"\\caption{{{escape_latex(table.caption)}}}"
    if table.wide:
        return "\n".join([f"{{\\scriptsize\n\\begin{{longtable}}{{{columns}}}\n{caption}\\\\\n\\toprule", names,
                          "\\midrule\n\\endhead\n\\bottomrule\n\\endfoot", *body, "\\end{longtable}}"])
    return "\n".join([f"\\begin{{table}}[htbp]\n\\centering\\footnotesize\n{caption}\n\\begin{{tabular}}{{{columns}}}",
                      "\\toprule", names, "\\midrule", *body, "\\bottomrule\n\\end{tabular}\n\\end{table}"])


def text_width(text: str) -> float:
    """Width of `text` in Times, in halves of an em, a little more rather than less."""
    return sum(1.9 if character in "MW%@—" else 1.5 if character.isupper() or character in "mw&" else
               0.68 if character in "fijlrt .,:;'|!()[]-" else 1.0 for character in text)


def column_widths(cells: list[list[str]], line: float) -> list[float]:
    """The width of each column: its longest cell where all fit into `line`, else shared out.

    Every column gets the longest piece of a word; the rest of the line goes to the columns in proportion to what their
    longest cells lack (as browsers lay out tables: CSS 2.1, section 17.5.2.2).
    """
    columns = list(zip(*cells, strict=True))
    most = [max(map(text_width, column)) for column in columns]
    least = [max(text_width(piece) for cell in column for word in cell.split() or [""]
                 for piece in word_pieces(word, CELL_WORD)) for column in columns]
    room = line - 1.5 * (len(columns) - 1) - sum(least)  # without the gaps
    share = np.clip(room / max(sum(most) - sum(least), 1), 0, 1)
    return [low + share * (high - low) for low, high in zip(least, most, strict=True)]


def to_bibtex(cited: Reference) -> str:
    """The entry of report.bib."""
    authors = (name if name == "others" else f"{{{escape_latex(name)}}}" for name in cited.authors)
    fields = {"author": " and ".join(authors), "title": f"{{{escape_latex(cited.title)}}}", "year": cited.year,
              "url": cited.url}
    lines = (f"  {name} = {{{text}}}," for name, text in fields.items() if text)
    return "\n".join([f"@misc{{{cited.key},", *lines, "}"])


PREAMBLE = r"""% pdflatex report && bibtex report && pdflatex report && pdflatex report; or: tectonic report.tex
% With acl.sty and acl_natbib.bst beside it (github.com/acl-org/acl-style-files) it takes ACL's own look.
\documentclass[11pt,a4paper,twocolumn]{article}
\usepackage[T1]{fontenc}
\usepackage{times,textcomp,microtype,array,booktabs,longtable,graphicx}
\IfFileExists{acl.sty}{\usepackage{acl}}{%
  \usepackage[margin=2.5cm]{geometry}
  \usepackage[font=small]{caption}
  \usepackage[numbers]{natbib}
  \setlength{\columnsep}{0.6cm}
  \bibliographystyle{unsrtnat}}
\usepackage{xurl}
\urlstyle{same}
\def\bibfont{\footnotesize}
\sloppy\raggedbottom
\setlength{\tabcolsep}{3pt}
\setlength{\bibsep}{2pt}
\newcolumntype{L}[1]{>{\raggedright\arraybackslash\hspace{0pt}}p{#1}}
\newcolumntype{R}[1]{>{\raggedleft\arraybackslash\hspace{0pt}}p{#1}}
\newcommand{\runpicture}[1]{\includegraphics[width=\linewidth,height=0.25\textheight,keepaspectratio]{#1}}
\newcommand{\towrite}[1]{\par\medskip\noindent
  \fbox{\parbox{\dimexpr\linewidth-2\fboxsep-2\fboxrule}{#1}}\par\medskip}
% A box for a character that the font lacks.
\DeclareRobustCommand{\lacking}{{\fboxsep=0pt\fbox{\rule{0pt}{.8em}\rule{.4em}{0pt}}}\allowbreak}
% Floats may fill most of a page, and stand close to the text.
\renewcommand{\topfraction}{.9}
\renewcommand{\dbltopfraction}{.9}
\renewcommand{\bottomfraction}{.7}
\renewcommand{\textfraction}{.05}
\renewcommand{\floatpagefraction}{.8}
\setlength{\floatsep}{8pt plus 2pt}
\setlength{\intextsep}{8pt plus 2pt}
\setlength{\textfloatsep}{10pt plus 2pt}
\setlength{\abovecaptionskip}{4pt}
\setlength{\belowcaptionskip}{2pt}
\begin{document}"""


# The report's files: what is read and what is written.


class RunFiles:
    """What a report on the run in `folder` is made from."""

    def __init__(self, folder: Path):
        self.folder, self.run = folder, read_json(folder / "run.json")
        self.notes = read_notes(folder / "report_notes.md")

    def rows(self, name: str, required: Iterable[str] = ()) -> list[dict[str, str]]:
        """The rows of a CSV file, every cell as text; none where it is missing, or can't be read (printed)."""
        if not (self.folder / name).is_file():
            return []
        try:
            return read_csv(self.folder / name, required=required).to_dict("records")
        except UserError as error:  # a sheet that a spreadsheet saved in another way, until errors.py has read it
            print(f"left out of the report: {error}")
            return []

    def find(self, path: str) -> Any:
        """The value at `a.b` of run.json, or None."""
        return functools.reduce(lambda part, name: (part or {}).get(name), path.split("."), self.run)

    def fill(self, template: str) -> str:
        """`template` with {a.b} replaced by what run.json says; "" where it lacks one of them."""
        facts = {path: as_fact(self.find(path)) for path in re.findall(r"\{(.+?)\}", template)}
        return re.sub(r"\{(.+?)\}", lambda found: facts[found[1]], template) if all(facts.values()) else ""

    def note(self, title: str) -> Note:
        """The section of report_notes.md."""
        return Note(title, self.notes.get(title, ""))


def read_notes(path: Path) -> dict[str, str]:
    """The text under each heading of report_notes.md; the file is written, with empty sections, where there is none.

    Any encoding of Notepad's and any line ends are read.
    """
    if not path.is_file():
        text = "\n".join([NOTES_HEADER, *(f"## {title}\n<!-- {hint} -->\n" for title, hint in NOTES.items())])
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252", errors="replace")
    text = re.sub("<!--.*?-->", "", text.replace("\r\n", "\n"), flags=re.DOTALL)
    _, *parts = re.split(r"^##(?!#)[ \t]*(.*?)[ \t#]*$", text, flags=re.MULTILINE)
    asked = {title.casefold(): title for title in NOTES}
    return {asked.get(title.casefold(), title): body.strip()
            for title, body in zip(parts[::2], parts[1::2], strict=True)}


def write_report(folder: Path) -> None:
    """Write report.md, report.tex and report.bib on the run in `folder`, and report_notes.md where there is none.

    What no file says yet is left out, or named with the script that writes it. Needs neither torch nor transformers.
    """
    files = RunFiles(folder)
    run = files.run
    blocks = [Title(run["task"]["title"], f"{run['model']}, seed {run['seed']}", files.notes.get("Author", ""))]
    for tell in (tell_task, tell_training, tell_results, tell_errors, tell_llm, tell_states, tell_own):
        blocks += tell(files)
    cited = {one.key: one for block in blocks if isinstance(block, Text) for one in block.cites}
    blocks += [References(list(cited.values())), *tell_samples(files)]
    blocks = [block for block in blocks if not (isinstance(block, Table) and not block.rows)
              and not (isinstance(block, Figure) and not (folder / block.name).is_file())]
    write_unless_edited(folder / "report.md", map(to_markdown, blocks), "<!-- {} -->")
    write_unless_edited(folder / "report.tex", [PREAMBLE, *map(to_latex, blocks), "\\end{document}"], "% {}")
    write_unless_edited(folder / "report.bib", map(to_bibtex, cited.values()), "% {}")


def write_unless_edited(path: Path, parts: Iterable[str], comment: str) -> None:
    """Write `parts`, an empty line between them, under a comment that holds their checksum.

    A file that was changed by hand since stays as it is (printed).
    """
    if path.is_file() and changed_by_hand(path):
        print(f"{path} was changed by hand and stays as it is; move it away to have it written anew")
        return
    text = ("\n\n".join(parts) + "\n").encode("utf-8", "replace").decode()  # half a surrogate pair becomes `?`
    first = f"Written anew by every script: your text belongs into report_notes.md. {zlib.crc32(text.encode()):08x}"
    write_atomically(path, lambda temporary: temporary.write_text(
        f"{comment.format(first)}\n{text}", encoding="utf-8"))


def changed_by_hand(path: Path) -> bool:
    """Whether a file of the report is not what the checksum in its first line was made of."""
    first, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("\n")
    return f"{zlib.crc32(rest.encode()):08x}" not in first


# The sections, in their order. Each gives blocks; tables without rows and pictures without a file are left out.


def as_fact(value: Any) -> str:
    """A value of run.json in words; "" for what is not known."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {fact}" for name, part in value.items() if (fact := as_fact(part)))
    if isinstance(value, list | tuple):
        more = len(value) - MAX_ROWS
        return ", ".join([*map(as_fact, value[:MAX_ROWS]), *([f"{more} more"] if more > 0 else [])])
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:g}" if isinstance(value, float) else f"{value:,}"


def fact_rows(facts: dict[str, Any]) -> list[dict[str, str]]:
    """A row per fact that is known."""
    return [{"": name, "value": fact} for name, value in facts.items() if (fact := as_fact(value))]


def rounded(cell: str, form: str = ".3f") -> str:
    """A number of a CSV file as a table shows it, or ""."""
    return f"{float(cell):{form}}" if cell else ""


def percent(cell: str, form: str = ".1f") -> str:
    """A share of 1 as so many in a hundred, or ""."""
    return f"{100 * float(cell):{form}}" if cell else ""


def interval(row: dict[str, str]) -> str:
    """ci_low and ci_high of a row, or ""."""
    return f"{rounded(row['ci_low'])} to {rounded(row['ci_high'])}" if row["ci_low"] else ""


def tell_task(files: RunFiles) -> Iterator[Any]:
    """The task, the data set, its splits, what was sampled or left out."""
    task, record = files.run["task"], files.run["data"]
    yield Heading("Task and data set")
    if files.run["sample"]:
        yield Text("The rows are samples of our own writing: no figure in this report means anything.")
    yield Text(task.get("task", task["title"]),
               [reference(task["cite"], task["source"])] if "cite" in task else [])
    yield Table(fact_rows({
        "kind of task": task["kind"], "input": text_columns(task), "labels": task.get("labels"),
        "positive label": task.get("positive"), "source": record.get("source"), "revision": record.get("revision"),
        "licence": task.get("licence")}), "The data set.")
    if "why" in record:
        yield Text(f"Splits: {record['why']}")
    counts = {split: {"all": record["rows"][split], "used": record["used"][split], **labels}
              for split, labels in record.get("labels", {}).items()}
    names = list(dict.fromkeys(itertools.chain.from_iterable(counts.values())))[:2 * MAX_ROWS]
    yield Table([{"": name, **{split: as_fact(column.get(name)) for split, column in counts.items()}}
                 for name in names], "Examples of each split, and those used by label.")
    for split, used in record.get("used", {}).items():
        if used < record["rows"][split]:
            per_label = files.find("args.train_per_class") if split == "train" else None
            how = f"at most {per_label:,} of each label" if per_label else "each label in proportion"
            yield Text(f"Sampled: {used:,} of {record['rows'][split]:,} {split} examples, {how}, with a fixed seed.")
    for split, dropped in record.get("dropped", {}).items():
        yield Text(f"Left out of the source's {split}: "
                   + ", ".join(f"{count:,} {why}" for why, count in dropped.items() if count) + ".")
    if "leakage" in files.run:
        yield Text(f"Leakage between the splits: {as_fact(files.run['leakage'])}.")


def tell_training(files: RunFiles) -> Iterator[Any]:
    """The model, its settings, hardware, time and learning curve."""
    run, trained_on = files.run, files.find("args.dataset")
    yield Heading("Model and training")
    page = [reference(run["model"], f"https://huggingface.co/{run['model']}")]
    papers = (files.find("model_info.type"), "transformers", str(files.find("args.optim")).split("_")[0])
    where = f" on {trained_on}" if trained_on and dataset_slug(trained_on) != run["dataset"] else ""
    yield Text(f"{run['model']} was fine-tuned{where}; the training loop is written out on top of transformers "
               f"{files.find('versions.transformers') or ''}.",
               [*(page if files.find("model_info.revision") else []),
                *(reference(*PAPERS[name]) for name in papers if name in PAPERS)])
    yield Table(fact_rows({name: files.fill(template) for name, template in SETTINGS.items()}),
                "Model, settings and hardware.")
    if files.find("training.seconds"):
        training = run["training"]
        yield Text(f"Training took {training['seconds'] / 60:.1f} minutes ({training['steps']:,} updates), with "
                   f"evaluation {training['seconds_with_evaluation'] / 60:.1f}. The epoch that is kept and tested is "
                   f"number {training['best_epoch']:g}, the best by validation {training['metric']} "
                   f"({training['best_score']:.4f}).")
    for row in files.rows("timing.csv"):
        yield Text(f"Inference: {rounded(row['examples_per_second'], ',.0f')} examples and "
                   f"{rounded(row['tokens_per_second'], ',.0f')} tokens a second in batches of {row['batch_size']} "
                   f"({row['precision']}, {row['device']}); one example alone takes "
                   f"{rounded(row['latency_ms_median'], '.1f')} ms (median; 95th percentile "
                   f"{rounded(row['latency_ms_p95'], '.1f')}).")
    history = files.rows("history.csv")
    shown = np.unique(np.linspace(0, len(history) - 1, MAX_ROWS).round().astype(int)) if history else []
    metric = files.find("training.metric")
    columns = {"training loss": "train_loss", "validation loss": "eval_loss", f"validation {metric}": f"eval_{metric}"}
    yield Table([{"epoch": rounded(history[i]["epoch"], "g"),
                  **{name: rounded(history[i].get(column, "")) for name, column in columns.items()},
                  "seconds": rounded(history[i]["seconds"], ".1f")} for i in shown],
                "Mean losses, score and time of each epoch.")
    yield Figure("learning_curve.png", "Losses, and below the score that chose the best epoch (star).")
    yield files.note("How the training went")


def tell_results(files: RunFiles) -> Iterator[Any]:
    """Scores with intervals, beside the published ones; baselines, seeds, calibration, confusion."""
    yield Heading("Results")
    rows = files.rows("metrics.csv")
    if not rows:
        yield Text("metrics.csv is not there yet: evaluate.py writes it.")
        return
    values, labels = {row["metric"]: row["value"] for row in rows}, files.run["task"].get("labels") or []
    parts = ("precision", "recall", "f1")
    of_a_label = {f"{part}_{label}" for label in labels for part in parts}
    yield Text("Metrics are scikit-learn's; intervals are 95 % percentile bootstrap over the test examples.",
               [reference(*PAPERS[name]) for name in ("scikit-learn", "bootstrap")])
    yield Table([{"metric": row["metric"], "value": rounded(row["value"]), "95 % interval": interval(row)}
                 for row in rows if row["metric"] not in of_a_label][:MAX_ROWS],
                f"Scores on {rows[0]['split']}, {int(rows[0]['n']):,} examples.")
    yield Table([{"label": label, **{part: rounded(values[f"{part}_{label}"]) for part in parts}}
                 for label in labels if f"precision_{label}" in values][:2 * MAX_ROWS],
                "Precision, recall and F1 of each label.")
    yield from tell_published(files.run["task"], rows)
    yield files.note("Why our figures differ")
    main = files.run["task"].get("metrics", [])
    baselines = files.rows("baselines.csv")
    scores = {(row["baseline"], row["metric"]): rounded(row["value"]) for row in baselines}
    yield Table([{"baseline": name, **{metric: scores.get((name, metric), "") for metric in main}}
                 for name in dict.fromkeys(row["baseline"] for row in baselines)],
                "Baselines on the same splits: what fine-tuning has to rise above.")
    yield Table([{"metric": row["metric"], "mean": rounded(row["mean"]), "sd": rounded(row["sd"]),
                  "least": rounded(row["min"]), "most": rounded(row["max"]), "runs": row["n"]}
                 for row in files.rows("../seeds.csv") if row["metric"] in main],
                "Test scores of the runs that differ in the seed alone.")
    if "ece" in values:
        yield Text("ece is the expected calibration error of the confidences, ece_temperature theirs after a "
                   "temperature was fitted on the validation split.", [reference(*PAPERS["temperature"])])
    yield Figure("calibration.png", "Calibration: how often predictions of a confidence are right.")
    yield Figure("confusion.png", "Test examples by gold label (rows) and predicted label (columns).")


def tell_published(task: dict[str, Any], rows: list[dict[str, str]]) -> Iterator[Any]:
    """Ours beside the paper's and the leaderboard's figures, and whether they can be compared."""
    table: list[dict[str, str]] = []
    reasons: dict[str, list[str]] = {}
    for row in rows:
        theirs = [role for role in ("paper", "leaderboard") if row.get(role)]
        table += [{"metric": row["metric"], "by": "ours", "value": rounded(row["value"]), "gap": ""}] * bool(theirs)
        table += [{"metric": "", "by": f"{role}: {row[f'{role}_model']}", "value": rounded(row[role]),
                   "gap": rounded(row[f"{role}_gap"], "+.1f")} for role in theirs]
        if theirs:
            reasons.setdefault(row["comparable"], []).append(row["metric"])
    yield Table(table, "Ours and published scores; the gap is ours less theirs, in points.")
    for reason, metrics in reasons.items():
        yield Text(f"Comparable ({', '.join(metrics)})? {reason[:1].upper()}{reason[1:]}.")
    sources = " ".join(row.get("source", "") for row in rows)
    cites = {cited.key: cited for score in task.get("scores", []) if score["role"] != "reference"
             and score["cite"] in sources for cited in [reference(score["cite"], score["url"])]}
    if cites:
        yield Text("The published scores are from", list(cites.values()))


def tell_errors(files: RunFiles) -> Iterator[Any]:
    """Error types, causes and solutions by frequency, and the tags that errors go with."""
    yield Heading("Errors")
    yield files.note("What the model struggles with")
    for stem, title, when in (("error_types", "Types of errors", " where there are errors"),
                              ("error_causes", "Causes of errors", " once causes are filled in"),
                              ("error_solutions", "Ways to mend errors", " once solutions are filled in")):
        rows = files.rows(f"{stem}.csv")
        if rows:
            yield Table([{"": row["rank"], "name": row["name"], "count": row["count"],
                          "%": percent(row["share"], ".0f")} for row in rows[:MAX_ROWS]],
                        f"{title} by frequency, in {rows[0]['n_annotated']} of {rows[0]['n_errors']} errors.")
        else:
            yield Text(f"No {stem}.csv: errors.py writes it{when}.")
    yield Table([{"tag": row["tag"], "samples": row["n_inside"],
                  **{f"% {side}": percent(row[f"error_rate_{side}"]) for side in ("inside", "outside")},
                  "p": rounded(row["fisher_p"], ".2g")}
                 for row in files.rows("slices.csv")[:6]],
                "Error rates of test samples that have a tag and of those without it (Fisher's exact p, uncorrected).")
    yield files.note("How the errors could be mended")


def tell_llm(files: RunFiles) -> Iterator[Any]:
    """The LLM beside the model, on the same samples."""
    yield Heading("Comparison with an LLM")
    rows, llm = files.rows("llm_metrics.csv"), files.run.get("llm")
    if not rows:
        yield Text("llm_metrics.csv is not there yet: llm_compare.py writes it.")
        return
    if llm:
        on_hub = re.fullmatch("[0-9a-f]{40}", llm["revision"])
        yield Text(f"{llm['name']} ({llm['parameters']:,} parameters, {llm['precision']}) was asked about "
                   f"{llm['samples']:,} test samples, with {llm['shots']} examples in the prompt. It wrote an answer "
                   "(generated), or each label was scored by its probability (likelihood). It may have seen public "
                   "test sets in its training, labels included.",
                   [reference(llm["name"], f"https://huggingface.co/{llm['name']}")] * bool(on_hub)
                   + [reference(*PAPERS[name]) for name in [llm["type"]] if name in PAPERS])
    yield Figure("llm_compare.png", "Who is right, by gold label.", wide=True)
    bounds = {f"{row['metric']}{of}" for row in rows for of in ("_parsed_only", "_unparsed_right")}
    yield Table([{"by": row["who"].removeprefix("llm_"), "metric": row["metric"], "value": rounded(row["value"]),
                  "95 % interval": interval(row), "unread": row["unparsed"]}
                 for row in rows if not row["who"].startswith("paired") and row["metric"] not in bounds],
                "Model and LLM on the same samples; answers that name no label (unread) count as wrong.")
    first = next(row["who"] for row in rows if row["who"].startswith("llm_"))
    for who, how in (("paired", first.removeprefix("llm_")), ("paired_likelihood", "likelihood")):
        paired = {row["metric"]: row for row in rows if row["who"] == who}
        if paired:
            both, ours, theirs, neither = (rounded(paired[name]["value"], ".0f") for name in (
                "both_right", "only_model_right", "only_llm_right", "neither_right"))
            difference = [percent(paired["difference"][name], "+.1f") for name in ("value", "ci_low", "ci_high")]
            yield Text(f"Model and LLM ({how}): both right {both}, only the model {ours}, only the LLM {theirs}, "
                       f"neither {neither}; the same answer to {percent(paired['agreement']['value'])} %. The LLM less "
                       "the model: {} points ({} to {}), ".format(*difference)
                       + f"exact McNemar p {rounded(paired['mcnemar_p']['value'], '.2g')}.",
                       [reference(*PAPERS["mcnemar"])])
    yield files.note("Why the LLM is better or worse")


def tell_states(files: RunFiles) -> Iterator[Any]:
    """The hidden states in two dimensions."""
    pictures = {"embedding_pca.png": "Principal components of the test samples' vectors.",
                "embedding_tsne.png": "t-SNE of the same vectors: distances between clusters mean nothing.",
                "embedding_epochs.png": "Vectors of validation samples by epoch, in one PCA of all of them."}
    if any((files.folder / name).is_file() for name in pictures):
        yield Heading("Hidden states")
        yield Text(f"Vectors are {files.find('model_info.vector') or 'what the head sees'}. Black crosses are wrongly "
                   "predicted samples; the more opaque, the more confident the model.", [reference(*PAPERS["tsne"])])
    for name, caption in pictures.items():
        yield Figure(name, caption)


def tell_own(files: RunFiles) -> Iterator[Any]:
    """The sections that a person added to report_notes.md."""
    for title, text in files.notes.items():
        if title not in NOTES and text:
            yield Heading(title)
            yield from map(Text, paragraphs(text))


def tell_samples(files: RunFiles) -> Iterator[Any]:
    """The first wrong samples of the sheet."""
    sheet = files.rows("errors.csv", ("input", "gold", "predicted", "confidence", "gold_confidence", "error_type",
                                      "cause", "solution", "llm_prediction"))
    if not sheet:
        return
    yield Heading("Wrong samples", appendix=True)
    rows = []
    for row in sheet[:20]:
        texts = row["input"].split("\n")  # one, or one per column; cut so that 20 rows fit on a page
        answers = "; ".join(f"{what} {shorten(row[what], 40)} {row[number]}".strip() for what, number in (
            ("gold", "gold_confidence"), ("predicted", "confidence")))
        rows.append({"input": " ".join(shorten(text, 110 // len(texts)) for text in texts),
                     "gold, predicted, LLM": answers + (
                         f"; LLM {shorten(row['llm_prediction'], 40)}" if row["llm_prediction"] else ""),
                     "type": row["error_type"], "cause": row["cause"], "solution": row["solution"]})
    yield Table(rows, f"{len(rows)} of the {len(sheet)} wrong test samples in errors.csv, which were drawn at random "
                "within each error type; the numbers are the model's probabilities. Long texts are cut.", wide=True)


if __name__ == "__main__":
    sys.exit(main())
