"""Runs that are killed at random moments, some in the middle of a save, and go on: do they lose or change anything?

`python -m parity_tests.kills jaxgpt.train --runs 30`, in an empty folder, says how many were killed, resumed, diverged.
"""

import argparse
import json
import os
import random
import signal
import time
from pathlib import Path

from parity_tests.programs import _child, _end, imported, metrics

WORDS = "--recipe tiny --model.layers 2 --model.width 64 --steps 20 --val-every 5 --val-tokens 1024 --save-every 2"
TIMED = {"train_time_s", "tokens_per_s", "peak_bytes"}


def rows(folder: Path) -> list[dict]:
    """A run's metrics but for what depends on the clock and the machine."""
    return [{key: value for key, value in row.items() if key not in TIMED} for row in metrics(folder)]


def campaign(module: str, runs: int, seed: int, words: str = WORDS) -> dict[str, int]:
    """Kill `runs` runs and resume each; half of them at a random moment, half while a checkpoint is being written.

    A run that ended before its kill came is counted, and another started.
    """
    trainer, at = imported(module), random.Random(seed)
    counts = dict.fromkeys(("runs", "killed", "killed in a save", "killed before the folder", "resumed", "diverged"), 0)
    began = time.monotonic()
    whole = _end(*_child(trainer, "", f"{words} --run whole".split()))
    assert whole.code == 0, whole.stderr
    began = time.monotonic()  # again, with what is compiled in the cache
    whole = _end(*_child(trainer, "", f"{words} --run again".split()))
    lasts, want = time.monotonic() - began, rows(Path("whole"))
    assert (whole.code, rows(Path("again"))) == (0, want), whole.stderr
    while counts["killed"] < runs and counts["runs"] < 3 * runs:
        i = counts["runs"]
        folder = Path(f"run{i}")
        child = _child(trainer, "", f"{words} --run {folder}".split())
        if i % 2 == 0:
            _wait_for_a_save(folder / "checkpoints", which=at.randrange(8), at_most=2 * lasts)
            time.sleep(at.uniform(0, 0.05))
        else:
            time.sleep(at.uniform(0, lasts))
        os.kill(child[0], signal.SIGKILL)
        counts["runs"] += 1
        counts["killed"] += _end(*child).code == -signal.SIGKILL
        counts["killed in a save"] += any(not each.name.isdigit() for each in _in(folder / "checkpoints"))
        counts["killed before the folder"] += not folder.exists()
        known = (folder / "config.json").exists()
        again = f"--run {folder}" + " --resume" * folder.exists() + f" {words}" * (not known)
        ended = _end(*_child(trainer, "", again.split()))
        counts["resumed"] += ended.code == 0
        counts["diverged"] += ended.code != 0 or rows(folder) != want
        if ended.code or rows(folder) != want:
            print(f"{folder}: exit {ended.code}: {ended.stderr}", flush=True)
        assert all(each.name.isdigit() for each in _in(folder / "checkpoints")), "leftovers"
    return counts


def _in(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _wait_for_a_save(folder: Path, which: int, at_most: float) -> None:
    """Until the checkpoint number `which`, from 0, is being written."""
    until = time.monotonic() + at_most
    while time.monotonic() < until:
        names = [each.name for each in _in(folder)]
        if any(int(name.split(".")[0]) >= 2 * which + 2 for name in names if not name.isdigit()):
            return
        time.sleep(0.0005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainer", choices=("jaxgpt.train", "torch_ref.train"))
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(json.dumps(campaign(asked.trainer, asked.runs, asked.seed)))


if __name__ == "__main__":
    main()
