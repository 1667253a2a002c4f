"""How far PyTorch parts from itself: `python -m benchmarks.claim_ulp results --data GLOB --val-data GLOB`.

Trains torch_ref with the flags of one of the claims' runs, `OF`, from its initial weights, each number that isn't zero
moved by one float32 unit in the last place, up or down at random. How far the two runs part is a yardstick for how far
a run in JAX and one in PyTorch do. The run goes to RESULTS/yardsticks, for it is none of the claims' own; it may be
shorter than the run that it stands beside. Where it is stopped, the same command goes on. Imports neither JAX nor
PyTorch.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from safetensors import safe_open
from safetensors.numpy import save_file

from benchmarks.claim_plan import ADAMW_STEPS, ClaimRun, plan, weights
from benchmarks.claim_runs import keep, unfinished_folder
from benchmarks.trainer_runs import python_path
from jaxgpt.commands import parse
from jaxgpt.curves import read_config
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.shards import inspect_shards
from jaxgpt.statefile import sort_metadata

_PROG = "python -m benchmarks.claim_ulp"
OF = f"124m-adamw-{ADAMW_STEPS}-torch"
NAME = "124m-adamw-ulp-torch"
EARLIER = f"{NAME}-earlier"
"""Another run from the same moved weights, which a user put there; the claim says how far the two part."""
START = "124m-seed0-ulp"
"""The name of the moved weights, in weights.json too."""
FOLDER = "yardsticks"
_SEED = 0


@dataclass(frozen=True)
class Flags:
    """Train one of the claims' runs again in PyTorch, from weights a unit in the last place away."""

    results: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULTS")]
    """The folder that holds runs/ with the run that this one stands beside, and gets yardsticks/."""
    data: str
    """Glob of training shards of GPT-2 tokens."""
    val_data: str
    """Glob of validation shards, of at least 524,288 tokens."""
    stop_at: int | None = None
    """Steps after which it ends; by default all of them."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`. Ends as the trainer does where that fails."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, _PROG)
    beside, kept = flags.results / "runs" / OF, flags.results / FOLDER / NAME
    if not beside.is_dir():
        raise BadInput(f"{beside}: no such run; train it with python -m benchmarks.claim_runs --only {OF}")
    if kept.exists():
        raise BadInput(f"{kept} is there: move it away, or to {EARLIER} beside it, to train it again")
    if flags.stop_at is not None and not 1 <= flags.stop_at <= ADAMW_STEPS:
        raise BadInput(f"--stop-at {flags.stop_at}: give 1 to {ADAMW_STEPS} steps")
    for flag, pattern in (("--data", flags.data), ("--val-data", flags.val_data)):
        inspect_shards(pattern, flag, 2**16)
    run = of()
    lr = read_config(beside / "config.json")["recipe"]["optimizer"]["lr"]
    unfinished = unfinished_folder(kept.parent)
    start, trained = unfinished / f"{START}.safetensors", unfinished / NAME
    unfinished.mkdir(parents=True, exist_ok=True)
    if not start.exists():
        make(start)
    words = [*run.words, "--optimizer.lr", str(lr), "--mesh", "1", "--data", flags.data, "--val-data", flags.val_data]
    words += ["--init-from", str(start), "--run", str(trained)]
    words += [] if flags.stop_at is None else ["--stop-at", str(flags.stop_at)]
    words += ["--resume"] if trained.exists() else []
    environment = os.environ | {"PYTHONPATH": python_path()}
    ended = subprocess.run([sys.executable, "-m", f"{run.trainer}.train", *words], env=environment, check=False)
    if ended.returncode:
        sys.exit(ended.returncode)
    keep(trained, kept)
    shutil.rmtree(unfinished)


def of() -> ClaimRun:
    """The run that the yardstick stands beside."""
    return next(run for run in plan() if run.name == OF)


def make(file: Path) -> None:
    """Write the moved weights, whole or not at all, with the bridge's metadata."""
    new = file.with_name(f"{file.name}.new")
    new.unlink(missing_ok=True)
    bridge(of().weights, new)
    with safe_open(new, framework="numpy") as there:
        tensors, metadata = {name: there.get_tensor(name) for name in there.keys()}, there.metadata()  # noqa: SIM118
    save_file(moved(tensors), new, metadata)
    sort_metadata(new)
    new.rename(file)


def bridge(name: str, file: Path) -> None:
    """Write the initial weights of that name in `benchmarks.claim_plan`, on the CPU."""
    command = [sys.executable, "-m", "jaxgpt.bridge", *weights()[name], "--out", str(file)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path()}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def moved(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each float32 number one unit in the last place up or down at random; zero stays, as it has no such neighbour.

    `parity_tests.noise_floor`, which imports both frameworks, moves zeros too, to the smallest number there is.
    """
    rng = np.random.default_rng(_SEED)
    found = {}
    for name, w in tensors.items():
        up = rng.integers(0, 2, w.shape).astype(bool)
        found[name] = np.where(w == 0, w, np.nextafter(w, np.where(up, np.float32(np.inf), np.float32(-np.inf))))
    return found


if __name__ == "__main__":
    main()
