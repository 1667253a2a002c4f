"""Throughput as the work grows, and where it bends: `python -m benchmarks.growth --out growth.json --plot growth.png`.

    python -m benchmarks.growth --recipe muon-2024-10-12 --axes micro-batch sequence depth width --budget 1500 \\
        --out growth.json --plot growth.png
    python -m benchmarks.growth --recipe tiny --axes devices --devices 1 8 --replicated --out devices.json

One thing grows at a time: the sequences of a micro-batch, the length of a sequence (at the same tokens), depth, width,
or the number of devices. Each case makes and times the step that trains, in a process of its own; one that doesn't fit
is tried again with half the micro-batch. The file is written after each case, and a second call with the same file goes
on with those that are missing: what doesn't end within --budget seconds is left for it. This program imports no
framework.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.growth_cases import AXES, Axis, Case, cases, key, sizes
from benchmarks.growth_plot import draw, table
from benchmarks.trainer_runs import python_path
from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.recipes import named

_PROG = "python -m benchmarks.growth"


@dataclass(frozen=True)
class Flags:
    """Time the step of a recipe as it grows along one axis after the other."""

    recipe: str = "muon-2024-10-12"
    trainer: Literal["jaxgpt", "torch_ref"] = "jaxgpt"
    axes: Annotated[tuple[Axis, ...], tyro.conf.arg(metavar="AXIS ...")] = ("micro-batch", "sequence", "depth", "width")
    """Of micro-batch, sequence, depth, width, devices."""
    devices: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = (1, 2, 4, 8)
    """Of the last of these; virtual ones on a CPU."""
    replicated: bool = False
    """Along devices, time also Muon with each device orthogonalising all matrices instead of its own."""
    step_tokens: int | None = None
    """Tokens of a step; absent, two of the recipe's micro-batches."""
    steps: int = 5
    """Steps timed, after three that aren't."""
    budget: float = 570.0
    """Seconds that all may take; no case is begun that would last longer than the longest before it."""
    out: Path | None = None
    """The JSON file; one that is there from the same command goes on."""
    plot: Path | None = None
    """A picture to write, .png or .svg."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, _PROG)
    if flags.steps < 1 or min(flags.devices, default=0) < 1:
        raise BadInput(f"--steps {flags.steps}, --devices {flags.devices}: give at least 1")
    for file in filter(None, (flags.out, flags.plot)):
        if not file.absolute().parent.is_dir():
            raise BadInput(f"{file}: there is no folder {file.absolute().parent}; make it")
    if flags.trainer == "torch_ref" and "devices" in flags.axes:
        raise BadInput("--axes devices is jaxgpt's: PyTorch takes a process a device; see benchmarks.scaling")
    recipe = named(flags.recipe)
    wanted = [
        case
        for axis in AXES
        if axis in flags.axes
        for case in cases(recipe, axis, flags.step_tokens, flags.devices, flags.replicated)
    ]
    results = measure(flags, wanted)
    print(table(results))
    if flags.plot is not None:
        draw(results, flags.plot)
    if not results["cases"]:
        sys.exit(1)


def measure(flags: Flags, wanted: list[Case]) -> dict:
    """Time what is missing of `wanted` within the budget; writes `flags.out` after each case."""
    started, longest = time.monotonic(), 0.0
    results = read(flags)
    left = lambda: flags.budget - (time.monotonic() - started)  # noqa: E731
    for case in wanted:
        if key(asdict(case)) in {key(done) for done in results["cases"] + results["failed"]}:
            continue
        if alike := next((done for done in results["cases"] if sizes(done) == sizes(asdict(case))), None):
            results["cases"].append(alike | {"axis": case.axis, "value": case.value})
            continue
        if left() < max(longest, 5.0):
            results["left"] = [asdict(each) for each in wanted[wanted.index(case) :]]
            break
        began = time.monotonic()
        print(f"{case.axis} {case.value}", file=sys.stderr, flush=True)
        said = timed(case, flags, left)
        longest = max(longest, time.monotonic() - began)
        if said.get("timed_out"):
            results["left"] = [asdict(each) for each in wanted[wanted.index(case) :]]
            break
        results["failed" if "error" in said else "cases"].append(asdict(case) | said)
        if flags.out is not None:
            flags.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def read(flags: Flags) -> dict:
    """The results that `--out` holds, or empty ones.

    Raises:
      BadInput: it is another file, or of another command.
    """
    same = {"recipe": flags.recipe, "trainer": flags.trainer, "step_tokens": flags.step_tokens, "steps": flags.steps}
    if flags.out is None or not flags.out.exists():
        return same | {"cases": [], "failed": []}
    try:
        results = json.loads(flags.out.read_text(encoding="utf-8"))
        found = {name: results[name] for name in same}
        for case in results["cases"] + results["failed"]:
            key(case)
    except OSError as error:
        raise BadInput(f"--out {flags.out}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadInput(f"--out {flags.out} isn't a file of this program: give another name") from None
    if found != same:
        changed = ", ".join(f"--{n.replace('_', '-')} {found[n]}" for n in same if found[n] != same[n])
        raise BadInput(f"--out {flags.out} was measured with {changed}: give the same, or another name")
    results.pop("left", None)
    return results


def timed(case: Case, flags: Flags, left: Callable[[], float]) -> dict:
    """What `benchmarks.growth_cases` says of a case, in a process of its own; with half the micro-batch if need be."""
    while True:
        command = [sys.executable, "-m", "benchmarks.growth_cases", json.dumps(asdict(case))]
        command += [flags.trainer, str(flags.steps)]
        try:
            limit, environment = max(left(), 1), os.environ | {"PYTHONPATH": python_path()}
            ended = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
        except subprocess.TimeoutExpired:
            return {"timed_out": True}
        if ended.returncode == 0:
            return json.loads(ended.stdout.splitlines()[-1])
        fit = "out of memory" in ended.stderr.lower() or "RESOURCE_EXHAUSTED" in ended.stderr
        if not fit or case.axis == "micro-batch" or case.micro_batch == 1:
            return {"error": ended.stderr.strip()[-600:]}
        case = replace(case, micro_batch=case.micro_batch // 2)


if __name__ == "__main__":
    main()
