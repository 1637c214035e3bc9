"""visualize.py's pictures: what the CSV files hold against numpy, how points look, and that no texts overlap."""


import numpy as np
import pandas as pd
import pytest
from conftest import run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from test_errors import make_run, prediction

import common

GOLD = ["yes", "yes", "yes", "yes", "no", "no", "no", "no", "no", "no", "yes", "no"]
PREDICTED = ["yes", "no", "yes", "yes", "no", "no", "no", "no", "no", "yes", "yes", "no"]  # rows 1 and 9 are wrong
CONFIDENCE = [0.9, 0.8, 0.7, 0.6, 0.9, 0.8, 0.7, 0.6, 0.15, 0.95, 0.65, 0.75]
COLUMNS = ["id", "x", "y", "gold", "predicted", "correct", "confidence"]
RED, BLUE, BLACK = to_rgba("#D7191C"), to_rgba("#2C7BB6"), to_rgba("black")
SETTINGS = {  # what the report asks of run.json besides
    "args": {"max_length": 9, "num_train_epochs": 2, "per_device_train_batch_size": 8, "weight_decay": 0,
             "optim": "adamw", "gradient_accumulation_steps": 1, "max_grad_norm": 1, "learning_rate": 1e-3,
             "lr_scheduler_type": "linear", "warmup_steps": 0, "step_gamma": None, "class_weights": "none",
             "early_stopping_patience": None, "train_per_class": None},
    "model_info": {"type": "bert", "parameters": 9, "hidden_size": 6, "layers": 1, "revision": None, "card": {},
                   "dropout": {"p": 0.1}, "vector": "the [CLS] vector"},
    "hardware": {"name": "CPU", "precision": "fp32", "processes": 1}, "versions": {"torch": "2", "transformers": "5"},
    "training": {"metric": "accuracy", "best_epoch": 2, "best_score": 0.78, "epochs": 2, "steps": 40, "seconds": 1,
                 "seconds_with_evaluation": 2}}


def write_run(folder, gold=GOLD, predicted=PREDICTED, confidence=CONFIDENCE, vectors=None, texts=None, **task):
    """A finished run; hidden_states.npz has its rows in another order than predictions.csv."""
    n = len(gold)
    task = {"labels": ["no", "yes"], "positive": "yes", "metrics": ["accuracy"], "splits": {}} | task
    make_run(folder, [prediction(i, *row, text=texts and texts[i]) for i, row in enumerate(
        zip(gold, predicted, confidence, strict=True))], **task)
    counts = {name: {"train": 9, "validation": 9, "test": n} for name in ("rows", "used")}
    labels = {split: {label: gold.count(label) for label in sorted(set(gold))} for split in counts["rows"]}
    common.write_json(folder / "run.json", common.read_run(folder) | SETTINGS | {
        "data": {**counts, "labels": labels, "dropped": {}, "leakage": {}, "source": "own rows", "revision": None,
        "why": "a toy"}})
    vectors = np.random.default_rng(0).normal(size=(n, 6)) if vectors is None else np.asarray(vectors)
    ids = np.array([f"test-{i:06d}" for i in range(n)])
    np.savez(folder / "hidden_states.npz", id=ids[::-1], vector=vectors[::-1].astype(np.float32))
    common.write_csv(folder / "steps.csv", pd.DataFrame({
        "step": range(1, 41), "epoch": np.arange(1, 41) / 20, "loss": np.arange(40.0)}))
    common.write_csv(folder / "history.csv", pd.DataFrame({
        "epoch": [1.0, 2.0], "train_loss": [0.6, 0.4], "train_accuracy": [0.7, 0.8], "train_mse": [0.6, 0.4],
        "eval_loss": [0.5, 0.45], "eval_accuracy": [0.72, 0.78], "eval_f1": [0.6, 0.65], "eval_pearson": [0.7, 0.8],
        "seconds": 1.0}))
    common.write_csv(folder / "metrics.csv", pd.DataFrame([
        {"metric": "accuracy", "value": 0.8, "n": n, "split": "test"} | dict.fromkeys(
            ["ci_low", "ci_high", "paper", "paper_gap", "leaderboard", "leaderboard_gap", "comparable"])]))
    return folder


def write_epochs(folder, epochs, gold, predicted):
    shape = len(epochs), len(gold)
    vectors = np.random.default_rng(1).normal(size=(*shape, 6)).astype(np.float32)
    arrays = {"id": np.array([f"validation-{i}" for i in range(len(gold))]), "gold": np.array(gold)}
    for epoch, its, row in zip(epochs, vectors, np.array(predicted), strict=True):
        arrays |= {f"vector_{epoch}": its, f"predicted_{epoch}": row, f"correct_{epoch}": row == arrays["gold"],
                   f"confidence_{epoch}": np.full(len(gold), 0.5, dtype=np.float32)}
    np.savez(folder / "epoch_states.npz", **arrays)
    return vectors.astype(float)


