"""README says what is so: its commands parse, its Python runs, and the files and metrics that it names are all."""

import argparse
import re
import shlex

import pytest
from conftest import ROOT, run
from toys import KINDS

import common

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
INLINE = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", re.sub(r"(?ms)^```.*?^```", "", README))]
SCRIPTS = ("train", "evaluate", "errors", "llm_compare", "visualize")
SHELL = [line.split("#")[0] for kind, block in BLOCKS if kind != "python" for line in block.splitlines()] + INLINE
COMMANDS = sorted({(found[1], found[2]) for line in SHELL for part in re.split(r"&&|;|\||do ", line)
                   if (found := re.match(rf"!?(?:python|torchrun|accelerate launch)\b.* ({'|'.join(SCRIPTS)})\.py(.*)",
                                         part.strip()))})


class ParsedError(Exception):
    """The flags were taken."""


@pytest.mark.parametrize(("script", "flags"), COMMANDS)
def test_every_command_parses(monkeypatch, script, flags):
    real = argparse.ArgumentParser.parse_args

    def parse_args(self):
        real(self)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(ParsedError):
        run(script, *shlex.split(re.sub(r"\$\w+", "1", flags)))


def test_every_script_and_every_flag_that_is_mentioned_is_there(capsys):
    helps = [run(script, "--help") or capsys.readouterr().out for script in SCRIPTS]
    assert {script for script, _ in COMMANDS} == {*SCRIPTS}
    named = {word for text in INLINE if text.startswith("--") for word in text.split() if word.startswith("--")}
    assert named <= {flag for text in helps for flag in re.findall(r"--[a-z][\w-]+", text)}
    for path in re.findall(r"\]\(([^):#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for code in (block for kind, block in BLOCKS if kind == "python"):
        exec(code, {})
    assert "tensor(" in capsys.readouterr().out


def named_files():
    """The first column of the table of files; endings that stand alone belong to the names without one."""
    files, section = set(), re.search(r"## What a run leaves behind\n(.*?)\n## ", README, re.DOTALL)[1]
    for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row)
        endings = [name for name in names if re.fullmatch(r"\.\w+", name)]
        for name in set(names) - set(endings):
            files |= {name} if "." in name or "/" in name else {f"{name}{ending}" for ending in endings}
    return {name.rstrip("/") for name in files if "<" not in name}  # checkpoint-<step> is there while it trains


def test_every_file_that_a_run_leaves_is_named_and_no_other(tmp_path):
    """By all five scripts, in a folder whose name has spaces and umlauts; the sheet is filled in."""
    flags = ["--dataset", "mrpc", "--sample", "--runs-dir", tmp_path / "meine Läufe"]
    for seed in (1, 2):
        assert run("train", *flags, "--seed", seed, "--num-train-epochs", 1, "--keep-epochs", 0, 1) == 0
        assert run("evaluate", *flags, "--baselines") == 0
    assert run("errors", *flags) == 0
    folder = tmp_path / "meine Läufe" / "mrpc" / "sample" / "seed2"
    sheet = common.read_csv(folder / "errors.csv")
    common.write_csv(folder / "errors.csv", sheet.assign(cause="negation", solution="more data"))
    for script in ("errors", "llm_compare", "visualize"):
        assert run(script, *flags) == 0
    left = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    left |= {f"../{path.name}" for path in folder.parent.iterdir() if path.is_file()}
    assert left == named_files()


def test_every_metric_is_named():
    for name in {name for kind in KINDS.values() for name in kind.METRICS}:
        parts = [name, *(f"{prefix}_" for prefix in ("has_ans", "no_ans") if name.startswith(prefix))]
        assert any(f"`{part}`" in README for part in parts), name
