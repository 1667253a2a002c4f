"""Training for a long time: does memory grow, do file handles or threads, do steps become slower?

`python -m parity_tests.soak jaxgpt.train torch_ref.train`, in an empty folder, trains a one-layer model for 20,000
steps, with a checkpoint every 500, and prints what it found; 1 is its exit where something grows.
"""

import argparse
import importlib
import json
import os
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
    """Medians of processor time, in the first tenth of the run and the last."""
    slowdown: float
    """How much more of `reference` a step of the last tenth takes than one of the first."""

    @property
    def grows(self) -> list[str]:
        """What grows."""
        wrong = {
            "memory": self.interval[1] > LARGEST_SLOPE[self.trainer],
            "file handles": self.handles[1] > self.handles[0],
            "threads": self.threads[1] > self.threads[0],
            "time of a step": self.slowdown > LARGEST_SLOWDOWN,
        }
        return [name for name, each in wrong.items() if each]


def reference() -> float:
    """Seconds of processor time that this thread needs for a fixed piece of work, of Python and of small products."""
    began = time.thread_time()
    x, total = np.eye(32, dtype=np.float32), 0
    for i in range(200):
        x = x @ x
        total += len(str(i))
    return time.thread_time() - began


def sampling(trainer, file: Path) -> None:
    """Have `trainer` write a row every few steps: the step, bytes, open files, threads, seconds of processor time up to
    then and of `reference`, which aren't among the former."""
    train, page = trainer.RunLog.train, os.sysconf("SC_PAGESIZE")
    out, spent = file.open("w", encoding="utf-8", buffering=1), 0.0

    def logged(self, at: int, *metrics) -> None:
        nonlocal spent
        train(self, at, *metrics)
        if at % EVERY == 0:
            seconds = time.process_time() - spent
            _, resident, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
            handles, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
            worked = reference()
            spent += worked
            out.write(f"{at} {(resident - of_files) * page} {handles} {threads} {seconds} {worked}\n")

    trainer.RunLog.train = logged


def soak(module: str, steps: int, words: str = WORDS) -> np.ndarray:
    """Train here in a child; rows of what `sampling` writes."""
    trainer, file = importlib.import_module(module), Path(f"{module}.samples")
    words += f" --steps {steps} --save-every {min(SAVE_EVERY, max(steps // 40, 1))} --run {module}"
    train = trainer.RunLog.train
    sampling(trainer, file)
    ended = _end(*_child(trainer, "", words.split()))
    trainer.RunLog.train = train
    assert ended.code == 0, ended.stderr
    return np.loadtxt(file)


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


def find(trainer: str, samples: np.ndarray) -> Found:
    """What rows of samples say.

    Other programs on the machine slow a step, and its processor time too, through shared caches and cores. They slow
    `reference` as well: the median of a step's time in units of the one just before it is the step's own.
    """
    step, held, handles, threads, seconds, worked = samples.T
    steps = int(step[-1])
    settled = step > WARM_UP * steps
    growth, interval = slope(step[settled], held[settled], cycle=max(steps // 40, EVERY))
    early, late = settled & (step <= (WARM_UP + 0.1) * steps), step > 0.9 * steps
    ms = np.diff(seconds) / np.diff(step) * 1e3
    tenths = step[1:] <= 0.1 * steps, step[1:] > 0.9 * steps
    first, last = (float(np.median((ms / worked[:-1])[tenth])) for tenth in tenths)
    return Found(
        trainer,
        steps,
        float(held[settled][0]) / 2**20,
        growth,
        interval,
        (int(handles[early].max()), int(handles[late].max())),
        (int(threads[early].max()), int(threads[late].max())),
        (float(np.median(ms[tenths[0]])), float(np.median(ms[tenths[1]]))),
        last / first - 1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainers", nargs="+", choices=("jaxgpt.train", "torch_ref.train"))
    parser.add_argument("--steps", type=int, default=20_000)
    asked = parser.parse_args()
    grown = []
    for module in asked.trainers:
        found = find(module, soak(module, asked.steps))
        print(json.dumps(found._asdict() | {"grows": found.grows}), flush=True)
        grown += found.grows
    sys.exit(bool(grown))


if __name__ == "__main__":
    main()