@pytest.fixture
def figures(monkeypatch):
    """{file name: figure} of every picture; the files are empty."""
    drawn, save_figure = {}, common.save_figure

    def save(figure, path, note=""):
        drawn[path.name], figure.savefig = figure, lambda part, **_: part.touch()
        save_figure(figure, path, note)

    monkeypatch.setattr(common, "save_figure", save)
    return drawn


def visualize(folder, *flags):
    return run("visualize", "--run", folder, "--method", "pca", *flags)


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def points_of(axes):
    """{(x, y): colour} of the points, in the order in which they were drawn."""
    return {tuple(place): tuple(color) for layer in axes.collections
            for place, color in zip(layer.get_offsets().data.round(5), layer.get_facecolors(), strict=True)}


def colours_of(folder, figure, method="pca"):
    """The colour of each sample, by its id."""
    table, points = common.read_csv(folder / f"embedding_{method}.csv", ("x", "y")), points_of(figure.axes[0])
    return {row["id"]: points[round(row["x"], 5), round(row["y"], 5)] for row in table.to_dict("records")}


def principal_components(vectors):
    """Coordinates by the singular value decomposition, (n, 2), and their shares of the variance."""
    u, s, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    return (u * s)[:, :2], s[:2] ** 2 / (s ** 2).sum()


def assert_texts_part(figure, monkeypatch, width):
    """No two texts that are drawn overlap, none leaves the picture, and printed `width` cm wide none is under 6 pt."""
    drawn, draw = {}, Text.draw
    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", lambda self, renderer: (drawn.update({id(self): self}), draw(self, renderer))[1])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in drawn.values()
             if text.get_text().strip() and text.get_visible()]
    assert len(boxes) > 5
    for i, (name, box) in enumerate(boxes):
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1, name
        for other, its in boxes[:i]:
            shared = [min(box.x1, its.x1) - max(box.x0, its.x0), min(box.y1, its.y1) - max(box.y0, its.y0)]
            assert min(shared) < 1, f"{name!r} runs into {other!r}"
    sizes = {text.get_text(): text.get_fontsize() * width / 2.54 / figure.get_figwidth() for text in drawn.values()}
    assert {name: size for name, size in sizes.items() if size < 6} == {}


# ---- Embeddings -----------------------------------------------------------------------------------------------------


def test_csv_holds_the_principal_components_of_every_sample(tmp_path, figures):
    vectors = np.random.default_rng(3).normal(size=(12, 6)) * [5, 3, 1, 1, 1, 1]
    assert visualize(write_run(tmp_path, vectors=vectors)) == 0
    table = common.read_csv(tmp_path / "embedding_pca.csv", ("x", "y", "confidence"))
    assert list(table) == COLUMNS and table["id"].tolist() == [f"test-{i:06d}" for i in range(12)]
    assert [table[name].tolist() for name in ("gold", "predicted", "confidence")] == [GOLD, PREDICTED, CONFIDENCE]
    assert table["correct"].tolist() == [str(row not in (1, 9)) for row in range(12)]
    expected, shares = principal_components(vectors)
    for column, values in zip("xy", expected.T, strict=True):
        np.testing.assert_allclose(table[column] * np.sign(table[column][0] * values[0]), values, atol=1e-5)
    axes = figures["embedding_pca.png"].axes[0]
    assert f"{100 * shares[0]:.0f} %" in axes.get_xlabel() and f"{100 * shares[1]:.0f} %" in axes.get_ylabel()
    assert not (tmp_path / "embedding_tsne.csv").exists()


def test_all_wrong_samples_are_drawn_and_the_right_ones_in_proportion(tmp_path, figures):
    gold = ["yes"] * 97 + ["no"] * 10
    write_run(tmp_path, gold, ["no"] * 7 + gold[7:], [0.8] * 107)
    drawn = []
    for _ in range(2):
        visualize(tmp_path, "--max-correct", 20)
        drawn.append(common.read_csv(tmp_path / "embedding_pca.csv")["id"].tolist())
    assert drawn[0] == drawn[1] and drawn[0][:7] == [f"test-{i:06d}" for i in range(7)]
    assert legend_of(figures["embedding_pca.png"]) == ["yes: 18 of 90", "no: 2 of 10", "wrongly predicted: 7 of 7"]


