"""Training for a long time: does memory grow, do file handles or threads, do steps become slower?

`python -m parity_tests.soak jaxgpt.train torch_ref.train`, in an empty folder, trains a one-layer model for 20,000
steps, with a checkpoint every 500, and prints what it found; 1 is its exit where something grows.

Other programs on the machine slow a step, and its processor time too, through shared caches and cores, more than what
is looked for. So the last tenth of the run is compared with the first tenth of another run of the same flags that takes
turns with it, a twentieth of a second each.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import time
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
EVERY = 10
"""Steps between samples."""
WARM_UP = 0.2
"""What part of the steps memory has to settle in: allocators keep what they have used once."""
LARGEST_SLOPE = {"torch_ref.train": 50.0, "jaxgpt.train": 1000.0}
"""Bytes a step that the whole interval of memory's growth must stay below. Each save by Orbax leaves 100 KB and more
behind: tensorstore's `Spec.to_json` loses lists of each array. Without saves JAX's memory is as flat as PyTorch's."""
LARGEST_SLOWDOWN = 0.03
MORE = 4
"""Handles or threads: pools are filled as they are needed, and a sample may meet a save in the one tenth and not in the
other. One kept for each save would be 28 more."""
TURN = 0.05
"""Seconds."""


class Found(NamedTuple):
    """Of one trainer's run."""

    trainer: str
    steps: int
    mib: float
    """At the end of the warm-up. Memory is what the process holds of its own, without mapped files: how much of a shard
    that it maps is resident grows as it reads on, and is the kernel's to take back."""
    bytes_per_step: float
    interval: tuple[float, float]
    """95%, of that."""
    handles: tuple[int, int]
    """The most open at once, in the first tenth after the warm-up and in the last tenth of the run."""
    threads: tuple[int, int]
    ms_per_step: tuple[float, float]
    """Medians of processor time: of the first tenth of a run and the last, which took turns."""
    ms_in_its_own_first_tenth: float
    """At another time, under another load."""

    @property
    def slowdown(self) -> float:
        """How much longer a step of the last tenth takes than one of the first, in parts of it."""
        return self.ms_per_step[1] / self.ms_per_step[0] - 1

    @property
    def grows(self) -> list[str]:
        """What grows."""
        wrong = {
            "memory": self.interval[1] > LARGEST_SLOPE[self.trainer],
            "file handles": self.handles[1] > self.handles[0] + MORE,
            "threads": self.threads[1] > self.threads[0] + MORE,
            "time of a step": self.slowdown > LARGEST_SLOWDOWN,
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


def soak(module: str, steps: int, words: str = WORDS) -> tuple[np.ndarray, np.ndarray]:
    """Train here in a child; rows of what `sampling` writes, and those of the other run's first tenth."""
    trainer = importlib.import_module(module)
    words += f" --steps {steps} --save-every {min(SAVE_EVERY, max(steps // 40, 1))} --run {module}"
    whole, other = Path(f"{module}.samples"), Path(f"{module}.first.samples")
    first = _sampled(trainer, whole, words)
    while _last_step(whole) < 0.9 * steps - EVERY and _is_running(first[0]):
        time.sleep(0.01)
    os.kill(first[0], signal.SIGSTOP)
    second = _sampled(trainer, other, f"{words}-first --stop-at {steps // 10}")
    while _last_step(other) < 2 * EVERY and _is_running(second[0]):
        time.sleep(0.01)
    turns = [second[0], first[0]]
    while all(_is_running(child) for child in turns):
        os.kill(turns[0], signal.SIGSTOP)
        os.kill(turns[1], signal.SIGCONT)
        time.sleep(TURN)
        turns.reverse()
    for child in turns:
        os.kill(child, signal.SIGCONT)
    for ended in (_end(*first), _end(*second)):
        assert ended.code == 0, ended.stderr
    return np.loadtxt(whole), np.loadtxt(other)


def _sampled(trainer, file: Path, words: str) -> tuple[int, int, int]:
    train = trainer.RunLog.train
    sampling(trainer, file)
    child = _child(trainer, "", words.split())
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
    line = stats.linregress(cycle * np.arange(len(medians)), medians)
    half = stats.t.ppf(0.975, len(medians) - 2) * line.stderr
    return float(line.slope), (float(line.slope - half), float(line.slope + half))


def find(trainer: str, samples: np.ndarray, first: np.ndarray) -> Found:
    """What the rows of a run say, and those of another one's first tenth."""
    step, held, handles, threads, _ = samples.T
    steps = int(step[-1])
    settled = step > WARM_UP * steps
    growth, interval = slope(step[settled], held[settled], cycle=max(steps // 40, EVERY))
    early, late = settled & (step <= (WARM_UP + 0.1) * steps), step > 0.9 * steps
    return Found(
        trainer,
        steps,
        float(held[settled][0]) / 2**20,
        growth,
        interval,
        (int(handles[early].max()), int(handles[late].max())),
        (int(threads[early].max()), int(threads[late].max())),
        (_ms(first), _ms(samples[late])),
        _ms(samples[step <= 0.1 * steps]),
    )


def _ms(samples: np.ndarray) -> float:
    """Median of a step's milliseconds."""
    return float(np.median(np.diff(samples[:, 4]) / np.diff(samples[:, 0]))) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainers", nargs="+", choices=("jaxgpt.train", "torch_ref.train"))
    parser.add_argument("--steps", type=int, default=20_000)
    asked = parser.parse_args()
    grown = []
    for module in asked.trainers:
        found = find(module, *soak(module, asked.steps))
        print(json.dumps(found._asdict() | {"slowdown": found.slowdown, "grows": found.grows}), flush=True)
        grown += found.grows
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
