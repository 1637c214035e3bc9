"""visualize.py: what the CSV files hold, how the points look, explorer.html, and what a user can get wrong.

The test of explorer.html in a browser skips where no Chromium is installed.
"""

import json
import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import common
import errors
import visualize
from common import read_csv, write_csv, write_json

ROOT = Path(visualize.__file__).parent
GOLD = ["yes", "yes", "yes", "yes", "no", "no", "no", "no", "no", "no", "yes", "no"]
PREDICTED = ["yes", "no", "yes", "yes", "no", "no", "no", "no", "no", "yes", "yes", "no"]  # rows 1 and 9 are wrong
CONFIDENCE = [0.9, 0.8, 0.7, 0.6, 0.9, 0.8, 0.7, 0.6, 0.55, 0.95, 0.65, 0.75]


def write_run(folder, gold=GOLD, predicted=PREDICTED, confidence=CONFIDENCE, vectors=None, kind="classification",
              sample=False, columns=None, **task):
    """A finished run's folder of n samples; hidden_states.npz has its rows in another order than predictions.csv."""
    n = len(gold)
    ids = [f"test-{row}" for row in range(n)]
    columns = columns or {"text": [f"text {row}" for row in range(n)]}
    write_json(folder / "run.json", {
        "finished": "2025-01-01T00:00:00", "dataset": "toy", "model": "tiny/bert", "seed": 7, "sample": sample,
        "data": {"rows": {"test": 0}},
        "task": {"key": "toy", "title": "Toy task", "kind": kind, "text": list(columns),
                 "labels": [str(label) for label, _ in Counter(sorted([*gold, *predicted])).most_common()], **task},
        "model_info": {"vector": "the [CLS] vector"}, "training": {"best_epoch": 2, "metric": "accuracy"}})
    correct = np.array(gold, dtype=object) == np.array(predicted, dtype=object)
    write_csv(folder / "predictions.csv", pd.DataFrame({
        "id": ids, "split": "test", **columns, "gold": gold, "predicted": predicted, "correct": correct,
        "confidence": confidence, "gold_confidence": confidence, "margin": confidence}, dtype=object))
    vectors = np.random.default_rng(0).normal(size=(n, 6)) if vectors is None else np.asarray(vectors)
    np.savez(folder / "hidden_states.npz", id=np.array(ids[::-1]), vector=vectors[::-1].astype(np.float32))
    write_csv(folder / "steps.csv", pd.DataFrame({"step": range(1, 41), "epoch": np.arange(1, 41) / 20,
                                                  "loss": np.arange(40.0), "grad_norm": 1.0, "learning_rate": 1e-5}))
    write_csv(folder / "history.csv", pd.DataFrame({
        "epoch": [1.0, 2.0], "train_loss": [0.6, 0.4], "train_accuracy": [0.7, 0.8], "eval_loss": [0.5, 0.45],
        "eval_accuracy": [0.72, 0.78], "eval_f1": [0.6, 0.65], "learning_rate": 1e-5, "seconds": 1.0}))
    return folder


def write_epochs(folder, epochs, gold, predicted):
    shape = (len(epochs), len(gold))
    vectors = np.random.default_rng(1).normal(size=(*shape, 6)).astype(np.float32)
    np.savez(folder / "epoch_states.npz", id=np.array([f"validation-{row}" for row in range(len(gold))]),
             epoch=np.array(epochs), vector=vectors, gold=np.array(gold), predicted=np.array(predicted),
             correct=np.array(predicted) == np.array(gold), confidence=np.full(shape, 0.5, dtype=np.float32))
    return vectors.astype(float)


@pytest.fixture
def figures(monkeypatch):
    """{file name: figure} of everything that would be saved, still open for questions."""
    from matplotlib import pyplot

    drawn, close = {}, pyplot.close

    def save(figure, path):
        drawn[path.name] = figure
        common.save_figure(figure, path)

    monkeypatch.setattr(visualize, "save_figure", save)
    monkeypatch.setattr(pyplot, "close", lambda _: None)
    yield drawn
    close("all")


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def principal_components(vectors):
    """Coordinates by the singular value decomposition, (n, 2), and their shares of the variance."""
    u, s, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    return (u * s)[:, :2], s[:2] ** 2 / (s ** 2).sum()


