"""What certificate.json holds: the verdict, the claims, every rung, the curves, what it ran on.

Numbers that are not finite stand as the strings "NaN", "Infinity" and "-Infinity", for JSON has none.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jaxgpt import published
from jaxgpt.curves import RECORD_LOSS
from parity_tests.certificate.claims import AT_SCALE, CLAIMS, QUALITY, Claim, Rung, judge
from parity_tests.certificate.outcome import FAILED, PASSED, PROGRAMS, SKIPPED, Outcome, in_ladder_order, rung_of
from parity_tests.certificate.verdict import verdict
from parity_tests.measured import Measurement

SCHEMA = 1

PUBLISHED = ("llmc-2024-10-13", "adamw-2024-06-06", "soap-2024-10-09", "muon-2024-10-10")
"""The curves of the claim that no reduced recipe can test: the baseline, and three that raced to its loss."""


@dataclass(frozen=True)
class Run:
    """A session of pytest, as far as it got."""

    outcomes: Sequence[Outcome]
    not_reached: Sequence[str]
    """Node ids of tests that were collected and not run."""
    left_out: Sequence[str]
    """Of tests that were collected and deselected: slow ones, mostly."""
    files: Sequence[str]
    """Every file of tests that there is, relative to `root`."""
    root: Path
    selected: bool
    interrupted: bool
    command: Sequence[str]
    flags: Sequence[str]
    """Of a command that runs part of it again."""
    seconds: float
    written: str
    """ISO 8601, UTC."""
    environment: Mapping[str, object]


def document(run: Run) -> dict:
    """The object that certificate.json holds: plain dicts, lists, strings and finite numbers."""
    rungs = _by_rung(run)
    files = {number: _files(run, number) for number in rungs}
    claims = AT_SCALE if "gpu" in run.flags else CLAIMS
    failures = sorted((o for o in run.outcomes if o.result == FAILED), key=lambda o: in_ladder_order(o.rung))
    return {
        "schema": SCHEMA,
        "written": run.written,
        "verdict": verdict(rungs, failures, run.interrupted),
        "command": list(run.command),
        "seconds": round(run.seconds, 3),
        "totals": _counts(Rung(run.outcomes, len(run.not_reached), len(run.left_out))),
        "claims": [_claim(claim, rungs, run) for claim in claims] + [dict(QUALITY)],
        "rungs": [_rung(number, rung, files[number], run) for number, rung in rungs.items()],
        "failures": [_failure(o) for o in failures],
        "skipped": [{"test": o.test, "rung": o.rung, "why": o.line} for o in run.outcomes if o.result == SKIPPED],
        "curves": [
            {"name": c.name, "rung": o.rung, "test": o.test, "values": {k: _numbers(v) for k, v in c.values.items()}}
            for o in run.outcomes
            for c in o.curves
        ],
        "published": {
            "target": RECORD_LOSS,
            "curves": {name: [[p.tokens, p.val_loss] for p in published.curve(name)] for name in PUBLISHED},
        },
        "environment": dict(run.environment),
    }


def _by_rung(run: Run) -> dict[str, Rung]:
    """Every rung that there is, run or not, in ladder order."""
    numbers = {rung_of(file) for file in run.files} | {o.rung for o in run.outcomes}
    seen = {o.test.partition("::")[0] for o in run.outcomes}
    return {
        number: Rung(
            [o for o in run.outcomes if o.rung == number],
            sum(rung_of(test.partition("::")[0]) == number for test in run.not_reached),
            sum(rung_of(test.partition("::")[0]) == number for test in run.left_out),
            run.selected or not seen.issuperset(_needed(run, number)),
        )
        for number in sorted(numbers, key=in_ladder_order)
    }


def _needed(run: Run, number: str) -> list[str]:
    """The rung's files but for those of which every test was left out."""
    left_out = {test.partition("::")[0] for test in run.left_out}
    return [file for file in _files(run, number) if file not in left_out]


def _files(run: Run, number: str) -> list[str]:
    files = {*run.files, *(o.test.partition("::")[0] for o in run.outcomes)}
    return sorted(file for file in files if rung_of(file) == number)


def _counts(rung: Rung) -> dict[str, int]:
    results = {result: rung.count(result) for result in (PASSED, FAILED, SKIPPED)}
    return results | {"left_out": rung.left_out, "not_reached": rung.not_reached}


def _claim(claim: Claim, rungs: Mapping[str, Rung], run: Run) -> dict:
    said, why = judge(claim, rungs)
    files = [file for number in claim.rungs for file in _files(run, number)]
    return {
        "claim": claim.text,
        "verdict": said,
        "why": why,
        "rungs": list(claim.rungs),
        "commands": [" ".join(["pytest", *files, *run.flags])] if files else [],
    }


def _rung(number: str, rung: Rung, files: Sequence[str], run: Run) -> dict:
    measured = [o for o in rung.outcomes if o.worst]
    worst = max(measured, key=lambda o: o.worst.share, default=None)
    of_dtype = {o.dtype: o for o in sorted(measured, key=lambda o: o.worst.share)}
    return {
        "rung": number,
        "title": _title(number, files),
        "about": [] if number == PROGRAMS else [said for file in files if (said := _docstring(run.root / file))],
        "command": " ".join(["pytest", *files, *run.flags]),
        **_counts(rung),
        "seconds": round(sum(o.seconds for o in rung.outcomes), 2),
        "worst": _measurement(worst) if worst else None,
        "worst_by_dtype": {dtype: _measurement(o) for dtype, o in of_dtype.items() if dtype},
        "measurements": [_measurement(o) for o in measured],
    }


def _title(number: str, files: Sequence[str]) -> str:
    """From the files' names: "fast paths, matrices"."""
    if number == PROGRAMS:
        return "the programs"
    return ", ".join(PurePosixPath(file).stem.split("_", 3)[3].replace("_", " ") for file in files)


def _docstring(file: Path) -> str:
    """The first line that a file of tests says of itself, without the number of its rung."""
    try:
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
    line = said.partition("\n")[0]
    return line.partition(": ")[2] if line.lower().startswith("rung ") else line


def _measurement(outcome: Outcome) -> dict:
    """The worst of a test, with what tells the test from others."""
    worst: Measurement = outcome.worst
    return {
        "test": outcome.name,
        "parameters": outcome.parameters,
        "dtype": outcome.dtype,
        "what": worst.what,
        "apart": _number(worst.apart),
        "allowed": _number(worst.allowed),
        "share": _number(worst.share),
        "oracle": None if worst.oracle is None else _number(worst.oracle),
    }


def _failure(outcome: Outcome) -> dict:
    said = {"test": outcome.test, "rung": outcome.rung, "phase": outcome.phase, "line": outcome.line}
    return said | {"worst": _measurement(outcome) if outcome.worst else None}


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _numbers(values: Sequence[float]) -> list[float | str]:
    return [_number(value) for value in values]
