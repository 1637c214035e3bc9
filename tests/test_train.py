"""train.py as a user calls it: what it leaves behind, that its flags reach the training, a run that is there."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run
from sklearn.utils.class_weight import compute_class_weight
from transformers import EarlyStoppingCallback

import common

TRAIN = ["--dataset", "mrpc", "--sample", "--precision", "fp32", "--num-train-epochs", "2"]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run on the sample rows with the flags that it has by itself."""
    runs = tmp_path_factory.mktemp("runs")
    assert run("train", "--dataset", "mrpc", "--sample", "--precision", "fp32", "--runs-dir", runs) == 0
    return runs / "mrpc" / "sample" / "seed42"


class TestRunFolder:
    def test_run_json_says_how_it_came_about(self, run_dir):
        assert {path.name for path in run_dir.iterdir()} - {".lock"} == {
            "run.json", "train_texts.csv", "history.csv", "steps.csv", "model"}
        record = read_json(run_dir / "run.json")
        assert (record["args"]["learning_rate"], record["args"]["num_train_epochs"]) == (2e-3, 12)  # resolved
        assert record["data"]["used"] == {"train": 80, "validation": 24, "test": 48}
        assert record["data"]["labels"]["test"] == {"not_equivalent": 17, "equivalent": 31}
        assert record["data"]["leakage"]["train/test"] == {"n": 0, "share": 0.0}
        assert set(record["data"]["digests"]) == {"train", "validation", "test"}
        assert record["versions"]["transformers"] == "5.23.0"
        assert record["model_info"]["hidden_size"] == 64
        assert record["hardware"]["precision"] == "fp32"
        assert record["finished"] and record["training"]["seconds"] > 0
        assert record["command"].startswith("python ") and " --dataset mrpc " in record["command"]

    def test_history_has_a_row_per_epoch_and_the_best_one_is_kept(self, run_dir):
        history, training = pd.read_csv(run_dir / "history.csv"), read_json(run_dir / "run.json")["training"]
        assert list(history.columns) == ["epoch", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy",
                                         "eval_f1", "eval_temperature", "learning_rate", "seconds",
                                         "samples_per_second"]
        assert history["epoch"].tolist() == list(range(1, 13))
        best = history.loc[history["eval_accuracy"].idxmax()]
        assert (training["best_epoch"], training["best_score"]) == (best["epoch"], best["eval_accuracy"])
        assert training["best_epoch"] < 12  # so that the last one would be told from it
        assert training["tuned"] == {"temperature": best["eval_temperature"]}
        assert history["train_loss"].iloc[-1] < 0.7 * history["train_loss"].iloc[0]
        data = common.load_data("mrpc", sample=True)
        tokenizer, model = common.load_model(str(run_dir / "model"), data.task, own=True)
        kind, validation = common.kind_of(data.task), data.splits["validation"]
        rows = kind.encode(validation, data.task, tokenizer, 128)
        predicted = common.predict(model, rows, kind, 32).logits.argmax(axis=1)
        assert (predicted == rows.labels).mean() == pytest.approx(training["best_score"])

    def test_steps_has_a_row_per_log_with_the_rate_of_the_schedule(self, run_dir):
        steps = pd.read_csv(run_dir / "steps.csv")
        assert list(steps.columns) == ["step", "epoch", "loss", "grad_norm", "learning_rate"]
        assert steps["step"].tolist() == list(range(1, 61))
        assert steps["learning_rate"].tolist() == pytest.approx([2e-3 * (60 - done) / 60 for done in range(60)])

