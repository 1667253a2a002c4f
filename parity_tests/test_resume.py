"""A run that was stopped or killed and goes on logs what an uninterrupted run logs, bit for bit, in both trainers."""

import os
import shutil
import signal
import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxgpt.errors import BadInput
from jaxgpt.flags import recipe_and_flags
from jaxgpt.runlog import locked
from jaxgpt.shards import write_shard
from parity_tests.kills import rows
from parity_tests.measured import assert_within
from parity_tests.programs import TRAINERS, Ended, config, data_in, losses, metrics
from parity_tests.tolerances import RESUMED_ON_ANOTHER_MESH

STEPS = 20
SIGNAL = {"jaxgpt.train": "SIGTERM", "torch_ref.train": "SIGINT"}
SMALL = f"--model.layers 2 --model.width 64 --steps {STEPS} --val-every 5 --save-every 5"


class Runs(NamedTuple):
    """The folder of a trainer's runs, their flags, and how each of them ended."""

    trainer: str
    folder: Path
    words: str
    ends: dict[str, Ended]


@pytest.fixture(scope="module", params=TRAINERS)
def runs(request, shards, tmp_path_factory, run_all) -> Runs:
    """One run as a whole; others that end after step 13, by a signal or a kill, and go on.

    The quicker trainer has more of them; test_faults.py kills JAX's.
    """
    folder = tmp_path_factory.mktemp("runs")
    words = f"{data_in(shards)} {SMALL}"
    by = SIGNAL[request.param]
    jobs, again = {"whole": f"{words} --run whole", by: f"{words} --run stopped"}, ["whole", "stopped"]
    if request.param == "torch_ref.train":
        jobs |= {"killed": f"{words} --run killed", "killed at the start": f"{words} --run start"}
        again += ["killed", "start"]
    ends = run_all(folder, request.param, {name: each.split() for name, each in jobs.items()})
    for cut in folder.glob("killed/metrics.jsonl"):
        cut.write_bytes(cut.read_bytes()[:-30])
    shutil.copytree(folder / "stopped", folder / "kept")
    resumes = {f"{name} again": f"--run {name} --resume" for name in again}
    if request.param == "jaxgpt.train":
        shutil.copytree(folder / "stopped", folder / "mesh")
        resumes["another mesh"] = "--run mesh --resume --mesh 4 --micro-batch 2"
    ends |= run_all(folder, request.param, {name: each.split() for name, each in resumes.items()})
    return Runs(request.param, folder, words, ends)


in_jax = pytest.mark.parametrize("runs", ["jaxgpt.train"], indirect=True)
in_torch = pytest.mark.parametrize("runs", ["torch_ref.train"], indirect=True)
GOES_ON = [(trainer, "stopped") for trainer in TRAINERS]
GOES_ON += [("torch_ref.train", name) for name in ("killed", "start")]


@pytest.mark.parametrize(("runs", "name"), GOES_ON, indirect=["runs"])
def test_a_run_that_goes_on_logs_what_an_uninterrupted_one_does(runs, name):
    ended = runs.ends[f"{name} again"]
    assert (ended.code, ended.stderr) == (0, "")
    assert rows(runs.folder / name) == rows(runs.folder / "whole")


@in_torch
def test_a_kill_really_kills(runs):
    assert runs.ends["killed"].code == -signal.SIGKILL


def test_a_signal_saves_says_how_to_go_on_and_exits_with_its_code(runs):
    name = SIGNAL[runs.trainer]
    ended = runs.ends[name]
    assert ended.code == {"SIGTERM": 143, "SIGINT": 130}[name], ended.stderr
    said, stopped = ended.stderr.splitlines()
    assert said.startswith(f"{name}: saving after this step")
    step = int(stopped.split()[2])
    assert stopped == f"stopped after {step} steps; --run stopped --resume goes on from step {step}"
    assert 13 <= step <= 15


def test_training_time_goes_on(runs):
    times = [row["train_time_s"] for row in metrics(runs.folder / "stopped")]
    assert times == sorted(times)


def test_the_first_start_stays_in_config_and_the_others_are_listed(runs):
    was, now = config(runs.folder / "whole"), config(runs.folder / "stopped")
    assert now["flags"] | {"run": "whole"} == was["flags"]
    (again,) = now["resumes"]
    assert 13 <= again["step"] <= 15
    assert again["flags"]["resume"]
    assert again["compile"]["seconds"] > 0


