"""Short runs of the trainers as a user starts them, and what their folders say: no framework is imported.

The step that is timed is the one that trains: each run is a process of `python -m jaxgpt.train`, of `python -m
torch_ref.train`, or of a user's own copy of a published script, whose log is read.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.published_copy import changed_copy, read_log
from jaxgpt.errors import BadInput
from jaxgpt.flops import newton_schulz_flops, token_flops
from jaxgpt.recipes import Recipe
from jaxgpt.recorded import from_json
from jaxgpt.shards import write_shard

TRAINERS = ("jaxgpt", "torch_ref", "published")
_LAST_WORDS = 1500
_GRACE_S = 40.0
"""Longer than torchrun gives its workers."""


@dataclass(frozen=True)
class Entry:
    """One thing to run: a trainer, with flags and environment of its own. `label` is what the user wrote."""

    label: str
    trainer: str
    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What all runs of a measurement share."""

    recipe: Recipe
    steps: int
    data: str
    """Glob of training shards."""
    val_data: str
    published: Path | None
    """The published script, where it is run too."""
    flags: tuple[str, ...]
    """Of both trainers."""
    work: Path
    """Where runs and compilers' caches go."""
    keep: Path | None = None
    """Where runs' folders go instead of being deleted, as TRAINER-ALTERNATION, without weights and checkpoints."""


@dataclass(frozen=True)
class TimedRun:
    """What one run did. Times of all its steps, the first ones too."""

    trainer: str
    """As the user wrote it, flags included."""
    recipe: str
    alternation: int
    devices: int
    cache: str
    """"cold" where the compiler's cache was empty, else "warm"."""
    step_ms: list[float]
    compile_s: float | None
    """None where a script doesn't say."""
    peak_bytes: int
    """Of the first device."""
    step_tokens: int
    token_flops: int
    newton_schulz_flops: int
    """Of a step."""
    micro_batch: int | None
    card: str
    versions: dict[str, str]
    train_loss: list[float]
    wall_s: float
    """The whole process, start and checkpoint included."""


@dataclass(frozen=True)
class FailedRun:
    """A run that ended otherwise, and the last that it said."""

    trainer: str
    alternation: int
    devices: int
    exit_code: int | None
    """None where it ran out of time."""
    said: str = field(repr=False, default="")


def entry(written: str) -> Entry:
    """Read `[NAME=VALUE ...] TRAINER [--flag ...]` as a shell would.

    Raises:
      BadInput: no trainer of that name.
    """
    words = shlex.split(written)
    environment = []
    while words and "=" in words[0] and not words[0].startswith("-"):
        name, _, value = words.pop(0).partition("=")
        environment.append((name, value))
    if not words or words[0] not in TRAINERS:
        raise BadInput(f"--trainers {written}: give {', '.join(TRAINERS)}, with flags of its own in the same quotes")
    if words[0] == "published" and words[1:]:
        raise BadInput(f"--trainers {written}: the published script takes no flags")
    return Entry(written, words[0], tuple(words[1:]), tuple(environment))


def make_up_tokens(folder: Path, recipe: Recipe, steps: int) -> tuple[str, str]:
    """Write shards of random tokens, enough for so many steps, and for one validation; their globs."""
    drawn = np.random.default_rng(0)
    needed = (steps + 1) * recipe.step_tokens + 1
    for kind, count in (("train", needed), ("val", recipe.step_tokens + 1)):
        write_shard(folder / f"random_{kind}_000001.bin", drawn.integers(0, recipe.model.token_ids, count, np.uint16))
    return str(folder.absolute() / "random_train_*.bin"), str(folder.absolute() / "random_val_*.bin")


def python_path() -> str:
    """PYTHONPATH with this checkout first, for a process that starts in another folder."""
    return os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])


def shards(data: str | None, val_data: str | None, folder: Path, recipe: Recipe, steps: int) -> tuple[str, str]:
    """Globs of the tokens that are asked for, or of random ones made in `folder`.

    Raises:
      BadInput: one without the other, or one that fits no file.
    """
    if data is None and val_data is None:
        return make_up_tokens(folder, recipe, steps)
    if data is None or val_data is None:
        raise BadInput("--data and --val-data go together: give both, or neither for random tokens")
    for flag, pattern in (("--data", data), ("--val-data", val_data)):
        if not glob.glob(pattern):
            raise BadInput(f"{flag} {pattern} fits no file: give a glob of shards")
    return str(Path(data).absolute()), str(Path(val_data).absolute())


