"""Both trainers side by side on one card: `python -m benchmarks.throughput --recipe NAME --out FILE.json`.

    python -m benchmarks.throughput --recipe muon-2024-10-12 --trainers jaxgpt torch_ref published \\
        --published train_gpt2.py --data 'GLOB_train_*.bin' --val-data 'GLOB_val_*.bin' --out throughput.json
    python -m benchmarks.throughput --table throughput.json

The trainers' own programs run in turn, several times, each run a process of its own; what the card multiplies at most
is measured in both frameworks in the same call. The file is written anew after each run, so that nothing measured is
lost where time runs out. The published script is a user's own copy; see `benchmarks.published_copy` for what of it is
changed. This program imports neither JAX nor PyTorch.
"""

import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.published_copy import known_recipe
from benchmarks.throughput_table import read_results, table
from benchmarks.trainer_runs import Entry, FailedRun, Plan, TimedRun, as_json, entry, python_path, run, shards
from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.flags import recipe_and_flags

_PROG = "python -m benchmarks.throughput"


@dataclass(frozen=True)
class Measured:
    """What the measurements of both frameworks have in common."""

    recipe: str = "muon-2024-10-12"
    trainers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TRAINER ...")] = ("jaxgpt", "torch_ref")
    """jaxgpt, torch_ref, published; each with flags or environment of its own, quoted: 'XLA_FLAGS=... jaxgpt --flag'.
    Ratios are to torch_ref and to published where they are there."""
    steps: int = 20
    """Steps of each run."""
    skip: int = 10
    """First steps of each run that the table leaves out; the file has all. The published script leaves out ten."""
    data: str | None = None
    """Glob of training shards; random tokens where absent."""
    val_data: str | None = None
    """Glob of validation shards."""
    micro_batch: int | None = None
    """Sequences a device takes at once."""
    sequences: int | None = None
    """Sequences a step."""
    flags: str = ""
    """More flags of both trainers, after an equals sign: --flags="--model.layers 4"."""
    published: Path | None = None
    """Your own copy of the published script of that recipe, unchanged; its code is run."""
    gemm_size: int = 8192
    """Of the products that give the card's peak; 0 measures none."""
    budget: float = 570.0
    """Seconds that all may take; no run is begun that would last longer by what runs before it took. One that does is
    told to end, which may take 40 s more."""
    out: Path | None = None
    """The JSON file to write, which must not exist."""
    table: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ...")] = ()
    """Measure nothing; print the table of these results."""


