"""The README's commands are ones that the scripts take."""

import importlib
import re
import shlex

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
COMMANDS = [part.split("#")[0].strip() for part in re.split(r"&&|\n", SHELL) if part.strip().startswith("python ")]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[1].endswith(".py")])
def test_every_command_parses(line):
    _, script, *flags = shlex.split(line)
    importlib.import_module(script.removesuffix(".py")).build_parser().parse_args(flags)


def test_ci_finds_the_two_commands():
    assert len(re.findall(r"^pip install -r", README, re.MULTILINE)) == 2
    assert len(COMMANDS) >= 8


def test_every_file_that_the_readme_names_is_there_or_of_a_run_folder():
    for name in re.findall(r"`(\w+\.py|catalog/\w+\.toml)`", README):
        assert (ROOT / name).is_file(), name