def run(each: Entry, plan: Plan, alternation: int, devices: int, limit_s: float) -> TimedRun | FailedRun:
    """Run a trainer once, in a process of its own that is ended after `limit_s` seconds, and read what it did.

    The compilers' caches lie in `plan.work`, one for each entry and number of devices: the first run finds it empty.
    """
    cache = plan.work / f"cache-{hashlib.sha256(each.label.encode()).hexdigest()[:8]}-{devices}"
    was_there = (cache / "used").exists()
    environment = dict(os.environ) | {"XDG_CACHE_HOME": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    environment |= {"TRITON_CACHE_DIR": str(cache / "triton"), "JAX_COMPILATION_CACHE_DIR": str(cache / "jax")}
    environment |= {"PYTHONPATH": python_path()}
    if each.trainer == "published" and devices == 1:  # what torchrun would say
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(_free_port())}
    environment |= dict(each.environment)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=plan.work) as folder:
        command = _command(each, plan, devices, Path(folder))
        started = time.perf_counter()
        # The published script writes its logs where it is started.
        where = Path(folder) if each.trainer == "published" else Path.cwd()
        code, said = _finish(command, where, Path(folder) / "said", environment, limit_s)
        wall_s = time.perf_counter() - started
        if code != 0:
            return FailedRun(each.label, alternation, devices, code, said[-_LAST_WORDS:])
        (cache / "used").touch()
        recipe = plan.recipe
        if each.trainer == "published":
            try:
                found = read_log(said)
            except BadInput as error:
                return FailedRun(each.label, alternation, devices, code, f"{error}: {said[-_LAST_WORDS:]}")
            config: dict[str, Any] = {"versions": {}, "devices": [""], "micro_batch": None}
        else:
            config = json.loads((Path(folder) / "run" / "config.json").read_text(encoding="utf-8"))
            recipe = from_json(Recipe, config["recipe"], "config.json: recipe")
            found = _read_metrics(Path(folder) / "run", recipe.step_tokens)
            found["compile_s"] = config["compile"]["seconds"]
            if plan.keep is not None:
                left_out = shutil.ignore_patterns("checkpoints", "weights.safetensors", "lock")
                shutil.copytree(Path(folder) / "run", plan.keep / f"{each.trainer}-{alternation}", ignore=left_out)
        return TimedRun(
            trainer=each.label,
            recipe=recipe.name,
            alternation=alternation,
            devices=devices,
            cache="warm" if was_there else "cold",
            step_tokens=recipe.step_tokens,
            token_flops=token_flops(recipe.model),
            newton_schulz_flops=newton_schulz_flops(recipe.model, recipe.optimizer),
            micro_batch=config["micro_batch"],
            card=config["devices"][0],
            versions=config["versions"],
            wall_s=round(wall_s, 1),
            **found,
        )


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def _command(each: Entry, plan: Plan, devices: int, folder: Path) -> list[str]:
    """The command line of a run whose folder will be `folder`/run."""
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    several += ["--local-addr", "127.0.0.1"]  # a machine without a network may not know its own name
    if each.trainer == "published":
        assert plan.published is not None
        copy = folder / "train_gpt2.py"  # as it was called
        copy.write_text(changed_copy(plan.published, plan.steps, plan.data, plan.val_data, devices), encoding="utf-8")
        return [*several, str(copy)] if devices > 1 else [sys.executable, str(copy)]
    torchrun = each.trainer == "torch_ref" and devices > 1
    start = [*several, "-m", "--"] if torchrun else [sys.executable, "-m"]
    words = [*start, f"{each.trainer}.train", "--recipe", plan.recipe.name, "--mesh", str(devices)]
    words += ["--steps", str(plan.steps), "--data", plan.data, "--val-data", plan.val_data]
    data = plan.recipe.data
    rows = devices * math.gcd(data.micro_batch, max(data.sequences // devices, 1))
    words += ["--val-tokens", str(rows * plan.recipe.model.context), "--val-every", str(plan.steps)]
    words += ["--save-every", str(plan.steps), "--run", str(folder / "run")]
    return [*words, *plan.flags, *each.flags]


def _finish(
    command: list[str], where: Path, log: Path, environment: dict[str, str], limit_s: float
) -> tuple[int | None, str]:
    """Exit code and output of a process; None where it had to be ended, with all that it started."""
    with open(log, "w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, cwd=where, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(max(limit_s, 1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_all([process], _GRACE_S)
        said.seek(0)
        return code, said.read()


def end_all(processes: Sequence[subprocess.Popen], grace_s: float) -> None:
    """End those of the processes that run, each started in a session of its own, with all that they started.

    They are asked first, and killed where they haven't followed in `grace_s` seconds. A trainer saves its state then.
    torchrun gives each of its workers a session too, so only it can end them, which takes it up to 30 s
    (`torch.distributed.elastic.multiprocessing.api.PContext.close`).
    """
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    end = time.monotonic() + grace_s
    for process in alive:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0.1))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started too: compilers' workers
        process.wait()


def _read_metrics(run: Path, step_tokens: int) -> dict:
    """Times, losses and memory of a trainer's run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "tokens_per_s" in line]
    return {
        "step_ms": [round(step_tokens / line["tokens_per_s"] * 1000, 4) for line in steps],
        "train_loss": [line["train_loss"] for line in steps if "train_loss" in line],
        "peak_bytes": steps[-1]["peak_bytes"],
    }


def as_json(runs: Sequence[TimedRun | FailedRun]) -> list[dict]:
    """Runs as a results file has them."""
    return [asdict(each) for each in runs]
