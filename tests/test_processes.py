"""Two processes, as torchrun starts them, train as one does; they stop and go on together."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run
from safetensors.numpy import load_file

# Without dropout, as each process draws its own; 66 examples leave one for each process in the last batch.
TRAIN = ["--dataset", "mrpc", "--sample", "--precision", "fp32", "--dropout", "0", "--learning-rate", "5e-5",
         "--max-train-samples", "66", "--num-train-epochs", "6", "--gradient-accumulation-steps", "2"]
STOP = """import runpy, signal, sys
sys.path.insert(0, ".")
import common
real, calls = common.CustomTrainer.compute_loss, []
def compute_loss(self, *given, **named):
    calls.append(1)
    if len(calls) == 13 and common.PROCESS == 1:  # of nine micro-batches an epoch: within the second one
        signal.raise_signal(signal.SIGTERM)
    return real(self, *given, **named)
common.CustomTrainer.compute_loss = compute_loss
runpy.run_path("train.py", run_name="__main__")
"""


def launch(script, *flags):
    """Run `script` in two processes that share every batch of 8. (`--` ends torchrun's own flags.)"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--", script]
    return subprocess.run([*map(str, command), *TRAIN, "--per-device-train-batch-size", "4", *map(str, flags)],
                          cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A training in two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = launch("train.py", "--run", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch:") == 1  # the first process alone speaks
    return folder


def test_two_processes_train_as_one(two, tmp_path):
    assert run("train", *TRAIN, "--per-device-train-batch-size", 8, "--run", tmp_path) == 0
    ours, theirs = weights(two), weights(tmp_path)
    assert max(np.abs(ours[name] - theirs[name]).max() for name in ours) < 1e-5
    for name in ("history.csv", "steps.csv"):
        tables = [pd.read_csv(folder / name).drop(columns=["seconds", "samples_per_second"], errors="ignore")
                  for folder in (tmp_path, two)]
        pd.testing.assert_frame_equal(*tables, rtol=1e-3)
    assert {path.name for path in two.iterdir()} == {path.name for path in tmp_path.iterdir()}
    assert json.loads((two / "run.json").read_text())["hardware"]["processes"] == 2


def test_a_signal_to_one_stops_both_and_they_go_on_within_the_epoch(two, tmp_path, capsys):
    (tmp_path / "stop.py").write_text(STOP)
    stopped = launch(tmp_path / "stop.py", "--run", tmp_path / "run")
    assert stopped.returncode != 0
    assert stopped.stderr.count(" at step 7 of 30, checkpoint saved") == 1, stopped.stderr
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert run("train", *TRAIN, "--per-device-train-batch-size", 4, "--run", copy, "--resume") == 2
    assert "processes 2, now 1" in capsys.readouterr().err
    resumed = launch("train.py", "--run", tmp_path / "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("model/model.safetensors", "steps.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (two / name).read_bytes()


def test_evaluate_is_one_process(two, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("evaluate", "--run", two) == 2
    assert "this script is one process: start it without torchrun or accelerate" in capsys.readouterr().err
