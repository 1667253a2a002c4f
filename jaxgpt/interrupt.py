"""SIGTERM and SIGINT as a wish to stop: while a run trains, after the step in flight; at other times, at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """What has been asked for so far, and whether there is anything to save yet."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """Number of the signal that came, if one did."""
        self.training = False
        """Set it once there is something to save: until then the process ends at once."""
        self.agreed: int | None = None
        """Of several processes: the signal that all of them know one of them got. One alone leaves it None."""
        self.alone = True
        """Set it to False where there are several: a step is still to come that agrees on where to stop."""

    @property
    def stops(self) -> int | None:
        """The signal after which the run stops now."""
        return self.signal if self.alone else self.agreed

    def came(self, number: int) -> None:
        """Take note of a signal. A second one, or one before `training`, ends the process."""
        name = signal.Signals(number).name
        if self.signal is None and self.training:
            self.signal = number
            if self.alone:  # of several, a launcher may want to end them all because one is gone: nothing can be saved
                print(f"{name}: saving after this step; a second one ends at once", file=sys.stderr, flush=True)
            return
        if self.signal is None:
            print(f"{name}: nothing has been trained yet, nothing is lost", file=sys.stderr, flush=True)
        os._exit(128 + number)


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """An `Interrupt` that this process's SIGTERM and SIGINT reach, until the end of the block.

    Python runs a handler in the main thread when that comes back from native code; a compiler can stay there for a
    minute. So Python's own handler does nothing, and a thread reads the signal's number from the wake-up pipe, which
    is written at once. Outside the main thread, where Python takes no handlers, nothing is changed.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    ends, starts = os.pipe()
    os.set_blocking(starts, False)

    def watch() -> None:
        while number := os.read(ends, 1):
            if number[0] in SIGNALS:
                interrupt.came(number[0])
        os.close(ends)

    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(starts, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield interrupt
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(starts)
