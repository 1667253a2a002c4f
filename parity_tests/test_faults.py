"""Faults, each really done: kills at random moments, a full disk, a loss that isn't finite, a shard replaced."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxgpt.saved import steps_in
from jaxgpt.shards import write_shard
from parity_tests.kills import rows
from parity_tests.programs import TRAINERS, Ended, config, data_in, metrics

SMALL = "--model.layers 2 --model.width 64 --steps 12 --val-every 4 --save-every 3"
HUGE = f"{SMALL} --optimizer.embedding-lr 1e29 --optimizer.lr 1e29 --save-every 1"


@pytest.mark.parametrize(
    ("trainer", "kills"),
    [
        ("jaxgpt.train", 1),
        ("torch_ref.train", 2),
        *(pytest.param(trainer, 30, marks=pytest.mark.slow) for trainer in TRAINERS),
    ],
)
def test_killed_runs_go_on_and_none_diverges(tmp_path, environment, trainer, kills):
    command = [sys.executable, "-m", "parity_tests.kills", trainer, "--runs", str(kills)]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60 + 40 * kills
    )
    assert ended.returncode == 0, ended.stderr
    counts = json.loads(ended.stdout.splitlines()[-1])
    print(counts)
    assert counts["killed"] == kills
    assert (counts["resumed"], counts["diverged"]) == (counts["runs"], 0), ended.stdout


# Runs that a fault ends, and what goes on after them


class Faults(NamedTuple):
    """Where a trainer's runs are and how they ended; `small` and `filled` are file systems of 1.8 and 8 MB."""

    trainer: str
    folder: Path
    ends: dict[str, Ended]

    def on_a_small_disk(self, name: str) -> Ended:
        """How that run ended, where a file system could be mounted for it."""
        if name not in self.ends:
            pytest.skip("mounting a small tmpfs takes root")
        return self.ends[name]


