"""Draw what a run learned, from its folder alone: learning curve, hidden states in two dimensions; write the report.

    python visualize.py --dataset mrpc              the newest finished run; evaluate.py comes first

Writes learning_curve.png, embedding_pca and embedding_tsne .csv and .png, explorer.html (a page to look through the
samples) and the report, report.md and report.tex. Your own text belongs into report_notes.md, which is written once,
with empty sections, and only read from then on. embedding_epochs needs what train.py --keep-epochs keeps.
"""

import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
add = parser.add_argument
add("--dataset", metavar="KEY|FILE", help="the run's data set; with --run: what the run was tested on")
add("--model", metavar="ID|FOLDER", help="the run's model (the newest run)")
add("--seed", type=int, help="the run's seed (the newest run)")
add("--run", type=Path, metavar="DIR", help="the run folder, named outright")
add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder that holds the runs (runs)")
add("--sample", action="store_true", help="a run of --sample")
add("--method", nargs="+", choices=["pca", "tsne"], default=["pca", "tsne"], help="projections to draw (both)")
add("--max-correct", type=int, default=500, metavar="N", help="rightly predicted samples to draw at random (500)")
add("--perplexity", type=float, help="t-SNE's number of neighbours (30, or a third of the points)")
args = parser.parse_args()
if args.max_correct < 1 or (args.perplexity is not None and args.perplexity <= 0):
    parser.error("--max-correct and --perplexity are above 0")

import re
import urllib.parse
from itertools import chain, groupby, islice

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

import common
from common import UserError

# Red and blue for two labels; else Okabe & Ito's colours, told apart with every kind of colour blindness
# (https://jfly.uni-koeln.de/color/), less their black, which is for wrong samples here, plus Tol's olive.
RED, BLUE, GREY, WRONG = "#D7191C", "#2C7BB6", "#999999", "wrongly predicted"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#999933", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "p", "h")  # one per colour, so that colour is not the only sign
HUB = "https://huggingface.co/datasets/"
COLUMNS = ["id", "x", "y", "gold", "predicted", "correct", "confidence"]
# What LaTeX would read or join, and what pdfLaTeX's fonts lack; the rest both engines print as it stands.
LATEX_SPECIAL = re.compile(r"""[\\{}$&#%_~^<>|"'`\[\]\-\xadĦħĸĿŀŉŦŧſ]|,(?=,)|[^\0-\u017f‘’“”„‚–—…€•†‡‹›™]""")
TEMPLATES = Path(__file__).parent / "templates"


def shorten(text, length=30):
    """`text` on one line, cut to `length` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[:length - 1] + "…"


def name_of(model):
    """A model as the report names it: a hub id, or a local folder's name alone."""
    return Path(model).name if Path(model).is_dir() else model