def looks(gold, predicted, confidence, kind="classification", **task):
    table = pd.DataFrame({"gold": gold, "predicted": predicted, "confidence": confidence, "group": gold})
    table["correct"] = table["gold"] == table["predicted"]
    return table, visualize.add_looks(table, {"kind": kind, "text": ["text"], **task})


# ---- Embeddings -----------------------------------------------------------------------------------------------------


def test_csv_holds_the_principal_components_of_every_sample(tmp_path, figures):
    vectors = np.random.default_rng(3).normal(size=(12, 6)) * [5, 3, 1, 1, 1, 1]
    write_run(tmp_path, vectors=vectors, labels=["no", "yes"], positive="yes")
    assert visualize.main(["--run", str(tmp_path), "--method", "pca"]) == 0
    table = read_csv(tmp_path / "embedding_pca.csv", ["x", "y", "confidence"])
    assert list(table) == ["id", "x", "y", "gold", "predicted", "correct", "confidence"]
    assert table["id"].tolist() == [f"test-{row}" for row in range(12)]
    assert table["gold"].tolist() == GOLD and table["predicted"].tolist() == PREDICTED
    assert table["correct"].tolist() == ["False" if row in (1, 9) else "True" for row in range(12)]
    assert table["confidence"].tolist() == CONFIDENCE
    expected, shares = principal_components(vectors)
    for column, values in zip("xy", expected.T, strict=True):
        sign = np.sign(table[column][0] * values[0])
        np.testing.assert_allclose(table[column], sign * values, atol=1e-5)
    axes = figures["embedding_pca.png"].axes[0]
    assert axes.get_xlabel() == f"PC 1 ({100 * shares[0]:.1f}% of the variance)"
    assert axes.get_ylabel() == f"PC 2 ({100 * shares[1]:.1f}% of the variance)"
    assert not (tmp_path / "embedding_tsne.csv").exists()


def test_legend_title_and_csv_of_a_part_of_the_correct_samples(tmp_path, figures):
    write_run(tmp_path, labels=["no", "yes"], positive="yes", sample=True)
    assert visualize.main(["--run", str(tmp_path), "--max-correct", "6"]) == 0
    for name in ("embedding_pca", "embedding_tsne"):
        # 4 right `yes` and 6 right `no`: of 6, each label gets its share, 2.4 and 3.6
        assert legend_of(figures[f"{name}.png"]) == ["yes: 2 / 4", "no: 4 / 6", "wrongly predicted: 2 / 2"]
        table = read_csv(tmp_path / f"{name}.csv")
        assert len(table) == 8 and {"test-1", "test-9"} <= set(table["id"])
        assert "sample rows: figures mean nothing" in figures[f"{name}.png"].get_suptitle()
    title = figures["embedding_tsne.png"].get_suptitle().splitlines()
    assert title[:3] == ["Toy task", "tiny/bert, seed 7", "t-SNE (perplexity 2.33, seed 7) of the [CLS] vector"]
    assert "carry no meaning" in figures["embedding_tsne.png"].axes[0].get_xlabel()


@given(groups=st.lists(st.sampled_from("abc"), min_size=1), data=st.data(), max_correct=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_every_wrong_sample_is_chosen(groups, data, max_correct):
    correct = pd.Series(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))), dtype=bool)
    chosen = visualize.choose_points(pd.Series(groups, dtype=object), correct, max_correct, seed=1)
    assert set(np.flatnonzero(~correct)) <= set(chosen)
    assert len(chosen) == len(set(chosen)) == (~correct).sum() + min(max_correct, correct.sum())


def test_correct_samples_are_drawn_by_label_and_seed():
    groups, correct = pd.Series(["a"] * 90 + ["b"] * 10), pd.Series([True] * 100)
    chosen = visualize.choose_points(groups, correct, 20, seed=1)
    assert groups[chosen].value_counts().to_dict() == {"a": 18, "b": 2}
    assert chosen.tolist() == visualize.choose_points(groups, correct, 20, seed=1).tolist()
    assert chosen.tolist() != visualize.choose_points(groups, correct, 20, seed=2).tolist()


