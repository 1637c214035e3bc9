"""Writers that are killed or find the disk full: a reader sees the old file or the new one, and no script a traceback.

KILLS=500 python -m pytest tests/test_faults.py kills more often than the default.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import common
import errors
import evaluate
import llm_compare
import train
import visualize

KILLS = int(os.environ.get("KILLS", "40"))
TRAIN = ["--dataset", "mrpc", "--sample", "--precision", "fp32", "--num-train-epochs", "2", "--max-train-samples", "24"]


@pytest.fixture(scope="module")
def run_of_all_scripts(tmp_path_factory):
    """A run that all five scripts have been through."""
    folder = tmp_path_factory.mktemp("run")
    assert train.main([*TRAIN, "--keep-epochs", "0", "2", "--run", str(folder)]) == 0
    for script in (evaluate, errors, visualize, llm_compare):
        assert script.main(["--run", str(folder)]) == 0
    return folder


def check_whole(folder):
    """Every file in the folder can be read to its end."""
    from PIL import Image

    for path in folder.rglob("[!.]*"):
        if path.suffix == ".csv":
            common.read_csv(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert [arrays[name].shape for name in arrays]
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".html":
            assert path.read_text(encoding="utf-8").endswith("</html>\n")


# ---- Killed ---------------------------------------------------------------------------------------------------------


def write_version(folder, version):
    """A file of each kind, all of one number."""
    common.write_csv(folder / "a.csv", pd.DataFrame({"version": [version] * 3000, "text": ["é" * 20] * 3000}))
    common.write_json(folder / "a.json", {"versions": [version] * 3000})
    common.write_atomically(folder / "a.npz", lambda path: np.savez(path, version=np.full(300_000, version)))
    figure, axes = common.new_figure(2, 2)
    axes.plot([version, 0])
    common.save_figure(figure, folder / "a.png")


def read_version(folder):
    """The number in each file, which has to be the same from beginning to end."""
    table = common.read_csv(folder / "a.csv", numbers=("version",))
    assert table["text"].tolist() == ["é" * 20] * 3000
    with np.load(folder / "a.npz", allow_pickle=False) as arrays:
        versions = [table["version"].to_numpy(), np.array(common.read_json(folder / "a.json")["versions"]),
                    arrays["version"]]
    assert [len(numbers) for numbers in versions] == [3000, 3000, 300_000]
    assert all((numbers == numbers[0]).all() for numbers in versions)
    return [int(numbers[0]) for numbers in versions]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path):
    """SIGKILL at random moments; files never go back, and what is half written is cleared away by who comes next."""
    write_version(tmp_path, 0)
    start = time.monotonic()
    write_version(tmp_path, 0)
    span = 2 * (time.monotonic() - start)  # so that a slow machine gets to write, too
    rng, latest, caught = random.Random(0), [0, 0, 0], 0
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            with common.locked(tmp_path):
                version = max(latest)
                while True:
                    version += 1
                    write_version(tmp_path, version)
        time.sleep(rng.random() * span)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = read_version(tmp_path)
        check_whole(tmp_path)
        assert all(new >= old for new, old in zip(found, latest, strict=True))
        latest, caught = found, caught + len(list(tmp_path.glob(".*")))
    assert latest[0] > 0 and caught > 0  # some wrote to the end, some were caught in the middle
    with common.locked(tmp_path):  # the kill has let go of it
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json", "a.npz", "a.png"]


def test_what_was_left_half_written_does_no_harm(run_of_all_scripts, tmp_path):
    folder = shutil.copytree(run_of_all_scripts, tmp_path / "run")
    (folder / "on-other").mkdir()
    left = [folder / ".123-predictions.csv", folder / ".123-errors.csv", folder / "on-other" / ".4-run.json"]
    for path in left:
        path.write_text("half")
    (folder / ".123-model").mkdir()
    for script in (errors, visualize, llm_compare, evaluate):
        assert script.main(["--run", str(folder)]) == 0
        assert any(path.exists() for path in left) == (script is not evaluate)  # which has the folder to itself
    assert not list(folder.rglob(".*"))


# ---- Disk full ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """An empty file system of 12 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    if not mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs mount and the right to use it")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place, free):
    """Leave `free` bytes on the disk."""
    (place / "filler").unlink(missing_ok=True)
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(place).free - free))


def says_so(capsys, script, *flags):
    """Exit code 1 and one line: which file, and that the disk is full."""
    capsys.readouterr()
    assert script.main([str(flag) for flag in flags]) == 1
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines()
             if line.strip() and "%|" not in line]
    assert len(lines) == 1, lines
    assert "could not write" in lines[0] and "No space left on device" in lines[0]
    assert "what was written before is whole" in lines[0]


@pytest.mark.parametrize("script", [evaluate, errors, visualize, llm_compare])
def test_a_full_disk_is_one_line_and_earlier_files_are_intact(capsys, small_disk, run_of_all_scripts, script):
    folder = shutil.copytree(run_of_all_scripts, small_disk / "run")
    (folder / "llm_journal.jsonl").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    fill(small_disk, 0)
    says_so(capsys, script, "--run", folder)
    assert {path: path.read_bytes() for path in before if path.exists()}.items() <= before.items()
    for free in (8_192, 65_536):  # it comes further, and what it writes is whole
        fill(small_disk, free)
        with contextlib.suppress(AssertionError):
            says_so(capsys, script, "--run", folder)
        check_whole(folder)
    (small_disk / "filler").unlink()
    assert script.main(["--run", str(folder)]) == 0
    check_whole(folder)


