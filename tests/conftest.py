"""Tiny models and data sets that the tests share, and how a script is run; nothing here needs a network."""

import gc
import os
import runpy
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the hub fails at once
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments  # noqa: E402

import common  # noqa: E402

gc.collect()
gc.freeze()  # accelerate collects garbage at each training: what was imported is left out of it
THREADS = torch.get_num_threads()  # what a user has, and so a script that run() runs
torch.set_num_threads(1)  # for what is tested by itself: pytest-xdist's workers would wait for each other's threads


def run(script: str, *flags: object) -> int:
    """Run a script as `python <script>.py <flags>` does, in this process; returns its exit code."""
    argv, sys.argv = sys.argv, [str(ROOT / f"{script}.py"), *map(str, flags)]
    torch.set_num_threads(THREADS)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    finally:
        gc.collect()  # a process that ends lets go of its lock
        sys.argv = argv
        torch.set_num_threads(1)
    return 0


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that two workers end at about the same time."""
    longest = ["test_notebook", "test_llm", "test_hub", "test_processes", "test_stop", "test_gpu", "test_catalog",
               "test_loop", "test_report", "test_evaluate", "test_readme", "test_train"]
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))


@pytest.fixture(scope="session")
def shared_dir():
    """Real rows and a stand-in for the hub, kept beside the project; tests skip where they are missing."""
    folder = ROOT.parent / "shared"
    if not (folder / "hub").is_dir():
        pytest.skip("needs ../shared/hub: real rows and a stand-in for the hub")
    return folder


def make_model(dropout: float = 0.1, num_labels: int = 2, seed: int = 0, **config):
    """A two-layer BERT of hidden size 32 with random weights."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=37,
        max_position_embeddings=64, num_labels=num_labels, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, pad_token_id=0, **config))


def make_dataset(examples: int = 37, seed: int = 0, num_labels: int = 2) -> common.TokenDataset:
    """Random token ids of 3 to 12 tokens; 37 examples leave a short last batch."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, 50, size=rng.integers(3, 13)) for _ in range(examples)]
    labels = rng.integers(0, num_labels, size=examples)
    return common.TokenDataset({"input_ids": ids}, labels, {"input_ids": 0})


def make_arguments(folder: Path, **changes):
    """TrainingArguments of the tests: CPU, three epochs, batch 4, a log row per step."""
    settings = {
        "output_dir": str(folder), "num_train_epochs": 3, "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, "eval_strategy": "epoch",
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 7,
        "remove_unused_columns": False, "label_names": ["labels"], "optim": "adamw_torch"}
    return TrainingArguments(**settings | changes)