def test_two_labels_are_red_and_blue_and_wrong_ones_black():
    table, styles = looks(["neg", "pos", "pos", "neg"], ["neg", "pos", "neg", "neg"], [0.9, 0.6, 0.8, 0.01],
                          labels=["pos", "neg"], positive="pos")
    assert styles == {"pos": ("#D7191C", "o"), "neg": ("#2C7BB6", "s"), "wrongly predicted": ("#000000", "X")}
    red, blue = np.array([0xD7, 0x19, 0x1C]) / 255, np.array([0x2C, 0x7B, 0xB6]) / 255
    np.testing.assert_allclose(np.stack(table["color"]), [[*blue, 0.9], [*red, 0.6], [0, 0, 0, 0.8], [*blue, 0.15]])
    assert table["marker"].tolist() == ["s", "o", "X", "s"]


def test_the_second_label_is_red_where_none_is_positive():
    assert looks(["a"], ["a"], [1.0], labels=["a", "b"])[1]["a"] == ("#2C7BB6", "s")


def test_more_than_eight_labels_share_the_rest():
    gold = [f"label {number}" for number in range(10) for _ in range(12 - number)]
    table, styles = looks(gold, gold, [1.0] * len(gold), labels=sorted(set(gold), reverse=True))
    assert list(styles) == [f"label {number}" for number in range(8)] + ["2 more", "wrongly predicted"]
    assert len(set(styles.values())) == len({marker for _, marker in styles.values()}) == 10
    assert table["legend"].tolist()[-1] == "2 more" and table["group"].tolist()[-1] == "label 9"


def test_regression_is_coloured_by_gold_and_darkened_by_error():
    from matplotlib import colormaps

    table, _ = looks(["1", "3", "2"], ["1", "1", "1"], [np.nan] * 3, kind="regression")
    low, high, middle = (np.array(colormaps["coolwarm"](share)[:3]) for share in (0.0, 1.0, 0.5))
    np.testing.assert_allclose(np.stack(table["color"]), [[*low, 0.8], [*(0 * high), 0.8], [*(0.5 * middle), 0.8]])


def test_wrong_points_are_drawn_last(tmp_path, figures):
    write_run(tmp_path, labels=["no", "yes"])
    visualize.main(["--run", str(tmp_path), "--method", "pca"])
    layers = figures["embedding_pca.png"].axes[0].collections
    assert [len(layer.get_offsets()) for layer in layers] == [4, 6, 2]
    np.testing.assert_array_equal(layers[-1].get_facecolors()[:, :3], np.zeros((2, 3)))


@pytest.mark.parametrize(("question", "kind"), [
    ("Is the man who waves tall?", "yes/no"), ("In what country is it?", "what"), ("Whatever, then why?", "why"),
    ("Name it.", "other question"), ("", "other question")])
def test_question_type(question, kind):
    assert common.question_type(question) == kind


def test_groups_of_questions_and_scales():
    table = pd.DataFrame({"question": ["Who?", "Is it?"], "gold": ["", "Paris"], "gold_step": ["low", "high"]})
    span = {"kind": "span", "text": ["question", "context"]}
    assert common.KINDS["span"].picture_groups(table, span).tolist() == ["no answer", "answerable"]
    assert visualize.group_styles(pd.Series(["answerable", "no answer"]), span)["answerable"][0] == visualize.RED
    assert common.KINDS["span"].picture_groups(table[1:], span).tolist() == ["yes/no"]
    assert common.KINDS["visual"].picture_groups(table, span).tolist() == ["who", "yes/no"]
    assert common.KINDS["regression"].picture_groups(table, span).tolist() == ["low", "high"]


# ---- Epochs and learning curves -------------------------------------------------------------------------------------


def test_epochs_share_one_projection_and_its_axes(tmp_path, figures):
    write_run(tmp_path, labels=["no", "yes"], positive="yes")
    gold = ["yes", "no", "no"]
    vectors = write_epochs(tmp_path, [0, 1, 5], gold, [["no", "no", "no"], ["yes", "no", "yes"], gold])
    visualize.main(["--run", str(tmp_path), "--method", "pca"])
    table = read_csv(tmp_path / "embedding_epochs.csv", ["epoch", "x", "y", "confidence"])
    assert list(table) == ["epoch", *visualize.EMBEDDING_COLUMNS]
    assert table["epoch"].tolist() == [0, 0, 0, 1, 1, 1, 5, 5, 5]
    assert table["correct"].tolist() == ["False", "True", "True", "True", "True", "False", "True", "True", "True"]
    expected, _ = principal_components(vectors.reshape(9, 6))
    np.testing.assert_allclose(np.abs(table[["x", "y"]]), np.abs(expected), atol=1e-5)
    figure = figures["embedding_epochs.png"]
    assert [panel.get_title() for panel in figure.axes] == [
        "before training: 2 of 3 right", "epoch 1: 2 of 3 right", "epoch 5: 3 of 3 right"]
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in figure.axes}) == 1
    assert legend_of(figure) == ["yes: 1 / 1", "no: 2 / 2", "wrongly predicted: 0 / 0"]


