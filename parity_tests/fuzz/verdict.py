"""What a reader may do with an input: take it, or refuse it in one line. Everything else is a crash."""

import contextlib
import io
import signal
import threading
from collections.abc import Callable, Iterator

from jaxgpt.errors import BadInput, one_line

SECONDS = 20
"""How long a reader may take for one input; all take milliseconds."""


class Hang(AssertionError):
    """A reader took longer than it may."""


def taken(read: Callable[[], object]) -> bool:
    """Whether `read` took its input; False where it refused it with `BadInput`.

    Raises:
      Hang: it took more than `SECONDS`.
      AssertionError: it refused in no line, in more than one, or left as a program that failed.
      Exception: whatever else it raised, which it must not.
    """
    with _deadline(), contextlib.redirect_stdout(io.StringIO()):
        try:
            read()
        except BadInput as error:
            line = one_line(error)
            assert line, "refused without a word"
            assert line.isprintable(), "refused with what steers a terminal"
            assert len(line) < 50_000, "refused in more than a line"
            return False
        except SystemExit as end:  # --help
            if end.code:
                raise AssertionError(f"left with {end.code}") from None
    return True


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise Hang(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
