"""Every key of the catalog by the same contract, a key of each kind and reader through train.py and evaluate.py."""

import gc
import itertools
import re
import tomllib

import numpy as np
import pytest
from conftest import run
from test_bad_input import refused

import common

CATALOG = common.catalog()
SCORES = common.read_csv(common.CATALOG / "scores.csv", numbers=("value",), ours=False)
METRICS = SCORES.groupby("key")["metric"].agg(set)
SMALL = ["--sample", "--precision", "fp32", "--num-train-epochs", 1, "--max-train-samples", 32,
         "--max-eval-samples", 24]
SIZES = {"small", "base", "large", "xl", "linear", "human", "ensemble", "other"}
TESTED_ALONE = [key for key, task in CATALOG.items() if "train" not in task["splits"]]
TRAINED = {(task["kind"], task["row_file"] if common.row_module(task) else ""): key
           for key, task in reversed(CATALOG.items()) if key not in TESTED_ALONE}


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    gc.collect()
    gc.freeze()  # what pytest holds is no garbage: looking through it takes a third of a run's time
    yield tmp_path_factory.mktemp("runs")
    gc.unfreeze()


def train(key, runs_dir):
    """The folder of a run of a key, made where it is not there."""
    folder = runs_dir / key / "sample/seed42"
    assert folder.exists() or run("train", "--dataset", key, *SMALL, "--runs-dir", runs_dir) == 0
    return folder


def check_files(folder):
    """The files of an evaluated run agree with each other and with the task."""
    record = common.read_run(folder)
    task = record["task"]
    kind, predictions = common.kind_of(task), common.read_predictions(folder)
    assert {"id", "split", *common.text_columns(task)} <= set(predictions.columns)
    assert predictions["id"].is_unique
    assert len(predictions) == record["data"]["used"]["test"] > 0
    metrics = common.read_csv(folder / "metrics.csv", ("value", "n", "ci_low", "ci_high")).set_index("metric")
    parts = {"has_ans": predictions["gold"] != "", "no_ans": predictions["gold"] == ""}  # of span
    for name, n in metrics["n"].items():
        assert n == parts.get(name.rpartition("_")[0], predictions["id"].notna()).sum()
    again = kind.metrics(predictions, task)  # from the CSV file alone
    for name in task["metrics"]:
        assert metrics.loc[name, "value"] == pytest.approx(again[name], abs=1e-12)
        assert metrics.loc[name, "ci_low"] <= metrics.loc[name, "ci_high"]
    assert METRICS.get(task["key"], set()) <= set(metrics.index)
    with np.load(folder / "hidden_states.npz", allow_pickle=False) as states:
        assert states["id"].tolist() == predictions["id"].tolist()
        assert np.isfinite(states["vector"]).all()
    floors = common.read_csv(folder / "baselines.csv", ("value", "n"))
    assert set(floors["metric"]) == set(task["metrics"]) == set(metrics.index[:len(task["metrics"])])
    assert floors["n"].tolist() == metrics["n"][floors["metric"]].tolist()
    assert floors["value"].notna().all()
    assert len([*folder.glob("calibration.*")]) == (2 if kind.confidence_is else 0)
    assert (metrics.index[-1] == "ece_temperature") == bool(kind.confidence_is)


@pytest.mark.parametrize("key", CATALOG)
def test_an_entrys_facts_sample_rows_and_metrics_fit_each_other(key):
    task = common.find_task(key)  # which refuses an entry that lacks or misnames something
    assert all(task[name].strip() for name in ("row", "title", "why", "task", "licence", "source", "cite"))
    assert 0 < task["max_length"] <= 512
    labels = task.get("labels", [])
    assert labels == "from data" or len(set(labels)) == len(labels) != 1
    assert set(task.get("trained_on", [])) <= set(CATALOG)
    assert all(0 < task.get(f"{name}_share", 0.1) < 0.5 for name in ("test", "validation"))
    data = common.load_data(key, sample=True, test_only=key in TESTED_ALONE)
    texts = [set(map(tuple, table[common.text_columns(data.task)].to_numpy())) for table in data.splits.values()]
    assert all(not one & other for one, other in itertools.combinations(texts, 2))
    assert all(table["id"].is_unique and len(table) > 2 for table in data.splits.values())
    kind, test, task = common.kind_of(data.task), data.splits["test"], data.task
    if "train" in data.splits and task["kind"] == "classification":
        assert set(data.splits["train"]["label"]) == set(task["labels"])
    if "train" in data.splits and task["kind"] == "multilabel":
        assert {0, 1} == set(kind.targets(data.splits["train"], task).flat)
    if task["kind"] != "span":  # whose logits are of windows: its run is checked below
        outputs = len(kind.outputs or task["labels"])
        logits = np.random.default_rng(0).normal(size=(len(test), outputs)).astype(np.float32)
        predictions = kind.predict(logits, test, task, None)
        assert predictions["gold"].tolist() == kind.gold(test).tolist()
        figures, draws = kind.metrics(predictions, task), kind.resample(predictions, task, 100)
        assert list(figures)[:len(task["metrics"])] == task["metrics"]
        assert METRICS.get(key, set()) <= set(figures) == set(draws)
        assert all(draws[name].min() <= value <= draws[name].max() for name, value in figures.items())  # and finite