def mounted(folder: Path, kilobytes: int) -> bool:
    """Whether a file system of that size is at `folder` now."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module", params=["torch_ref.train", pytest.param("jaxgpt.train", marks=pytest.mark.slow)])
def faults(request, shards, tmp_path_factory, run_all):
    """By default of the quicker trainer: both go through the same lines, or test_checkpoint.py sees to it."""
    folder = tmp_path_factory.mktemp("faults")
    for name in ("text_train_000001.bin", "text_val_000000.bin"):
        shutil.copy(shards / name, folder)
    words = data_in(shards)
    jobs = {
        "files stay small": f"{words} {SMALL} --run quota",
        "stop": f"{words} {HUGE} --run stop",
        "skip": f"{words} {HUGE} --run skip --on-nonfinite skip",
        "first": f"--recipe tiny --data text_train_*.bin --val-tokens 1024 {SMALL} --run first --stop-at 3",
    }
    disks = {"small": 1800, "filled": 8000}  # one checkpoint fits in the first, two don't
    if mounts := all(mounted(folder / name, kilobytes) for name, kilobytes in disks.items()):
        jobs["full"] = f"{words} {SMALL} --run small/a"
        jobs["disk fills up"] = f"{words} {SMALL} --steps 100 --val-every 100 --run filled/a"
    ends = run_all(folder, request.param, {name: each.split() for name, each in jobs.items()})
    shutil.copytree(folder / "stop", folder / "again")
    write_shard(folder / "text_train_000001.bin", [5] * 2100)
    jobs = {
        "go on skipping": "--run again --resume --on-nonfinite skip",
        "shard replaced": "--run first --resume --stop-at 12",
    }
    if mounts:
        (folder / "filled" / "filler").unlink()
        jobs["disk has room again"] = "--run filled/a --resume --stop-at 12"
    ends |= run_all(folder, request.param, {name: each.split() for name, each in jobs.items()})
    yield Faults(request.param, folder, ends)
    for name in disks:
        subprocess.run(["umount", "-l", str(folder / name)], check=False, capture_output=True)


def test_on_a_full_disk_training_goes_on_and_the_earlier_checkpoint_stays(faults):
    ended, run = faults.on_a_small_disk("full"), faults.folder / "small" / "a"
    assert ended.code == 5, ended.stderr
    lines = ended.stderr.splitlines()
    for step, line in zip((6, 9, 12), lines, strict=False):
        assert re.fullmatch(
            rf"warning: checkpoint \S*small/a/checkpoints/{step} wasn't saved \(.*\); the last one is of step 3", line
        )
    assert lines[3:] == ["error: the checkpoint of step 12, the last, wasn't saved; weights.safetensors is in small/a"]
    assert [each.name for each in (run / "checkpoints").iterdir()] == ["3"]
    assert [row["step"] for row in metrics(run) if "train_loss" in row] == list(range(1, 13))


def test_where_files_may_not_grow_each_save_warns_in_one_line(faults):
    ended = faults.ends["files stay small"]
    assert ended.code == 5, ended.stderr
    saves = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.split("checkpoints/")[1].split()[0] for line in saves] == ["3", "6", "9", "12"]
    assert all("File too large" in line and line.endswith("there is none yet") for line in saves), saves
    assert len(ended.stderr.splitlines()) == 5, ended.stderr
    assert list((faults.folder / "quota" / "checkpoints").iterdir()) == []


def test_metrics_that_find_no_room_end_the_run_with_a_line(faults):
    ended = faults.on_a_small_disk("disk fills up")
    assert ended.code == 5, ended.stderr
    *_, last = ended.stderr.splitlines()
    assert re.fullmatch(
        r"error: filled/a/metrics.jsonl can't be written at step \d+: No space left on device; make room, then go on "
        "from the last checkpoint with --run filled/a --resume",
        last,
    )


def test_a_run_whose_disk_was_full_goes_on_once_there_is_room(faults):
    ended, run = faults.on_a_small_disk("disk has room again"), faults.folder / "filled" / "a"
    assert ended.code == 0, ended.stderr
    assert config(run)["resumes"][0]["step"] in (3, 6), "its last checkpoint before the disk was full"
    assert [row["step"] for row in metrics(run) if "train_loss" in row] == list(range(1, 13))


# What isn't finite


def test_a_gradient_that_is_not_finite_is_named_with_its_step_and_tokens(faults, shards):
    ended = faults.ends["stop"]
    assert ended.code == 3
    assert re.fullmatch(
        rf"error: (train_loss|grad_norm) of step 2 is (nan|inf): its tokens start at 1024 of "
        rf"{shards}/text_train_000001.bin; "
        r"the first gradient that isn't finite is of wte.weight \(norm (nan|inf)\), the last of \S+, \d+ of 9; .*\n",
        ended.stderr,
    ), ended.stderr


def test_the_last_good_checkpoint_stays(faults):
    assert steps_in(faults.folder / "stop" / "checkpoints") == [1]


def test_skipping_leaves_the_weights_and_counts(faults):
    ended = faults.ends["skip"]
    assert (ended.code, ended.stderr) == (0, "")
    assert "after 12 steps, 11 of them skipped" in ended.stdout
    logged = metrics(faults.folder / "skip")
    assert [row["step"] for row in logged if row.get("skipped")] == list(range(2, 13))
    assert len({row["val_loss"] for row in logged if row.get("val_loss") and row["step"]}) == 1


def test_a_run_that_stopped_goes_on_by_skipping(faults):
    ended = faults.ends["go on skipping"]
    assert ended.code == 0, ended.stderr
    assert rows(faults.folder / "again") == rows(faults.folder / "skip")


# A shard that was replaced


def test_a_shard_replaced_under_a_run_is_named(faults):
    ended, was = faults.ends["shard replaced"], config(faults.folder / "first")["shards"]["train"][0]["sha256"]
    assert (ended.code, ended.stderr.count("\n"), ended.changed) == (2, 1, False)
    assert "text_train_000001.bin (--data) is not the shard that the run was trained on" in ended.stderr
    assert was[:12] in ended.stderr
