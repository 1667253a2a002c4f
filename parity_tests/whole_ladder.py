"""pytest's side of a run of the whole ladder: shared out over processes, and said at its end which rung is red."""

import importlib.util
import os
from collections.abc import Mapping

import pytest

from parity_tests.certificate.outcome import Outcome, after, in_ladder_order

WORKER = "PYTEST_XDIST_WORKER"
"""What pytest-xdist sets in the processes that it starts."""
PROCESSES = 4
"""At most, each with both frameworks and their compiled steps in memory: about 3 GiB."""


def share_out(config: pytest.Config) -> None:
    """Run the files of a whole folder in as many processes as there are cores, where pytest-xdist is installed.

    One file, one test or a GPU stay in this process, and so does everything where the command line has `-n` or a
    debugger.
    """
    options = config.option
    if WORKER in os.environ:
        return  # one of those processes itself: it comes here too, and would start its own
    here = config.getoption("--device") == "gpu" or named_tests(config) or options.collectonly or options.usepdb
    if here or importlib.util.find_spec("xdist") is None or getattr(options, "numprocesses", 0) is not None:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores > 1:
        options.numprocesses, options.dist = min(cores, PROCESSES), "loadfile"


def own_share(environment: Mapping[str, str], gpus: int, cores: int) -> tuple[str, int]:
    """Which GPU this process takes, and how many threads: of several processes (`-n`) every one has its share.

    Args:
      environment: of the process, where pytest-xdist says which of them it is, and CUDA_VISIBLE_DEVICES which GPUs
        are theirs.
      gpus: that they may use; at least 1.
      cores: that they may use.

    Returns: the GPU's name for CUDA_VISIBLE_DEVICES, and threads.
    """
    number = int(environment.get(WORKER, "gw0").removeprefix("gw"))
    names = visible_gpus(environment, gpus)
    return names[number % len(names)], max(cores // int(environment.get(f"{WORKER}_COUNT", "1")), 1)


def visible_gpus(environment: Mapping[str, str], gpus: int) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this environment may use; as many as there are, without it."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",") if visible else [str(gpu) for gpu in range(gpus)]


def named_tests(config: pytest.Config) -> bool:
    """Whether the command line names files or tests, not folders alone."""
    return any("::" in argument or argument.endswith(".py") for argument in config.args)


class LowestRed:
    """Says at the end which rung is the lowest red one, and its first tests."""

    SHOWN = 3

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what failed."""
        self.outcomes[report.nodeid] = after(self.outcomes.get(report.nodeid, Outcome(report.nodeid)), report)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        """One line a test, of the lowest rung that has a red one."""
        red = sorted(
            (each for each in self.outcomes.values() if each.result == "failed"),
            key=lambda each: in_ladder_order(each.rung),
        )
        if not red:
            return
        lowest = [each for each in red if each.rung == red[0].rung]
        where = f"rung {lowest[0].rung}" if lowest[0].rung[0].isdigit() else "the programs, beside the ladder"
        terminalreporter.write_line(f"lowest red: {where}", red=True, bold=True)
        for each in lowest[: self.SHOWN]:
            terminalreporter.write_line(f"  {each.test.rpartition('/')[2]}: {each.line}")
        if len(lowest) > self.SHOWN:
            terminalreporter.write_line(f"  and {len(lowest) - self.SHOWN} more tests of that rung")