@pytest.mark.parametrize(("task", "yes", "no"), [
    ({}, RED, BLUE), ({"positive": "no"}, BLUE, RED), ({"labels": ["yes", "no"], "positive": None}, BLUE, RED)])
def test_red_is_positive_blue_negative_black_wrong_and_alpha_the_confidence(tmp_path, figures, task, yes, no):
    visualize(write_run(tmp_path, **task))
    figure = figures["embedding_pca.png"]
    for name, color in colours_of(tmp_path, figure).items():
        row = int(name[-2:])
        expected = BLACK if row in (1, 9) else yes if GOLD[row] == "yes" else no
        assert color == pytest.approx((*expected[:3], max(0.25, CONFIDENCE[row])))  # the unsure stay visible
    assert {color[:3] for color in [*points_of(figure.axes[0]).values()][-2:]} == {BLACK[:3]}  # last, so on top


def test_a_number_has_the_colour_of_its_step(tmp_path, figures):
    gold = ["-1.5", "0.5", "1.5", "-0.5"] * 3
    visualize(write_run(tmp_path, gold, [*gold[:-1], "1.0"], kind="regression", labels=None, positive=None,
                        steps=["low", "high"], scale=[-2.0, 2.0]))
    assert legend_of(figures["embedding_pca.png"]) == ["high: 6", "low: 5", "wrongly predicted: 1"]
    colours = colours_of(tmp_path, figures["embedding_pca.png"])
    assert {colours[f"test-{i:06d}"][:3] for i in (0, 3)} == {BLUE[:3]} and colours["test-000011"][:3] == BLACK[:3]


# ---- Epochs and learning curves -------------------------------------------------------------------------------------


def test_epochs_share_one_projection_and_its_axes(tmp_path, figures):
    gold = ["yes", "no", "no"]
    vectors = write_epochs(write_run(tmp_path), [0, 1, 5], gold, [["no", "no", "no"], ["yes", "no", "yes"], gold])
    visualize(tmp_path)
    table = common.read_csv(tmp_path / "embedding_epochs.csv", ("epoch", "x", "y"))
    assert list(table) == ["epoch", *COLUMNS] and table["epoch"].tolist() == [0] * 3 + [1] * 3 + [5] * 3
    assert table["correct"].tolist() == ["False", "True", "True", "True", "True", "False", "True", "True", "True"]
    expected, _ = principal_components(vectors.reshape(9, 6))
    np.testing.assert_allclose(np.abs(table[["x", "y"]]), np.abs(expected), atol=1e-5)
    panels = figures["embedding_epochs.png"].axes
    assert [panel.get_title().split("\n") for panel in panels] == [
        ["before training", "2 of 3 right"], ["epoch 1", "2 of 3 right"], ["epoch 5", "3 of 3 right"]]
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in panels}) == 1


@pytest.mark.parametrize(("epochs", "shown"), [
    (range(2), [0, 1]), (range(3), [0, 1, 2]), (range(4), [0, 1, 2, 3]), (range(6), [*range(6)]),
    (range(11), [0, 2, 4, 6, 8, 10])])
def test_no_text_runs_into_another_however_many_epochs(tmp_path, figures, monkeypatch, epochs, shown):
    write_run(tmp_path)
    write_epochs(tmp_path, [*epochs], ["yes", "no"] * 700, [["yes", "yes"] * 700] * len(epochs))
    visualize(tmp_path)
    titles = [panel.get_title().split("\n")[0] for panel in figures["embedding_epochs.png"].axes]
    assert titles == ["before training", *(f"epoch {epoch}" for epoch in shown[1:])]
    assert_texts_part(figures["embedding_epochs.png"], monkeypatch, width=17)  # in both columns of the report


def test_no_text_runs_into_another_in_the_other_pictures(tmp_path, figures, monkeypatch):
    long = [f"a label of many words, {number}" for number in range(12)]
    write_run(tmp_path, long, long, [0.9] * 12, labels=long, positive=None)
    run("visualize", "--run", tmp_path, "--perplexity", 3)
    assert {"learning_curve.png", "embedding_pca.png", "embedding_tsne.png"} == set(figures)
    for figure in figures.values():
        assert_texts_part(figure, monkeypatch, width=8)


# ---- What is too little, broken or odd ------------------------------------------------------------------------------


@pytest.mark.parametrize(("harm", "message"), [
    (lambda folder: (folder / "predictions.csv").unlink(), "predictions.csv is missing"),
    (lambda folder: np.savez(folder / "hidden_states.npz", id=np.array(["x"]), vector=np.ones((1, 6))),
     "hold other samples")])
def test_what_a_user_can_mend_is_one_line(tmp_path, figures, capsys, harm, message):
    harm(write_run(tmp_path))
    assert visualize(tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
