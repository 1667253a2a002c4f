"""Paths from anybody: names with spaces, other scripts and no text work; pipes, devices and loops are refused."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgpt import bridge, compare
from jaxgpt.checkpoint import check_folder
from jaxgpt.curves import load_run
from jaxgpt.errors import BadInput
from jaxgpt.shards import write_shard
from parity_tests.programs import TRAINERS, Ended

ODD = "a b\nc größe-数 [x] $y$ 😀 \udcff"
"""A folder's name: the last character is a byte that is no text."""
TEXT = ODD[:-1]
WHERE = {"jaxgpt.train": TEXT, "torch_ref.train": ODD}
"""Orbax takes no path that isn't text."""
SHORT = ["--recipe", "tiny", "--val-tokens", "1024", "--stop-at", "1", "--mesh", "1"]
SMALL = ["--model.layers", "1", "--model.width", "8", "--model.heads", "1"]
DATA = ["--data", "train.bin", "--val-data", "val.bin"]

REFUSED: dict[str, tuple[list[str], str]] = {
    # name: (the last words of a command line, what its one line says)
    "pipe for data": (["--data", "pipe"], "pipe is not an ordinary file"),
    "pipe for validation": (["--val-data", "pipe"], "pipe is not an ordinary file"),
    "pipe for weights": (["--init-from", "pipe"], "pipe can't be read as safetensors (is not an ordinary file)"),
    "endless device for data": (["--data", "/dev/zero"], "/dev/zero is not an ordinary file"),
    "endless device for weights": (["--init-from", "/dev/zero"], "/dev/zero can't be read as safetensors"),
    "empty device for data": (["--data", "/dev/null"], "/dev/null is not an ordinary file"),
    "empty device for weights": (["--init-from", "/dev/null"], "/dev/null can't be read as safetensors"),
    "empty file for data": (["--data", "empty"], "empty has 0 bytes"),
    "empty file for weights": (["--init-from", "empty"], "empty can't be read as safetensors"),
    "folder for weights": (["--init-from", "folder"], "folder can't be read as safetensors (is a folder)"),
    "loop for data": (["--data", "loop"], "loop can't be read: Too many levels of symbolic links"),
    "loop for weights": (["--init-from", "loop"], "loop can't be read as safetensors"),
    "link to nothing for data": (["--data", "dangling"], "dangling can't be read: No such file"),
    "link to nothing for a run": (["--run", "dangling"], "--run dangling exists already"),
    "loop for a run": (["--run", "loop"], "--run loop exists already"),
    "run below a loop": (["--run", "loop/run"], "--run loop/run can't be made: Too many levels"),
    "run in a folder that cannot be written": (["--run", "/proc/run"], "--run /proc/run can't be made"),
    "name too long for a run": (["--run", "x" * 300], "can't be made: File name too long"),
    "name too long for data": (["--data", "x" * 5000], "no file matches"),
    "name too long for weights": (["--init-from", "x" * 300], "can't be read as safetensors"),
    "NUL for weights": (["--init-from", "a\0b"], "can't be read as safetensors (is no name that a file can have)"),
    "NUL for data": (["--data", "a\0b"], "no file matches"),
    "terminal's escape for data": (["--data", "\x1b[2J"], r"--data \x1b[2J: no file matches"),
    "a million layers": (["--model.layers", "1000000"], "model.layers is 1000000"),
    "a mesh without end": (["--mesh", str(10**12)], f"--mesh {10**12}"),
    "a mesh beyond int64": (["--mesh", "9" * 400], "--mesh 999"),
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="devices, pipes and names of bytes are Linux's")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shards, and what is none."""
    folder = tmp_path_factory.mktemp("paths")
    ids = np.random.default_rng(0).integers(0, 256, 2100)
    write_shard(folder / "train.bin", ids)
    write_shard(folder / "val.bin", ids[:1100])
    write_shard(folder / ODD / "my data_train_1.bin", ids)
    write_shard(folder / ODD / "my data_val_1.bin", ids[:1100])
    (folder / "link").symlink_to(ODD)
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture(scope="module")
def ends(folder, run_all) -> dict[tuple[str, str], Ended]:
    """(trainer, name) -> how that run ended."""
    jobs = {name: [*SHORT, *DATA, *words] for name, (words, _) in REFUSED.items()}
    return {
        (trainer, name): ended
        for trainer in TRAINERS
        for name, ended in run_all(folder, trainer, jobs, trains=False).items()
    }


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", REFUSED)
def test_path_that_no_file_is_under_is_refused_in_one_line(ends, trainer, name):
    ended = ends[trainer, name]
    assert (ended.code, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert REFUSED[name][1] in ended.stderr


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", REFUSED)
def test_path_that_is_refused_leaves_the_disk_as_it_was(ends, trainer, name):
    assert not ends[trainer, name].changed


@pytest.fixture(scope="module")
def trained(folder, run_all) -> dict[str, Ended]:
    """trainer -> how a run ended whose data lie behind a link and whose folder has an odd name."""
    data = ["--data", "link/my data_train_*.bin", "--val-data", "link/my data_val_*.bin"]
    ends = {}
    (folder / TEXT).mkdir()
    for trainer in TRAINERS:
        words = [*SHORT, *SMALL, *data, "--run", f"{WHERE[trainer]}/{trainer} run"]
        ends[trainer] = run_all(folder, trainer, {"odd": words})["odd"]
    return ends


@pytest.mark.parametrize("trainer", TRAINERS)
def test_run_with_odd_names_trains(trained, folder, trainer):
    assert (trained[trainer].code, trained[trainer].stderr) == (0, "")
    assert load_run(folder / WHERE[trainer] / f"{trainer} run").steps == 1


def test_run_whose_checkpoints_orbax_could_not_write_is_refused_before_it_starts():
    with pytest.raises(BadInput, match="its path isn't UTF-8, so no checkpoint can be written there"):
        check_folder(Path(ODD))


def test_weights_and_reports_with_odd_names_are_written(trained, folder, run):
    runs = [f"{WHERE[trainer]}/{trainer} run" for trainer in TRAINERS]
    ended = run(folder, "jaxgpt.compare", *runs, "--out", f"{ODD}/report")
    assert (ended.code, ended.stderr) == (0, "")
    assert {path.name for path in (folder / ODD / "report").iterdir()} == {"report.md", "curves.png"}


@pytest.mark.parametrize("name", ["dangling", "loop", "pipe"])
def test_weights_are_not_written_over_a_link_or_a_pipe(folder, capsys, monkeypatch, name):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match="2"):
        bridge.main(["--out", name])
    assert re.fullmatch(rf"error: --out {name} exists already [^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["pipe", "loop", "/dev/zero", "folder"])
@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl"])
def test_file_of_a_run_that_is_no_ordinary_one_is_refused(folder, tmp_path, capsys, monkeypatch, file, name):
    for each in ("config.json", "metrics.jsonl"):
        (tmp_path / each).write_text("{}", encoding="utf-8")
    (tmp_path / file).unlink()
    (tmp_path / file).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        compare.main([".", "--out", "report"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{file}: " in said
