"""Mutants climb the ladder: each in a copy of the trainers, in a child of one process that has imported the frameworks.

A child climbs the rungs that look at its file, in float64, up to the first red test. What passes there meets all tests
of the ladder and those beside it, a child for each file of tests. A test that hangs is red. What XLA compiles for the
unchanged copy is found again by every mutant; none of them adds to it, for a program that is half written can't be
read.
"""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from parity_tests.mutants.mutate import Mutant
from parity_tests.planted.ascent import CLIMB, rung_of
from parity_tests.planted.run import Outcome, environment

OURS = ("jaxgpt", "torch_ref", "parity_tests")
HEAVY = ("numpy", "scipy.stats", "jax", "jax.numpy", "torch", "flax.nnx", "optax", "pytest", "hypothesis", "tyro")
HEAVY += ("safetensors.numpy", "safetensors.torch", "torch.distributed", "jaxtyping", "rich.progress")

RUNGS = {
    "tokens": ["0"],
    "muon": ["1", "3b", "6", "9"],
    "model": ["3", "4", "5", "3b", "2", "8"],
    "loss": ["3b", "4", "5", "3"],
    "optimizer": ["6", "7", "9", "10", "8"],
}
"""Module -> the rungs that look at it, upwards; what takes long and seldom tells comes late."""
BESIDE = ["test_statefile.py", "test_bad_input.py", "test_torch_ref.py"]
ABOVE = ("11", "12", "14", "15")
"""Rungs that don't look at a trainer's arithmetic, or need what isn't there."""
EVERYTHING = [path.name for path in sorted(Path(__file__).parents[1].glob("test_rung_*.py"))]
EVERYTHING = [name for name in EVERYTHING if rung_of(name) not in ABOVE] + BESIDE
"""Files of tests that have to be green for a mutant to have survived."""
LONG = {"test_rung_08_training.py", "test_rung_10_bridge.py", "test_rung_02_initial_weights.py"}
"""Those that take longest: they start first."""


class Job(NamedTuple):
    """One child's work: a folder with a copy of the trainers, and the tests to run there."""

    name: str
    root: Path
    rungs: list[str]
    """Climbed first, in float64."""
    file: str | None
    """Then all of its tests, in every dtype."""
    cache: Path
    """Of compiled programs."""
    adds: bool
    """Whether it adds to that."""


def warm() -> None:
    """Import what all children need, with the environment of `planted.run.climb`; no device is asked for."""
    surroundings = environment(Path.cwd())
    del surroundings["PYTHONPATH"], surroundings["JAX_COMPILATION_CACHE_DIR"]
    os.environ.clear()
    os.environ.update(surroundings)
    for name in HEAVY:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)


def unchanged(base: Path, folder: Path, processes: int, patience: float) -> tuple[Path, list[str]]:
    """Run all tests on the copy at `base`: where the programs that XLA compiled for it are kept, and the red files.

    A file that is red without any mutant, with other versions say, would kill them all: mutants don't run it. Programs
    of an earlier run with the same sources and the same JAX are taken instead.
    """
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxgpt" / "mutants" / _hash(base)
    if (ended := kept / "red.json").exists():
        return kept, json.loads(ended.read_text(encoding="utf-8"))
    jobs = [
        Job(file, _copy(base, folder / file), [], file, folder / f"compiled for {file}", adds=True)
        for file in sorted(EVERYTHING, key=lambda file: file not in LONG)
    ]
    kept.mkdir(parents=True, exist_ok=True)
    red = []
    for job, outcome in climbed(jobs, processes, patience):
        print(f"{outcome.ended:8} {outcome.seconds:5.0f} s  {job.name}  {outcome.message or ''}", flush=True)
        if outcome.ended != "green":
            red.append(job.name)
        for program in job.cache.glob("*"):
            os.replace(shutil.copy(program, kept / f"{program.name}.part"), kept / program.name)
    ended.write_text(json.dumps(sorted(red)), encoding="utf-8")
    return kept, sorted(red)


def climbs(
    mutants: list[Mutant], base: Path, folder: Path, control: tuple[Path, list[str]], processes: int, patience: float
) -> Iterator[tuple[Mutant, Outcome]]:
    """Each mutant of the copy at `base`, and how its climb ended. Copies come and go in `folder`; `control` is what
    `unchanged` said."""
    of = {f"mutant-{i:03}": mutant for i, mutant in enumerate(mutants)}
    passed: dict[str, tuple[Job, Outcome]] = {}
    jobs = (_job(name, mutant, base, folder, *control) for name, mutant in of.items())
    for job, outcome in climbed(jobs, processes, patience):
        if outcome.ended == "green":
            passed[job.name] = job, outcome
        else:
            shutil.rmtree(job.root)
            yield of[job.name], outcome
    yield from ((of[name], outcome) for name, outcome in _rest(passed, control[1], processes, patience))


