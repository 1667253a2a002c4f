"""Train what the claims rest on: `python -m benchmarks.claim_runs --data GLOB --val-data GLOB --out results/runs`.

The runs are declared in `benchmarks.claim_plan`; each is a process of one of the trainers on a GPU of its own, or, if
it is small, on one that it shares. Where that is stopped, the same command goes on: finished runs are left alone,
others go on from their last checkpoint. Of a finished run config.json and metrics.jsonl stay, in OUT/NAME; what isn't
finished, and initial weights, lie in OUT-unfinished. Imports neither JAX nor PyTorch.
"""

import contextlib
import fnmatch
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.claim_plan import ClaimRun, declared, plan, weights
from benchmarks.gpu_slots import starts
from benchmarks.trainer_runs import end_all, python_path
from jaxgpt.commands import parse
from jaxgpt.curves import load_run
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.files import check_name
from jaxgpt.flags import overrides
from jaxgpt.recipes import Recipe
from jaxgpt.recorded import from_json
from jaxgpt.shards import inspect_shards

_PROG = "python -m benchmarks.claim_runs"
_KEPT = ("config.json", "metrics.jsonl")
_MAY_DIFFER = {"data.micro_batch"}
_GRACE_S = 60.0
"""For a trainer to save its state once it is asked to stop."""
_POLL_S = 0.2
_LAST_WORDS = 800


@dataclass(frozen=True)
class Flags:
    """Train the runs that the claims rest on, those that aren't finished yet."""

    data: str
    """Glob of training shards of GPT-2 tokens."""
    val_data: str
    """Glob of validation shards, of at least 524,288 tokens."""
    out: Path
    """Folder of the finished runs, such as results/runs."""
    gpus: int = 1
    """GPUs to use, the first ones of CUDA_VISIBLE_DEVICES or of the machine."""
    small_per_gpu: int = 3
    """Small runs that share a GPU; each takes up to a quarter of its memory."""
    budget: float = math.inf
    """Seconds after which nothing is begun and what runs is asked to save its state, which takes a few more."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Names of runs, or patterns of them such as '124m-*'."""
    dry_run: bool = False
    """Print what would be run, and run nothing."""


@dataclass
class _Running:
    run: ClaimRun
    gpu: int
    process: subprocess.Popen
    began: float


