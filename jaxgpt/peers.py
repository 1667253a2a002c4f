"""Several processes of one run: when one of them is gone, the others end with a line instead of waiting for it.

A collective whose other end has died fails at once or hangs for minutes, and doesn't say whose fault it was. So every
process writes a count twice a second to a store that all of them reach, and reads the others'. One whose count stands
still is gone.

This relies on a store that outlives each of the processes (torchrun's, and that of `jaxgpt.coordinator`; where it goes
with its machine, that is noticed too), and on a thread that gets to run within `LOST` seconds, whatever the main thread
waits for. Imports neither JAX nor PyTorch.
"""

import atexit
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from jaxgpt.errors import PEER_LOST, BadInput, NotFinite, Stopped, code_of

EVERY = 0.5
LOST = 20.0
"""Seconds without a new count after which a process is gone. torchrun kills the others 30 seconds after the first."""
FAILED = 5.0
"""The same where that process said that it fails, or where an exception here suggests that one did."""
LAST_WORDS = ("ended", "failed")


class Peers:
    """The other processes, watched inside a `with` block, which is left when all of them leave theirs.

    Args:
      index: this process's, from 0.
      count: how many there are; one alone watches nothing.
      exchange: writes this process's word to the store, and returns each process's word by its index, as text.
      leave: what a process does last at an end that all come to.
      run: the run's folder as the command line says it, for messages.
    """

    def __init__(
        self,
        index: int,
        count: int,
        exchange: Callable[[str], Mapping[str, str]],
        leave: Callable[[], None],
        run: str | None,
    ):
        self._index, self._count, self._exchange, self._leave, self._run = index, count, exchange, leave, run
        self._last: str | None = None
        self._failing = False
        self._watcher = threading.Thread(target=self._watch, name="peers", daemon=True)

    def __enter__(self) -> None:
        if self._count > 1:
            self._watcher.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """At an end that all processes come to, wait for the first; at another let the others notice."""
        if self._count == 1:
            return
        if error is None or isinstance(error, Stopped | NotFinite):
            self._last = "ended"
            self._watcher.join()
            self._leave()
        else:
            self._fail(error)
        if self._index:  # the first speaks first: a launcher that sees one process end with a code ends the rest
            time.sleep(2 * EVERY)

    def _fail(self, error: BaseException) -> None:
        """Say so to the others; and end soon, for what frameworks do when Python ends would wait for them."""
        if not isinstance(error, BadInput):
            self._failing = True  # if another's end is the cause, the thread ends this process now
            time.sleep(FAILED + 2 * EVERY)
        self._last = "failed"
        self._watcher.join()
        end = functools.partial(_end_at_once, code_of(error))
        atexit.register(end)
        at_the_latest = threading.Timer(FAILED, end)
        at_the_latest.daemon = True
        at_the_latest.start()

    def _watch(self) -> None:
        words: Mapping[str, str] = {}
        changed = {str(i): time.monotonic() for i in range(self._count) if i != self._index}
        since = None
        with ThreadPoolExecutor(1, thread_name_prefix="peers") as asking:
            for count in itertools.count():
                last = self._last
                waits_for_the_first = last == "ended" and self._index and words.get("0") != "ended"
                mine = str(count) if last is None or waits_for_the_first else last
                before = words
                try:
                    words = asking.submit(self._exchange, mine).result(timeout=LOST)
                except Exception:  # the store's own errors, of any kind, and the time limit
                    self._end("the process that the others meet at")
                now = time.monotonic()
                for each in changed:
                    if words.get(each) != before.get(each):
                        changed[each] = now
                    limit = FAILED if self._failing or words.get(each) == "failed" else LOST
                    if words.get(each) != "ended" and now - changed[each] > limit:
                        self._end(f"process {each} of {self._count}")
                if mine in LAST_WORDS:
                    since = since or now
                    have_left = all(words.get(each) in LAST_WORDS for each in changed)
                    if self._index or have_left or (mine == "failed" and now - since > FAILED):
                        return
                time.sleep(EVERY)

    def _end(self, who: str) -> None:
        print(
            f"error: {who} is gone, and the run can't go on without it; --run {self._run or 'FOLDER'} --resume goes on "
            "from the last checkpoint, on fewer processes too",
            file=sys.stderr,
            flush=True,
        )
        os._exit(PEER_LOST)


def _end_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
