"""Runs that are stopped, killed or shut out: what they leave is whole, and --resume ends as if nothing had happened.

KILLS=50 python -m pytest tests/test_stop.py kills more often than the default.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run
from transformers import PreTrainedModel

import common

KILLS = int(os.environ.get("KILLS", "1"))
TRAIN = ["--dataset", "mrpc", "--sample", "--precision", "fp32", "--max-train-samples", "40"]
LONG = [*TRAIN, "--num-train-epochs", 5 * KILLS, "--save-steps", 1, "--keep-epochs", 0, 2 * KILLS, 5 * KILLS]
SHORT = [*TRAIN, "--num-train-epochs", "4"]  # three updates an epoch


def check_same(whole, part):
    """Weights and steps to the last bit, history but for its clocks, and no file more or less."""
    for name in ("model/model.safetensors", "steps.csv"):
        assert (part / name).read_bytes() == (whole / name).read_bytes(), name
    pd.testing.assert_frame_equal(*(
        pd.read_csv(folder / "history.csv", dtype=str).drop(columns=["seconds", "samples_per_second"])
        for folder in (whole, part)))
    assert sorted(path.name for path in part.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The short run, not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert run("train", *SHORT, "--run", folder) == 0
    return folder


def test_killed_again_and_again_at_random_moments(tmp_path):
    whole, part, rng = tmp_path / "whole", tmp_path / "part", random.Random(3)
    assert run("train", *LONG, "--run", whole) == 0
    for _ in range(KILLS):
        go_on = "--resume" if list(part.glob("checkpoint-*/sums.json")) else "--overwrite"
        command, before = ["train.py", *LONG, "--run", part, go_on], set(part.glob("checkpoint-*"))
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, text=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and set(part.glob("checkpoint-*")) <= before:
            time.sleep(0.01)  # until it has gone a step further: starting takes longest, and says least
        time.sleep(rng.random() * 0.1)
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, errors
    assert run("train", *LONG, "--run", part, "--resume" if list(part.glob("*/sums.json")) else "--overwrite") == 0
    check_same(whole, part)
    with np.load(whole / "epoch_states.npz") as ours, np.load(part / "epoch_states.npz") as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours.files)


@pytest.mark.parametrize("place", ["checkpoint", "model", "run.json", "end"])
def test_killed_at_the_worst_moments(whole, tmp_path, monkeypatch, place):
    """Before a checkpoint is whole, before model/ is written, before the run is called finished; after that."""
    def is_finished():
        return json.loads((tmp_path / "run.json").read_text())["finished"]

    owner, name, is_now = {
        "checkpoint": (common, "write_text", lambda path, _: path == tmp_path / "checkpoint-8/sums.json"),
        "model": (PreTrainedModel, "save_pretrained", lambda _, path, **__: Path(path).name == "model"),
        "run.json": (common, "write_json", lambda _, run: run["finished"]),
        "end": (shutil, "rmtree", lambda *_: is_finished())}[place]
    real = getattr(owner, name)

    def kill(*given, **named):
        if is_now(*given):
            raise KeyboardInterrupt
        return real(*given, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, kill)
        run("train", *SHORT, "--save-steps", 1, "--run", tmp_path)
    assert bool(is_finished()) == (place == "end")
    if place == "checkpoint":  # its weights are there; the newest whole one is left, and the best epoch's, an older one
        assert (tmp_path / "checkpoint-8/model.safetensors").is_file()
        left = {path.parent.name for path in tmp_path.glob("*/sums.json")}
        assert left in ({"checkpoint-3", "checkpoint-7"}, {"checkpoint-6", "checkpoint-7"})
    if place == "end":
        assert run("evaluate", "--run", tmp_path, "--max-eval-samples", 4) == 0
    else:
        assert run("train", *SHORT, "--run", tmp_path, "--resume") == 0  # --save-steps may change
        check_same(whole, tmp_path)


def stop_at(patch, update, name="SIGTERM", times=1):
    """Have the next training get a signal within that update."""
    real, calls = common.CustomTrainer.compute_loss, []

    def compute_loss(self, *given, **named):
        calls.append(1)
        for _ in range(times if len(calls) == update else 0):
            signal.raise_signal(signal.Signals[name])
        return real(self, *given, **named)

    patch.setattr(common.CustomTrainer, "compute_loss", compute_loss)


@pytest.mark.parametrize(("name", "update"), [("SIGTERM", 5), ("SIGINT", 4)])
def test_a_signal_finishes_the_step_and_resume_ends_with_the_same_weights(
        whole, tmp_path, monkeypatch, capsys, name, update):
    with monkeypatch.context() as patch:
        stop_at(patch, update, name)
        patch.setattr(signal, "default_int_handler", signal.getsignal(signal.SIGINT))
        assert run("train", *SHORT, "--run", tmp_path) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # given back
    said = capsys.readouterr().err
    assert f"stopped by {name} at step {update} of 12, checkpoint saved" in said and "--resume" in said
    assert (tmp_path / f"checkpoint-{update}" / "sums.json").is_file()
    for flags, said in (([], "holds an unfinished run; --overwrite replaces it, --resume goes on with it"),
                        (["--resume", "--dropout", "0.3"], "--dropout None, now 0.3"),
                        (["--resume", "--num-train-epochs", "5"], "--num-train-epochs 4, now 5")):
        assert run("train", *SHORT, *flags, "--run", tmp_path) == 2
        assert said in capsys.readouterr().err
    torn = shutil.copytree(tmp_path / f"checkpoint-{update}", tmp_path / "checkpoint-9")  # what a kill leaves
    (torn / "sums.json").unlink()
    assert run("train", *SHORT, "--run", tmp_path, "--resume") == 0
    check_same(whole, tmp_path)


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it is ignored
    stop_at(monkeypatch, 5, "SIGINT", times=2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run("train", *SHORT, "--run", tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_one_run_per_folder_at_a_time_and_a_killed_ones_is_free(whole, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    code = ("import filelock, sys, time\nlock = filelock.FileLock(sys.argv[1], timeout=0)\nlock.acquire()\n"
            "print('held', flush=True)\ntime.sleep(600)")
    command = [sys.executable, "-c", code, folder / ".lock"]
    holder = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == "held\n"
        before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
        for script, flags in (("train", [*SHORT, "--overwrite"]), ("evaluate", [])):
            assert run(script, *flags, "--run", folder) == 2
            assert f"another process is at work in {folder}" in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    finally:
        holder.kill()
        holder.communicate()

    def compute_loss(*given, **named):
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "could not be acquired" in other.stderr and not other.stdout
        raise KeyboardInterrupt

    monkeypatch.setattr(common.CustomTrainer, "compute_loss", compute_loss)
    with pytest.raises(KeyboardInterrupt):
        run("train", *SHORT, "--run", folder, "--overwrite")