@pytest.mark.parametrize("free", [0, 100_000, 500_000, 1_200_000])
def test_training_on_a_full_disk(capsys, small_disk, free):
    """It breaks off at run.json, at train_texts.csv, within the first checkpoint or the second."""
    fill(small_disk, free)
    says_so(capsys, train, *TRAIN, "--run", small_disk / "run")
    check_whole(small_disk)
    (small_disk / "filler").unlink()
    again = "--resume" if list(small_disk.glob("run/checkpoint-*")) else "--overwrite"
    assert train.main([*TRAIN, "--run", str(small_disk / "run"), again]) == 0
    assert common.finished_run(small_disk / "run")
    assert not list((small_disk / "run").glob(".*"))


def test_overwrite_keeps_what_persons_write_and_nothing_else(run_of_all_scripts, tmp_path):
    folder = shutil.copytree(run_of_all_scripts, tmp_path / "old")
    (folder / "mine.csv").write_text("mine")
    assert train.main([*TRAIN, "--run", str(folder), "--overwrite"]) == 0
    assert train.main([*TRAIN, "--run", str(tmp_path / "new")]) == 0
    kept = {path.name for path in folder.iterdir()} - {path.name for path in (tmp_path / "new").iterdir()}
    assert kept == {"errors.csv", "codebook.md", "mine.csv"}


def test_a_run_that_ends_while_its_checkpoints_are_deleted_is_finished(tmp_path, monkeypatch):
    """What is deleted first must not be needed any more."""
    delete = shutil.rmtree

    def stop(path, *args, **kwargs):
        if Path(path).name.startswith("checkpoint-"):
            raise KeyboardInterrupt
        delete(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", stop)
    assert train.main([*TRAIN, "--run", str(tmp_path)]) == 130
    assert evaluate.main(["--run", str(tmp_path)]) == 0


def test_a_file_that_may_not_grow(capsys, tmp_path):
    """As on a disk over its quota, on any system: the weights are larger than the process may write."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        code = train.main([*TRAIN, "--run", str(tmp_path)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "File too large; what was written before is whole" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("checkpoint-*"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("error", "said"), [
    (OSError(28, "No space left on device", "a.csv"), "could not write a.csv: No space left on device"),
    (OSError(5, "Input/output error"), "could not write: Input/output error"),
    (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
    (OSError(2, "No such file or directory", "a.csv"), ""), (ValueError("28"), ""), (OSError("28"), "")])
def test_what_is_a_fault_of_the_disk(error, said):
    assert (said in common.disk_fault(error)) if said else common.disk_fault(error) == ""


def test_a_full_disk_is_not_taken_for_another_fault(tmp_path, monkeypatch):
    """Of the hub, of the file's publisher or of the folder: the error goes on to command(), which says what it is."""
    full = OSError(28, "No space left on device")

    def fail(*_args, **_):
        raise full

    monkeypatch.setattr("urllib.request.urlopen", fail)
    monkeypatch.setattr(os, "open", fail)
    task = {"key": "x", "reader": "edos", "source": "y", "files": [{"path": "x/a.csv", "url": "https://example.org/a"}]}
    monkeypatch.setattr(common, "locked", lambda *_args, **_: contextlib.nullcontext())
    for call in (lambda: common.read_files(task, tmp_path), lambda: common.lock_folder(tmp_path, False, False)):
        with pytest.raises(OSError) as error:
            call()
        assert error.value is full
    with pytest.raises(OSError), common.hub_errors("the dataset x", is_local=True):
        fail()


def test_a_mistake_of_our_own_keeps_its_traceback():
    @common.command
    def script(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        script([])


# ---- Two at once ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_who_waits_for_a_folder_gets_it_when_the_other_is_killed(tmp_path):
    child = os.fork()
    if child == 0:
        with common.locked(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(common.UserError, match="another process is at work"), common.locked(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    with common.locked(tmp_path, wait=True):
        os.waitpid(child, 0)


def test_a_folder_that_can_not_be_locked_is_named_and_used(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def refuse(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with common.locked(tmp_path):
        assert f"{tmp_path} can't be locked (Operation not supported)" in capsys.readouterr().out


def test_a_script_holds_one_folder_at_a_time_and_none_when_it_ends(tmp_path):
    """So that a training of several seeds, which also evaluates, keeps out of its own way."""
    @common.command
    def script(argv):
        for name in ("a", "a", "b"):
            common.hold(tmp_path / name)
        with common.locked(tmp_path / "a"):
            pass
        with pytest.raises(common.UserError, match="another process is at work"), common.locked(tmp_path / "b"):
            pass
        return 0

    assert script([]) == 0
    with common.locked(tmp_path / "b"):
        pass


def test_readers_share_a_folder(tmp_path):
    with (common.locked(tmp_path, shared=True), common.locked(tmp_path, shared=True),
          pytest.raises(common.UserError, match="another process"), common.locked(tmp_path)):
        pass
    with common.locked(tmp_path):
        pass


def test_a_download_is_fetched_once_by_two_who_need_it(tmp_path, monkeypatch):
    """The second finds the file there when it is let in."""
    fetched = []

    @contextlib.contextmanager
    def after_another(folder, shared=False, wait=False):
        assert wait
        folder.mkdir(exist_ok=True)
        (folder / "a.csv").write_text("fetched by the first")
        yield

    monkeypatch.setattr(common, "locked", after_another)
    monkeypatch.setattr(common, "download", lambda url, place: fetched.append(place))
    common.fetch({"key": "x", "files": [{"path": "x/a.csv", "url": "https://example.org/a.csv"}]}, Path(tmp_path))
    assert not fetched and (tmp_path / "x" / "a.csv").read_text() == "fetched by the first"
