"""Several processes train as one does. When one is killed or told to stop, all end soon, and the run goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxgpt.errors import BadInput, speaks
from jaxgpt.flags import recipe_and_flags
from jaxgpt.saved import steps_in
from parity_tests.measured import assert_within
from parity_tests.processes import free_port, group
from parity_tests.programs import TRAINERS, Ended, config, data_in, losses, metrics
from parity_tests.tolerances import SEVERAL_PROCESSES

JAX, TORCH = TRAINERS
STEPS = 20
SMALL = f"--model.layers 2 --model.width 64 --steps {STEPS} --val-every 4 --save-every 4 --run run"
GONE = (
    "error: process {} of {} is gone, and the run can't go on without it; --run run --resume goes on from the last "
    "checkpoint, on fewer processes too"
)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory, run):
    """whole(trainer): the losses of a run in one process."""
    runs: dict[str, dict] = {}

    def whole(trainer: str) -> dict[tuple[str, int], float]:
        if trainer not in runs:
            folder = tmp_path_factory.mktemp("whole")
            mesh = "--mesh 4" if trainer == JAX else ""
            ended = run(folder, trainer, *f"{data_in(shards)} {SMALL} {mesh}".split())
            assert ended.code == 0, ended.stderr
            runs[trainer] = losses(folder / "run")
        return runs[trainer]

    return whole


def assert_the_same(some: dict[tuple[str, int], float], whole: dict[tuple[str, int], float]) -> None:
    apart = max(abs(some[key] / whole[key] - 1) for key in some)
    assert_within(apart, SEVERAL_PROCESSES, "losses of several processes to those of one")


class Hit(NamedTuple):
    """A run one of whose processes got a signal in its middle; how they ended, and what one process made of the run."""

    trainer: str
    count: int
    victim: int
    ends: list[Ended]
    seconds: float
    saved: int
    losses: dict[tuple[str, int], float]
    resumed: Ended
    run: Path


def hit(folder: Path, shards: Path, environment, run, case: tuple[str, int, int], number: signal.Signals) -> Hit:
    trainer, count, victim = case
    mesh = 2 * count if trainer == JAX else count
    checkpoints = folder / "run" / "checkpoints"
    with group(folder, trainer, count, f"{data_in(shards)} {SMALL} --mesh {mesh}".split(), environment) as started:
        started.wait_for(lambda: bool(steps_in(checkpoints)))
        began = time.monotonic()
        started.send(number, victim)
        ends = started.ends()
        seconds = time.monotonic() - began
    saved, logged = steps_in(checkpoints)[0], losses(folder / "run")
    resumed = run(folder, trainer, *["--run", "run", "--resume", "--mesh"], "4" if trainer == JAX else "1")
    return Hit(trainer, count, victim, ends, seconds, saved, logged, resumed, folder / "run")


def cases(*each: tuple[str, int, int]):
    """Trainer, how many processes, which of them is hit. The first case runs by default."""
    marks = [[], *[[pytest.mark.slow]] * (len(each) - 1)]
    return [pytest.param(case, marks=mark, id="-".join(map(str, case))) for case, mark in zip(each, marks, strict=True)]


@pytest.fixture(
    scope="module",
    params=cases((JAX, 2, 1), (JAX, 2, 0), (JAX, 4, 2), (JAX, 4, 0), (TORCH, 2, 1), (TORCH, 2, 0), (TORCH, 4, 3)),
)
def killed(request, shards, tmp_path_factory, environment, run) -> Hit:
    """By kill -9."""
    return hit(tmp_path_factory.mktemp("killed"), shards, environment, run, request.param, signal.SIGKILL)


def test_until_a_kill_they_train_as_one_process_does(killed, whole):
    assert {step for _, step in killed.losses} >= {0, 1, 2, 3, 4}
    assert_the_same(killed.losses, whole(killed.trainer))


def test_when_one_is_killed_the_others_end_within_a_minute_with_a_code(killed):
    assert killed.seconds < 60
    if killed.trainer == TORCH:
        assert [each.code for each in killed.ends] == [1], "torchrun's own"
    else:
        assert [each.code for each in killed.ends] == [-9 if i == killed.victim else 6 for i in range(killed.count)]


def test_each_of_the_others_says_in_one_line_which_one_is_gone_and_how_to_go_on(killed):
    line, others = GONE.format(killed.victim, killed.count), killed.count - 1
    if killed.trainer == TORCH:  # the lines of all, among torchrun's
        said = [each for each in killed.ends[0].stderr.splitlines() if each.startswith(("error: ", "SIGTERM: "))]
        assert said == [line] * others
    else:
        said = [each.stderr.splitlines() for i, each in enumerate(killed.ends) if i != killed.victim]
        assert said == [[line]] * others


def test_a_run_that_lost_a_process_goes_on_in_one(killed, whole):
    assert killed.resumed.code == 0, killed.resumed.stderr
    assert config(killed.run)["resumes"][0]["step"] == killed.saved
    assert losses(killed.run).keys() == whole(killed.trainer).keys()
    assert_the_same(losses(killed.run), whole(killed.trainer))


def test_only_the_first_process_writes_metrics(killed):
    assert [row["step"] for row in metrics(killed.run) if "train_loss" in row] == list(range(1, STEPS + 1))


STOPPED = [pytest.param(case, marks=pytest.mark.slow) for case in ((JAX, 4, 3), (TORCH, 2, 1))]


@pytest.fixture(scope="module", params=STOPPED)
def told_to_stop(request, shards, tmp_path_factory, environment, run) -> Hit:
    """By SIGTERM to one of them."""
    return hit(tmp_path_factory.mktemp("stopped"), shards, environment, run, request.param, signal.SIGTERM)


def test_all_save_the_same_step_when_one_is_told_to_stop(told_to_stop):
    said = [line for each in told_to_stop.ends for line in each.stderr.splitlines() if line.startswith("stopped")]
    at = told_to_stop.saved
    assert said == [f"stopped after {at} steps; --run run --resume goes on from step {at}"], "the first one says it"
    if told_to_stop.trainer == JAX:
        assert {each.code for each in told_to_stop.ends} == {143}
    assert max(step for _, step in told_to_stop.losses) == at


def test_what_was_stopped_in_several_processes_goes_on_in_one(told_to_stop, whole):
    assert told_to_stop.resumed.code == 0, told_to_stop.resumed.stderr
    assert losses(told_to_stop.run).keys() == whole(told_to_stop.trainer).keys()
    assert_the_same(losses(told_to_stop.run), whole(told_to_stop.trainer))


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "count"), [(JAX, 4), (TORCH, 4)])
def test_a_run_of_one_process_goes_on_in_four(trainer, count, shards, tmp_path, environment, run, whole):
    first = run(tmp_path, trainer, *f"{data_in(shards)} {SMALL} --stop-at 8".split())
    assert first.code == 0, first.stderr
    (tmp_path / "run" / "weights.safetensors").unlink()
    mesh = 2 * count if trainer == JAX else count
    words = f"--run run --resume --mesh {mesh} --stop-at {STEPS}".split()
    with group(tmp_path, trainer, count, words, environment) as started:
        ends = started.ends()
    assert {(each.code, each.stderr if trainer == JAX else "") for each in ends} == {(0, "")}
    assert losses(tmp_path / "run").keys() == whole(trainer).keys()
    assert_the_same(losses(tmp_path / "run"), whole(trainer))


@pytest.mark.slow
def test_processes_that_slurm_started_find_each_other(shards, tmp_path, environment, whole):
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    ranks = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    words = f"{data_in(shards)} {SMALL} --mesh 4 --processes auto".split()
    with group(tmp_path, JAX, 2, words, environment | job, ranks) as started:
        ends = started.ends()
    assert [(each.code, each.stderr) for each in ends] == [(0, ""), (0, "")]
    assert_the_same(losses(tmp_path / "run"), whole(JAX))


# Ends that all come to, and what only the first says


@pytest.mark.slow
def test_what_is_not_finite_stops_all_and_the_first_says_so(shards, tmp_path, environment):
    words = f"{data_in(shards)} {SMALL} --mesh 2 --optimizer.lr 1e29 --optimizer.embedding-lr 1e29".split()
    with group(tmp_path, JAX, 2, words, environment) as started:
        first, second = started.ends()
    assert (first.code, second.code) == (3, 3)
    assert first.stderr.startswith("error: ")
    assert (first.stderr.count("\n"), second.stderr) == (1, "")


@pytest.mark.slow
def test_bad_input_ends_all_and_the_first_says_so(shards, tmp_path, environment):
    with group(tmp_path, JAX, 2, f"{data_in(shards)} {SMALL} --mesh 3".split(), environment) as started:
        first, second = started.ends()
    line = "error: --mesh 3: 2 processes can't share it evenly; give a multiple of 2\n"
    assert (first.code, first.stderr, second.code, second.stderr) == (2, line, 2, "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "environ", "expected"),
    [
        ("", {}, True),
        ("", {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, True),
        ("", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, False),
        ("", {"SLURM_LOCALID": "1"}, True),  # a run of its own in a job of several
        ("--processes auto", {"SLURM_LOCALID": "1"}, False),
        ("--processes 2 --process 1 --coordinator 127.0.0.1:1234", {}, False),
        ("--processes 2 --process 0 --coordinator 127.0.0.1:1234", {}, True),
        ("--processes 2 --process 1 --coordinator node0:1234", {}, True),
    ],
)
def test_the_first_process_on_a_machine_speaks_for_the_others(words, environ, expected, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert speaks(words.split()) is expected


# Processes that don't come together


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--processes 2", "go together"),
        ("--coordinator a:1 --processes auto", "go together"),
        (
            "--coordinator a:1 --processes 2 --process 2",
            "--process 2 of --processes 2: give a whole number from 0 to 1",
        ),
        ("--coordinator a:1 --processes 2 --process -1", "--process -1 of --processes 2"),
        ("--coordinator a:1 --processes two --process 0", "--processes two: give how many"),
        ("--coordinator a --processes 2 --process 0", "--coordinator a: give HOST:PORT"),
    ],
)
def test_flags_of_several_processes_that_do_not_fit_are_named(words, said):
    with pytest.raises(BadInput) as bad:
        recipe_and_flags(words.split(), "python -m jaxgpt.train", "tiny")
    assert said in str(bad.value)
    assert "\n" not in str(bad.value)


def test_without_a_cluster_auto_says_what_to_give(tmp_path, run):
    ended = run(tmp_path, JAX, "--processes", "auto")
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: --processes auto: there is no SLURM, Open MPI or Cloud TPU pod here; give ")


def test_torch_refuses_the_flags_of_jax_processes(tmp_path, run):
    ended = run(tmp_path, TORCH, "--processes", "auto")
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert "torchrun" in ended.stderr


def python(folder: Path, environment, program: str) -> Ended:
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_a_process_that_stays_alone_ends_with_a_line(tmp_path, environment):
    words = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process", "1"]
    program = f"from jaxgpt import mesh, train; mesh.MEETS = 2; train.main({words})"
    ended = python(tmp_path, environment, program)
    assert (ended.code, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith(f"error: not all of --processes came to {words[1]} within 2 s: start them all")


PEERS = """
import sys, time
from jaxgpt import peers
peers.EVERY, peers.FAILED, peers.LOST = 0.05, 0.2, 1
beats = iter(range(10**6))
with peers.Peers(0, 2, {}, lambda: None, "run"):
    {}
