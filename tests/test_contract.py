"""Every key of the catalog through both scripts: loading, encoding, two training steps, evaluation, the CSV files."""

import numpy as np
import pandas as pd
import pytest

import common
import evaluate
import train

KEYS = sorted(common.catalog())
WITH_TRAIN = [key for key in KEYS if "train" in common.catalog()[key]["splits"]]
SMALL = ["--sample", "--precision", "fp32", "--num-train-epochs", "1", "--max-train-samples", "32",
         "--max-eval-samples", "24"]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def check_files(folder, task):
    """The files of an evaluated run agree with each other and with the task."""
    kind, predictions = common.KINDS[task["kind"]], common.read_predictions(folder)
    assert {"id", "split", *common.text_columns(task)} <= set(predictions.columns)
    assert predictions["id"].is_unique
    metrics = pd.read_csv(folder / "metrics.csv").set_index("metric")
    assert metrics.index[:len(task["metrics"])].tolist() == task["metrics"]
    parts = {"has_ans": predictions["gold"] != "", "no_ans": predictions["gold"] == ""}  # of span
    for name, n in metrics["n"].items():
        assert n == parts.get(name.rpartition("_")[0], predictions["id"].notna()).sum()
    again = kind.metrics(predictions, task)  # from the CSV file alone
    for name in task["metrics"]:
        assert metrics.loc[name, "value"] == pytest.approx(again[name], abs=1e-12)
    with np.load(folder / "hidden_states.npz", allow_pickle=False) as states:
        assert states["id"].tolist() == predictions["id"].tolist()
        assert np.isfinite(states["vector"]).all()
    baselines = pd.read_csv(folder / "baselines.csv", encoding="utf-8-sig")
    assert set(baselines["metric"]) == set(task["metrics"])
    assert baselines["n"].tolist() == metrics["n"][baselines["metric"]].tolist()
    assert baselines["value"].notna().all()
    for name in ("calibration.csv", "risk_coverage.csv", "calibration.png"):
        assert (folder / name).is_file() == bool(kind.confidence_is)
    assert (metrics.index[-1] == "ece_temperature") == bool(kind.confidence_is)
    wrong = predictions[~predictions["correct"]]
    types = kind.error_types(wrong, task)
    assert len(types) == len(wrong)
    assert all(types)


@pytest.mark.parametrize("key", WITH_TRAIN)
def test_trains_and_evaluates(key, runs_dir):
    assert train.main(["--dataset", key, *SMALL, "--runs-dir", str(runs_dir)]) == 0
    folder = runs_dir / key / "sample" / "seed42"
    assert common.read_json(folder / "run.json")["training"]["steps"] == 2 * (
        -(-len(pd.read_csv(folder / "train_texts.csv")) // 32))
    assert evaluate.main(["--run", str(folder), "--baselines"]) == 0
    check_files(folder, common.read_json(folder / "run.json")["task"])


@pytest.mark.parametrize("key", sorted(set(KEYS) - set(WITH_TRAIN)))
def test_a_key_without_a_train_split_is_tested_with_another_keys_run(key, runs_dir, capsys):
    trained_on = common.catalog()[key]["trained_on"][0]
    folder = runs_dir / trained_on / "sample" / "seed42"
    if not folder.exists():
        assert train.main(["--dataset", trained_on, *SMALL, "--runs-dir", str(runs_dir)]) == 0
    assert train.main(["--dataset", key, *SMALL, "--runs-dir", str(runs_dir)]) == 2
    assert f"has no train split; train on {trained_on}" in capsys.readouterr().err
    before = {path.name for path in folder.iterdir()}
    assert evaluate.main(["--run", str(folder), "--dataset", key, "--baselines"]) == 0
    assert {path.name for path in folder.iterdir()} == before | {f"on-{key}"}
    check_files(folder / f"on-{key}", common.read_json(folder / f"on-{key}" / "run.json")["task"])


def test_a_run_is_tested_across_domains_and_not_across_tasks(runs_dir, capsys):
    folder = runs_dir / "politeness-wiki" / "sample" / "seed42"
    if not folder.exists():
        assert train.main(["--dataset", "politeness-wiki", *SMALL, "--runs-dir", str(runs_dir)]) == 0
    assert evaluate.main(["--run", str(folder), "--dataset", "politeness-se"]) == 0
    run = common.read_json(folder / "on-politeness-se" / "run.json")
    assert run["dataset"] == "politeness-se"
    assert run["trained_on"]["dataset"] == "politeness-wiki"
    assert "on-politeness-se" in capsys.readouterr().out
    assert evaluate.main(["--run", str(folder), "--dataset", "mrpc"]) == 2
    assert "can't be tested on mrpc" in capsys.readouterr().err


def test_every_row_of_the_task_table_has_a_key():
    rows = {entry["row"] for entry in common.catalog().values()}
    assert len(rows) == 16


def test_the_list_names_every_key(capsys):
    assert train.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == list(common.catalog())
