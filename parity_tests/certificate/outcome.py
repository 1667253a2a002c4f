"""What came of one test, and the rung it stands on."""

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import pytest

from parity_tests.measured import Curve, Measurement

PROGRAMS = "programs"
"""The rung of tests that are no part of the ladder."""

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
_SEVERITY = (PASSED, SKIPPED, FAILED)
_LONGEST_LINE = 300


@dataclass(frozen=True)
class Outcome:
    """A test and how it ended."""

    test: str
    """pytest's node id; of a file that can't be collected, the file."""
    result: str = PASSED
    seconds: float = 0.0
    phase: str = "call"
    """In which it ended: collect, setup, call or teardown."""
    ended: bool = True
    """False while only its setup is known to have passed: an interrupted test never says more."""
    line: str = ""
    """First line of the failure, or why it was skipped."""
    measured: tuple[Measurement, ...] = ()
    curves: tuple[Curve, ...] = ()

    @property
    def rung(self) -> str:
        """The number on the ladder, "3b" for one, or `PROGRAMS`."""
        return rung_of(self.test.partition("::")[0])

    @property
    def name(self) -> str:
        """The test function's, without parameters."""
        return self.test.partition("::")[2].partition("[")[0]

    @property
    def parameters(self) -> str:
        """What stands in the brackets."""
        return self.test.partition("::")[2].partition("[")[2].removesuffix("]")

    @property
    def dtype(self) -> str | None:
        """The one that the parameters say, or else what was measured, or the name."""
        for text in (self.parameters, *(each.what for each in self.measured), self.name):
            if found := re.search(r"float64|bfloat16|float32", text):
                return found[0]
        return None

    @property
    def worst(self) -> Measurement | None:
        """The measurement that used the largest share of its allowance.

        A test that passed though one exceeded its own had planted that difference: it says nothing of the trainers.
        """
        counted = (m for m in self.measured if self.result == FAILED or m.share <= 1)
        return max(counted, key=lambda m: m.share, default=None)


def rung_of(file: str) -> str:
    """`test_rung_03b_fast_paths.py` stands on rung 3b, a file named otherwise on none: `PROGRAMS`."""
    found = re.match(r"test_rung_(\d+)([a-z]*)_", PurePosixPath(file).name)
    return f"{int(found[1])}{found[2]}" if found else PROGRAMS


def in_ladder_order(rung: str) -> tuple[float, str]:
    """Sorts rungs: 3, 3b, 10, programs."""
    found = re.match(r"\d+", rung)
    return (int(found[0]), rung) if found else (float("inf"), rung)


def after(before: Outcome, report: pytest.TestReport | pytest.CollectReport) -> Outcome:
    """`before` and one more report of the same test."""
    properties = getattr(report, "user_properties", [])
    now = replace(
        before,
        seconds=before.seconds + getattr(report, "duration", 0.0),
        measured=tuple(Measurement(*value) for key, value in properties if key == "measured"),
        curves=tuple(Curve(*value) for key, value in properties if key == "curve"),
        ended=before.ended or getattr(report, "when", None) != "setup" or report.outcome != PASSED,
    )
    if _SEVERITY.index(report.outcome) <= _SEVERITY.index(before.result):
        return now
    line = _reason(report) if report.outcome == SKIPPED else _first_line(report)
    return replace(now, result=report.outcome, phase=getattr(report, "when", None) or "collect", line=line)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped, or failed as it was expected to."""
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail}"
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return _one_line(said.removeprefix("Skipped: "))


def _first_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Of the exception's message; of a file that can't be collected the last line, which names the exception."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return _one_line(crash.message.removeprefix("AssertionError: "))
    lines = [line.removeprefix("E").strip() for line in str(report.longrepr).splitlines() if line.strip()]
    return _one_line(lines[-1] if lines else "")


def _one_line(text: str) -> str:
    line = next((line for line in text.splitlines() if line.strip()), "").strip()
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..."
