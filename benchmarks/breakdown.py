"""Milliseconds of a step by kind of kernel: `python -m benchmarks.breakdown RUN ...`, or `--recipe NAME` to make runs.

    python -m jaxgpt.train --recipe muon-2024-10-12 --steps 8 --profile 3 --run runs/a
    python -m benchmarks.breakdown runs/a

A run's folder holds the trace of a few steps where it was trained with `--profile`. Every kernel of the trace is
counted once, in the kind that its name says or, in a JAX program, the functions in which its operations stand; what
fits no kind is the line `unknown`. The line `idle` is when no kernel ran on the device, `together` when several did.
Of several devices it says what share of their exchanges' time was covered by other kernels.

With `--recipe` both trainers are run here. JAX's command buffers are off then, for their kernels don't say which
operation they are; times of steps come from `benchmarks.throughput`, where they are on.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.kinds import COLLECTIVES, KINDS
from benchmarks.traces import Kernel, kernels
from benchmarks.trainer_runs import FailedRun, Plan, entry, run, shards
from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.flags import recipe_and_flags
from jaxgpt.profiled import BEFORE

_PROG = "python -m benchmarks.breakdown"
NO_COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer="


@dataclass(frozen=True)
class Flags:
    """Where the time of a step goes, from the traces of profiled runs."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")] = ()
    """Folders of runs that were trained with --profile."""
    recipe: str | None = None
    """Without a RUN: train this one here, and profile it."""
    trainers: tuple[str, ...] = ("jaxgpt", "torch_ref")
    """As in benchmarks.throughput."""
    profile: int = 3
    """Steps that are traced."""
    mesh: int = 1
    data: str | None = None
    val_data: str | None = None
    flags: str = ""
    """More flags of both trainers, after an equals sign."""
    kernels: int = 12
    """How many of the longest kernels are listed of each run."""
    budget: float = 570.0
    """Seconds that one run may take."""
    keep: Path | None = None
    """A new folder for the traced runs' traces; absent, they are deleted."""
    out: Path | None = None
    """A JSON file to write, which must not exist."""


