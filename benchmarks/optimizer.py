"""Optimisers in one picture: `python -m benchmarks.optimizer RUN [RUN ...] --out DIR`.

For runs of either trainer: losses over tokens and over training time from their folders; and from measurements made
here, one run after the other, each in a process of its own, bytes of optimiser state and the update's share of a step
(see `benchmarks.step_cost`). Writes optimizers.md, optimizers.json and optimizers.png into DIR, anew after each run, so
that nothing measured is lost. With `--measured optimizers.json` nothing is measured: a machine without the accelerator
can draw. Imports neither JAX nor PyTorch.
"""

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.optimizer_report import FIGURES, MARK, PICTURE, TABLE, BytesAParameter, Measured, StateBytes, files
from benchmarks.step_cost import check_steps, micro_batch_on, period
from jaxgpt.commands import parse
from jaxgpt.curves import Run, load_curves
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.recipes import Recipe
from jaxgpt.recorded import Recorded, from_json, recorded
from jaxgpt.report import check_folder, write_files

_PROG = "python -m benchmarks.optimizer"
_LARGEST_FILE = 4 * 2**20


@dataclass(frozen=True)
class Flags:
    """Compare the optimisers of recorded runs: losses, optimiser state, share of a step's time."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run folders, of either trainer."""
    out: str
    """Folder for optimizers.md, .json and .png: new, empty, or holding an earlier report of this program."""
    measured: Annotated[tuple[str, ...], tyro.conf.arg(metavar="JSON ...")] = ()
    """Files optimizers.json of earlier reports, from which the costs of all runs are taken instead of measuring."""
    steps: int = 10
    """Whole steps measured a run, and as many updates alone; SOAP and Shampoo take whole periods."""
    mesh: int | None = None
    """Devices to measure on; absent, as many as each run had."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    argv = sys.argv[1:] if argv is None else argv
    flags = parse(Flags, argv, _PROG)
    if not flags.runs:
        raise BadInput("no run given; name at least one run folder")
    check_steps(flags.steps)
    check_folder(flags.out, (TABLE, FIGURES, PICTURE), MARK)
    runs = load_curves(flags.runs, overlay=False)
    were = [recorded(run.config, f"{folder}/config.json") for run, folder in zip(runs, flags.runs, strict=True)]
    for was in were:
        micro_batch_on(was, was.devices if flags.mesh is None else flags.mesh)
    command = shlex.join([*_PROG.split(), *argv])
    written: list[str] = []
    if flags.measured:
        known = [each for file in flags.measured for each in read(file)]
        measured = [earlier(run, was, known) for run, was in zip(runs, were, strict=True)]
        written = write_files(flags.out, files(measured, runs, command))
    else:
        measured = []
        for i, (run, was) in enumerate(zip(runs, were, strict=True)):
            print(f"measuring {run.name} ({i + 1} of {len(runs)})", flush=True)
            costs = step_cost(flags.runs[i], was, flags.steps, flags.mesh)
            measured.append(entry(run, was, costs))
            written = write_files(flags.out, files(measured, runs[: i + 1], command))
    print(*written, sep="\n")


def step_cost(folder: str, was: Recorded, steps: int, mesh: int | None) -> dict:
    """What `benchmarks.step_cost` prints for a run, in a process of its own (PyTorch: one a device).

    Raises:
      BadInput: what that program refuses.
      SystemExit: it failed otherwise; what it said comes along.
    """
    devices = mesh or was.devices
    start = [sys.executable, "-m"]
    if was.trainer == "torch_ref" and devices > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(devices), "-m", "--"]
    command = [*start, "benchmarks.step_cost", folder, "--steps", str(steps), "--mesh", str(devices)]
    ended = subprocess.run(command, capture_output=True, text=True)
    refused = [line.removeprefix("error: ") for line in ended.stderr.splitlines() if line.startswith("error: ")]
    if ended.returncode and refused:
        raise BadInput(refused[0])
    if ended.returncode:
        sys.exit(f"{ended.stderr}measuring {folder} ended with exit code {ended.returncode}")
    return json.loads(ended.stdout.splitlines()[-1])


def entry(run: Run, was: Recorded, costs: dict) -> Measured:
    """A run's costs, and what it reached."""
    kept = costs.pop("bytes")
    hidden = hidden_parameters(was.recipe)
    counted = Measured(
        run=run.name,
        trainer=was.trainer,
        recipe=was.recipe.name,
        kind=was.recipe.optimizer.kind,
        precondition_every=period(was),
        bytes=StateBytes(**kept),
        per_parameter_bytes=BytesAParameter(kept["hidden"] / hidden, kept["all"] / was.recipe.model.parameters),
        final_val_loss=None,
        tokens=0,
        train_time_s=None,
        **costs,
    )
    return reached(counted, run)


def reached(measured: Measured, run: Run) -> Measured:
    """`measured`, with what the run's folder says it reached."""
    return replace(
        measured,
        final_val_loss=float(run.val.loss[-1]) if len(run.val) else None,
        tokens=run.tokens,
        train_time_s=None if math.isnan(run.train_time_s) else run.train_time_s,
    )


def hidden_parameters(recipe: Recipe) -> int:
    """Numbers in the blocks' matrices."""
    shapes = recipe.model.shapes.items()
    return sum(math.prod(shape) for name, shape in shapes if name.startswith("h.") and len(shape) == 2)


def read(file: str) -> list[Measured]:
    """The entries of an optimizers.json.

    Raises:
      BadInput: it can't be read, or isn't one.
    """
    try:
        text = Path(file).read_bytes() if Path(file).stat().st_size <= _LARGEST_FILE else b""
        entries = json.loads(text)
    except OSError as error:
        raise BadInput(f"--measured {file}: {error.strerror}; give an {FIGURES} that can be read") from None
    except (ValueError, RecursionError):
        raise BadInput(f"--measured {file}: not JSON; give an {FIGURES} that this program wrote") from None
    if not isinstance(entries, list):
        raise BadInput(f"--measured {file}: no list of runs; give an {FIGURES} that this program wrote")
    return [from_json(Measured, each, f"--measured {file}: entry {i}") for i, each in enumerate(entries)]


def earlier(run: Run, was: Recorded, known: Sequence[Measured]) -> Measured:
    """What was measured for a run of this name, trainer and recipe, with what the run's folder says it reached now.

    Raises:
      BadInput: nothing was.
    """
    same = (run.name, was.trainer, was.recipe.name, was.recipe.optimizer.kind)
    for each in known:
        if (each.run, each.trainer, each.recipe, each.kind) == same:
            return reached(each, run)
    names = ", ".join(f"{each.run} ({each.trainer}, {each.recipe})" for each in known) or "no run"
    raise BadInput(f"--measured has no {run.name} ({was.trainer}, {was.recipe.name}): it has {names}; measure that run")


if __name__ == "__main__":
    main()
