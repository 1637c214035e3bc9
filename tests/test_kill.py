"""train.py, killed at random moments again and again, ends with the files of a run that was not.

KILLS=50 python -m pytest tests/test_kill.py kills more often than the default.
"""

import os
import random
import subprocess
import sys
import time

import pandas as pd
from conftest import ROOT

import train

KILLS = int(os.environ.get("KILLS", "4"))
TRAIN = ["--dataset", "mrpc", "--sample", "--precision", "fp32", "--num-train-epochs", "40", "--save-steps", "1",
         "--max-train-samples", "40", "--keep-epochs", "0", "20", "40"]


def test_killed_again_and_again(tmp_path):
    whole, part, rng = tmp_path / "whole", tmp_path / "part", random.Random(3)
    assert train.main([*TRAIN, "--run", str(whole)]) == 0
    kills, code = 0, None
    while code is None:
        can_resume = list(part.glob("checkpoint-*")) and not train.is_finished(part)
        go_on = "--resume" if can_resume else "--overwrite"
        process = subprocess.Popen([sys.executable, "train.py", *TRAIN, "--run", str(part), go_on], cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        before = set(part.glob("checkpoint-*"))
        while kills < KILLS and process.poll() is None and set(part.glob("checkpoint-*")) <= before:
            time.sleep(0.01)  # until it has gone a step further: starting takes longest, and says least
        if kills < KILLS:
            time.sleep(rng.random() * 0.3)
            process.kill()
            kills += process.wait() < 0
        errors = process.communicate()[1]
        code = process.returncode if process.returncode >= 0 else None
    assert code == 0, errors
    assert kills == KILLS
    assert (part / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    assert (part / "steps.csv").read_bytes() == (whole / "steps.csv").read_bytes()
    histories = [pd.read_csv(folder / "history.csv", dtype=str).drop(columns=["seconds", "samples_per_second"])
                 for folder in (whole, part)]
    pd.testing.assert_frame_equal(*histories)
    assert sorted(path.name for path in part.iterdir()) == sorted(path.name for path in whole.iterdir())