@dataclass(frozen=True)
class Flags(Measured):
    """Time the steps of both trainers in turn on the same devices, or print the table of such measurements."""

    alternations: int = 3
    mesh: int = 1
    """Devices."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    argv = sys.argv[1:] if argv is None else argv
    flags = parse(Flags, argv, _PROG)
    if flags.alternations < 1 or flags.mesh < 1:
        raise BadInput(f"--alternations {flags.alternations}, --mesh {flags.mesh}: give at least 1")
    order = [(alternation, flags.mesh) for alternation in range(flags.alternations)]
    report(flags, order, shlex.join([*_PROG.split(), *argv]), table)


def report(flags: Measured, order: list[tuple[int, int]], command: str, table: Callable[[dict], str]) -> None:
    """Print the table of what `measure` finds, or of the files that `--table` names; exit with 1 where nothing ran."""
    if flags.table:
        print("\n\n".join(table(read_results(file)) for file in flags.table))
        return
    results = measure(flags, order, command)
    print(table(results))
    if not results["runs"]:
        sys.exit(1)


def measure(flags: Measured, order: list[tuple[int, int]], command: str) -> dict:
    """Run every trainer in turn for each (alternation, devices) of `order`, and write `flags.out` after each run.

    Args:
      flags: what to run.
      order: from first to last.
      command: as the user typed it, for the file.

    Returns: what the file holds.

    Raises:
      BadInput: a flag that can't be used; nothing has been run then.
    """
    started = time.monotonic()
    out, entries = check(flags)
    more = shlex.split(flags.flags)
    for name, value in (("--micro-batch", flags.micro_batch), ("--data.sequences", flags.sequences)):
        more += [] if value is None else [name, str(value)]
    named = ["--recipe", flags.recipe, "--steps", str(flags.steps), *more]
    recipe = recipe_and_flags(named, _PROG, flags.recipe)[0]
    if flags.published is not None and (more or known_recipe(flags.published) != flags.recipe):
        raise BadInput(
            f"--published {flags.published} runs as it is, the recipe {known_recipe(flags.published)}: give that "
            "--recipe and leave --micro-batch, --sequences and --flags out"
        )
    results: dict = {
        "card": "unknown",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {},
        "command": command,
        "tokens": flags.data or "random",
        "skip": flags.skip,
        "gemm_flops": {},
        "runs": [],
        "failed": [],
    }
    with tempfile.TemporaryDirectory(prefix="throughput-") as work:
        patterns = shards(flags.data, flags.val_data, Path(work), recipe, flags.steps)
        plan = Plan(recipe, flags.steps, *patterns, flags.published, tuple(more), Path(work))
        took: dict[tuple[str, int, bool], float] = {}
        left = lambda: flags.budget - (time.monotonic() - started)  # noqa: E731
        for framework in ("jax", "torch") if flags.gemm_size else ():
            results["gemm_flops"][framework] = gemm_flops(framework, flags.gemm_size, left())
        seen: set[tuple[str, int]] = set()
        for alternation, devices in order:
            for each in entries:
                warm = (each.label, devices) in seen
                needed = took.get((each.label, devices, warm)) or took.get((each.label, devices, False), 0.0)
                if left() < max(needed, 5.0):
                    skipped = FailedRun(each.label, alternation, devices, None, "not begun: --budget would not do")
                    results["failed"] += as_json([skipped])
                    continue
                _say(f"{each.label} on {devices}, {alternation + 1}")
                done = run(each, plan, alternation, devices, left())
                seen.add((each.label, devices))
                if isinstance(done, TimedRun):
                    took[each.label, devices, warm] = done.wall_s
                _take(results, done, out)
    return results


def check(flags: Measured) -> tuple[Path | None, list[Entry]]:
    """Refuse what can't be used, before anything is run; the file to write, and what to run."""
    if flags.steps <= flags.skip or flags.skip < 0:
        raise BadInput(f"--skip {flags.skip} of --steps {flags.steps}: leave at least one step to be timed")
    if flags.out is not None and flags.out.exists():
        raise BadInput(f"--out {flags.out} exists and is left as it is: give another name")
    if flags.out is not None and not flags.out.absolute().parent.is_dir():
        raise BadInput(f"--out {flags.out}: there is no folder {flags.out.absolute().parent}; make it")
    entries = [entry(written) for written in flags.trainers]
    if any(each.trainer == "published" for each in entries) != (flags.published is not None):
        raise BadInput("--trainers published and --published FILE go together: give both or neither")
    return flags.out, entries


def gemm_flops(framework: str, size: int, limit_s: float) -> list[float]:
    """Operations a second of bfloat16 products in a framework, each a group's mean; empty where that fails."""
    command = [sys.executable, "-m", "benchmarks.gemm", framework, "--size", str(size)]
    try:
        environment = dict(os.environ) | {"PYTHONPATH": python_path()}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=max(limit_s, 1), env=environment)
        return json.loads(ended.stdout.splitlines()[-1])["flops"] if ended.returncode == 0 else []
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return []


def _take(results: dict, done: TimedRun | FailedRun, out: Path | None) -> None:
    """Add a run to the results, and write them."""
    if isinstance(done, FailedRun):
        results["failed"] += as_json([done])
        _say(f"  failed, exit code {done.exit_code}: {done.said[-600:]}")
    else:
        results["runs"] += as_json([done])
        results["versions"] |= done.versions
        results["card"] = done.card or results["card"]
        last = sorted(done.step_ms[results["skip"] :])
        _say(f"  {last[len(last) // 2]:.1f} ms a step, {done.wall_s:.0f} s in all")
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
