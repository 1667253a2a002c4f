"""What a step of a run costs, and what the optimiser's part of it: `python -m benchmarks.step_cost RUN`.

Makes the step that the run's folder records again, with the same functions, and times it on random tokens: whole steps
and, in the same process and in turn with them, updates alone on gradients that are there already. Prints one JSON
object. `benchmarks.optimizer` calls this once a run.
"""

import dataclasses
import importlib.metadata
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from jaxgpt.commands import parse
from jaxgpt.curves import load_run
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.recorded import Recorded, recorded

_PROG = "python -m benchmarks.step_cost"
_FEWEST_SCHEDULED = 1000


@dataclass(frozen=True)
class Flags:
    """Milliseconds of a recorded run's step and of its update, and bytes of its optimiser's state."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run's folder; only its config.json and metrics.jsonl are read."""
    steps: int = 10
    """Whole steps measured, and as many updates alone; rounded up to whole periods of SOAP's and Shampoo's
    recomputation. As many go before them unmeasured."""
    mesh: int | None = None
    """Devices; absent, as many as the run had. PyTorch takes one process for each, which torchrun starts."""


class Program(NamedTuple):
    """A trainer's step with its state kept inside; both calls return when the device is done."""

    step: Callable[[], None]
    """One whole step on the same random tokens."""
    update: Callable[[], None]
    """One update on the same gradients, those of the first step."""
    state_bytes: dict[str, int]
    """What the optimiser keeps on a device between steps: for the `hidden` matrices, and for `all` weights."""
    devices: list[str]
    versions: dict[str, str]
    writes: bool = True
    """Whether this process is the one that reports."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, _PROG)
    check_steps(flags.steps)
    was = recorded(load_run(flags.run).config, f"{flags.run}/config.json")
    # A short run's learning rates would have fallen below zero before the measurement ends.
    schedule = was.recipe.schedule.scaled(max(was.recipe.schedule.steps, _FEWEST_SCHEDULED))
    was = dataclasses.replace(was, recipe=dataclasses.replace(was.recipe, schedule=schedule))
    made = program(was, was.devices if flags.mesh is None else flags.mesh)
    costs = measure(made, period(was), flags.steps)
    if made.writes:
        print(json.dumps(costs | {"devices": made.devices, "versions": made.versions}))


def program(was: Recorded, devices: int) -> Program:
    """The step of the trainer that `was` names, on so many devices."""
    return {"jaxgpt": _jax, "torch_ref": _torch}[was.trainer](was, devices)


def check_steps(steps: int) -> None:
    """Refuse to measure nothing."""
    if steps < 1:
        raise BadInput(f"--steps {steps}: give a whole number of at least 1")


def period(was: Recorded) -> int | None:
    """Updates between two recomputations of SOAP's bases or Shampoo's roots; None for other optimisers."""
    optimizer = was.recipe.optimizer
    return optimizer.precondition_every if optimizer.kind in ("soap", "shampoo") else None


def measure(program: Program, period: int | None, steps: int) -> dict:
    """Time `program`, a period of whole steps and a period of updates in turn.

    Before them, the first calls (which compile) and the first recomputation (which loads libraries) go unmeasured. With
    a period, the times are means over whole periods, so that each recomputation is counted as often as in training;
    without one, medians.

    Args:
      program: what to run.
      period: see `period`.
      steps: whole steps, and updates, to measure; rounded up to whole periods.

    Returns: `step_ms` and `update_ms` of one step or update, `share` of the second in the first, `recompute_ms` of one
      recomputation (the longest update of a period minus the median one; None without), and `bytes`.
    """
    block = period or 1
    program.step()
    for _ in range(block + 1 if period else 2):
        program.update()
    step_ms: list[float] = []
    update_ms: list[float] = []
    recompute_ms: list[float] = []
    for _ in range(math.ceil(steps / block)):
        step_ms += [_milliseconds(program.step) for _ in range(block)]
        updates = [_milliseconds(program.update) for _ in range(block)]
        recompute_ms.append(max(updates) - statistics.median(updates))
        update_ms += updates
    average = statistics.fmean if period else statistics.median
    step, update = average(step_ms), average(update_ms)
    return {
        "step_ms": step,
        "update_ms": update,
        "share": update / step,
        "recompute_ms": statistics.fmean(recompute_ms) if block > 1 else None,
        "bytes": program.state_bytes,
    }


def _milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def _random_tokens(was: Recorded) -> tuple[np.ndarray, np.ndarray]:
    """A step's inputs and targets, int32 (sequences, T)."""
    shape = was.recipe.data.sequences, was.recipe.model.context + 1
    drawn = np.random.default_rng(0).integers(0, was.recipe.model.token_ids, shape, np.int32)
    return drawn[:, :-1], drawn[:, 1:]