def test_six_epochs_are_shown_of_eleven_and_regression_has_no_wrong_ones(tmp_path, figures):
    write_run(tmp_path, gold=[float(row) for row in range(6)], predicted=[2.5] * 6, confidence=[np.nan] * 6,
              kind="regression")
    write_epochs(tmp_path, list(range(11)), ["1.0", "2.0"], [["1.0", "3.0"]] * 11)
    visualize.main(["--run", str(tmp_path), "--method", "pca"])
    figure = figures["embedding_epochs.png"]
    titles = [panel.get_title().split(":")[0] for panel in figure.axes if panel.get_title()]
    assert titles == ["before training", "epoch 2", "epoch 4", "epoch 6", "epoch 8", "epoch 10"]
    assert legend_of(figure) == ["predicted on the gold step: 1 / 1", "predicted on another step: 1 / 1"]
    table = read_csv(tmp_path / "embedding_epochs.csv")
    assert len(table) == 22
    assert figures["embedding_pca.png"].axes[1].get_ylabel() == "gold value"


def test_learning_curve_of_two_runs(tmp_path, figures):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    run = json.loads((second / "run.json").read_text())
    write_json(second / "run.json", {**run, "seed": 8, "training": {"best_epoch": 1, "metric": "f1"}})
    visualize.draw_learning_curve([first, second, first], tmp_path / "learning_curve.png")
    loss, metric = figures["learning_curve.png"].axes
    assert len(loss.lines) == len(metric.lines) + 2 == 8
    raw, smooth, evaluation, star = loss.lines[:4]
    assert raw.get_ydata().tolist() == list(range(40)) and raw.get_xdata()[-1] == 2
    assert smooth.get_ydata()[:3].tolist() == [0, 0.5, 1.5]  # a window of 40 / 20 rows
    assert evaluation.get_xydata().tolist() == [[1, 0.5], [2, 0.45]] and star.get_xydata().tolist() == [[2, 0.45]]
    assert [line.get_ydata().tolist() for line in metric.lines] == [
        [0.72, 0.78], [0.78], [0.7, 0.8], [0.6, 0.65], [0.6], [0.7, 0.8]]
    assert metric.get_ylabel() == "accuracy\nf1\n(training: accuracy)"
    assert legend_of(figures["learning_curve.png"])[4:] == ["toy, tiny/bert, seed 7", "toy, tiny/bert, seed 8"]


def test_a_squared_error_is_not_drawn_beside_a_correlation(tmp_path, figures):
    write_run(tmp_path, kind="regression")
    run = json.loads((tmp_path / "run.json").read_text())
    write_json(tmp_path / "run.json", {**run, "training": {"best_epoch": 2, "metric": "pearson"}})
    write_csv(tmp_path / "history.csv", pd.DataFrame({
        "epoch": [1.0, 2.0], "train_loss": [0.6, 0.4], "train_mse": [0.6, 0.4], "eval_loss": [0.5, 0.4],
        "eval_pearson": [0.7, 0.8]}))
    visualize.draw_learning_curve([tmp_path], tmp_path / "learning_curve.png")
    metric = figures["learning_curve.png"].axes[1]
    assert [line.get_ydata().tolist() for line in metric.lines] == [[0.7, 0.8], [0.8]]
    assert metric.get_ylabel() == "pearson"


# ---- What is too little, broken or hostile --------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "message"), [
    ({"gold": ["a"] * 4, "predicted": ["a"] * 4, "confidence": [1.0] * 4}, "there are 4 samples, and a projection"),
    ({"vectors": np.arange(12.0)[:, None]}, "the hidden states have one dimension"),
    ({"vectors": np.ones((12, 6))}, "the hidden states of all samples are the same"),
    ({"vectors": np.full((12, 6), np.nan)}, "NaN or infinite")])
def test_nothing_to_project_is_one_line(tmp_path, figures, capsys, run, message):
    assert visualize.main(["--run", str(write_run(tmp_path, **run)), "--method", "pca"]) == 0
    assert message in capsys.readouterr().out
    assert list(figures) == ["learning_curve.png"] and not (tmp_path / "explorer.html").exists()


