"""Training for a long time: does memory grow, do file handles or threads, do steps become slower?

`python -m parity_tests.soak jaxgpt.train torch_ref.train`, in an empty folder, trains a one-layer model for 20,000
steps, with a checkpoint every 500, and prints what it found; 1 is its exit where something grows. Memory is measured in
two more runs of as many steps: without checkpoints, what a step leaves; with 400 of them, what one leaves.

Other programs on the machine slow a step, and its processor time too, through shared caches and cores, more than what
is looked for, and one core more than the next. So another run of the same flags, the pacemaker, takes turns on one core
with the first tenth of the run, a tenth of a second at a time. One process of a program is faster than the next for as
long as it lives, by as much again. So the same pacemaker, which has stood still meanwhile, takes turns with the last
tenth too, in its own second one, and the run's steps are told in its. Turns of both are as long, for each begins with
cold caches. The steps that are timed are of a wider model, some 4 ms each: of 1 ms there are too few to tell 3%. Where
such a run seems slower at its end than it may be, four more are made, and the median of the five is judged.

What a save leaves in JAX is tensorstore's and the allocator's. `JsonToPyObject` in its python/tensorstore/
json_type_caster.cc gives each key and value of a dict to PyDict_SetItem, which takes no reference over, so they are
never freed (seen in 0.1.86, and in commit bc4fbc1 of August 2026). Orbax asks for such dicts at each save: once an
array, in `ts.KvStore.Spec(...).to_json()`, and twice for metrics, in `ts.experimental_collect_matching_metrics`; no
option of its leaves these out. That is 267 Python objects a save and 4 more an array, of whatever size. With both calls
replaced 20 KB of 47 KB a save are left in this run, and these are gaps in the heap: in a loop of 1,500 saves that trims
it (`malloc_trim`) nothing is.
"""

import argparse
import importlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from parity_tests.programs import _child, _end

SAVE_EVERY = 500
WORDS = (
    "--recipe tiny --model.layers 1 --model.width 16 --model.heads 2 --model.context 16 --data.sequences 4 "
    "--micro-batch 4 --val-tokens 1024 --val-every 1000 --keep 2"
)
TIMED = f"{WORDS} --model.width 64 --model.context 64"
"""Of the run whose steps are timed: the later of two flags of one name is taken."""
EVERY = 10
"""Steps between samples."""
WARM_UP = 0.2
"""What part of the steps memory has to settle in: allocators keep what they have used once."""
SAVES = 400
"""Checkpoints of the run that tells what one leaves behind."""
LARGEST_SLOPE = 50.0
"""Bytes a step that the whole interval of memory's growth must stay below, without checkpoints."""
LARGEST_OF_A_SAVE = {"torch_ref.train": 5e3, "jaxgpt.train": 100e3}
"""Bytes a checkpoint that its interval must stay below."""
LARGEST_SLOWDOWN = 0.03
"""One run tells it to some 2%: seven of JAX on two cores that had little else to do gave -2.3, -0.8, 0.8, 1.8, 1.9, 2.0
and 3.0%, three of torch 0.0, 0.3 and 0.9; three of JAX without checkpoints -3.4, -0.6 and 4.2. Python does no more at
the end: 312 calls and returns a step (`sys.setprofile`) in both tenths."""
AGAIN = 4
"""Further runs where the first seems slower."""
MORE = 4
"""Handles or threads: pools are filled as they are needed, and a sample may meet a save in the one tenth and not in the
other. One kept for each save would be 28 more."""
TURN = 0.1
"""Seconds."""


class Turns(NamedTuple):
    """Rows of what `sampling` writes, of a run and its pacemaker."""

    whole: np.ndarray
    pace: np.ndarray
    """Of the pacemaker, in turns with the first tenth of `whole`."""
    pace_later: np.ndarray
    """Of the same process, in turns with the last tenth."""

    @property
    def ms(self) -> tuple[float, float]:
        """Processor time of a step of the run, in its first tenth and its last: mean of the quicker four fifths."""
        step = self.whole[:, 0]
        return _ms(self.whole[step <= 0.1 * step[-1]]), _ms(self.whole[step > 0.9 * step[-1]])

    @property
    def pace_ms(self) -> tuple[float, float]:
        """Of the pacemaker's steps in turns with those."""
        return _ms(self.pace), _ms(self.pace_later)

    @property
    def slowdown(self) -> float:
        """How much longer a step of the last tenth takes than one of the first, in parts of it.

        The pacemaker has grown older as well, by a tenth of the steps instead of nine.
        """
        (first, last), (pace, later) = self.ms, self.pace_ms
        return ((last / later) / (first / pace) - 1) * 9 / 8