def draw_curves(where, path):
    """Draw the losses of the run in `where`, and below them the score that chose its epoch."""
    one = common.read_run(where)
    metric, best, its_kind = one["training"]["metric"], one["training"]["best_epoch"], common.kind_of(one["task"])
    steps = common.read_csv(where / "steps.csv", ("epoch", "loss"))
    history = common.read_csv(where / "history.csv", ("epoch", "train_", "eval_"))
    figure, panels = common.new_figure(4, 4.8, nrows=2, sharex=True)
    smooth = steps["loss"].rolling(max(1, len(steps) // 20), center=True, min_periods=1).mean()
    panels[0].plot(steps["epoch"], steps["loss"], color=BLUE, alpha=0.3, linewidth=0.6)
    panels[0].plot(steps["epoch"], smooth, color=BLUE, label="training")
    for panel, column in zip(panels, ("eval_loss", f"eval_{metric}"), strict=True):
        panel.plot(history["epoch"], history[column], "--o", color=RED, markersize=4, label="evaluation")
        score = history.loc[history["epoch"] == best, column]
        panel.plot(best, score, "*", markersize=11, color=RED, label="best epoch")
    trained, falling = its_kind.train_metric, its_kind.lower_is_better
    if (trained in falling) == (metric in falling):  # training has one score, which may be another
        panels[1].plot(history["epoch"], history[f"train_{trained}"], "-o", color=BLUE, markersize=3)
        metric += f"\n(training: {trained})" * (trained != metric)
    panels[0].set_ylabel("loss")
    panels[1].set(xlabel="epoch", ylabel=metric)
    panels[1].xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, columnspacing=1)
    common.save_figure(figure, path, common.describe_run(one))
    print(f"wrote {path}")


def group_styles(groups):
    """Colour and marker of each group, legend order; of more than eight, the less frequent ones share `N more`.

    Two groups: red is the positive one (the last label where the task names none), blue the other.
    """
    counts = groups.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    listed = (task.get("labels", []), task.get("steps", []), getattr(kind, "GROUPS", ()))
    known = next((names for names in listed if set(counts.index) <= set(names) and len(names) <= len(PALETTE)),
                 list(counts.index))
    if len(known) == 2:
        positive = task["positive"] if task.get("positive") in known else known[1]
        return {positive: (RED, "o"), next(name for name in known if name != positive): (BLUE, "s")}
    styles = dict(zip(known, zip(PALETTE, MARKERS, strict=True), strict=False))
    return styles | ({f"{len(known) - len(styles)} more": (GREY, ".")} if len(known) > len(styles) else {})


def add_looks(table):
    """Add the columns group, legend, marker and color (RGBA, 0..1); returns colour and marker per legend entry.

    A group is a gold label, a number's step, or what a kind of one row alone says. Wrong samples are black crosses.
    Alpha: the confidence, 0.25 or more, so that an unsure prediction stays visible; 0.8 for a number, which has none.
    """
    table["group"] = kind.groups(table["gold"]) if hasattr(kind, "groups") else table["gold"]
    if isinstance(kind, common.Regression):
        table["group"] = kind.steps(table["gold"].astype(float), task)
    styles = group_styles(table["group"])
    rest = list(styles)[-1]
    styles[WRONG] = ("#000000", "X")
    table["legend"] = table["group"].where(table["group"].isin(list(styles)), rest).mask(~table["correct"], WRONG)
    table["marker"] = [styles[name][1] for name in table["legend"]]
    rgb = [to_rgb(styles[name][0]) for name in table["legend"]]
    table["color"] = list(np.column_stack([rgb, table["confidence"].fillna(0.8).clip(0.25, 1)]))
    return {name: style for name, style in styles.items() if name == WRONG or name in set(table["legend"])}


def project(method, vectors):
    """Coordinates (n, 2) of vectors (n, hidden) and the labels of the axes.

    t-SNE is given the first 50 principal components, as scikit-learn's manual advises: it is fast and takes off noise.
    """
    pca = PCA(min(2 if method == "pca" else 50, *vectors.shape), random_state=run["seed"])
    components = pca.fit_transform(vectors)
    if method == "pca":
        return components, [f"PC {i}: {100 * share:.0f} % of variance" for i, share in
                            enumerate(pca.explained_variance_ratio_, 1)]
    perplexity = args.perplexity or min(30, (len(vectors) - 1) / 3)
    coordinates = TSNE(perplexity=perplexity, init="pca", random_state=run["seed"]).fit_transform(components)
    return coordinates.astype(np.float64), [f"perplexity {perplexity:.3g}; no axis has a unit", ""]


def scatter(axes, points, size):
    """Draw the points by their columns x, y, color and marker, the crosses of wrong samples last and larger."""
    for marker, part in sorted(points.groupby("marker", sort=False), key=lambda group: group[0] == "X"):
        axes.scatter(part["x"], part["y"], s=size * (1.8 if marker == "X" else 1), c=np.stack(part["color"]),
                     marker=marker, linewidths=0)


def finish(figure, path, shown, whole, styles, note):
    """Add the legend with the numbers of samples drawn and in all; write the picture."""
    drawn, counts = shown["legend"].value_counts(), whole["legend"].value_counts()
    text = "{}: {:,} of {:,}" if len(shown) < len(whole) else "{}: {:,}"
    names = [text.format(shorten(name), drawn.get(name, 0), counts.get(name, 0)) for name in styles]
    handles = [Line2D([], [], color=color, marker=marker, linestyle="", markersize=7, markeredgewidth=0, label=name)
               for name, (color, marker) in zip(names, styles.values(), strict=True)]
    columns = min(4, max(1, int(figure.get_figwidth() / (0.45 + 0.066 * max(map(len, names))))))
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    common.save_figure(figure, path, note)
    print(f"wrote {path}")


# The report. Facts are gathered here; its words stand in templates/report_text, its layouts in report.md and .tex.


def to_latex(text):
    """`text` on one line, so that LaTeX prints every character or names it: templates/report.tex defines \\uc."""
    text = re.sub(r"[\x00-\x20\x7f-\xa0\u2028\u2029]+", " ", text)
    text = re.sub(r"[^\s/_]{25,}", lambda word: re.sub(".{8}", "\\g<0>\0", word[0]), text).replace("/", "/\0")
    text = text.replace("_", "_\0")  # \0: where a line may break
    text = LATEX_SPECIAL.sub(lambda found: f"\\uc{{{ord(found[0]):X}}}", text).replace("\0", r"\allowbreak{}")
    return re.sub(r"\\uc\{2D\}(?=\d)", r"\\mbox{\\uc{2D}}", text)  # no line ends after a minus


def to_markdown(text):
    """`text` on one line, none of whose characters means anything to Markdown or HTML, in a paragraph or a cell."""
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text)
    text = re.sub(r"[\\`*_{}\[\]<>#|$~&]|^[-+=]", r"\\\g<0>", text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def number(value, form=".3f"):
    """`value` in the format `form`; nothing for what is missing."""
    return "" if value is None or value != value else format(value, form)


def cells(rows, spec):
    """A list of cells per row; spec: names of columns, each with the format of its numbers after a colon."""
    columns = [part.partition(":")[::2] for part in spec.split("; ")]
    return [[number(row.get(name), form) if form else shorten(row.get(name, ""), 150) for name, form in columns]
            for row in rows]


def words(value):
    """What run.json lists, in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part:g}" for name, part in value.items() if part is not None)
    return ", ".join(np.atleast_1d(value))


def rows_of(name, *numbers):
    """The rows of a table of the run folder as dicts, `numbers` as float; none where it has not been written."""
    return common.read_csv(folder / name, numbers).to_dict("records") if (folder / name).is_file() else []


def reference(cite, url=""):
    """The number of a publication in the list of references, which it joins when it is first cited.

    cite: the publication in words, or its key in catalog/papers.csv. Another wording of the same link is the same.
    """
    url = urllib.parse.quote(url, safe="/:?=&%#~+,;@")
    same = [paper for paper in papers if cite in (paper["key"], paper["cite"])]
    same += [paper for paper in papers if url and paper["url"] == url]
    paper = same[0] if same else {"key": "", "cite": cite, "url": url}
    papers.extend([] if same else [paper])
    cited.extend([] if paper in cited else [paper])
    return cited.index(paper) + 1


def render(name, escape):
    """Write the report's file `name` by its template; all that is no template's own text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, autoescape=True,
        finalize=jinja2.pass_context(  # without a context, jinja2 would escape constants by itself, for HTML
            lambda _, value: value if isinstance(value, Markup) else Markup(escape(str(value)))),
        block_start_string=r"\BLOCK{", block_end_string="}", variable_start_string=r"\VAR{", variable_end_string="}",
        comment_start_string=r"\COMMENT{", comment_end_string="}", trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "cells": cells, "words": words}
    text = environment.get_template(name).render(facts)
    common.write_text(folder / name, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    print(f"wrote {folder / name}")


# 1. The run; one that was tested on another data set stands in a folder of the run itself.
folder, run = common.find_run(args)
task, kind = run["task"], common.kind_of(run["task"])
trained_in = folder.parent if "trained_on" in run else folder

# 2. The learning curve.
draw_curves(trained_in, folder / "learning_curve.png")

# 3. The epochs that were kept: one PCA of all of them, a panel for up to six, the same axes.
if (folder / "epoch_states.npz").is_file():
    with np.load(folder / "epoch_states.npz", allow_pickle=False) as arrays:
        kept = dict(arrays)
    epochs = np.sort([int(name.split("_")[1]) for name in kept if name.startswith("vector_")])
    points = pd.concat([pd.DataFrame({
        "epoch": epoch, "id": kept["id"], "gold": kept["gold"],
        **{name: kept[f"{name}_{epoch}"] for name in ("predicted", "correct", "confidence")}}) for epoch in epochs],
        ignore_index=True)
    xy, axis_labels = project("pca", np.concatenate([kept[f"vector_{epoch}"] for epoch in epochs]).astype(np.float64))
    points["x"], points["y"] = xy.T
    common.write_csv(folder / "embedding_epochs.csv", points[["epoch", *COLUMNS]])
    styles = add_looks(points)
    shown = epochs[np.unique(np.linspace(0, len(epochs) - 1, 6).round().astype(int))]
    columns = 2 if len(shown) == 4 else min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, panels = common.new_figure(7, 0.6 + 2.1 * rows, nrows=rows, ncols=columns, squeeze=False, sharex=True,
                                       sharey=True)
    for panel in panels.flat[len(shown):]:
        panel.remove()
    for panel, epoch in zip(panels.flat, shown, strict=False):
        part = points[points["epoch"] == epoch]
        scatter(panel, part, size=8)
        panel.set_title((f"epoch {epoch}" if epoch else "before training")
                        + f"\n{part['correct'].sum():,} of {len(part):,} right")
        panel.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
        panel.label_outer()
    finish(figure, folder / "embedding_epochs.png", part, part, styles,
           f"{common.describe_run(run)}; validation examples, numbers at epoch {epoch}")

# 4. The test samples with their vectors; of the right ones up to --max-correct, each label in proportion.
predictions = common.read_predictions(folder)
texts = predictions[common.text_columns(task)].map(shorten, length=1000).to_dict("records")
with np.load(folder / "hidden_states.npz", allow_pickle=False) as arrays:
    vectors = pd.DataFrame(arrays["vector"].astype(np.float64), index=arrays["id"])
if set(vectors.index) != set(predictions["id"]):
    raise UserError(f"{folder}: hidden_states.npz and predictions.csv hold other samples; run evaluate.py again")
samples = predictions[["id", "gold", "predicted", "correct", "confidence"]].copy()
styles, right = add_looks(samples), np.flatnonzero(samples["correct"])
rng = np.random.default_rng(run["seed"])
drawn = right[common.stratified_rows(samples["group"].to_numpy()[right], args.max_correct, rng)]
chosen = np.sort([*np.flatnonzero(~samples["correct"]), *drawn])
points = samples.iloc[chosen].reset_index(drop=True)
vectors = vectors.loc[points["id"]].to_numpy()

# 5. PCA and t-SNE.
coordinates, methods = {}, list(dict.fromkeys(args.method))
if len(points) < 5 or not np.ptp(vectors, axis=0).any():
    print(f"no embedding and no explorer.html: a projection needs five samples that differ; there are {len(points)}")
    methods = []
for method in methods:
    coordinates[method], axis_labels = project(method, vectors)
    points["x"], points["y"] = coordinates[method].T
    common.write_csv(folder / f"embedding_{method}.csv", points[COLUMNS])
    figure, axes = common.new_figure(4, 3.6)
    scatter(axes, points, size=float(np.clip(9_000 / len(points), 4, 18)))  # thousands of errors cover the rest
    axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    axes.locator_params(nbins=5)
    if method == "tsne":
        axes.set(xticks=[], yticks=[])
    finish(figure, folder / f"embedding_{method}.png", points, samples, styles, common.describe_run(run, len(samples)))

# 6. explorer.html: the same points with their texts.
if methods:
    tags = {row["id"]: row["auto_tags"] for row in rows_of("tags.csv")}
    shapes = {name: MarkerStyle(marker) for name, (_, marker) in styles.items()}
    page = {
        "methods": {{"pca": "PCA", "tsne": "t-SNE"}[method]: xy.tolist() for method, xy in coordinates.items()},
        "legend": {name: color for name, (color, _) in styles.items()},
        "outlines": {name: shape.get_path().transformed(shape.get_transform()).to_polygons()[0].round(2).tolist()
                     for name, shape in shapes.items()},
        "points": [{
            **{name: point[name] for name in ("id", "gold", "predicted", "correct", "group", "legend")},
            "confidence": number(point["confidence"]), "texts": texts[row],
            "tags": [tag for tag in tags.get(point["id"], "").split(" | ") if tag],
            "color": "rgba({:.0f} {:.0f} {:.0f} / {:.2f})".format(*(point["color"] * [255, 255, 255, 1])),
        } for row, point in zip(chosen, points.to_dict("records"), strict=True)]}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
                                     autoescape=True)
    environment.policies["json.dumps_kwargs"] = {}  # else the keys would be sorted
    title = f"{task['title']} | {common.describe_run(run, len(samples))}"
    page = environment.get_template("explorer.html").render(title=title, data=page)
    common.write_text(folder / "explorer.html", page)
    print(f"wrote {folder / 'explorer.html'}: {len(points):,} samples; open it in a browser"
          + "; no tags yet: errors.py writes them" * (not tags))

