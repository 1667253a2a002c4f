"""Which steps of a run `--profile` traces. Imports neither JAX nor PyTorch: the trainers give their own profilers."""

from collections.abc import Callable
from typing import Protocol

from jaxgpt.errors import BadInput

BEFORE = 3
"""Steps before those that are traced: the first ones load libraries and fill the queue."""
FOLDER = "trace"
"""Of the traces, in a run's folder."""
PROGRAM = "step.hlo.txt"
"""The compiled step, beside JAX's trace: where each of its kernels comes from."""


class Tracer(Protocol):
    """A framework's profiler."""

    def start(self) -> None:
        """Begin a trace."""

    def stop(self) -> None:
        """End it."""


class Profile:
    """Traces `steps` steps of a run, from the fourth of this start on, or as many as are left.

    Args:
      steps: how many; None traces nothing.
      first: updates done when this start begins.
      last: updates done when it ends.
      tracer: of the framework.
      wait: returns when the device has done what was asked of it.
    """

    def __init__(self, steps: int | None, first: int, last: int, tracer: Tracer, wait: Callable[[], object]):
        self._tracer, self._wait = tracer, wait
        self._from = self._to = -1
        if steps is not None and first + BEFORE < last:
            self._from, self._to = first + BEFORE, min(first + BEFORE + steps, last)

    def at(self, done: int) -> None:
        """Begin or end the trace between update number `done` and the next one."""
        if done in (self._from, self._to):
            self._wait()
            self._tracer.start() if done == self._from else self._tracer.stop()


def check_profile(profile: int | None, steps: int) -> None:
    """`BadInput` for a `--profile` that a run of so many steps has no room for."""
    if profile is not None and not 1 <= profile <= steps - BEFORE:
        raise BadInput(
            f"--profile {profile}: {BEFORE} of the run's {steps} steps go before those that are traced; give a whole "
            f"number of at least 1, and a run of at least {BEFORE + max(profile, 1)} steps"
        )
