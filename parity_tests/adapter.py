"""Rung 15: a PyTorch program and its port to JAX, both somebody else's, up the same ladder.

    python -m parity_tests.adapter my_ladder.py

The file defines `ladder`, a `Ladder` of two `Program`s and a name map; `parity_tests/examples/ladder.py` is one. It is
run, on the CPU, with its own folder on the path and torch's random numbers at seed 0. The climb stops at the first red
rung. The program ends with 0 where all are green, 1 where one is red, 2 on bad input. docs/porting.md walks through it.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in jaxgpt.train

import math
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from parity_tests.climb import HEAD, DType, Ladder, Outcome, climb, rungs
from parity_tests.foreign import Program, blame, outputs_of

__all__ = ["Ladder", "Outcome", "Program", "climb", "load", "outputs_of"]

PROG = "python -m parity_tests.adapter"
APART = 1
"""How the program ends where a rung is red."""


def load(path: Path) -> Ladder:
    """The `ladder` that a file defines; the file is run. Raises `BadInput` where it can't be or defines none."""
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} can't be read: {getattr(error, 'strerror', error)}: name a Python file") from error
    torch.manual_seed(0)
    sys.path.insert(0, str(path.resolve().parent))  # it stays: functions import too, when they are called
    with blame(str(path)):
        defined = runpy.run_path(str(path))
    ladder = defined.get("ladder")
    if not isinstance(ladder, Ladder):
        what = "defines no `ladder`" if ladder is None else f"has a {type(ladder).__name__} for `ladder`"
        raise BadInput(f"{path} {what}: end it with ladder = Ladder(reference, port, names, batch)")
    return ladder


@dataclass
class Flags:
    """Climb the ladder with two programs of your own, as far as they agree."""

    file: tyro.conf.Positional[Path | None] = None
    """a Python file that defines `ladder`; it is run"""
    steps: int = 20
    """of rungs 7 and 8"""
    dtype: Literal["float64", "float32", "both"] = "both"
    """of weights and sums; both: float64 first"""
    allow_factor: float = 1.0
    """what differences may be larger by than those measured on small models"""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, PROG)
    if flags.file is None:
        raise BadInput("no file is named: name a Python file that defines `ladder`")
    if flags.steps < 1:
        raise BadInput(f"--steps {flags.steps}: give at least 1")
    if not 0 < flags.allow_factor < math.inf:
        raise BadInput(f"--allow-factor {flags.allow_factor}: give a number above 0")
    torch.set_num_threads(1)
    ladder = load(flags.file)
    dtypes: tuple[DType, ...] = ("float64", "float32") if flags.dtype == "both" else (flags.dtype,)
    for dtype in dtypes:
        head = [dtype, HEAD]
        for rung in rungs(ladder, flags.steps, dtype, flags.allow_factor):
            print(*head, rung, sep="\n", flush=True)
            head = []
            if not rung.green:
                print(rung.explained())
                sys.exit(APART)
    print("no difference" if ladder.port.update is not None else "no difference; no update given, so none was climbed")


if __name__ == "__main__":
    main()