@in_torch
def test_a_run_without_a_checkpoint_starts_from_its_beginning_and_says_so(runs):
    assert "in start: no checkpoint yet, starting from the beginning" in runs.ends["start again"].stdout


def test_a_finished_run_says_so(runs):
    ended = runs.ends["whole again"]
    assert (ended.code, ended.stdout) == (0, f"run whole is finished: {STEPS} steps are done\n")
    assert "resumes" not in config(runs.folder / "whole")


@in_jax
def test_another_mesh_goes_on_with_the_same_losses(runs):
    ended = runs.ends["another mesh"]
    assert ended.code == 0, ended.stderr
    whole, other = losses(runs.folder / "whole"), losses(runs.folder / "mesh")
    assert other.keys() == whole.keys()
    apart = max(abs(other[key] / whole[key] - 1) for key in whole)
    assert_within(apart, RESUMED_ON_ANOTHER_MESH, "losses after going on with 4 devices instead of 1")


@in_jax
def test_a_run_says_the_devices_that_it_goes_on_with(runs):
    (going_on,) = [line for line in runs.ends["another mesh"].stdout.splitlines() if "going on after" in line]
    assert " on 4 x cpu, in mesh: " in going_on


# What isn't the same run is refused

REFUSED = {
    "no folder": ("--run none --resume", "there is no run folder none"),
    "no name": ("--resume", "name its folder with --run"),
    "no run": ("--run empty --resume", "empty has no config.json"),
    "another recipe": (
        "--run stopped --resume --recipe tiny-adamw",
        "the recipe is tiny-adamw here and tiny in stopped/",
    ),
    "another field": ("--run stopped --resume --model.layers 3", "model.layers is 3 here and 2 in stopped/config.json"),
    "another schedule": ("--run stopped --resume --steps 21", f"schedule.steps is 21 here and {STEPS} in"),
    "another rate": ("--run stopped --resume --optimizer.lr 0.5", "optimizer.lr is 0.5 here and"),
    "another seed": ("--run stopped --resume --seed 3", "--seed is 3 here and 0 in stopped/config.json"),
    "another dtype": ("--run stopped --resume --dtype bfloat16", "precision.compute is bfloat16 here and float32 in"),
    "another shard": (
        "--run stopped --resume --data other_train_*.bin --val-data {shards}/text_val_*.bin",
        "other_train",
    ),
    "more shards": ("--run stopped --resume --data {shards}/text_*.bin --val-data {shards}/text_val_*.bin", "2 shards"),
    "keep nothing": ("--run stopped --resume --keep 0", "--keep 0: give a whole number of at least 1"),
    "save never": ("--run stopped --resume --save-every 0", "--save-every 0: give a whole number of at least 1"),
}


@pytest.fixture(scope="module")
def refused(runs, shards, run_all) -> dict[str, Ended]:
    (runs.folder / "empty").mkdir(exist_ok=True)
    (runs.folder / "empty" / "something").touch()
    write_shard(runs.folder / "other_train_1.bin", [7] * 2100)
    jobs = {name: words.format(shards=shards).split() for name, (words, _) in REFUSED.items()}
    jobs["second process"] = ["--run", "kept", "--resume"]
    with locked(runs.folder / "kept"):
        return run_all(runs.folder, runs.trainer, jobs, trains=False)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_same_run_is_refused_in_one_line(refused, name):
    ended = refused[name]
    assert (ended.code, ended.stderr.count("\n"), ended.changed) == (2, 1, False), ended.stderr
    assert REFUSED[name][1] in ended.stderr


def test_the_other_trainers_run_is_refused(runs, monkeypatch):
    (other,) = set(TRAINERS) - {runs.trainer}
    monkeypatch.chdir(runs.folder)
    with pytest.raises(BadInput) as refused:
        recipe_and_flags(["--run", "stopped", "--resume"], f"python -m {other}", "tiny")
    assert f"stopped is a run of {runs.trainer.removesuffix('.train')}: go on with python -m {runs.trainer}" in str(
        refused.value
    )


# One process writes a run


def test_a_run_that_another_process_writes_is_refused_with_its_number(refused):
    ended = refused["second process"]
    assert ended.code == 2
    held = f"being written by process {os.getpid()} on {socket.gethostname()}: wait for it to end, or end it"
    assert ended.stderr == f"error: --run kept is {held}\n"


def test_a_lock_ends_with_its_holder(tmp_path):
    locked(tmp_path).close()
    with locked(tmp_path), pytest.raises(BadInput, match=r"is being written by process \d+ on "):
        locked(tmp_path)
