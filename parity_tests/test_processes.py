"""Several processes train as one does; when one of them is killed or told to stop, all end soon, and the run goes on."""

import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxgpt.saved import steps_in
from parity_tests.processes import group
from parity_tests.programs import TRAINERS, Ended, config, data_in, losses, metrics

JAX, TORCH = TRAINERS
STEPS = 60
SMALL = f"--model.layers 2 --model.width 64 --steps {STEPS} --val-every 5 --save-every 5"
APART = 1e-6
GONE = "error: process {} of {} is gone, and the run can't go on without it; --run run --resume goes on from the last "
GONE += "checkpoint, on fewer processes too"


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, run):
    """whole(trainer): the losses of a run in one process."""
    runs: dict[str, dict] = {}

    def whole(trainer: str) -> dict[tuple[str, int], float]:
        if trainer not in runs:
            folder = tmp_path_factory.mktemp("whole")
            ended = run(
                folder, trainer, *f"{data_in(shards)} {SMALL} --run run".split(), *["--mesh", "4"] * (trainer == JAX)
            )
            assert ended.code == 0, ended.stderr
            runs[trainer] = losses(folder / "run")
        return runs[trainer]

    return whole


class Hit(NamedTuple):
    """A run of several processes one of which got a signal after 10 steps, and how they and the next start ended."""

    trainer: str
    count: int
    victim: int
    ends: list[Ended]
    seconds: float
    saved: int
    losses: dict[tuple[str, int], float]
    resumed: Ended
    folder: Path

    @property
    def others(self) -> list[Ended]:
        return [each for i, each in enumerate(self.ends) if i != self.victim or self.trainer == TORCH]


def hit(folder: Path, shards: Path, environment, run, trainer: str, count: int, victim: int, number) -> Hit:
    mesh = 2 * count if trainer == JAX else count
    words = f"{data_in(shards)} {SMALL} --run run --mesh {mesh}".split()
    checkpoints = folder / "run" / "checkpoints"
    with group(folder, trainer, count, words, environment) as started:
        started.wait_for(lambda: bool(steps_in(checkpoints)) and steps_in(checkpoints)[0] >= 10)
        began = time.monotonic()
        started.send(number, victim)
        ends = started.ends()
        seconds = time.monotonic() - began
    saved, logged = steps_in(checkpoints)[0], losses(folder / "run")
    resumed = run(folder, trainer, *["--run", "run", "--resume", "--mesh"], "4" if trainer == JAX else "1")
    return Hit(trainer, count, victim, ends, seconds, saved, logged, resumed, folder / "run")


def cases(*each: tuple[str, int, int]):
    """(trainer, processes, the one that is hit); JAX with two first, and the others slow."""
    return [
        pytest.param(case, id="-".join(map(str, case)), marks=[pytest.mark.slow] * (case[1:] != (2, 1)))
        for case in each
    ]


KILLED = cases(
    (JAX, 2, 1), (TORCH, 2, 1), (JAX, 2, 0), (TORCH, 2, 0), (JAX, 4, 2), (JAX, 4, 0), (TORCH, 4, 3), (TORCH, 4, 0)
)


@pytest.fixture(scope="module", params=KILLED)
def killed(request, shards, tmp_path_factory, environment, run) -> Hit:
    """By kill -9."""
    return hit(tmp_path_factory.mktemp("killed"), shards, environment, run, *request.param, signal.SIGKILL)


def test_until_then_they_train_as_one_process_does(killed, whole):
    assert len(killed.losses) > 10
    assert killed.losses == pytest.approx({key: whole(killed.trainer)[key] for key in killed.losses}, rel=APART)


def test_when_one_is_killed_the_others_end_within_a_minute(killed):
    assert killed.seconds < 60
    codes = {each.code for each in killed.others}
    assert codes == ({6} if killed.trainer == JAX else {1}), "torchrun's own code is 1"


def test_each_of_the_others_says_in_one_line_which_one_is_gone_and_how_to_go_on(killed):
    line = GONE.format(killed.victim, killed.count)
    if killed.trainer == JAX:
        assert [each.stderr.splitlines() for each in killed.others] == [[line]] * (killed.count - 1)
    else:
        said = [each for each in killed.ends[0].stderr.splitlines() if each.startswith(("error: ", "SIGTERM"))]
        assert said == [line] * (killed.count - 1)


def test_a_run_that_lost_a_process_goes_on_in_one(killed, whole):
    assert killed.resumed.code == 0, killed.resumed.stderr
    assert config(killed.folder)["resumes"][0]["step"] == killed.saved >= 10
    assert losses(killed.folder) == pytest.approx(whole(killed.trainer), rel=APART)


def test_only_the_first_process_writes_metrics(killed):
    steps = [row["step"] for row in metrics(killed.folder) if "train_loss" in row]
    assert steps == list(range(1, STEPS + 1))
