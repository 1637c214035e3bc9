"""Published figures beside ours: which is taken, what sets it apart, and what metrics.csv and the screen say of it."""

import json

import pandas as pd
import pytest
from conftest import run

import common

SCORE = {"key": "mrpc", "role": "paper", "metric": "f1", "value": 80.0, "split": "test", "model": "BERT-base",
         "size": "base", "cite": "A (2020)", "url": "https://a", "checked": True, "note": ""}


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Have catalog/scores.csv hold these scores."""
    def write(*scores):
        pd.DataFrame([SCORE | score for score in scores]).to_csv(tmp_path / "scores.csv", index=False)
        (tmp_path / "samples").symlink_to(common.CATALOG / "samples")
        common.catalog()  # which is read once, from where it is
        monkeypatch.setattr(common, "CATALOG", tmp_path)
    return write


@pytest.mark.parametrize(("parameters", "size"), [(66_955_010, "small"), (109_483_778, "base"), (335_143_938, "large"),
                                                  (1_500_000_000, "xl")])
def test_of_several_figures_the_checked_one_of_the_models_size_comes_first(publish, parameters, size):
    publish(*({"size": name, "model": name} for name in ("base", "xl", "small", "large")),
            {"size": size, "checked": False, "value": 99.0})
    [found] = common.published(common.find_task("mrpc"), "f1", parameters)
    assert (found["model"], found["differs"]) == (size, {})


def test_figures_stand_beside_ours_and_say_whether_they_compare(tmp_path, publish, capsys):
    """The run as if it were one of BERT-base on rows that are no samples."""
    publish({}, {"role": "leaderboard", "value": 90.0, "model": "T5", "size": "xl", "split": "hidden"},
            {"role": "reference", "model": "best of 9", "note": "it is the best of 9 runs"},
            {"role": "reference", "model": "never shown", "checked": False},
            {"metric": "accuracy", "value": 10.0}, {"metric": "macro_f1", "checked": False, "note": "not found"})
    flags = ["--sample", "--precision", "fp32", "--num-train-epochs", 1]
    assert run("train", "--dataset", "mrpc", *flags, "--run", tmp_path / "run") == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["sample"] = record["args"]["sample"] = False
    record["model_info"]["parameters"] = 110_000_000
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert run("evaluate", "--run", tmp_path / "run", "--data-dir", tmp_path / "samples") == 0
    table = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index("metric")
    printed, ours = capsys.readouterr().out, table.loc["f1"]
    assert (ours["paper"], ours["leaderboard"], ours["paper_model"]) == (0.8, 0.9, "BERT-base")
    assert ours["paper_gap"] == pytest.approx(100 * ours["value"] - 80)
    assert ours["comparable"] == ("no: leaderboard: its split is hidden and ours test, its model is of size xl and "
                                  "ours base")
    assert ours["source"] == "paper: A (2020), https://a | leaderboard: A (2020), https://a"
    assert table.loc["accuracy", "comparable"] == "yes"
    assert "its source was not checked" in table.loc["macro_f1", "comparable"]
    assert table.loc["weighted_f1", ["paper", "comparable", "source"]].isna().all()
    gap = f"{ours['paper_gap']:+.1f} ({100 * ours['ci_low'] - 80:+.1f} to {100 * ours['ci_high'] - 80:+.1f})"
    assert gap in printed and "best of 9" in printed and "never shown" not in printed
    assert f"one seed, {ours['n']:.0f} test examples" in printed
