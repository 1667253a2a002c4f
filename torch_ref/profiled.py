"""PyTorch's profiler as `--profile` uses it: a Chrome trace, which Perfetto opens."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

TRACE = "torch.trace.json.gz"


class Tracer:
    """Traces what this process and its device do between `start` and `stop`, into a folder that is made."""

    def __init__(self, folder: Path, device: torch.device, writes: bool = True):
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._folder, self._profile, self._writes = folder, profile(activities=activities), writes
        self._on_gpu = device.type == "cuda"

    def start(self) -> None:
        """Begin."""
        self._profile.start()

    def stop(self) -> None:
        """End, and write the trace; one process of several does."""
        self._profile.stop()
        if self._writes:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self._folder / TRACE))

    def wait(self) -> None:
        """Return when the device is done."""
        if self._on_gpu:
            torch.cuda.synchronize()