@pytest.mark.parametrize("key", TRAINED.values())
def test_a_run_keeps_the_contract(key, runs_dir):
    folder = train(key, runs_dir)
    examples = len(common.read_csv(folder / "train_texts.csv"))
    assert common.read_run(folder)["training"]["steps"] >= -(-examples // 16)  # squad2 cuts windows
    assert run("evaluate", "--run", folder, "--baselines") == 0
    check_files(folder)
    groups = common.read_predictions(folder).get("group")  # which the bootstrap draws
    test = common.load_data(key, sample=True, max_eval_samples=24).splits["test"]
    assert (groups is None) == ("group" not in test) and (groups is None or (groups == test["group"].map(str)).all())


def test_a_run_is_tested_on_another_key_of_its_task_and_on_no_other(runs_dir, capsys):
    folder = train("winogrande-xs", runs_dir)
    refused(capsys, "train", ["--dataset", "wsc273", *SMALL, "--runs-dir", runs_dir],
            "wsc273 has no train split; train on winogrande-")
    before = {path.name for path in folder.iterdir()}
    refused(capsys, "evaluate", ["--run", folder, "--dataset", "mrpc"], "can't be tested on mrpc")
    assert run("evaluate", "--run", folder, "--dataset", "wsc273", "--baselines") == 0
    assert {path.name for path in folder.iterdir()} == before | {"on-wsc273"}
    check_files(folder / "on-wsc273")
    record = common.read_run(folder / "on-wsc273")
    assert (record["dataset"], record["trained_on"]["dataset"]) == ("wsc273", "winogrande-xs")


def test_the_list_names_every_key_of_all_files_once(capsys):
    assert run("train", "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(CATALOG)
    keys = [key for path in common.CATALOG.glob("*.toml") for key in tomllib.loads(path.read_text("utf-8"))]
    assert sorted(key for key in keys if key != "defaults") == sorted(CATALOG)


def test_published_scores_are_sound():
    assert set(SCORES["key"]) <= set(CATALOG)
    assert set(SCORES["role"]) == {"paper", "leaderboard", "reference"}
    assert set(SCORES["size"]) <= SIZES
    assert set(SCORES["checked"]) == {"true", "false"}
    assert SCORES["value"].between(0, 100, inclusive="right").all()
    assert SCORES[["metric", "split", "model", "cite", "url"]].ne("").all(axis=None)
    assert SCORES.loc[SCORES["checked"] == "false", "note"].ne("").all()  # what is wrong with it
    assert not SCORES.duplicated(["key", "role", "metric", "split", "model", "cite"]).any()


def test_a_paper_has_one_entry():
    """Of the same authors, year and first word of the title all wordings lead to one link."""
    papers = common.read_csv(common.CATALOG / "papers.csv", ours=False)
    cites = {*papers["cite"], *SCORES["cite"], *(one for task in CATALOG.values() for one in task["cite"].split("; "))}
    wordings = {}
    for cite in cites:
        if found := re.match(r"([\w' -]+?)(?:,| and| et al\.)[^()]*\((\d{4})\), ([\w-]+)", cite):
            wordings.setdefault(found.groups(), set()).add(cite)
    links = {**dict(SCORES[["cite", "url"]].to_numpy()), **dict(papers[["cite", "url"]].to_numpy())}
    assert [same for same in wordings.values() if len({links.get(cite) for cite in same}) > 1] == []
    assert papers["key"].str.fullmatch(r"[a-z0-9_-]*").all()
    for name in ("key", "cite", "url"):
        assert not papers.loc[papers[name] != "", name].duplicated().any()
    assert all(url.startswith("https://") for url in {*SCORES["url"], *papers["url"]} - {""})


@pytest.mark.parametrize(("changes", "said"), [
    ({"why": None, "cite": None}, "it lacks why, cite"), ({"metrics": ["accuracy", "bleu"]}, "no metric 'bleu' among"),
    ({"kind": "parsing"}, "no kind 'parsing' among"), ({"positive": None}, "f1 needs 'positive'"),
    ({"averaged": ["no"]}, "'no' is not among its labels"),
    ({"raw_labels": ["0"]}, "raw_labels are not as many as labels"), ({"hub": None}, "it lacks hub, or a read()"),
    ({"labels": None, "positive": None, "metrics": ["accuracy"]}, "it lacks labels")])
def test_an_entry_that_lacks_or_misnames_something_is_refused_by_file_and_key(
        tmp_path, monkeypatch, capsys, changes, said):
    entry = {name: value for name, value in (CATALOG["mrpc"] | changes).items() if value is not None}
    monkeypatch.setitem(CATALOG, "mine", entry)
    refused(capsys, "train", ["--dataset", "mine", "--runs-dir", tmp_path], f"catalog/mrpc.toml, [mine]: {said}")
    assert not list(tmp_path.iterdir())
