"""Bad input, said in one line.

Whatever a user can get wrong (a flag, a shard, a run's folder, weights, a mesh) raises `BadInput`, whose text names the
value and the mend. A program wraps its `main` in `exit_codes`, which prints that line on stderr and exits with 2.
"""

import functools
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


def exit_codes(main: Callable[..., None]) -> Callable[..., None]:
    """Run `main`; end the process with 2 on `BadInput`, 3 on `NotFinite`, and the message on one line of stderr."""

    @functools.wraps(main)
    def run(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except (BadInput, NotFinite) as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            sys.exit(BAD_INPUT if isinstance(error, BadInput) else NOT_FINITE)

    return run
