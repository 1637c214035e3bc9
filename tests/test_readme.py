"""The README's commands are ones that the scripts take."""

import importlib
import re
import shlex
import shutil
import subprocess
import zipfile

import pytest
from conftest import ROOT

import errors
import evaluate
import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
COMMANDS = [part.split("#")[0].strip() for part in re.split(r"&&|\n", SHELL)
            if part.strip().startswith(("python ", "torchrun ", "accelerate "))]


@pytest.mark.parametrize("line", [line for line in COMMANDS if ".py" in line])
def test_every_command_parses(line):
    words = shlex.split(line)
    script = next(word for word in words if word.endswith(".py"))
    flags = words[words.index(script) + 1:]
    importlib.import_module(script.removesuffix(".py")).build_parser().parse_args(flags)


def test_ci_finds_the_two_commands():
    assert len(re.findall(r"^pip install -r", README, re.MULTILINE)) == 2
    assert len(COMMANDS) >= 8


def test_every_file_that_the_readme_names_is_there_or_of_a_run_folder():
    for name in re.findall(r"`(\w+\.py|catalog/\w+\.toml)`", README):
        assert (ROOT / name).is_file(), name


@pytest.mark.skipif(not (shutil.which("pdflatex") and shutil.which("zip")), reason="needs pdflatex and zip")
def test_the_cell_for_handing_in_makes_the_three_files(tmp_path):
    for path in (*ROOT.glob("*.py"), ROOT / "catalog", ROOT / "requirements.txt"):
        (tmp_path / path.name).symlink_to(path)
    flags = ["--dataset", "mrpc", "--sample", "--runs-dir", str(tmp_path / "runs")]
    assert train.main([*flags, "--num-train-epochs", "2"]) == 0
    assert evaluate.main(flags) == errors.main(flags) == 0
    cell = next(block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "CSCI5541" in block)
    cell = cell.replace("runs/mrpc/google-bert--bert-base-uncased/seed42", "runs/mrpc/sample/seed42")
    done = subprocess.run(["bash", "-e", "-c", cell], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    folder = tmp_path / "runs/mrpc/sample/seed42"
    assert (folder / "CSCI5541-S25-HW2-First-Last.pdf").read_bytes().startswith(b"%PDF")
    assert (folder / "CSCI5541-S25-HW2-First-Last.csv").read_bytes() == (folder / "errors.csv").read_bytes()
    with zipfile.ZipFile(folder / "CSCI5541-S25-HW2-First-Last.zip") as archive:
        assert {"common.py", "train.py", "catalog/mrpc.toml"} <= set(archive.namelist())