class Runs(NamedTuple):
    """Rows of what `sampling` writes."""

    timed: list[Turns]
    unsaved: np.ndarray
    saved: np.ndarray
    """Of a run with many checkpoints."""
    often: int
    """Steps between those."""


class Found(NamedTuple):
    """Of one trainer's runs. Intervals are 95%."""

    trainer: str
    steps: int
    mib: float
    """At the end of the warm-up. Memory is what the process holds of its own, without mapped files: how much of a shard
    that it maps is resident grows as it reads on, and is the kernel's to take back."""
    bytes_per_step: float
    """Without checkpoints."""
    interval: tuple[float, float]
    bytes_per_save: float
    interval_of_a_save: tuple[float, float]
    handles: tuple[int, int]
    """The most open at once, in the first tenth after the warm-up and in the last tenth of the run."""
    threads: tuple[int, int]
    ms_per_step: tuple[float, float]
    """Of the first timed run; see `Turns`."""
    ms_of_pacemaker: tuple[float, float]
    slowdowns: tuple[float, ...]
    """Of each timed run."""

    @property
    def grows(self) -> list[str]:
        """What grows."""
        wrong = {
            "memory": self.interval[1] > LARGEST_SLOPE,
            "memory with each save": self.interval_of_a_save[1] > LARGEST_OF_A_SAVE[self.trainer],
            "file handles": self.handles[1] > self.handles[0] + MORE,
            "threads": self.threads[1] > self.threads[0] + MORE,
            "time of a step": statistics.median(self.slowdowns) > LARGEST_SLOWDOWN,
        }
        return [name for name, each in wrong.items() if each]


def sampling(trainer, file: Path) -> None:
    """Have `trainer` write a row every few steps: the step, bytes, open files, threads, seconds of processor time."""
    train, page = trainer.RunLog.train, os.sysconf("SC_PAGESIZE")
    out = file.open("w", encoding="utf-8", buffering=1)

    def logged(self, at: int, *metrics) -> None:
        train(self, at, *metrics)
        if at % EVERY == 0:
            seconds = time.process_time()
            _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
            handles, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
            out.write(f"{at} {(resident - of_files) * page} {handles} {threads} {seconds}\n")

    trainer.RunLog.train = logged


def soak(module: str, steps: int) -> Runs:
    """Train here in children; rows of what `sampling` writes."""
    trainer = importlib.import_module(module)
    often = steps // SAVES
    timed = f"{TIMED} --steps {steps} --save-every {min(SAVE_EVERY, max(steps // 40, 1))}"
    turns = [_in_turns(trainer, timed, module, steps)]
    if turns[0].slowdown > LARGEST_SLOWDOWN:
        turns += [_in_turns(trainer, timed, f"{module}.again{again}", steps) for again in range(AGAIN)]
    unsaved = _alone(trainer, f"{WORDS} --steps {steps} --save-every {2 * steps}", f"{module}.unsaved")
    saved = _alone(trainer, f"{WORDS} --steps {steps} --save-every {often}", f"{module}.saved")
    return Runs(turns, unsaved, saved, often)