# 7. report_notes.md, a person's: written once, with empty sections, and only read from then on.
blank = TEMPLATES / "report_notes.md"
if not (folder / "report_notes.md").is_file():
    common.write_text(folder / "report_notes.md", blank.read_text(encoding="utf-8"))
asked = {title: re.sub("<!--|-->", "", hint).strip()
         for title, hint in common.sections_of(common.decode(blank)).items()}
written = common.sections_of(re.sub("(?s)<!--.*?-->", "", common.decode(folder / "report_notes.md")))
notes = {title: [part for part in re.split(r"\n\s*\n|\n(?=\s*[-*] )", text) if part.strip()]  # a dash begins one
         for title, text in written.items()}

# 8. The facts of the report: the run's tables as they are, and what has to be counted or looked up.
metrics = common.read_csv(folder / "metrics.csv", (
    "value", "ci_low", "ci_high", "n", "paper", "paper_gap", "leaderboard", "leaderboard_gap")).to_dict("records")
main = [row for row in metrics if row["metric"] in task["metrics"]]
values = {row["metric"]: row["value"] for row in metrics}
names = [str(label) for label in task.get("labels", [])]
of_labels = [{"label": name, **{part: values[f"{part}_{name}"] for part in ("precision", "recall", "f1")}}
             for name in names if f"recall_{name}" in values]