@dataclass(frozen=True)
class Breakdown:
    """Where the time of one step of a run goes, milliseconds on a device, the mean over devices."""

    trainer: str
    recipe: str
    card: str
    devices: int
    steps: int
    span: float
    """From the first kernel's start to the last one's end, over the steps."""
    kinds: dict[str, float]
    idle: float
    together: float
    """What the kinds' sum exceeds the busy time by, because kernels ran at once."""
    overlapped: float
    """Milliseconds of collectives during which other kernels ran as well."""
    longest: list[tuple[str, str, int, float]]
    """Name, kind, runs a step, milliseconds a step."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    argv = sys.argv[1:] if argv is None else argv
    flags = parse(Flags, argv, _PROG)
    if bool(flags.runs) == (flags.recipe is not None):
        raise BadInput("give folders of profiled runs, or --recipe to make some here, and not both")
    for name, path in (("--out", flags.out), ("--keep", flags.keep)):
        if path is not None and path.exists():
            raise BadInput(f"{name} {path} exists and is left as it is: give another name")
    found = [of_run(folder, flags.kernels) for folder in flags.runs] if flags.runs else profiled(flags)
    command = shlex.join([*_PROG.split(), *argv])
    if flags.out is not None:
        flags.out.write_text(json.dumps({"command": command, "runs": [asdict(b) for b in found]}, indent=1) + "\n")
    print(table(found))


def profiled(flags: Flags) -> list[Breakdown]:
    """Train each of the trainers for a few steps here, with a trace."""
    more = shlex.split(flags.flags)
    steps = BEFORE + flags.profile
    recipe = recipe_and_flags(["--recipe", str(flags.recipe), "--steps", str(steps), *more], _PROG, "tiny")[0]
    entries = [entry(written) for written in flags.trainers]
    if any(each.trainer == "published" for each in entries):
        raise BadInput("--trainers published: that script has no --profile; give jaxgpt, torch_ref")
    found = []
    with tempfile.TemporaryDirectory(prefix="breakdown-") as work:
        patterns = shards(flags.data, flags.val_data, Path(work), recipe, steps)
        words = (*more, "--profile", str(flags.profile))
        plan = Plan(recipe, steps, *patterns, None, words, Path(work), keep=flags.keep or Path(work) / "kept")
        on_gpu = _has_gpu()
        for i, written in enumerate(flags.trainers):
            each = entry(written)
            if on_gpu:
                each = replace(each, environment=without_command_buffers(each.environment))
            ended = run(each, plan, i, flags.mesh, flags.budget)
            folder = plan.keep / f"{each.trainer}-{i}" if plan.keep else Path()
            if isinstance(ended, FailedRun):
                print(f"{written} failed: {ended.said}", file=sys.stderr)
                continue
            try:
                found.append(of_run(folder, flags.kernels, written))
            except BadInput as error:
                print(f"{written}: {error}", file=sys.stderr)
    return found


def without_command_buffers(environment: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The same environment, with one more of XLA's flags."""
    flags = dict(environment).get("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    return tuple((dict(environment) | {"XLA_FLAGS": f"{flags} {NO_COMMAND_BUFFERS}".strip()}).items())


def _has_gpu() -> bool:
    """Whether the driver's own tool finds one: XLA ends a process for a flag that its build doesn't know."""
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    except OSError:
        return False


def of_run(folder: Path, longest: int, label: str | None = None) -> Breakdown:
    """The breakdown of a profiled run's folder.

    Raises:
      BadInput: it is none, or has no trace with kernels.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        trainer, recipe, steps = config["trainer"], config["recipe"]["name"], config["flags"]["profile"]
        devices = config["devices"]
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{folder} is no run's folder: give one that a trainer wrote with --profile") from None
    if not steps:
        raise BadInput(f"{folder} was trained without --profile: train it with --profile 3")
    return breakdown(kernels(folder, trainer), steps, longest, label or trainer, recipe, devices)


def breakdown(ran: list[Kernel], steps: int, longest: int, trainer: str, recipe: str, devices: list[str]) -> Breakdown:
    """Sum kernels up by kind, milliseconds of one step on one device."""
    by_device: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in ran:
        by_device[kernel.device].append(kernel)
    a_step = 1 / (1000 * steps * len(by_device))
    kinds = dict.fromkeys(KINDS, 0.0)
    names: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kernel in ran:
        kinds[kernel.kind] += kernel.duration * a_step
        names[kernel.name, kernel.kind].append(kernel.duration * a_step)
    spans = [_span_and_busy(each) for each in by_device.values()]
    span, busy = (sum(parts) * a_step for parts in zip(*spans, strict=True))
    heaviest = sorted(names.items(), key=lambda item: -sum(item[1]))[:longest]
    return Breakdown(
        trainer=trainer,
        recipe=recipe,
        card=devices[0],
        devices=len(devices),
        steps=steps,
        span=span,
        kinds=kinds,
        idle=span - busy,
        together=sum(kinds.values()) - busy,
        overlapped=sum(map(_overlapped, by_device.values())) * a_step,
        longest=[(n, k, round(len(each) / steps / len(by_device)), sum(each)) for (n, k), each in heaviest],
    )


def _overlapped(ran: list[Kernel]) -> float:
    """How long collectives of a device and its other kernels ran at once: both kinds' busy times, less that of all."""
    parts = [[k for k in ran if (k.kind == COLLECTIVES) == exchanges] for exchanges in (True, False)]
    return sum(_span_and_busy(part)[1] for part in parts) - _span_and_busy(ran)[1] if all(parts) else 0.0


def _span_and_busy(ran: list[Kernel]) -> tuple[float, float]:
    """From the first start to the last end, and how long of it at least one kernel ran."""
    busy, until = 0.0, min(kernel.start for kernel in ran)
    first = until
    for kernel in sorted(ran, key=lambda kernel: kernel.start):
        end = kernel.start + kernel.duration
        busy += max(end - max(kernel.start, until), 0.0)
        until = max(until, end)
    return until - first, busy


def table(found: list[Breakdown]) -> str:
    """Kinds in lines, runs in columns; then the longest kernels of each."""
    if not found:
        return "no run has a trace with kernels"
    lines = ["| ms a step | " + " | ".join(f"{b.trainer} ({b.recipe}, {b.devices} x {b.card})" for b in found) + " |"]
    lines += ["|---|" + "---:|" * len(found)]
    for kind in KINDS:
        if any(b.kinds.get(kind) for b in found):
            lines.append(f"| {kind} | " + " | ".join(f"{b.kinds.get(kind, 0):.2f}" for b in found) + " |")
    for name, values in (
        ("idle", [b.idle for b in found]),
        ("together", [-b.together for b in found]),
        ("sum", [b.span for b in found]),
    ):
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    for b in found:
        if exchanged := b.kinds.get(COLLECTIVES):
            share = b.overlapped / exchanged
            lines += ["", f"{b.trainer}: other kernels ran during {b.overlapped:.2f} ms of collectives, {share:.0%}"]
    for b in found:
        lines += ["", f"longest of {b.trainer}, ms a step:"]
        lines += [f"  {ms:8.2f}  {kind}  {runs} x {name[:90]}" for name, kind, runs, ms in b.longest]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
