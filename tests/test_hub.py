"""A hub that is down, gated, slow, broken or has moved on: a run goes on by itself or ends with one line.

The hub is a stand-in, which serves folders to the unmodified clients. A case that could leave half a file in the cache
is run again with the same cache and a hub without a fault.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import transformers
from conftest import ROOT

import common

DATASET, MODEL = "datasets/nyu-mll/glue", "models/own/tiny"
CARD = "---\nconfigs:\n- config_name: mrpc\n  data_files:\n" + "".join(
    f"  - split: {name}\n    path: mrpc/{name}.parquet\n" for name in ("train", "validation", "test")) + "---\n"
SMALL = ["--model", "own/tiny", "--max-train-samples", 16, "--max-eval-samples", 8, "--num-train-epochs", 1,
         "--max-length", 64, "--precision", "fp32"]
DATA = ["--dataset", "mrpc", *SMALL]  # the data set from the hub, and the model too
WEIGHTS = ["--dataset", "mrpc", "--sample", *SMALL]  # the model alone
# The hub's clients read its address when they are imported, which takes seconds: one process imports them and is forked
# for each call, [script and flags, where its output goes].
WORKER = """
import json, os, runpy, sys, traceback
import datasets, sklearn.linear_model, torch, transformers
import common
transformers.BertForSequenceClassification, transformers.PreTrainedTokenizerFast, common.new_figure()
for line in sys.stdin:
    (sys.argv, output), child = json.loads(line), os.fork()
    if child == 0:
        for number in (1, 2):
            os.dup2(os.open(f"{output}{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 1
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A folder for the stand-in hub: sample rows under MRPC's name, and a model of one layer."""
    root = tmp_path_factory.mktemp("hub")
    (root / DATASET / "mrpc").mkdir(parents=True)
    (root / DATASET / "README.md").write_text(CARD)
    for name, table in common.read_source(common.find_task("mrpc"), common.CATALOG / "samples")[0].items():
        table.to_parquet(root / DATASET / "mrpc" / f"{name}.parquet")
    tokenizer = common.word_tokenizer(table["sentence1"])
    tokenizer.save_pretrained(root / MODEL)
    transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        pad_token_id=tokenizer.pad_token_id)).save_pretrained(root / MODEL)
    return root


@pytest.fixture(scope="module")
def client(shared_dir, tmp_path_factory):
    """A function that calls a script while a stand-in hub serves some folders: exit code, stdout, lines on stderr.

    fresh: in a process of its own, which finds out by itself whether the hub can be reached.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    known = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home)}
    del known["HF_HUB_OFFLINE"]
    worker = subprocess.Popen([sys.executable, "-c", WORKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, env=known | {"HF_HUB_OFFLINE": "0"})

    def call(script, flags, roots=(), fresh=False):
        command, hub = [f"{script}.py", *map(str, flags)], None
        if roots:
            served = [sys.executable, shared_dir / "hub/hub.py", *roots, "--port", str(port)]
            hub = subprocess.Popen(served, stdout=subprocess.PIPE, text=True)
            assert hub.stdout.readline().startswith("http")
        try:
            if fresh:
                done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False,
                                      env=known)
                code, out, err = done.returncode, done.stdout, done.stderr
            else:
                output = home.parent / "output"
                worker.stdin.write(json.dumps([command, str(output)]) + "\n")
                worker.stdin.flush()
                code = int(worker.stdout.readline())
                out, err = (Path(f"{output}{number}").read_text() for number in (1, 2))
            ours = "" if "Traceback" in err else f"{script}.py:"  # else what the libraries say stands before it
            return code, out, [line for line in err.splitlines() if line.startswith(ours)]
        finally:
            if hub:
                hub.kill()
                hub.communicate()

    call.port, call.forget = port, lambda: shutil.rmtree(home, ignore_errors=True)
    yield call
    worker.stdin.close()
    worker.wait()


def cut_short(name):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-2000])


def loading_script(root):
    """Code in place of data, which would leave a file behind if it ran."""
    shutil.rmtree(root / DATASET / "mrpc")
    (root / DATASET / "README.md").write_text("# GLUE\n")
    (root / DATASET / "glue.py").write_text(f"open({str(root / 'ran')!r}, 'w')")


NO_DATA, NO_MODEL = "could not load the dataset nyu-mll/glue: ", "could not load the model own/tiny: "
FAULTS = {  # name: (flags, change to the healthy hub, what is said)
    "gated": (DATA, lambda root: (root / DATASET / ".gated").touch(), "accepted on its page and `hf auth login`"),
    "no such model": (WEIGHTS, lambda root: shutil.rmtree(root / MODEL), NO_MODEL),
    "no such data set": (DATA, lambda root: shutil.rmtree(root / DATASET), NO_DATA),
    "loading script": (DATA, loading_script, NO_DATA),
    "data cut short": (DATA, cut_short(f"{DATASET}/mrpc/train.parquet"), NO_DATA),
    "weights cut short": (WEIGHTS, cut_short(f"{MODEL}/model.safetensors"), NO_MODEL),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_hub(client, healthy, tmp_path, name):
    flags, change, said = FAULTS[name]
    root = shutil.copytree(healthy, tmp_path / "hub")
    change(root)
    client.forget()
    flags = [*flags, "--run", tmp_path / "run"]
    code, _, lines = client("train", flags, [root])
    assert code == 2 and len(lines) == 1 and said in lines[0], lines
    assert not (root / "ran").exists()  # code of the hub
    if name == "data cut short":
        assert client("train", [*flags, "--overwrite"], [healthy])[0] == 0


def test_a_hub_that_is_down_and_one_that_has_moved_on(client, healthy, tmp_path):
    """What was fetched before is taken; a run is tested on the revision that it recorded, or refused in one line."""
    client.forget()
    folder, root = tmp_path / "run", shutil.copytree(healthy, tmp_path / "hub")
    train, test = [*DATA, "--overwrite", "--run", folder], ["--run", folder]
    assert client("train", train, [root])[0] == 0
    data = common.read_run(folder)["data"]
    assert len(data["revision"]) == 40
    with socket.create_server(("127.0.0.1", client.port)):  # takes the call and says nothing
        code, out, lines = client("train", train, fresh=True)
    assert (code, lines) == (0, []) and "timed out" in out
    assert common.read_run(folder)["data"] == data
    shutil.copytree(root / DATASET, root / DATASET / ".revs" / data["revision"])
    path = root / DATASET / "mrpc/test.parquet"
    table = pd.read_parquet(path)
    table.assign(sentence1=table["sentence1"] + " changed").to_parquet(path)
    client.forget()
    assert client("evaluate", test, [root])[0] == 0
    before = (folder / "predictions.csv").read_bytes()
    assert b"changed" not in before
    shutil.rmtree(root / DATASET / ".revs")
    client.forget()
    code, _, lines = client("evaluate", test, [root])
    assert code == 2 and len(lines) == 1 and NO_DATA in lines[0] and data["revision"] in lines[0], lines
    assert (folder / "predictions.csv").read_bytes() == before
