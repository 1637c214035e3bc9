"""A hub that is down, gated, slow or broken: a run goes on by itself or ends with one line, and the next one works.

Every case runs train.py against a stand-in for the hub; a case that could leave half a file in the cache runs it again,
with the same cache and a hub without a fault.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

import common

SECRET = "hf_secretTokenThatNobodyMaySee0123456789"
DATASET, MODEL = "datasets/nyu-mll/glue", "models/own/tiny"
CARD = "---\nconfigs:\n- config_name: mrpc\n  data_files:\n" + "".join(
    f"  - split: {name}\n    path: mrpc/{name}.parquet\n" for name in ("train", "validation", "test")) + "---\n"
DATA = ["--dataset", "mrpc"]  # the data set from the hub; the model too, of which each case needs little
WEIGHTS = ["--dataset", "mrpc", "--sample"]  # the model alone
# The hub's clients read its address when they are imported, which takes seconds: one process imports them and is forked
# for each call, {"script", "flags", "environment", "output"}.
WORKER = """
import json, os, sys
import datasets, sklearn.metrics, torch, transformers
import common, errors, evaluate, llm_compare, train, visualize
common.CustomTrainer, transformers.BertForSequenceClassification, transformers.BertTokenizer
common.make_drawable(common.new_figure()[0])
for line in sys.stdin:
    call, child = json.loads(line), os.fork()
    if child == 0:
        for number in (1, 2):
            os.dup2(os.open(f"{call['output']}{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.update(call["environment"])
        code = globals()[call["script"]].main(call["flags"])
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A folder for the stand-in hub: sample rows under MRPC's name, and a model of one layer."""
    import transformers

    root = tmp_path_factory.mktemp("hub")
    (root / DATASET / "mrpc").mkdir(parents=True)
    (root / DATASET / "README.md").write_text(CARD)
    task = common.catalog()["mrpc"]
    for name, table in common.read_sample(dict(task))[0].items():
        table.to_parquet(root / DATASET / "mrpc" / f"{name}.parquet")
    tokenizer = common.word_tokenizer(table["sentence1"])
    model = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        pad_token_id=tokenizer.pad_token_id))
    for part in (tokenizer, model):
        part.save_pretrained(root / MODEL)
    llm = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_key_value_heads=1, max_position_embeddings=512, eos_token_id=3, pad_token_id=0))
    tokenizer.eos_token = "[SEP]"
    for part in (tokenizer, llm):
        part.save_pretrained(root / "models/own/llm")
    return root


