"""Climb the ladder in the folder where this runs, up to the first red rung: `python -m parity_tests.planted.ascent`.

`run.climb` starts it, in a copy of the trainers. What happens is appended to a file, line by line, so that a climb that
never ends says where it stands.
"""

import json
import sys
from pathlib import Path

import pytest

import jaxgpt
import parity_tests
import torch_ref

CLIMB: dict[str, list[str]] = {
    "0": ["test_rung_00_tokens.py"],
    "1": ["test_rung_01_newton_schulz.py"],
    "2": ["test_rung_02_initial_weights.py"],
    "3": ["test_rung_03_logits.py"],
    "3b": ["test_rung_03b_kernels.py", "test_rung_03b_fast_paths.py", "test_rung_03b_matrices.py"],
    "4": ["test_rung_04_loss.py"],
    "5": ["test_rung_05_gradients.py"],
    "6": ["test_rung_06_update.py", "test_rung_06_soap_shampoo.py"],
    "7": [
        f"test_rung_07_replay.py::test_gradients_of_one_do_the_same_in_the_other_for_50_steps[{name}-float64-{by}]"
        for name, by in (("muon-2024-10-12", "torch"), ("tiny-soap", "jax"), ("simple-2026-06-11", "torch"))
    ],
    "8": [
        *(
            f"test_rung_08_training.py::test_losses_are_the_same_at_every_step_and_weights_at_the_end[{name}-float64]"
            for name in ("muon-2024-10-12", "llmc-2024-10-13", "simple-2026-06-11", "opt-shampoo-2024-10-29")
        ),
        "test_rung_08_training.py::test_recipes_in_their_own_precision_start_alike[simple-2026-06-11]",
    ],
    "9": [
        "test_rung_09_mesh.py::test_gradients_do_not_depend_on_devices_or_accumulation",
        "test_rung_09_mesh.py::test_torch_gradients_do_not_depend_on_accumulation",
        "test_rung_09_distributed_muon.py",
    ],
    "10": ["test_rung_10_bridge.py"],
}
"""Rung -> pytest's arguments, upwards. Slow tests are left out unless named with their parameters, and of a test in
several dtypes all but float64. Where tests are named, those that are left out repeat them with another recipe."""


def rung_of(test: str) -> str:
    """The rung of a test's node id: "3b" of parity_tests/test_rung_03b_matrices.py::test_x."""
    return Path(test.split("::")[0]).name.removeprefix("test_rung_").split("_")[0].lstrip("0") or "0"


class Ascent:
    """A pytest plugin that selects the tests and appends what happens to `log`."""

    def __init__(self, log: Path, rungs: list[str]):
        self.log, self.rungs = log, rungs

    def write(self, **event: str | None) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        exact = {item.originalname for item in items if _dtype(item) == "float64"}
        named = {f"parity_tests/{test}" for tests in CLIMB.values() for test in tests}
        dropped = [
            item
            for item in items
            if (item.get_closest_marker("slow") and item.nodeid not in named)
            or (item.originalname in exact and _dtype(item) not in (None, "float64"))
        ]
        kept = [item for item in items if item not in set(dropped)]
        if missing := set(self.rungs) - {rung_of(item.nodeid) for item in kept}:
            raise pytest.UsageError(f"no test is left of rung {', '.join(sorted(missing))}")
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.write(failed=report.nodeid, message=_message(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(failed=report.nodeid, message=_message(report))


def _dtype(item: pytest.Item) -> str | None:
    return getattr(getattr(item, "callspec", None), "params", {}).get("dtype")


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The first line of the assertion, or of the error."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash else str(report.longrepr).strip().splitlines()[-1]).splitlines()
    return lines[0] if lines else ""


def main(log: Path, rungs: list[str]) -> int:
    """pytest's exit status; 4 where something else than the copy here would be imported."""
    here = Path.cwd().resolve()
    for package in (jaxgpt, torch_ref, parity_tests):
        if not Path(str(package.__file__)).resolve().is_relative_to(here):
            print(f"error: {package.__name__} comes from {package.__file__}, not from {here}", file=sys.stderr)
            return int(pytest.ExitCode.USAGE_ERROR)
    tests = [f"parity_tests/{each}" for rung in rungs for each in CLIMB[rung]]
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=short", *tests], [Ascent(log, rungs)]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
