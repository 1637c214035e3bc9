"""Draw what a run learned, from its folder alone: the learning curve, and the hidden states in two dimensions.

    python evaluate.py --dataset mrpc               writes predictions.csv and hidden_states.npz
    python visualize.py --dataset mrpc              writes learning_curve.png, embedding_pca.png, embedding_tsne.png and
                                                    explorer.html, a page to look through the samples
    python visualize.py --dataset mrpc --runs DIR   draws the learning curve of the run in DIR over it

embedding_epochs.png needs what train.py --keep-epochs keeps; the tags in explorer.html come from errors.csv.
"""

import argparse
import itertools
import json
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import (
    ANSWERABLE,
    KINDS,
    Parser,
    UserError,
    add_run_flags,
    command,
    figure_note,
    find_run,
    finished_run,
    new_figure,
    positive_float,
    positive_int,
    read_csv,
    read_json,
    read_predictions,
    save_figure,
    shorten,
    stratified_rows,
    text_columns,
    write_atomically,
    write_csv,
    write_report,
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


def read_arrays(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """The named arrays of an .npz file; UserError where the file is missing, broken or lacks one."""
    if not path.is_file():
        raise UserError(f"{path} is missing; evaluate.py writes it")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_samples(folder: Path, task: dict[str, Any]) -> tuple[pd.DataFrame, np.ndarray]:
    """The samples of predictions.csv with their group and {column: input text}, and their vectors, float64 (n, hidden).

    Raises UserError where hidden_states.npz and predictions.csv do not hold the same samples.
    """
    predictions = read_predictions(folder)
    ids, vectors = read_arrays(folder / "hidden_states.npz", ("id", "vector"))
    row_of = {name: row for row, name in enumerate(ids.tolist())}
    alone = set(row_of) ^ set(predictions["id"])
    if alone or not len(row_of) == len(ids) == len(predictions) == len(vectors):
        raise UserError(f"{folder}: hidden_states.npz holds {len(ids)} samples, predictions.csv {len(predictions)}, "
                        f"and {len(alone)} ids stand in one alone; write both again with evaluate.py --overwrite")
    table = predictions[["id", "gold", "predicted", "correct", "confidence"]].copy()
    table["group"] = KINDS[task["kind"]].picture_groups(predictions, task)
    table["texts"] = predictions[[name for name in text_columns(task) if name in predictions]].to_dict("records")
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
    """epoch_states.npz as one row per epoch and sample, and their vectors, float64 (epochs * n, hidden).

    """
    names = ("id", "epoch", "vector", "gold", "predicted", "correct", "confidence")
    ids, epochs, vectors, gold, predicted, correct, confidence = read_arrays(path, names)
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


if __name__ == "__main__":
    sys.exit(main())