def _job(name: str, mutant: Mutant, base: Path, folder: Path, cache: Path, red: list[str]) -> Job:
    """The rungs that look at its file."""
    root = _copy(base, folder / name)
    file = root / mutant.file
    file.write_text(mutant.applied(file.read_text(encoding="utf-8")), encoding="utf-8")
    rungs = [r for r in RUNGS[file.stem] if not {test.split("::")[0] for test in CLIMB[r]} & set(red)]
    return Job(name, root, rungs, None, cache, adds=False)


def _rest(
    passed: dict[str, tuple[Job, Outcome]], red: list[str], processes: int, patience: float
) -> Iterator[tuple[str, Outcome]]:
    """What their own rungs let pass meets every other test, a file at a time; the first red one ends it."""
    ended: dict[str, Outcome] = {}
    left = {name: set(EVERYTHING) - set(red) for name in passed}
    seconds = {name: outcome.seconds for name, (_, outcome) in passed.items()}

    def jobs() -> Iterator[Job]:
        for file in sorted(EVERYTHING, key=lambda file: file not in LONG):
            for name, (job, _) in passed.items():
                if name not in ended and file in left[name]:
                    root = _copy(job.root, job.root.with_name(f"{name} {file}"))
                    yield job._replace(name=f"{name} {file}", root=root, rungs=[], file=file)

    for job, outcome in climbed(jobs(), processes, patience):
        shutil.rmtree(job.root)
        name, file = job.name.split()
        left[name].discard(file)
        seconds[name] = round(seconds[name] + outcome.seconds, 1)
        if name in ended or (outcome.ended == "green" and left[name]):
            continue
        ended[name] = outcome._replace(seconds=seconds[name])
        yield name, ended[name]


def _copy(base: Path, to: Path) -> Path:
    return Path(shutil.copytree(base, to))


def _hash(base: Path) -> str:
    """Of everything that decides what is compiled, and what is green."""
    versions = [sys.version, *(importlib.import_module(name).__version__ for name in ("jax", "torch", "flax", "optax"))]
    hashed = hashlib.sha256(" ".join(versions).encode())
    for path in sorted(path for path in base.rglob("*.py") if path.parent.name != "mutants"):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def climbed(jobs: Iterable[Job], processes: int, patience: float) -> Iterator[tuple[Job, Outcome]]:
    """Run jobs in so many children; each that has ended, with how. A test may take `patience` seconds."""
    waiting, running = iter(jobs), {}
    more = True
    while more or running:
        while more and len(running) < processes:
            job = next(waiting, None)
            if more := job is not None:
                running[_started(job)] = job, time.perf_counter()
        for child, (job, since) in list(running.items()):
            log = _log(job)
            ended, status = os.waitpid(child, os.WNOHANG)
            stuck = log.exists() and time.time() - log.stat().st_mtime > patience
            if not ended and not stuck:
                continue
            _killed(child)
            if not ended:
                os.waitpid(child, 0)
            del running[child]
            code = None if not ended else os.waitstatus_to_exitcode(status)
            yield job, _outcome(log, code, round(time.perf_counter() - since, 1))
        time.sleep(0.05)


def _started(job: Job) -> int:
    _log(job).unlink(missing_ok=True)
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()  # what a test starts ends with it
        code = _climb(job)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _climb(job: Job) -> int:
    said = os.open(job.root / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(job.root)
    os.environ |= {"PYTHONPATH": str(job.root), "JAX_COMPILATION_CACHE_DIR": str(job.cache)}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # some are imported, which pytest would warn of
    jax = importlib.import_module("jax")
    jax.config.update("jax_compilation_cache_dir", str(job.cache))
    if not job.adds:
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1e6"
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e6)
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.path.insert(0, str(job.root))
    ascent = importlib.import_module("parity_tests.planted.ascent")
    code = ascent.main(_log(job), job.rungs) if job.rungs else 0
    if code or job.file is None:
        return code
    return importlib.import_module("parity_tests.mutants.whole_file").main(_log(job), job.file)


def _log(job: Job) -> Path:
    return job.root / "ascent.jsonl"


def _killed(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended and left nothing behind
        os.killpg(child, signal.SIGKILL)


def _outcome(log: Path, code: int | None, seconds: float) -> Outcome:
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    last = next((event["started"] for event in reversed(events) if "started" in event), None)
    failed = next((event for event in events if "failed" in event), None)
    if failed:
        return Outcome("red", _rung(failed["failed"]), failed["failed"], failed["message"], seconds)
    if code is None:
        return Outcome("timeout", _rung(last), last, "the test doesn't end", seconds)
    if code:
        said = (log.parent / "said.txt").read_text(encoding="utf-8", errors="replace")[-1000:]
        if last is None:
            raise RuntimeError(f"{log.parent.name} ended with {code} before its first test: {said}")
        return Outcome("broken", _rung(last), last, f"ended with {code}: {said}", seconds)
    return Outcome("green", None, None, None, seconds)


def _rung(test: str | None) -> str | None:
    """None for the tests beside the ladder."""
    return rung_of(test) if test and "test_rung_" in test else None
