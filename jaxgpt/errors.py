"""How a program ends when it can't go on: one line on stderr, and an exit code.

Whatever a user can get wrong (a flag, a shard, a run's folder, weights, a mesh) raises `BadInput`, whose text names the
value and the mend. A program wraps its `main` in `exit_codes`, which prints that line on stderr and exits with 2. A
signal ends training with 128 plus its number, as shells count: 143 after SIGTERM, 130 after SIGINT. Of several
processes that end alike, the first on each machine speaks.
"""

import functools
import io
import itertools
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

BAD_INPUT = 2
NOT_FINITE = 3
NOT_EQUIVALENT = 4
"""How `python -m jaxgpt.compare --require-equivalent` ends where equivalence is not shown; its report is written."""
NOT_WRITTEN = 5
PEER_LOST = 6
"""How a process of several ends when another one is gone (`jaxgpt.peers`)."""


class BadInput(Exception):
    """What the user gave can't be used. The text is one line: the value, the file or flag it came from, the mend."""


class NotFinite(Exception):
    """Training can't go on: a loss, gradient or weight is NaN or infinite. The text is one line: the step, where its
    tokens lie, the first tensor."""


class NotWritten(Exception):
    """The disk didn't take what a run has to write. The text is one line: the file, why, from where the run goes on."""


class Stopped(Exception):
    """Training ends because a signal asked for it. The text is one line: where, and how to go on."""

    def __init__(self, text: str, signal: int):
        super().__init__(text)
        self.signal = signal


def stopped(signal: int, step: int, saved: int | None, folder: Path) -> Stopped:
    """The exception of a run that a signal ended after `step` steps, with its last checkpoint of step `saved`."""
    start = f"step {saved}" if saved else "the beginning"
    return Stopped(f"stopped after {step} steps; --run {folder} --resume goes on from {start}", signal)


def not_finite(step: int, loss: float, grad_norm: float, path: Path, offset: int, norms: dict[str, float]) -> NotFinite:
    """The exception of a step whose loss or gradient is NaN or infinite.

    Args:
      step: its number, from 1.
      loss: of its tokens.
      grad_norm: of the whole gradient.
      path: the shard of its tokens.
      offset: how many of the shard's tokens come before them.
      norms: each weight's name -> the norm of its gradient, in the model's order.
    """
    name, value = ("grad_norm", grad_norm) if math.isfinite(loss) else ("train_loss", loss)
    broken = [each for each, norm in norms.items() if not math.isfinite(norm)]
    where = "each gradient is finite by itself"
    if broken:
        first = f"the first gradient that isn't finite is of {broken[0]} (norm {norms[broken[0]]})"
        where = f"{first}, the last of {broken[-1]}, {len(broken)} of {len(norms)}"
    return NotFinite(
        f"{name} of step {step} is {value}: its tokens start at {offset} of {path}; {where}; lower --optimizer.lr, "
        "look at that shard, or go on from the last checkpoint with --resume --on-nonfinite skip"
    )


_LONGEST = 4000
_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory|can't allocate memory")


def one_line(error: Exception) -> str:
    """The error's text as one printable line.

    Names and words from files are part of it: what would steer a terminal is shown as Python writes it, and of more
    than 4000 characters the middle is left out.
    """
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 1000]} ... {text[-900:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def code_of(error: BaseException) -> int:
    """The exit code of a program that ends with `error`."""
    if isinstance(error, Stopped):
        return 128 + error.signal
    for kind, code in ((BadInput, BAD_INPUT), (NotFinite, NOT_FINITE), (NotWritten, NOT_WRITTEN)):
        if isinstance(error, kind):
            return code
    out_of_memory = isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error))
    return BAD_INPUT if out_of_memory else 1


def speaks(argv: list[str]) -> bool:
    """Whether this process says what all of a run's would: each but those that aren't the first on their machine.

    That is known under torchrun; with `--processes auto` under SLURM and Open MPI; and by `--process` where the
    coordinator's address is one that only this machine has.
    """
    ranks = [os.environ.get("LOCAL_RANK")] if os.environ.get("WORLD_SIZE", "1") != "1" else []
    if "auto" in argv:
        ranks += [os.environ.get(name) for name in ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")]
    said = dict(itertools.pairwise(argv))
    if said.get("--coordinator", "").startswith(("127.", "localhost:", "[::1]:")):
        ranks.append(said.get("--process"))
    return all(rank in (None, "0") for rank in ranks)


def exit_codes(main: Callable[..., None]) -> Callable[..., None]:
    """Run `main`; where it ends with one of the exceptions above, print its text on one line of stderr and exit.

    With 2 on `BadInput`, 3 on `NotFinite`, 5 on `NotWritten`, 128 plus the signal on `Stopped`.
    Memory that can't be had is 2 as well: what was asked for is too large for this machine.
    """

    @functools.wraps(main)
    def run(*args, **kwargs) -> None:
        argv = next((each for each in args if each is not None), sys.argv[1:])
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be text in any encoding
        try:
            main(*args, **kwargs)
        except (BadInput, NotFinite, NotWritten) as error:
            if isinstance(error, NotWritten) or speaks(argv):
                print("error: " + one_line(error), file=sys.stderr)
            sys.exit(code_of(error))
        except Stopped as stopped:
            if speaks(argv):
                print(one_line(stopped), file=sys.stderr)
            sys.exit(code_of(stopped))
        except (MemoryError, RuntimeError) as error:  # JAX and PyTorch have RuntimeErrors of their own for it
            if code_of(error) != BAD_INPUT:
                raise
            why = one_line(error)[:300] or "MemoryError"
            print(f"error: out of memory ({why}): ask for less, or take a larger machine", file=sys.stderr)
            sys.exit(BAD_INPUT)

    return run