def _in_turns(trainer, words: str, name: str, steps: int) -> Turns:
    files, core = (Path(f"{name}.samples"), Path(f"{name}.pace.samples")), max(os.sched_getaffinity(0))
    whole = _sampled(trainer, files[0], f"{words} --run {name}", core)
    _until(files[0], 2 * EVERY, whole[0])
    os.kill(whole[0], signal.SIGSTOP)
    pace = _sampled(trainer, files[1], f"{words} --run {name}.pace --stop-at {steps // 4}", core)
    _until(files[1], 2 * EVERY, pace[0])
    _take_turns(whole[0], pace[0], lambda: _last_step(files[0]) >= steps // 10)
    os.kill(pace[0], signal.SIGSTOP)
    stood_at = _last_step(files[1])
    _until(files[0], 0.9 * steps - EVERY, whole[0])
    _take_turns(whole[0], pace[0], lambda: _last_step(files[0]) > steps - EVERY)
    went_to = _last_step(files[1])
    for ended in (_end(*whole), _end(*pace)):
        assert ended.code == 0, ended.stderr
    paced = np.loadtxt(files[1])
    return Turns(np.loadtxt(files[0]), *of_turns(paced, stood_at, went_to))


def of_turns(paced: np.ndarray, stood_at: int, went_to: int) -> tuple[np.ndarray, np.ndarray]:
    """A pacemaker's rows up to a step, and from there to another: beyond, it went on alone, which is faster."""
    step = paced[:, 0]
    return paced[step <= stood_at], paced[(step > stood_at) & (step <= went_to)]


def _take_turns(child: int, pacemaker: int, done: Callable[[], bool]) -> None:
    """Let two processes run a turn each until it is done or one has ended; both run then."""
    stands, runs = child, pacemaker
    while _is_running(child) and _is_running(pacemaker) and not done():
        os.kill(stands, signal.SIGSTOP)
        os.kill(runs, signal.SIGCONT)
        time.sleep(TURN)
        stands, runs = runs, stands
    for each in (child, pacemaker):
        os.kill(each, signal.SIGCONT)


def _until(file: Path, step: float, child: int) -> None:
    while _last_step(file) < step and _is_running(child):
        time.sleep(0.01)


def _alone(trainer, words: str, name: str) -> np.ndarray:
    file = Path(f"{name}.samples")
    ended = _end(*_sampled(trainer, file, f"{words} --run {name}"))
    assert ended.code == 0, ended.stderr
    return np.loadtxt(file)


def _sampled(trainer, file: Path, words: str, core: int | None = None) -> tuple[int, int, int]:
    train, cores = trainer.RunLog.train, os.sched_getaffinity(0)
    sampling(trainer, file)
    if core is not None:
        os.sched_setaffinity(0, {core})  # the child's from its start: its pools are as large as it has cores
    child = _child(trainer, "", words.split())
    os.sched_setaffinity(0, cores)
    trainer.RunLog.train = train
    return child


def _last_step(file: Path) -> int:
    *_, row = [b"0 ", *file.read_bytes().splitlines()]
    return int(row.split()[0])


def _is_running(child: int) -> bool:
    """Whether it hasn't ended, without taking note of that for `_end`."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def slope(step: np.ndarray, held: np.ndarray, cycle: int) -> tuple[float, tuple[float, float]]:
    """Least squares through the medians of `cycle` steps each, and its 95% interval.

    Memory rises and falls with each save, so one sample tells of the next; medians of whole cycles don't.
    """
    starts = range(int(step[0]), int(step[-1]), cycle)
    cycles = [held[(step > start) & (step <= start + cycle)] for start in starts]
    medians = [np.median(each) for each in cycles if len(each)]
    if np.ptp(medians) == 0:  # the same to the page; the line's error would be 0/0
        return 0.0, (0.0, 0.0)
    line = stats.linregress(cycle * np.arange(len(medians)), medians)
    half = stats.t.ppf(0.975, len(medians) - 2) * line.stderr
    return float(line.slope), (float(line.slope - half), float(line.slope + half))


def find(trainer: str, runs: Runs) -> Found:
    """What the rows of a trainer's runs say."""
    turns = runs.timed[0]
    step, _, handles, threads, _ = turns.whole.T
    steps = int(step[-1])
    early, late = (step > WARM_UP * steps) & (step <= (WARM_UP + 0.1) * steps), step > 0.9 * steps
    growth, interval = _growth(runs.unsaved, cycle=max(steps // 40, EVERY))
    of_a_save, (low, high) = _growth(runs.saved, cycle=runs.often)
    return Found(
        trainer,
        steps,
        float(runs.unsaved[runs.unsaved[:, 0] > WARM_UP * steps][0, 1]) / 2**20,
        growth,
        interval,
        of_a_save * runs.often,
        (low * runs.often, high * runs.often),
        (int(handles[early].max()), int(handles[late].max())),
        (int(threads[early].max()), int(threads[late].max())),
        turns.ms,
        turns.pace_ms,
        tuple(each.slowdown for each in runs.timed),
    )


def _growth(rows: np.ndarray, cycle: int) -> tuple[float, tuple[float, float]]:
    step, held, *_ = rows.T
    settled = step > WARM_UP * step[-1]
    return slope(step[settled], held[settled], cycle)


def _ms(samples: np.ndarray) -> float:
    """Mean of a step's milliseconds, but for the slowest fifth: a save, and what else comes between."""
    each = np.sort(np.diff(samples[:, 4]) / np.diff(samples[:, 0]))
    return float(each[: int(0.8 * len(each))].mean()) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainers", nargs="+", choices=("jaxgpt.train", "torch_ref.train"))
    parser.add_argument("--steps", type=int, default=20_000)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: threads of one core would wait for each other
    grown = []
    for module in asked.trainers:
        found = find(module, soak(module, asked.steps))
        print(json.dumps(found._asdict() | {"grows": found.grows}), flush=True)
        grown += found.grows
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