def test_five_samples_of_one_class_without_an_error(tmp_path, figures):
    write_run(tmp_path, gold=["yes"] * 5, predicted=["yes"] * 5, confidence=[0.9] * 5, labels=["no", "yes"])
    assert visualize.main(["--run", str(tmp_path)]) == 0
    assert legend_of(figures["embedding_tsne.png"]) == ["yes: 5 / 5", "wrongly predicted: 0 / 0"]


@pytest.mark.parametrize(("harm", "flags", "message"), [
    (lambda folder: None, ["--perplexity", "12"], "--perplexity 12 is not below the number of points, 12"),
    (lambda folder: None, ["--runs", "nowhere"], "nowhere is no run folder"),
    (lambda folder: (folder / "hidden_states.npz").unlink(), [], "hidden_states.npz is missing; evaluate.py writes it"),
    (lambda folder: (folder / "hidden_states.npz").write_bytes(b"PK"), [], "hidden_states.npz cannot be read"),
    (lambda folder: np.savez(folder / "hidden_states.npz", id=np.array(["x"]), vector=np.ones((1, 6))), [],
     "holds 1 samples, predictions.csv 12, and 13 ids stand in one alone"),
    (lambda folder: np.savez(folder / "hidden_states.npz", id=np.array([{}]), vector=np.ones((1, 6))), [],
     "hidden_states.npz cannot be read")])
