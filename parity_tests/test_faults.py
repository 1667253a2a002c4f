"""Faults, each really done: kills at random moments, a full disk, a loss that isn't finite, a shard replaced."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.saved import steps_in
from jaxgpt.shards import write_shard
from parity_tests.kills import rows
from parity_tests.programs import TRAINERS, config, data_in, metrics

ONE = ["torch_ref.train", pytest.param("jaxgpt.train", marks=pytest.mark.slow)]
"""Where both trainers go through the same lines, the quicker one runs by default."""
SMALL = "--model.layers 2 --model.width 64 --steps 12 --val-every 4 --save-every 3"


@pytest.mark.parametrize(
    ("trainer", "kills"),
    [*((trainer, 2) for trainer in TRAINERS), *(pytest.param(t, 30, marks=pytest.mark.slow) for t in TRAINERS)],
)
def test_killed_runs_go_on_and_none_diverges(tmp_path, environment, trainer, kills):
    command = [sys.executable, "-m", "parity_tests.kills", trainer, "--runs", str(kills)]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60 + 40 * kills
    )
    assert ended.returncode == 0, ended.stderr
    counts = json.loads(ended.stdout.splitlines()[-1])
    assert (counts["resumed"], counts["diverged"]) == (kills, 0), ended.stdout
    assert counts["killed"] > 0


# A full disk


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts a file system of that many kilobytes."""
    mounted = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / "small"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a small tmpfs takes root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_on_a_full_disk_training_goes_on_and_the_earlier_checkpoint_stays(shards, tmpfs, run_all, trainer):
    folder = tmpfs(1800)  # one checkpoint fits, two don't
    ended = run_all(folder, trainer, {"full": f"{data_in(shards)} {SMALL} --run a".split()})["full"]
    assert ended.code == 5, ended.stderr
    lines = ended.stderr.splitlines()
    for step, line in zip((6, 9, 12), lines, strict=False):
        assert re.fullmatch(
            rf"warning: checkpoint \S*a/checkpoints/{step} wasn't saved \(.*\); the last one is of step 3", line
        )
    assert lines[3:] == ["error: the checkpoint of step 12, the last, wasn't saved; weights.safetensors is in a"]
    assert [each.name for each in (folder / "a" / "checkpoints").iterdir()] == ["3"]
    assert [row["step"] for row in metrics(folder / "a") if "train_loss" in row] == list(range(1, 13))


@pytest.mark.parametrize("trainer", ONE)
def test_where_files_may_not_grow_each_save_warns_in_one_line(shards, tmp_path, run_all, trainer):
    ended = run_all(tmp_path, trainer, {"files stay small": f"{data_in(shards)} {SMALL} --run a".split()})[
        "files stay small"
    ]
    assert ended.code == 5, ended.stderr
    saves = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.split("checkpoints/")[1].split()[0] for line in saves] == ["3", "6", "9", "12"]
    assert all("File too large" in line and line.endswith("there is none yet") for line in saves), saves
    assert len(ended.stderr.splitlines()) == 5, ended.stderr
    assert list((tmp_path / "a" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("trainer", ONE)
def test_metrics_that_find_no_room_end_the_run_and_the_checkpoint_stays(shards, tmpfs, run_all, trainer):
    folder = tmpfs(8000)
    words = f"{data_in(shards)} {SMALL} --steps 100 --val-every 100 --run a".split()
    ended = run_all(folder, trainer, {"disk fills up": words})["disk fills up"]
    assert ended.code == 5, ended.stderr
    *_, last = ended.stderr.splitlines()
    assert re.fullmatch(
        r"error: a/metrics.jsonl can't be written at step \d+: No space left on device; make room, then go on from the "
        "last checkpoint with --run a --resume",
        last,
    )
    (folder / "filler").unlink()
    assert 3 in steps_in(folder / "a" / "checkpoints")
    again = run_all(folder, trainer, {"again": ["--run", "a", "--resume", "--stop-at", "12"]})["again"]
    assert again.code == 0, again.stderr
    assert [row["step"] for row in metrics(folder / "a") if "train_loss" in row] == list(range(1, 13))


# What isn't finite

HUGE = f"{SMALL} --optimizer.embedding-lr 1e29 --optimizer.lr 1e29 --save-every 1"


@pytest.fixture(scope="module", params=TRAINERS)
def not_finite(request, shards, tmp_path_factory, run_all):
    """A run whose weights become huge, one that skips what follows, and the first gone on with by skipping."""
    folder = tmp_path_factory.mktemp("nan")
    words = f"{data_in(shards)} {HUGE}"
    jobs = {
        "stop": f"{words} --run stop",
        "skip": f"{words} --run skip --on-nonfinite skip",
    }
    ends = run_all(folder, request.param, {name: each.split() for name, each in jobs.items()})
    shutil.copytree(folder / "stop", folder / "again")
    again = {"again": "--run again --resume --on-nonfinite skip"}
    return folder, ends | run_all(folder, request.param, {name: each.split() for name, each in again.items()})


def test_a_gradient_that_is_not_finite_is_named_with_its_step_and_tokens(not_finite, shards):
    ended = not_finite[1]["stop"]
    assert ended.code == 3
    assert re.fullmatch(
        rf"error: (train_loss|grad_norm) of step 2 is (nan|inf): its tokens start at 1024 of "
        rf"{shards}/text_train_000001.bin; "
        r"the first gradient that isn't finite is of wte.weight \(norm (nan|inf)\), the last of \S+, \d+ of 9; .*\n",
        ended.stderr,
    ), ended.stderr


def test_the_last_good_checkpoint_stays(not_finite):
    folder, _ = not_finite
    assert steps_in(folder / "stop" / "checkpoints") == [1]


def test_skipping_leaves_the_weights_and_counts(not_finite):
    folder, ends = not_finite
    assert (ends["skip"].code, ends["skip"].stderr) == (0, "")
    assert "after 12 steps, 11 of them skipped" in ends["skip"].stdout
    logged = metrics(folder / "skip")
    assert [row["step"] for row in logged if row.get("skipped")] == list(range(2, 13))
    assert len({row["val_loss"] for row in logged if row.get("val_loss") and row["step"]}) == 1


def test_a_run_that_stopped_goes_on_by_skipping(not_finite):
    folder, ends = not_finite
    assert ends["again"].code == 0, ends["again"].stderr
    assert rows(folder / "again") == rows(folder / "skip")


# A shard that was replaced


@pytest.mark.parametrize("trainer", ONE)
def test_a_shard_replaced_under_a_run_is_named(shards, tmp_path, run_all, trainer):
    for name in ("text_train_000001.bin", "text_val_000000.bin"):
        shutil.copy(shards / name, tmp_path)
    words = f"--recipe tiny --data text_train_*.bin --val-tokens 1024 {SMALL} --run a --stop-at 3"
    assert run_all(tmp_path, trainer, {"first": words.split()})["first"].code == 0
    was = config(tmp_path / "a")["shards"]["train"][0]["sha256"]
    write_shard(tmp_path / "text_train_000001.bin", [5] * 2100)
    ended = run_all(tmp_path, trainer, {"again": ["--run", "a", "--resume", "--stop-at", "12"]})["again"]
    assert (ended.code, ended.stderr.count("\n"), ended.changed) == (2, 1, False)
    assert "text_train_000001.bin (--data) is not the shard that the run was trained on" in ended.stderr
    assert was[:12] in ended.stderr