"""


@pytest.mark.parametrize(
    ("exchange", "within", "said"),
    [
        ('lambda word: {"0": word, "1": "7"}', "time.sleep(30)", "process 1 of 2 is gone"),
        ("lambda word: time.sleep(30)", "time.sleep(30)", "the process that the others meet at is gone"),
        ("lambda word: 1 / 0", "time.sleep(30)", "the process that the others meet at is gone"),
        ('lambda word: {"0": word, "1": "7"}', "raise RuntimeError('connection closed')", "process 1 of 2 is gone"),
    ],
    ids=["stands still", "store hangs", "store gone", "collective failed"],
)
def test_a_loss_is_noticed_whatever_the_main_thread_does(exchange, within, said, tmp_path, environment):
    ended = python(tmp_path, environment, PEERS.format(exchange, within))
    assert (ended.code, ended.stderr.count("\n")) == (6, 1)
    assert said in ended.stderr


def test_an_exception_that_is_not_a_loss_is_raised_as_it_is(tmp_path, environment):
    exchange = 'lambda word: {"0": word, "1": str(next(beats))}'
    ended = python(tmp_path, environment, PEERS.format(exchange, "raise KeyError('a bug')"))
    assert ended.code == 1
    assert ended.stderr.splitlines()[-1] == "KeyError: 'a bug'"
