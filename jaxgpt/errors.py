"""Bad input, said in one line.

Whatever a user can get wrong (a flag, a shard, a run's folder, weights, a mesh) raises `BadInput`, whose text names the
value and the mend. A program wraps its `main` in `exit_codes`, which prints that line on stderr and exits with 2.
"""

import functools
import io
import re
import sys
from collections.abc import Callable

BAD_INPUT = 2
NOT_FINITE = 3
NOT_EQUIVALENT = 4
"""How `python -m jaxgpt.compare --require-equivalent` ends where equivalence is not shown; its report is written."""


class BadInput(Exception):
    """What the user gave can't be used. The text is one line: the value, the file or flag it came from, the mend."""


class NotFinite(Exception):
    """Training can't go on: the loss is NaN or infinite. The text is one line: the step, and where its tokens lie."""


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


def exit_codes(main: Callable[..., None]) -> Callable[..., None]:
    """Run `main`; end the process with 2 on `BadInput`, 3 on `NotFinite`, and the message on one line of stderr.

    Memory that can't be had is 2 as well: what was asked for is too large for this machine.
    """

    @functools.wraps(main)
    def run(*args, **kwargs) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be text in any encoding
        try:
            main(*args, **kwargs)
        except (BadInput, NotFinite) as error:
            print("error: " + one_line(error), file=sys.stderr)
            sys.exit(BAD_INPUT if isinstance(error, BadInput) else NOT_FINITE)
        except (MemoryError, RuntimeError) as error:  # JAX and PyTorch have RuntimeErrors of their own for it
            if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            why = one_line(error)[:300] or "MemoryError"
            print(f"error: out of memory ({why}): ask for less, or take a larger machine", file=sys.stderr)
            sys.exit(BAD_INPUT)

    return run
