"""20,000 steps: memory, open files, threads and the time of a step don't grow; by default, that it would be seen."""

import json
import subprocess
import sys

import numpy as np
import pytest

from parity_tests.programs import TRAINERS
from parity_tests.soak import find

STEPS = np.arange(10.0, 20_001, 10)


def samples(
    step: np.ndarray = STEPS, leak: float = 0, handle: float = 0, thread: float = 0, ms: float = 2
) -> np.ndarray:
    """Of a run that holds 300 MB, and 30 MB more while it saves, with noise; `leak` and so on are each step's."""
    at = np.random.default_rng(0)
    held = 3e8 + leak * step + 3e7 * (step % 500 < 20) + at.normal(0, 1e4, len(step))
    handles, threads = 20 + np.floor(handle * step), 30 + np.floor(thread * step)
    return np.stack([step, held, handles, threads, np.cumsum(at.gamma(50, ms / 50, len(step))) / 100], axis=1)


FIRST = samples(STEPS[: len(STEPS) // 10])


def test_a_run_in_which_nothing_grows_is_found_to_be_one():
    found = find("torch_ref.train", samples(), FIRST)
    assert found.grows == []
    assert found.interval[0] < 0 < found.interval[1]


@pytest.mark.parametrize(
    ("grown", "what"),
    [
        ({"leak": 60}, "memory"),
        ({"handle": 1 / 500}, "file handles"),
        ({"thread": 1 / 500}, "threads"),
        ({"ms": 2.1}, "time of a step"),
    ],
)
def test_what_grows_is_found(grown, what):
    assert find("torch_ref.train", samples(**grown), FIRST).grows == [what]


def test_the_interval_holds_the_leak():
    low, high = find("torch_ref.train", samples(leak=1000), FIRST).interval
    assert 990 < low < 1000 < high < 1010


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_twenty_thousand_steps_grow_nothing(tmp_path, environment, trainer):
    command = [sys.executable, "-m", "parity_tests.soak", trainer]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600)
    assert ended.stdout, ended.stderr
    print(ended.stdout)
    assert json.loads(ended.stdout)["grows"] == []
