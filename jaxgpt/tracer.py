"""JAX's profiler as `--profile` uses it: a trace that Perfetto and XProf open, and the compiled step beside it."""

from pathlib import Path

import jax

from jaxgpt.profiled import PROGRAM


class Tracer:
    """Traces what this process and its devices do between `start` and `stop`, into a folder that is made.

    Args:
      folder: for the trace, a file of each process.
      step: compiled; its text says where each kernel of the trace comes from.
      writes: whether this process is the one that writes the step.
    """

    def __init__(self, folder: Path, step: jax.stages.Compiled, writes: bool = True):
        self._folder, self._step, self._writes = folder, step, writes

    def start(self) -> None:
        """Begin, without Python's own calls: they would be most of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._writes:
            (self._folder / PROGRAM).write_text(self._step.as_text() or "", encoding="utf-8")
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        jax.profiler.start_trace(self._folder, profiler_options=options)

    def stop(self) -> None:
        """End, and write the trace."""
        jax.profiler.stop_trace()