@pytest.fixture(scope="module")
def client(shared_dir, tmp_path_factory):
    """A function that calls a script while a stand-in hub serves some folders: exit code, stdout, lines on stderr."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"})

    def call(script, flags, roots=(), switches=(), environment=None):
        hub = start(roots, switches) if roots else None
        try:
            output = home.parent / "output"
            worker.stdin.write(json.dumps({"script": script, "flags": [str(flag) for flag in flags],
                                           "environment": environment or {}, "output": str(output)}) + "\n")
            worker.stdin.flush()
            code = int(worker.stdout.readline())
            out, err = (Path(f"{output}{number}").read_text() for number in (1, 2))
            return code, out, [line for line in err.replace("\r", "\n").splitlines() if line.strip()]
        finally:
            if hub:
                hub.kill()
                hub.communicate()

    def start(roots, switches):
        hub = subprocess.Popen(
            [sys.executable, shared_dir / "hub" / "hub.py", *roots, "--port", str(port), *map(str, switches)],
            stdout=subprocess.PIPE, text=True)
        assert hub.stdout.readline().startswith("http")
        return hub

    call.home = home
    yield call
    worker.stdin.close()
    worker.wait()


def remove(name):
    return lambda root: (root / name).unlink()


def write(name, content):
    def change(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return change


def several(*changes):
    return lambda root: [change(root) for change in changes]


def rename_column(root):
    for path in (root / DATASET / "mrpc").glob("*.parquet"):
        pd.read_parquet(path).rename(columns={"sentence2": "second"}).to_parquet(path)


def cut(name):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-2000])


def own_code(**changes):
    """A config.json that points to code beside it, which would leave a file behind if it ran."""
    def change(root):
        path = root / MODEL / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {
            "auto_map": {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}, **changes}))
        (root / MODEL / "own.py").write_text(f"open({str(root / 'ran')!r}, 'w')")
    return change


def loading_script(root):
    shutil.rmtree(root / DATASET / "mrpc")
    write(f"{DATASET}/README.md", b"# GLUE\n")(root)
    (root / DATASET / "glue.py").write_text(f"open({str(root / 'ran')!r}, 'w')")


FAULTS = {  # name: (flags, change to the healthy hub, switches; None: no hub, exit code, what is said)
    "hub down": (DATA, None, None, 2, "could not fetch the dataset nyu-mll/glue from http://127.0.0.1"),
    "hub down, model": (WEIGHTS, None, None, 2, "could not fetch the model own/tiny from http://127.0.0.1"),
    "503": (DATA, None, ["--status", 503], 2, "HTTP status 503; check the network, or go on without it: --sample"),
    "500, model": (WEIGHTS, None, ["--status", 500], 2, "HTTP status 500; check the network"),
    "line dropped once": (DATA, None, ["--fail-after", 2], 0, ""),
    "line dropped always": (DATA, None, ["--fail-after", 2, "--fail-times", 999], 2, "could not fetch the dataset"),
    "line dropped in the card": (DATA, None, ["--fail-after", 1, "--fail-times", 999], 2, "could not fetch the data"),
    "line dropped once, weights": (WEIGHTS, None, ["--fail-after", 4], 0, ""),
    "line dropped always, weights": (WEIGHTS, None, ["--fail-after", 4, "--fail-times", 999], 2,
                                     "could not fetch the model own/tiny"),
    "line dropped always, config": (WEIGHTS, None, ["--fail-after", 1, "--fail-times", 999], 2,
                                    "could not fetch the model own/tiny"),
    "slow": (DATA, None, ["--slow", 300_000], 0, ""),
    "gated": (DATA, write(f"{DATASET}/.gated", b""), [], 2, "the dataset nyu-mll/glue is gated: accept its terms at"),
    "gated model": (WEIGHTS, write(f"{MODEL}/.gated", b""), [], 2, "the model own/tiny is gated: accept its terms at"),
    "no such model": ([*WEIGHTS, "--model", "own/none"], None, [], 2, "the model own/none is not on http://127.0.0.1"),
    "no such data set": (["--dataset", "snli"], None, [], 2, "the dataset stanfordnlp/snli is not on http://127.0.0.1"),
    "loading script": (DATA, loading_script, [], 2, "Dataset scripts are no longer supported, but found glue.py"),
    "column renamed": (DATA, rename_column, [], 2, "no column 'sentence2' among"),
    "split missing": (DATA, several(remove(f"{DATASET}/mrpc/test.parquet"), write(f"{DATASET}/README.md", CARD.split(
        "  - split: test")[0].encode() + b"---\n")), [], 2, 'Unknown split "test"'),
    "file of a split missing": (DATA, remove(f"{DATASET}/mrpc/test.parquet"), [], 2, "could not load the dataset"),
    "no data": (DATA, several(lambda root: shutil.rmtree(root / DATASET / "mrpc"), write(
        f"{DATASET}/README.md", b"#")), [], 2, "doesn't contain any data files"),
    "data cut short": (DATA, cut(f"{DATASET}/mrpc/train.parquet"), [], 2, "could not load the dataset nyu-mll/glue"),
    "no weights": (WEIGHTS, remove(f"{MODEL}/model.safetensors"), [], 2, "own/tiny is without weights that can be"),
    "pickled weights": (WEIGHTS, lambda root: (root / MODEL / "model.safetensors").rename(
        root / MODEL / "pytorch_model.bin"), [], 2, "pickles (.bin, .pt) are not read"),
    "weights cut short": (WEIGHTS, cut(f"{MODEL}/model.safetensors"), [], 2, "could not load the model own/tiny"),
    "weights of another model": (WEIGHTS, lambda root: shutil.copy(
        root / "models/own/llm/model.safetensors", root / MODEL), [], 2, "own/tiny lacks 21 weights of a bert model"),
    "no config": (WEIGHTS, remove(f"{MODEL}/config.json"), [], 2, "could not load the model own/tiny"),
    "no tokenizer": (WEIGHTS, several(remove(f"{MODEL}/tokenizer.json"), remove(f"{MODEL}/tokenizer_config.json")), [],
                     2, "own/tiny holds no tokenizer"),
    "own code": (WEIGHTS, own_code(model_type="own"), [], 2, "the model own/tiny brings code of its own, which is not"),
    "own code beside a known family": (WEIGHTS, own_code(), [], 0, ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_hub(client, healthy, tmp_path, name):
    flags, change, switches, expected, said = FAULTS[name]
    root = shutil.copytree(healthy, tmp_path / "hub") if change else healthy
    if change:
        change(root)
    shutil.rmtree(client.home)
    client.home.mkdir()
    flags = ["--model", "own/tiny", "--max-train-samples", 16, "--max-eval-samples", 8, "--num-train-epochs", 1,
             "--max-length", 64, "--precision", "fp32", "--run", tmp_path / "run", *flags]
    code, out, lines = client("train", flags, [] if switches is None else [root], switches or [])
    assert code == expected, lines
    if said:
        assert said in lines[-1] and "Traceback" not in "".join(lines)
        assert len([line for line in lines if "%|" not in line and "examples/s" not in line]) == 1, lines
    assert not (root / "ran").exists()  # code of the hub
    if switches or switches is None or "cut short" in name:
        code, out, lines = client("train", [*flags, "--overwrite"], [healthy])
        assert code == 0, lines
        assert "can't be reached" not in out


def test_what_was_fetched_before_is_taken_where_the_hub_is_down(client, healthy, tmp_path):
    flags = ["--model", "own/tiny", *DATA, "--max-train-samples", 16, "--max-eval-samples", 8, "--num-train-epochs", 1,
             "--max-length", 64, "--overwrite", "--run", tmp_path / "run"]
    assert client("train", flags, [healthy])[0] == 0
    revision = common.read_json(tmp_path / "run" / "run.json")["data"]["revision"]
    for roots, switches, why in (([], [], "refused"), ([healthy], ["--status", 503], "HTTP status 503")):
        code, out, lines = client("train", flags, roots, switches)
        assert code == 0, lines
        assert "can't be reached" in out and why in out and "taking what was fetched before" in out
        assert common.read_json(tmp_path / "run" / "run.json")["data"]["revision"] == revision
    assert "HF_HUB_OFFLINE is set" not in out


def test_a_token_opens_what_is_gated_and_is_written_nowhere(client, healthy, tmp_path):
    """All five scripts with a token in the environment, data set, model and LLM gated; then with a wrong turn each."""
    root = shutil.copytree(healthy, tmp_path / "hub")
    for repository in (DATASET, MODEL, "models/own/llm"):
        (root / repository / ".gated").touch()
    shutil.rmtree(client.home)
    client.home.mkdir()
    token, run = {"HF_TOKEN": SECRET}, tmp_path / "run"
    train = ["--model", "own/tiny", *DATA, "--max-train-samples", 16, "--num-train-epochs", 1, "--max-length", 64]
    printed = []
    for script, flags, expected in (
            ("train", [*train, "--run", run], 0), ("evaluate", [], 0), ("errors", [], 0), ("visualize", [], 0),
            ("llm_compare", ["--llm", "own/llm", "--max-samples", 4], 0), ("llm_compare", ["--llm", "own/none"], 2),
            ("train", [*train, "--model", "own/none", "--run", tmp_path / "other"], 2)):
        code, out, lines = client(script, flags if "--run" in flags else ["--run", run, *flags], [root], [], token)
        assert code == expected, lines
        printed += [out, *lines]
    assert SECRET not in "\n".join(printed)
    for folder in (run, client.home, tmp_path / "other"):
        for path in folder.rglob("*"):
            if path.is_file():
                assert SECRET.encode() not in path.read_bytes(), path
    shutil.rmtree(client.home)
    client.home.mkdir()
    code, _, lines = client("llm_compare", ["--run", run, "--llm", "own/llm", "--overwrite"], [root])
    assert code == 2
    assert "own/llm is gated" in "\n".join(lines)


def test_a_hub_that_does_not_answer_is_asked_three_times(monkeypatch, capsys):
    """Whatever its clients would do: three questions of ten seconds, three seconds of waiting, then the cache."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError

    asked, waited = [], []

    class Session:
        def head(self, url, timeout):
            asked.append((url, timeout))
            raise HTTPError("timed out")

    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(time, "sleep", waited.append)
    common.hub_fault.cache_clear()
    try:
        assert common.hub_fault() == "HTTPError: timed out"
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    finally:
        common.hub_fault.cache_clear()
    assert asked == [(constants.ENDPOINT, 10)] * 3
    assert sum(waited) == 3
    assert "can't be reached (HTTPError: timed out); taking what was fetched before" in capsys.readouterr().out