def micro_batch_on(was: Recorded, devices: int) -> int:
    """Sequences each of `devices` takes at once: as many as in the run, or the most that divide its share as well.

    Raises:
      BadInput: a step's sequences don't divide over so many devices.
    """
    if devices < 1:
        raise BadInput(f"--mesh {devices}: give at least 1")
    share, rest = divmod(was.recipe.data.sequences, devices)
    if rest:
        raise BadInput(f"--mesh {devices}: a step's {was.recipe.data.sequences} sequences don't divide; give a divisor")
    return math.gcd(share, was.micro_batch)


def _jax(was: Recorded, devices: int) -> Program:
    """The step of `jaxgpt.train`, compiled with the options it is compiled with there."""
    import jax

    from jaxgpt import mesh, train
    from jaxgpt.optimizer import state_bytes

    placed_on = mesh.make_mesh(devices)
    first = placed_on.devices.flat[0]
    precision = was.precision
    if first.platform == "cpu":
        precision = dataclasses.replace(precision, attention="exact")
    jax.config.update("jax_enable_x64", "float64" in dataclasses.astuple(precision))
    made = train.make_step(was.recipe, precision, placed_on, micro_batch_on(was, devices))
    inputs, targets = (mesh.place(placed_on, rows) for rows in _random_tokens(was))
    state = made.init(0)
    _, gradients = made.gradients(state.params, inputs, targets)
    options = mesh.compiler_options(placed_on)
    whole = made.step.lower(state, inputs, targets).compile(options)
    alone = jax.jit(made.update).lower(state, gradients).compile(options)

    def step() -> None:
        nonlocal state
        state, _ = whole(state, inputs, targets)
        jax.block_until_ready(state)

    def update() -> None:
        nonlocal state
        state = alone(state, gradients)
        jax.block_until_ready(state)

    versions = _versions("jax", "jaxlib", "flax", "optax")
    kinds = [device.device_kind for device in placed_on.devices.flat]
    return Program(step, update, state_bytes(state.opt_state), kinds, versions)


def _torch(was: Recorded, devices: int) -> Program:
    """The step of `torch_ref.train`, in each of the processes that torchrun started."""
    import torch

    from torch_ref import mesh, train
    from torch_ref.optimizer import state_bytes

    placed_on = mesh.make_mesh(devices)
    on_cpu = placed_on.device.type == "cpu"
    precision = dataclasses.replace(was.precision, attention="exact") if on_cpu else was.precision
    made = train.make_step(was.recipe, precision, placed_on, micro_batch_on(was, devices))
    share = was.recipe.data.sequences // devices
    rows = slice(placed_on.rank * share, (placed_on.rank + 1) * share)
    inputs, targets = (
        mesh.place(placed_on, torch.from_numpy(each[rows].astype(np.int64))) for each in _random_tokens(was)
    )
    state = made.init(0)
    _, gradients = made.gradients(state, inputs, targets)
    wait = (lambda: None) if on_cpu else torch.cuda.synchronize

    def step() -> None:
        nonlocal state
        state, _ = made.step(state, inputs, targets)
        wait()

    def update() -> None:
        nonlocal state
        state = made.update(state, gradients)
        wait()

    update()  # the optimisers make their state when they first see gradients
    name = platform.machine() if on_cpu else torch.cuda.get_device_name(placed_on.device)
    kept = state_bytes(state.optimizers)
    return Program(step, update, kept, [name] * devices, _versions("torch"), writes=placed_on.rank == 0)


def _versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


if __name__ == "__main__":
    main()
