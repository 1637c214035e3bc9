"""No pickle is read, no code of a model or a template runs: by the source, and by files that would leave a trace."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, make_arguments, make_dataset, make_model, run

import common


def test_every_loader_is_told_to_read_no_pickle_and_to_run_no_code():
    """And archives are read, not unpacked: the names in them are others' words."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("catalog/*.py")]:
        source = path.read_text(encoding="utf-8")
        for call in re.findall(r"(?:\.from_pretrained|np\.load)\((?:[^()]|\([^()]*\))*\)", source):
            assert "trust_remote_code=False" in call or "allow_pickle=False" in call, call
        assert not re.search(r"import (pickle|dill|joblib|marshal)|torch\.(load|save)\(|read_pickle|extractall|"
                             r"(?<![.\w])(eval|exec)\(", source), path


class Payload:
    """A pickle of it makes a file when it is read."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


@pytest.fixture
def trace(tmp_path):
    """A path at which nothing may ever be; a payload that is read does leave it."""
    place = tmp_path / "trace"
    pickle.loads(pickle.dumps(Payload(place)))
    place.unlink()
    yield place
    assert not place.exists()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert run("train", "--dataset", "mrpc", "--sample", "--num-train-epochs", 1, "--run", folder) == 0
    assert run("evaluate", "--run", folder) == 0
    return folder


def pickles(folder, place, *names):
    for name in names or ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "model.pt"):
        torch.save({"weight": Payload(place)}, folder / name)


def spoil(model, how, place):
    """Put into a model's folder what must neither be read nor run."""
    if how == "only pickles":
        (model / "model.safetensors").unlink()
        pickles(model, place)
    elif how == "misnamed pickle":
        (model / "model.safetensors").write_bytes(pickle.dumps(Payload(place)))
    elif how == "code":
        (model / "own.py").write_text(f"from pathlib import Path\nPath({str(place)!r}).touch()\n")
        (model / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": dict.fromkeys(
            ("AutoConfig", "AutoModelForSequenceClassification", "AutoModelForCausalLM"), "own.X")}))
    else:
        (model / "chat_template.jinja").write_text(
            "{{ cycler.__init__.__globals__.os.system('touch " + str(place) + "') }}")


@pytest.mark.parametrize(("script", "how"), [
    *((script, how) for script in ("train", "llm_compare") for how in ("only pickles", "misnamed pickle", "code")),
    ("llm_compare", "template that leaves its sandbox")])
def test_a_model_of_pickles_code_or_a_template_that_leaves_its_sandbox_is_refused(
        run_dir, tmp_path, trace, capsys, script, how):
    model = shutil.copytree(run_dir / "model", tmp_path / "model")
    if script == "llm_compare":
        transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
            vocab_size=999, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            num_key_value_heads=1, eos_token_id=3, pad_token_id=0)).save_pretrained(model)
    spoil(model, how, trace)
    flags = {"train": ["--dataset", "mrpc", "--sample", "--model", model, "--run", tmp_path / "run"],
             "llm_compare": ["--run", run_dir, "--llm", model]}
    assert run(script, *flags[script]) == 2
    assert "could not load the" in capsys.readouterr().err


def test_pickles_beside_a_runs_files_are_not_touched(run_dir, tmp_path, trace):
    folder = shutil.copytree(run_dir, tmp_path / "run")
    pickles(folder, trace)
    pickles(folder / "model", trace)
    assert run("evaluate", "--run", folder) == 0
    np.savez(folder / "hidden_states.npz", id=["a"], vector=np.array([Payload(trace)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        run("visualize", "--run", folder)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_refused_and_one_beside_it_not_touched(tmp_path, trace, name):
    arguments = make_arguments(tmp_path, num_train_epochs=1, eval_strategy="no", save_strategy="steps", save_steps=1)
    trainer = common.CustomTrainer(model=make_model(), args=arguments, train_dataset=make_dataset(8))
    trainer.train()
    checkpoint = tmp_path / "checkpoint-1"
    pickles(checkpoint, trace)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    pickles(checkpoint, trace, name)
    with pytest.raises(pickle.UnpicklingError):
        trainer.train(resume_from_checkpoint=str(checkpoint))
