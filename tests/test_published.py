"""Published figures beside ours: which is taken, what sets it apart, and what the tables and the screen say of it."""

import json

import pandas as pd
import pytest
from conftest import run

import common

SCORE = {"key": "mrpc", "role": "paper", "metric": "f1", "value": 80.0, "split": "test", "model": "BERT-base",
         "size": "base", "cite": "A (2020), Title", "url": "https://a", "checked": "true", "note": ""}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the sample rows, which its run.json does not call so."""
    folder = tmp_path_factory.mktemp("run")
    flags = ["--sample", "--precision", "fp32", "--num-train-epochs", 1]
    assert run("train", "--dataset", "mrpc", *flags, "--run", folder) == 0
    record = json.loads((folder / "run.json").read_text())
    record["sample"] = record["args"]["sample"] = False
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def evaluate(trained, tmp_path, monkeypatch):
    """evaluate(scores, parameters): metrics.csv and published.csv of the run, if these were all published scores."""
    def evaluate(*scores, parameters=110_000_000):
        pd.DataFrame([SCORE | score for score in scores]).to_csv(tmp_path / "scores.csv", index=False)
        samples = common.CATALOG / "samples"
        common.catalog()  # which is read once, from where it is
        record = json.loads((trained / "run.json").read_text())
        record["model_info"]["parameters"] = parameters
        (trained / "run.json").write_text(json.dumps(record))
        with monkeypatch.context() as patch:
            patch.setattr(common, "CATALOG", tmp_path)
            assert run("evaluate", "--run", trained, "--data-dir", samples) == 0
        return (pd.read_csv(trained / f"{name}.csv") for name in ("metrics", "published"))
    return evaluate


@pytest.mark.parametrize(("parameters", "size"), [(66_955_010, "small"), (335_143_938, "large"), (1_500_000_000, "xl")])
def test_of_several_figures_the_checked_one_of_the_models_size_comes_first(evaluate, parameters, size):
    _, published = evaluate(*({"size": name, "model": name} for name in ("base", "xl", "small", "large")),
                            {"size": size, "checked": "false", "value": 99.0}, parameters=parameters)
    assert published["model"].tolist() == [size] and published["differs"].isna().all()


def test_figures_stand_beside_ours_and_say_whether_they_compare(evaluate, capsys):
    table, published = evaluate(
        {}, {"role": "leaderboard", "value": 90.0, "model": "T5", "size": "xl", "split": "hidden"},
        {"role": "reference", "model": "best of 9", "note": "it is the best of 9 runs"},
        {"role": "reference", "model": "never shown", "checked": "false"},
        {"metric": "accuracy", "value": 10.0}, {"metric": "macro_f1", "checked": "false", "note": "not found"})
    table, printed = table.set_index("metric"), capsys.readouterr().out
    ours = table.loc["f1"]
    assert (ours["paper"], ours["leaderboard"], ours["paper_model"]) == (0.8, 0.9, "BERT-base")
    assert ours["paper_gap"] == pytest.approx(100 * ours["value"] - 80)
    assert ours["comparable"] == ("no: leaderboard: its split is hidden and ours test; its model is of size xl and "
                                  "ours base")
    assert ours["source"] == "paper: A (2020), Title, https://a | leaderboard: A (2020), Title, https://a"
    assert table.loc["accuracy", "comparable"] == "yes"
    assert "its source was not checked" in table.loc["macro_f1", "comparable"]
    assert table.loc["weighted_f1", ["paper", "comparable", "source"]].isna().all()
    assert published["model"].tolist() == ["BERT-base", "BERT-base", "T5", "best of 9"]  # of the main metrics
    assert published["differs"].tolist()[3] == "it is the best of 9 runs"
    ends = published.loc[1, ["gap", "gap_low", "gap_high"]].tolist()
    assert ends == pytest.approx([100 * ours[name] - 80 for name in ("value", "ci_low", "ci_high")])
    assert "best of 9" in printed and "A (2020)" in printed and "Title" not in printed