@dataclass
class _Progress:
    """What has come of the runs."""

    finished: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    """Name -> how the run ended."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`. Exits with 1 where a run that was asked for isn't finished."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, _PROG)
    _check(flags)
    chosen = select(plan(), flags.only)
    missing = train(chosen, weights(), flags)
    if missing and not flags.dry_run:
        print(f"{len(missing)} of {len(chosen)} runs aren't finished: {', '.join(missing)}; the same command goes on")
        sys.exit(1)


def select(runs: Sequence[ClaimRun], names: Sequence[str]) -> list[ClaimRun]:
    """The runs of these names or patterns, and those they wait for; all where there is none.

    Raises:
      BadInput: a name that no run has.
    """
    if not names:
        return list(runs)
    chosen: set[str] = set()
    for name in names:
        fits = fnmatch.filter([run.name for run in runs], name)
        if not fits:
            near = get_close_matches(name, [run.name for run in runs], n=1, cutoff=0)[0]
            raise BadInput(f"--only {name}: no run has that name; did you mean {near}?")
        chosen |= set(fits)
    chosen |= {needed for run in runs if run.name in chosen for needed in run.best_of}
    return [run for run in runs if run.name in chosen]


def train(runs: Sequence[ClaimRun], starting: dict[str, tuple[str, ...]], flags: Flags) -> list[str]:
    """Train the runs that aren't finished.

    Args:
      runs: what to train; whatever one of them waits for is among them.
      starting: name of initial weights -> the flags of `jaxgpt.bridge` that make them.
      flags: where.

    Returns: names of the runs that aren't finished afterwards.

    Raises:
      BadInput: a folder of that name holds a run with other settings.
    """
    came = _Progress({run.name for run in runs if is_finished(flags.out / run.name, run)})
    waiting = sorted((r for r in runs if r.name not in came.finished), key=_order(runs))
    _say(f"{len(came.finished)} of {len(runs)} runs are finished; {len(waiting)} to go on {flags.gpus} GPUs")
    if flags.dry_run:
        print(*(f"{run.name}: {run.trainer}.train {' '.join(run.words)}" for run in waiting), sep="\n")
    if flags.dry_run or not waiting:
        return [run.name for run in waiting]
    unfinished = unfinished_folder(flags.out)
    unfinished.mkdir(parents=True, exist_ok=True)
    making = _make_weights({run.weights for run in waiting}, starting, unfinished)
    running: list[_Running] = []
    deadline = time.monotonic() + flags.budget
    with _terminated_is_interrupted():
        try:
            while waiting or running:
                _collect(running, came, flags.out)
                if time.monotonic() >= deadline:
                    _say("--budget is spent: what runs saves its state")
                    break
                started = _start(waiting, running, came, making, flags)
                waiting = [run for run in waiting if run not in started]
                if not running and not any(each.poll() is None for each in making.values()):
                    break  # nothing can be started any more
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            _say("interrupted: what runs saves its state")
        finally:
            end_all([*(each.process for each in running), *making.values()], _GRACE_S)
            _collect(running, came, flags.out)
    for name, why in came.failed.items():
        print(f"{name} {why}", file=sys.stderr)
    missing = [run.name for run in runs if run.name not in came.finished]
    if not missing:
        shutil.rmtree(unfinished)
    return missing


def is_finished(folder: Path, run: ClaimRun) -> bool:
    """Whether that run is there whole.

    Raises:
      BadInput: it is one with other settings, or no run.
    """
    if not folder.exists():
        return False
    here = load_run(folder)
    recipe, seed = declared(run)
    was = from_json(Recipe, here.config.get("recipe"), f"{folder}/config.json: recipe")
    apart = overrides(recipe, was).keys() - _MAY_DIFFER - ({"optimizer.lr"} if run.best_of else set())
    if here.trainer != run.trainer or here.config.get("seed") != seed or apart:
        what = min(apart, default="trainer or seed")
        raise BadInput(f"{folder} holds a run with another {what} than {run.name} has: move it away, or mend --out")
    return bool(len(here.val)) and int(here.val.step[-1]) == recipe.schedule.steps


def unfinished_folder(out: Path) -> Path:
    """Where runs are until they are finished."""
    return out.absolute().with_name(f"{out.absolute().name}-unfinished")


def best(out: Path, names: Iterable[str]) -> float:
    """The `--optimizer.lr` of the run in `out` whose last validation loss is the lowest."""
    runs = [load_run(out / name) for name in names if (out / name).is_dir()]
    return min(runs, key=lambda run: run.val.loss[-1]).config["recipe"]["optimizer"]["lr"]


def _check(flags: Flags) -> None:
    """Refuse what can't be used, before anything is started."""
    for name in ("gpus", "small_per_gpu"):
        if getattr(flags, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(flags, name)}: give at least 1")
    if not flags.budget > 0:
        raise BadInput(f"--budget {flags.budget}: give seconds above 0")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible and len(visible.split(",")) < flags.gpus:
        raise BadInput(f"--gpus {flags.gpus}: CUDA_VISIBLE_DEVICES is {visible}; give at most as many as that names")
    check_name(flags.out, "--out")
    if flags.out.exists() and not flags.out.is_dir():
        raise BadInput(f"--out {flags.out} is no folder: give another name")
    for flag, pattern in (("--data", flags.data), ("--val-data", flags.val_data)):
        inspect_shards(pattern, flag, 2**16)


def _order(runs: Sequence[ClaimRun]):
    """Those first that others wait for, then those that wait, then the longest."""
    awaited = {name for run in runs for name in run.best_of}
    return lambda run: (run.comes_last, run.name not in awaited, not run.best_of, -run.seconds)


