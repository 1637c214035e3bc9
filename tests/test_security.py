"""No pickle is read or written, no code of a model runs: by the source, and by files that would leave a trace."""

import ast
import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import common
import evaluate
import llm_compare
import train
import visualize

SOURCES = sorted(path for path in ROOT.glob("*.py"))
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING = {"torch.load", "torch.save", "pd.read_pickle", "pd.to_pickle", "joblib.load"}
TRAIN = ["--dataset", "mrpc", "--sample", "--precision", "fp32", "--num-train-epochs", "2", "--max-train-samples", "24"]


# ---- By the source --------------------------------------------------------------------------------------------------


def faults(source):
    """What in a module could read or write a pickle, or run foreign code."""
    for node in ast.walk(ast.parse(source)):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        yield from (name for name in names if name.split(".")[0] in PICKLERS)
        if isinstance(node, ast.Dict):
            yield from (ast.unparse(node) for key, value in zip(node.keys, node.values, strict=True)
                        if isinstance(key, ast.Constant) and key.value == "trust_remote_code"
                        and not (isinstance(value, ast.Constant) and value.value is False))
        if isinstance(node, ast.Call):
            called, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            refuses = called != "np.load" or keywords.get("allow_pickle") == "False"
            if called in UNPICKLING | {"eval", "exec"} or not refuses or "trust_remote_code" in keywords:
                yield ast.unparse(node)


def test_no_source_reads_or_writes_a_pickle_or_runs_foreign_code():
    assert len(SOURCES) == 6
    for path in SOURCES:
        assert list(faults(path.read_text(encoding="utf-8"))) == [], path


@pytest.mark.parametrize("source", [
    "import pickle", "from dill import loads", "torch.load(x)", "np.load(x)", "np.load(x, allow_pickle=True)",
    "f(trust_remote_code=True)", "{'trust_remote_code': True}", "exec('x')", "import a, joblib"])
def test_such_a_source_would_be_found(source):
    assert list(faults(source))


def test_every_auto_class_is_told_to_run_no_code():
    """transformers would ask at a terminal, and take `y` for an answer."""
    calls = [ast.unparse(node) for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")]
    assert len(calls) >= 7
    assert [call for call in calls if "NO_CODE" not in call] == []
    assert common.NO_CODE == {"trust_remote_code": False}


# ---- By files that would leave a trace ------------------------------------------------------------------------------


class Payload:
    """A pickle of it makes a file when it is read."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train.main([*TRAIN, "--run", str(folder)]) == 0
    assert evaluate.main(["--run", str(folder)]) == 0
    return folder


@pytest.fixture
def trace(tmp_path):
    """A path at which nothing may ever be; a payload that is read properly does leave it."""
    place = tmp_path / "trace"
    pickle.loads(pickle.dumps(Payload(place)))
    assert place.exists()
    place.unlink()
    yield place
    assert not place.exists()


def write_llm(folder, tokenizer):
    """A causal LLM of one layer, beside the tokenizer."""
    import transformers

    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=len(tokenizer) + 8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_key_value_heads=1, eos_token_id=3, pad_token_id=0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_pickles(folder, place):
    """A pickle under each name that transformers and torch know, plain and as torch.save writes it."""
    import torch

    names = ("pytorch_model.bin", "model.pt", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth",
             "training_args.bin", "adapter_model.bin")
    for name, as_torch in zip(names, itertools.cycle([True, False]), strict=False):
        if as_torch:
            torch.save({"weight": Payload(place)}, folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Payload(place)))


def refused(capsys, script, flags, said):
    capsys.readouterr()
    assert script.main([str(flag) for flag in flags]) == 2
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines()
             if line.strip() and "%|" not in line]
    assert len(lines) == 1 and said in lines[0], lines


@pytest.fixture(params=["train", "llm_compare"])
def load(request, capsys, run_dir, tmp_path):
    """A function that has a script refuse a model folder."""
    def load(model, said):
        if request.param == "train":
            refused(capsys, train, [*TRAIN, "--model", model, "--run", tmp_path / "run"], said)
        else:
            refused(capsys, llm_compare, ["--run", run_dir, "--llm", model], said)

    return load


@pytest.fixture
def model(request, run_dir, tmp_path):
    """A folder with a classifier, or with a causal LLM for llm_compare.py."""
    import transformers

    folder = shutil.copytree(run_dir / "model", tmp_path / "model")
    if "llm_compare" in request.node.name:
        write_llm(folder, transformers.AutoTokenizer.from_pretrained(folder))
    return folder


def test_a_model_folder_of_pickles_is_refused(load, model, trace):
    (model / "model.safetensors").unlink()
    write_pickles(model, trace)
    load(model, "pickles (.bin, .pt) are not read")


def test_a_pickle_under_the_name_of_safetensors_is_refused(load, model, trace):
    (model / "model.safetensors").write_bytes(pickle.dumps(Payload(trace)))
    load(model, "SafetensorError")


def test_code_beside_a_model_is_refused(load, model, trace):
    config = json.loads((model / "config.json").read_text())
    (model / "own.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": dict.fromkeys(
        ("AutoConfig", "AutoModelForSequenceClassification", "AutoModelForCausalLM"), "own.X")}))
    load(model, "brings code of its own, which is not run")


def test_pickles_beside_safetensors_are_not_touched(run_dir, tmp_path, trace, monkeypatch):
    """In the model's folder, in the run's, and in the checkpoint that a stopped run goes on from."""
    model = shutil.copytree(run_dir / "model", tmp_path / "model")
    write_pickles(model, trace)
    flags = [*TRAIN, "--model", str(model), "--run", str(tmp_path / "run")]

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "finish", stop)
        assert train.main(flags) == 130
    checkpoints = list((tmp_path / "run").glob("checkpoint-*"))
    assert checkpoints
    for folder in (*checkpoints, tmp_path / "run"):
        write_pickles(folder, trace)
    assert train.main([*flags, "--resume"]) == 0
    write_pickles(tmp_path / "run" / "model", trace)
    assert evaluate.main(["--run", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("name", ["hidden_states.npz", "epoch_states.npz"])
def test_a_pickled_array_is_refused(capsys, run_dir, tmp_path, trace, name):
    folder = shutil.copytree(run_dir, tmp_path / "run")
    np.savez(folder / name, id=np.array(["a"]), **dict.fromkeys(
        ("vector", "epoch", "gold", "predicted", "correct", "confidence"), np.array([Payload(trace)], dtype=object)))
    refused(capsys, visualize, ["--run", folder], f"{name} cannot be read: Object arrays cannot be loaded")
    (folder / name).write_bytes(pickle.dumps(Payload(trace)))
    refused(capsys, visualize, ["--run", folder], f"{name} cannot be read")


def test_a_chat_template_stays_in_its_sandbox(capsys, run_dir, tmp_path, trace):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(run_dir / "model")
    tokenizer.chat_template = "{{ cycler.__init__.__globals__.os.system('touch " + str(trace) + "') }}{{ messages }}"
    write_llm(tmp_path / "llm", tokenizer)
    refused(capsys, llm_compare, ["--run", run_dir, "--llm", tmp_path / "llm"], "the chat template of")


def test_nothing_that_a_run_leaves_behind_is_a_pickle(run_dir):
    for path in run_dir.rglob("*"):
        if path.is_file():
            assert path.suffix in (".json", ".csv", ".png", ".npz", ".safetensors", ".md", ".tex", ".bib"), path
    for path in run_dir.glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype.kind in "Ufib" for name in arrays)
