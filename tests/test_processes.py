"""Two processes, as torchrun starts them, train as one does; they stop and go on together."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
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


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A training in one process."""
    folder = tmp_path_factory.mktemp("one")
    assert run("train", *TRAIN, "--per-device-train-batch-size", 8, "--run", folder) == 0
    return folder


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="each process takes a GPU of its own, and here is one")
def test_two_processes_stopped_by_a_signal_to_one_and_resumed_train_as_one(one, tmp_path, capsys):
    """It comes within an epoch."""
    (tmp_path / "stop.py").write_text(STOP)
    two = tmp_path / "run"
    stopped = launch(tmp_path / "stop.py", "--run", two)
    assert stopped.returncode != 0
    assert stopped.stderr.count(" at step 7 of 30, checkpoint saved") == 1, stopped.stderr
    assert run("train", *TRAIN, "--per-device-train-batch-size", 4, "--run", two, "--resume") == 2
    assert "processes 2, now 1" in capsys.readouterr().err
    resumed = launch("train.py", "--run", two, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("best epoch:") == 1  # the first process alone speaks
    ours, theirs = (load_file(folder / "model/model.safetensors") for folder in (one, two))
    assert max(np.abs(ours[name] - theirs[name]).max() for name in ours) < 1e-5
    for name in ("history.csv", "steps.csv"):
        tables = [pd.read_csv(folder / name).drop(columns=["seconds", "samples_per_second"], errors="ignore")
                  for folder in (one, two)]
        pd.testing.assert_frame_equal(*tables, rtol=1e-3)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert json.loads((two / "run.json").read_text())["hardware"]["processes"] == 2


def test_evaluate_is_one_process(one, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("evaluate", "--run", one) == 2
    assert "this script is one process: start it without torchrun or accelerate" in capsys.readouterr().err