def _make_weights(
    names: Iterable[str], starting: dict[str, tuple[str, ...]], folder: Path
) -> dict[str, subprocess.Popen]:
    """Begin to write the initial weights that aren't there yet, on the CPU: name -> process."""
    begun = {}
    (folder / "weights").mkdir(exist_ok=True)
    for name in sorted(names):
        file = folder / "weights" / f"{name}.safetensors"
        if not file.exists():
            command = [sys.executable, "-m", "jaxgpt.bridge", *starting[name], "--out", str(file)]
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path()}
            begun[name] = _popen(command, environment, folder / f"weights-{name}.log")
    return begun


def _start(
    waiting: Sequence[ClaimRun],
    running: list[_Running],
    came: _Progress,
    making: dict[str, subprocess.Popen],
    flags: Flags,
) -> list[ClaimRun]:
    """Start what can be: its initial weights are there, and a GPU has room."""
    for name, process in making.items():
        if process.poll():
            log = unfinished_folder(flags.out) / f"weights-{name}.log"
            failed = f"has no initial weights: {_last_words(log)}"
            came.failed |= {run.name: failed for run in waiting if run.weights == name}
    slots = flags.small_per_gpu
    free = [slots] * flags.gpus
    for each in running:
        free[each.gpu] -= 1 if each.run.shares_gpu else slots
    ready = [run for run in waiting if run.name not in came.failed]
    ready = [run for run in ready if run.weights not in making or making[run.weights].poll() == 0]
    begun = starts(ready, free, slots, came.finished, came.finished | came.failed.keys())
    for run, gpu in begun:
        running.append(_Running(run, gpu, _begin(run, gpu, flags), time.monotonic()))
    return [run for run, _ in begun] + [run for run in waiting if run.name in came.failed]


def _begin(run: ClaimRun, gpu: int, flags: Flags) -> subprocess.Popen:
    """Start a trainer on a GPU; in a folder that is there, it goes on."""
    unfinished = unfinished_folder(flags.out)
    folder = unfinished / run.name
    words = [*run.words, "--mesh", "1", "--data", flags.data, "--val-data", flags.val_data]
    words += ["--init-from", str(unfinished / "weights" / f"{run.weights}.safetensors"), "--run", str(folder)]
    words += ["--optimizer.lr", str(best(flags.out, run.best_of))] if run.best_of else []
    words += ["--resume"] if folder.exists() else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    card = visible.split(",")[gpu] if visible else str(gpu)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": card, "PYTHONPATH": python_path()}
    if run.shares_gpu:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.25"
    _say(f"{run.name} on GPU {card}")
    return _popen([sys.executable, "-m", f"{run.trainer}.train", *words], environment, unfinished / f"{run.name}.log")


def _popen(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    with open(log, "ab") as said:
        return subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)


def _collect(running: list[_Running], came: _Progress, out: Path) -> None:
    """Take the runs that have ended out of `running`, and what remains of the finished ones to `out`."""
    for each in [each for each in running if each.process.poll() is not None]:
        running.remove(each)
        code, name = each.process.returncode, each.run.name
        if code == 0:
            keep(unfinished_folder(out) / name, out / name)
            came.finished.add(name)
            loss = load_run(out / name).val.loss[-1]
            _say(f"{name} is finished: val loss {loss:.4f}, {time.monotonic() - each.began:.0f} s")
        elif code not in (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL):
            said = _last_words(unfinished_folder(out) / f"{name}.log")
            came.failed[name] = f"ended with exit code {code}: {said}"
            _say(f"{name} {came.failed[name]}")


def keep(folder: Path, kept: Path) -> None:
    """Put what stays of the finished run in `folder` into `kept`, whole or not at all, and delete the rest."""
    new = kept.with_name(f"{kept.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in _KEPT:
        shutil.copyfile(folder / name, new / name)
    new.rename(kept)
    shutil.rmtree(folder)


@contextlib.contextmanager
def _terminated_is_interrupted():
    """SIGTERM does what Ctrl-C does, so that no run is left behind."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_words(log: Path) -> str:
    """The end of what a process said, in a line."""
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return " ".join(said.split())[-_LAST_WORDS:]


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    main()