@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of two epochs that keeps hidden states."""
    folder = tmp_path_factory.mktemp("short")
    assert run("train", *TRAIN, "--run", folder, "--keep-epochs", 0, 2) == 0
    return folder


def test_same_seed_same_weights_other_seed_others(short, tmp_path):
    """Whether hidden states are kept or not."""
    for name, seed in (("again", 42), ("other", 2)):
        assert run("train", *TRAIN, "--seed", seed, "--run", tmp_path / name) == 0
    for name in ("steps.csv", "model/model.safetensors"):
        assert (short / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (short / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_kept_epochs_are_the_validation_examples(short):
    states = np.load(short / "epoch_states.npz", allow_pickle=False)
    assert [name for name in states if "vector" in name] == ["vector_0", "vector_2"]
    assert states["vector_2"].shape == (24, 64) and (states["vector_0"] != states["vector_2"]).any()
    assert (states["correct_2"] == (states["predicted_2"] == states["gold"])).all()
    assert states["correct_2"].mean() == pytest.approx(pd.read_csv(short / "history.csv")["eval_accuracy"].iloc[-1])


# ---- Flags ----------------------------------------------------------------------------------------------------------


def test_help_and_a_wrong_flag_do_not_wait_for_torch():
    code = ("import runpy, sys\n"
            "for script in ('train', 'evaluate', 'errors', 'llm_compare', 'visualize'):\n"
            "    for flags in (['--help'], ['--datset', 'mrpc']):\n"
            "        sys.argv = [f'{script}.py', *flags]\n"
            "        try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "        except SystemExit as end: assert end.code == 2 * (flags != ['--help'])\n"
            "assert not {'torch', 'pandas', 'common'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("unrecognized arguments: --datset") == 5


def test_flags_reach_the_trainer(tmp_path, monkeypatch):
    """Each with a value that is no default."""
    seen = []

    def stop(trainer, resume_from_checkpoint):
        seen.append(trainer)
        raise SystemExit(99)

    monkeypatch.setattr(common.CustomTrainer, "train", stop)
    values = {"num_train_epochs": 5, "learning_rate": 0.25, "per_device_train_batch_size": 3, "weight_decay": 0.125,
              "gradient_accumulation_steps": 7, "max_grad_norm": 0.5, "warmup_steps": 9.0, "seed": 11,
              "per_device_eval_batch_size": 13, "logging_steps": 15.0, "lr_scheduler_type": "cosine", "optim": "sgd"}
    flags = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", value)]
    flags += ["--dataset", "mrpc", "--sample", "--early-stopping-patience", 4, "--no-group-by-length", "--precision",
              "bf16", "--max-length", 20, "--dropout", 0, "--train-per-class", 20, "--activation-checkpointing"]
    assert run("train", *flags, "--run", tmp_path) == 99
    [trainer] = seen
    assert {name: getattr(trainer.args, name) for name in values} == values
    assert trainer.args.bf16 and not trainer.args.fp16
    assert trainer.args.activation_checkpointing
    assert trainer.args.load_best_model_at_end and trainer.args.greater_is_better
    assert (trainer.train_dataset.window, trainer.train_dataset.lengths.max()) == (1, 20)
    assert set(common.dropout_rates(trainer.model.config).values()) == {0.0}
    [stopping] = [callback for callback in trainer.callback_handler.callbacks
                  if isinstance(callback, EarlyStoppingCallback)]
    assert stopping.early_stopping_patience == 4
    assert read_json(tmp_path / "run.json")["data"]["labels"]["train"] == {"not_equivalent": 20, "equivalent": 20}


def test_step_schedule_accumulation_and_class_weights(tmp_path, capsys):
    flags = ["--class-weights", "balanced", "--lr-scheduler-type", "step", "--step-gamma", "0.5",
             "--gradient-accumulation-steps", 2, "--max-train-samples", 40]
    assert run("train", *TRAIN, *flags, "--run", tmp_path) == 0
    rates = pd.read_csv(tmp_path / "steps.csv")["learning_rate"]
    assert rates.tolist() == [2e-3, 2e-3, 1e-3, 1e-3]  # 40 examples: 3 batches, 2 updates
    labels = common.read_csv(tmp_path / "train_texts.csv")["label"]
    names = ["not_equivalent", "equivalent"]
    found = dict(re.findall(r"(\w+) ([\d.]+)", re.search("class weights: (.+)", capsys.readouterr().out)[1]))
    assert [float(found[name]) for name in names] == pytest.approx(
        compute_class_weight("balanced", classes=np.array(names), y=labels), abs=5e-4)


def test_a_score_that_is_better_lower_keeps_the_epoch_of_the_lowest(tmp_path, monkeypatch):
    task = common.catalog()["str-eng"]
    monkeypatch.setitem(task, "metrics", ["mse"])
    assert run("train", "--dataset", "str-eng", *TRAIN[2:], "--learning-rate", "0.1", "--run", tmp_path) == 0
    scores = pd.read_csv(tmp_path / "history.csv")["eval_mse"]
    assert read_json(tmp_path / "run.json")["training"]["best_score"] == scores.min() < scores.max()


# ---- A run that is there already -------------------------------------------------------------------------------------


def test_a_finished_run_is_neither_trained_again_nor_overwritten_by_chance(run_dir, capsys):
    flags = ["--dataset", "mrpc", "--sample", "--precision", "fp32", "--runs-dir", run_dir.parents[2]]
    before = (run_dir / "run.json").read_bytes()
    assert run("train", *flags) == 0
    assert "finished with these flags and these data" in capsys.readouterr().out
    assert run("train", *flags, "--dropout", "0.3") == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert run("train", *flags, "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert (run_dir / "run.json").read_bytes() == before


def test_overwrite_leaves_nothing_of_the_old_model_and_all_that_a_person_wrote(run_dir, tmp_path):
    """In the tests on other data sets too."""
    folder = shutil.copytree(run_dir, tmp_path / "run")
    (folder / "on-other").mkdir()
    old = ("predictions.csv", "metrics.csv", "epoch_states.npz", "llm_predictions.csv", "report.tex", "explorer.html")
    mine = ("errors.csv", "errors_orphans.csv", "codebook.md", "report_notes.md", "mine.csv")
    for name in (*old, *mine):
        for place in (folder, folder / "on-other"):
            (place / name).write_text("x")
    assert run("train", *TRAIN, "--num-train-epochs", 1, "--run", folder, "--overwrite") == 0
    for place in (folder, folder / "on-other"):
        assert all((place / name).read_text() == "x" for name in mine)
        assert not [name for name in old if (place / name).exists()]


def test_overwrite_keeps_the_old_run_until_the_new_one_can_begin(run_dir, tmp_path, capsys):
    folder = shutil.copytree(run_dir, tmp_path / "run")
    flags = ["--overwrite", "--run", folder]
    assert run("train", "--dataset", "mrpc", "--model", tmp_path / "none", *flags) == 2
    assert run("train", *TRAIN, *flags, "--max-length", 600) == 2
    assert run("train", "--dataset", "csqa", "--sample", "--class-weights", "balanced", *flags) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert {path.name for path in folder.rglob("*")} == {path.name for path in run_dir.rglob("*")}
    assert all((folder / path.relative_to(run_dir)).read_bytes() == path.read_bytes()
               for path in run_dir.rglob("*") if path.is_file())