def test_what_a_user_can_mend_is_one_line(tmp_path, figures, capsys, harm, flags, message):
    harm(write_run(tmp_path))
    assert visualize.main(["--run", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_no_font_can_draw_is_replaced_and_named(tmp_path, figures, capsys):
    labels = ["\U0001242b", "$x_1$ 50% {", "_hidden"]  # a cuneiform sign
    write_run(tmp_path, gold=labels * 4, predicted=labels * 4, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert visualize.main(["--run", str(tmp_path), "--method", "pca"]) == 0
        figures["embedding_pca.png"].canvas.draw()
    assert legend_of(figures["embedding_pca.png"])[:3] == ["□: 4 / 4", "$x_1$ 50% {: 4 / 4", "_hidden: 4 / 4"]
    assert "embedding_pca.png: 1 characters that no installed font has are drawn as □: U+1242B\n" in (
        capsys.readouterr().out)


def test_a_fallback_font_draws_what_the_first_lacks(monkeypatch):
    monkeypatch.setattr(common, "FALLBACK_FONTS", ("not installed", "STIXGeneral"))
    figure, axes = visualize.new_figure()
    axes.set_title("\u1d81")  # a letter that DejaVu Sans lacks
    assert common.make_drawable(figure) == set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()


def test_a_font_that_was_installed_later_is_found(monkeypatch):
    from matplotlib import font_manager

    fonts = font_manager.fontManager.ttflist
    stix = next(font for font in fonts if font.fname.endswith("STIXGeneral.ttf"))
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [font for font in fonts if font.name != stix.name])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [stix.fname, __file__])
    monkeypatch.setattr(common, "FALLBACK_FONTS", (stix.name,))
    figure, axes = visualize.new_figure()
    axes.set_title("\u1d81")
    assert common.make_drawable(figure) == set()


# ---- explorer.html --------------------------------------------------------------------------------------------------

HOSTILE = "</script><img src=x onerror=alert(1)> & \u2028 \ud800 'quoted\" <!--"


@given(st.text(alphabet=st.characters() | st.sampled_from("<>&\u2028\u2029\ud800"), max_size=30))
def test_script_text_is_the_data_and_cannot_end_its_script(text):
    escaped = visualize.as_script_text({"text": text})
    assert json.loads(escaped) == {"text": re.sub("[\ud800-\udfff]", "?", text)}
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", escaped)


def hostile_explorer(folder):
    write_run(folder, columns={"text": [HOSTILE] * 12, "x": ["second"] * 12}, labels=["no", "yes"], positive="yes")
    tags = pd.DataFrame({"id": ["test-1", "test-9"], "auto_tags": ["negation | <b>", "negation"]})
    write_csv(folder / "tags.csv", tags)
    assert visualize.main(["--run", str(folder), "--method", "pca"]) == 0
    return folder / "explorer.html"


def test_explorer_holds_the_samples_and_reaches_for_nothing(tmp_path):
    page = hostile_explorer(tmp_path).read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*)</script>\n<script>', page)[1])
    point = data["points"][1]
    assert point["texts"] == {"text": HOSTILE.replace("\u2028 ", "").replace("\ud800", "?"), "x": "second"}
    assert (point["id"], point["gold"], point["predicted"], point["correct"]) == ("test-1", "yes", "no", False)
    assert (point["tags"], point["confidence"], point["color"]) == (["negation", "<b>"], 0.8, "rgba(0, 0, 0, 0.80)")
    table = read_csv(tmp_path / "embedding_pca.csv", ["x", "y"])
    assert data["methods"] == {"PCA": table[["x", "y"]].to_numpy().tolist()}
    assert set(re.findall(r"https?://[^\"]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in page and page.count("<img") == 0


def test_tags_of_right_and_wrong_samples_are_in_the_page(tmp_path, figures, capsys):
    write_run(tmp_path, columns={"text": ["never" if row in (0, 1) else f"text {row}" for row in range(12)]})
    assert visualize.main(["--run", str(tmp_path), "--method", "pca"]) == 0
    assert "no tags in explorer.html: errors.py has not been run" in capsys.readouterr().out
    assert errors.main(["--run", str(tmp_path)]) == visualize.main(["--run", str(tmp_path), "--method", "pca"]) == 0
    page = (tmp_path / "explorer.html").read_text(encoding="utf-8")
    points = json.loads(re.search(r'id="data">(.*)</script>\n<script>', page)[1])["points"]
    assert [row for row, point in enumerate(points) if "negation" in point["tags"]] == [0, 1]  # 0 is right, 1 wrong


CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_explorer_in_a_browser(tmp_path):
    """Go by key to the rightmost, the topmost and, filtered, the only point: the page shows the data, as text.

    Between, zoom in at the leftmost point, which stays under the pointer, and click it: it is kept.
    """
    page = tmp_path / "tried.html"
    page.write_text(hostile_explorer(tmp_path).read_text(encoding="utf-8") + """<script>
      document.title = [...element("group").options, ...element("tag").options].map(option => option.value).join(",");
      const press = key => canvas.dispatchEvent(new KeyboardEvent("keydown", {key}));
      for (const key of ["ArrowRight", "ArrowUp"]) {
        for (let i = 0; i < 12; i++) press(key);
        document.title += "," + document.querySelector("dd").textContent;
      }
      const box = canvas.getBoundingClientRect(), left = nearest(i => places[i][0]), other = chosen;
      const spot = i => ({clientX: box.left + 1 + places[i][0], clientY: box.top + 1 + places[i][1]});
      const where = spot(left);
      canvas.dispatchEvent(new WheelEvent("wheel", {...where, deltaY: -400}));
      canvas.dispatchEvent(new MouseEvent("click", where));
      canvas.dispatchEvent(new MouseEvent("pointermove", spot(other)));
      document.title += `,${document.querySelector("dd").textContent},${view.scale.toFixed(2)}`;
      element("outcome").value = "wrong";
      element("tag").value = "<b>";
      element("tag").dispatchEvent(new Event("change", {bubbles: true}));
      for (const key of ["ArrowLeft", "ArrowRight"]) press(key);
    </script>""", encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [CHROMIUM, *flags, page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    table = read_csv(tmp_path / "embedding_pca.csv", ["x", "y"])
    rightmost, topmost = (table["id"][table[axis].idxmax()] for axis in "xy")
    leftmost = table["id"][table["x"].idxmin()]
    assert f"<title>,no,yes,,&lt;b&gt;,negation,{rightmost},{topmost},{leftmost},2.72</title>" in dom
    assert "1 of 12 samples, 1 of them wrong" in dom
    assert "<dt>id</dt><dd>test-1</dd><dt>gold</dt><dd>yes</dd><dt>predicted</dt><dd>no</dd>" in dom
    assert "<dd>&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; &amp; " in dom and "<img" not in dom
    assert re.findall(r"</svg> ([^<]*)</li>", dom) == ["yes", "no", "wrongly predicted"]


def test_help_imports_nothing_heavy():
    code = ("import sys, visualize\ntry: visualize.main(['--help'])\nexcept SystemExit: pass\n"
            "print(sorted({'torch', 'transformers', 'datasets', 'sklearn', 'matplotlib'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "--perplexity" in done.stdout
