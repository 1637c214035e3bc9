"""Several processes on one machine, as torchrun starts them: the result of one process, files from the first alone."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import common
import evaluate
import train

# Without dropout, as each process draws its own; 65 examples leave one for two processes in the last batch.
TRAIN = ["--dataset", "mrpc", "--sample", "--precision", "fp32", "--dropout", "0", "--learning-rate", "5e-5",
         "--max-train-samples", "65", "--num-train-epochs", "20", "--gradient-accumulation-steps", "2"]


def launch(script, *flags, torchrun=("--standalone", "--nproc-per-node", "2"), before=(), **environment):
    """`script` under torchrun. (`--` ends torchrun's own flags, which --run would be taken for.)"""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "torch.distributed.run", *torchrun, "--", script, *map(str, flags)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model" / "model.safetensors")


def largest_difference(first, second):
    first, second = weights(first), weights(second)
    return max(np.abs(first[name] - second[name]).max() for name in first)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same training in one process and in two, and what the two printed."""
    folder = tmp_path_factory.mktemp("runs")
    assert train.main([*TRAIN, "--per-device-train-batch-size", "8", "--run", str(folder / "one")]) == 0
    process = launch("train.py", *TRAIN, "--per-device-train-batch-size", "4", "--run", folder / "two")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder / "one", folder / "two", printed


def test_two_processes_train_as_one(pair):
    one, two, _ = pair
    assert largest_difference(one, two) < 1e-5
    for name in ("history.csv", "steps.csv"):
        tables = [pd.read_csv(folder / name).drop(columns=["seconds", "samples_per_second"], errors="ignore")
                  for folder in (one, two)]
        pd.testing.assert_frame_equal(*tables, rtol=1e-3)


def test_the_first_process_alone_speaks_and_writes(pair):
    one, two, printed = pair
    assert printed.count("best epoch:") == 1
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    assert common.read_json(two / "run.json")["hardware"]["processes"] == 2


def test_two_processes_predict_every_example_once(pair):
    _, two, _ = pair
    process = launch("evaluate.py", "--run", two)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert printed.count("written to") == 1
    shared = (two / "predictions.csv").read_bytes()
    table = common.read_predictions(two)
    assert table["id"].is_unique
    assert len(table) == 48
    assert evaluate.main(["--run", str(two)]) == 0
    assert (two / "predictions.csv").read_bytes() == shared


def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(pair, tmp_path):
    flags = [*TRAIN, "--per-device-train-batch-size", "4", "--save-steps", "1", "--run", tmp_path]
    process = launch("train.py", *flags)
    while not list(tmp_path.glob("checkpoint-*")) and process.poll() is None:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert "train.py: another process of this run ended; start again, a training with --resume" in errors
    process = launch("train.py", *flags, "--resume")
    assert process.communicate(timeout=300)[0].count("best epoch:") == 1
    assert largest_difference(tmp_path, pair[1]) == 0


def test_the_line_about_a_lost_process_comes_before_torchruns_signal(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    log = common.RunLog(tmp_path)
    try:
        log.on_train_begin(None, None, None)
        log.close(broken=True)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_another_number_of_processes_does_not_resume(pair, tmp_path, capsys):
    run = common.read_json(pair[1] / "run.json")
    common.write_json(tmp_path / "run.json", {**run, "finished": None})
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "x").write_text("x")
    common.write_json(checkpoint / common.COMPLETE, {"x": 1})
    flags = [*TRAIN, "--per-device-train-batch-size", "4", "--run", str(tmp_path), "--resume"]
    assert train.main(flags) == 2
    assert "these differ: the number of processes 2, now 1" in capsys.readouterr().err


@pytest.fixture
def hosts():
    """Two network namespaces with a cable between them: (name, interface) of each."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs iproute2 and root to make network namespaces")
    ends = [(f"host{i}-{os.getpid()}", f"v{i}-{os.getpid()}") for i in range(2)]
    setup = [["link", "add", ends[0][1], "type", "veth", "peer", "name", ends[1][1]]]
    for i, (host, interface) in enumerate(ends):
        setup += [["netns", "add", host], ["link", "set", interface, "netns", host],
                  ["-n", host, "addr", "add", f"10.77.0.{i + 1}/24", "dev", interface],
                  ["-n", host, "link", "set", interface, "up"], ["-n", host, "link", "set", "lo", "up"]]
    try:
        for command in setup:
            done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"network namespaces can't be made here: {done.stderr.strip()}")
        yield ends
    finally:
        for host, _ in ends:
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


def test_two_hosts_train_as_one(pair, hosts, tmp_path):
    flags = [*TRAIN, "--per-device-train-batch-size", "4", "--run", tmp_path]
    processes = [
        launch("train.py", *flags, before=["ip", "netns", "exec", host], GLOO_SOCKET_IFNAME=interface, torchrun=[
            "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank), "--master-addr", "10.77.0.1",
            "--master-port", "29400"]) for rank, (host, interface) in enumerate(hosts)]
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "best epoch:" in printed[0][0]
    assert printed[1][0] == ""
    assert largest_difference(tmp_path, pair[1]) == 0


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_sharded_model_is_refused_in_one_line(name, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")  # what accelerate launch sets for such a configuration
    assert train.main([*TRAIN, "--run", str(tmp_path)]) == 2
    assert f": the loop does not shard a model ({name})" in capsys.readouterr().err.splitlines()[0]
