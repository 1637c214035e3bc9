"""tests/gpu.py with tiny shapes, on whatever is there, and the bounds of its table of equalities."""

import json
import re

import numpy as np
from conftest import run

BOUNDS = {"loop and stock Trainer, fp32": 1e-6, "loop and stock Trainer": 1e-3,  # bf16, fp16 on an H100: 2e-4
          "4 micro-batches": 1e-5, "a run and its resume": 0, "fp16, an update": 0}


def test_small_shapes_run_through_and_the_equalities_hold(tmp_path, capsys):
    rng, words = np.random.default_rng(0), ["label", "0", "1", *(f"word{i}" for i in range(200))]
    for name, texts in (("mrpc", 2), ("sst2", 1)):
        rows = [{"texts": [" ".join(rng.choice(words, rng.integers(3, 30))) for _ in range(texts)],
                 "label": int(rng.integers(2))} for _ in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("tests/gpu", tmp_path, "--small") == 0
    out = capsys.readouterr().out
    found = re.findall(r"(?m)^\| (.*) \| (\S+) \|$", out.split("Equalities")[1].split("\n\nequalities")[0])
    differences = {what: float(value) for what, value in found if what != "what"}
    for what, bound in BOUNDS.items():
        values = [value for name, value in differences.items() if name.startswith(what)]
        assert (values or ("on a CPU" and what.startswith("fp16"))) and max(values, default=0) <= bound, differences
