"""PyTorch's profiler as `--profile` uses it: a Chrome trace, which Perfetto opens."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

TRACE = "torch.trace.json.gz"


class Tracer:
    """Traces what this process and its device do between `start` and `stop`, into a folder that is made.

    Args:
      folder: for the trace.
      device: this process's.
      writes: whether this process is the one of several that writes its trace.
    """

    def __init__(self, folder: Path, device: torch.device, writes: bool = True):
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._folder, self._profile, self._writes = folder, profile(activities=activities), writes

    def start(self) -> None:
        """Begin."""
        self._profile.start()

    def stop(self) -> None:
        """End, and write the trace."""
        self._profile.stop()
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self._folder / TRACE))