seeds = {row["metric"]: row for row in rows_of("../seeds.csv", "mean", "sd")} if folder == trained_in else {}
floors, llm, data = {}, {}, run["data"]
for row in rows_of("baselines.csv", "value"):
    floors.setdefault(row["baseline"], {"": row["baseline"]})[row["metric"]] = row["value"]
for row in rows_of("llm_metrics.csv", "value", "ci_low", "ci_high", "n"):
    llm.setdefault(row["who"], {})[row["metric"]] = row
counts = {"all": data["rows"], "used": data["used"]}
for label in dict.fromkeys(chain.from_iterable(data["labels"].values())):
    counts[label] = {split: found.get(label, 0) for split, found in data["labels"].items()}
history = rows_of(trained_in.resolve() / "history.csv", "epoch", "train_", "eval_", "seconds")
papers, cited = common.read_csv(common.CATALOG / "papers.csv").to_dict("records"), []
by_metric = groupby(rows_of("published.csv", "value", "gap"), key=lambda row: row["metric"])
facts = {
    "run": run, "task": task, "asked": asked, "notes": notes, "raw": Markup,
    "numbers": {"table": {}, "figure": {}}, "figures": {path.name for path in folder.glob("*.png")},
    "paper_keys": {paper["key"] for paper in papers}, "cited": cited, "reference": reference,
    "task_papers": [reference(cite) for cite in task.get("cite", "").split("; ") if cite],
    "model": name_of(run["model"]), "llm_name": name_of(run.get("llm", {}).get("name", "")),
    "source": Path(task["file"]).name if "file" in task else data["source"].removeprefix(HUB),
    "labels": ", ".join(names[:12]) + f" and {len(names) - 12} more" * (len(names) > 12),
    "counts": [{"": name, **of_splits} for name, of_splits in counts.items()],
    "majority": max(data["labels"]["test"].values()) / data["used"]["test"] * (task["kind"] == "classification"),
    "history": [history[i] for i in np.unique(np.linspace(0, len(history) - 1, 12).round().astype(int))],
    "timing": rows_of("timing.csv", "examples_per_second", "latency_"), "main": main, "values": values,
    "n_seeds": max((row["n"] for row in seeds.values()), default=0),
    "scores": [seeds.get(row["metric"], {}) | row for row in metrics
               if not row["metric"].endswith(tuple(f"_{name}" for name in names)) or row in main][:12],
    "of_labels": of_labels[:20] if len(names) <= 20 else [],
    "published": [row for _, rows in by_metric for row in islice(rows, 6)],
    "floors": [{"": "ours", **values}, *floors.values()] if floors else [],
    "sheet": rows_of("errors.csv")[:60], "n_wrong": int((~samples["correct"]).sum()), "n_test": len(samples),
    "rankings": {what: rows_of(f"error_{what}.csv", "share")[:12] for what in ("types", "causes", "solutions")},
    "slices": rows_of("slices.csv", "error_rate_", "fisher_p")[:8], "llm": llm,
    "llm_ways": [who for who in llm if who.startswith("llm_")],
    "llm_rows": [{"by": who.replace("_", ", "), **row} for who, rows in llm.items() if who[:6] != "paired"
                 for row in rows.values() if row["metric"] not in ("right_on_the_sheet", "seconds_per_sample")]}

# 9. The report, to be read here and to be printed.
render("report.md", to_markdown)
render("report.tex", to_latex)
