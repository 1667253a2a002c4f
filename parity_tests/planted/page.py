"""docs/planted-bugs.md: what the ladder said of each planted bug, and of each generated mutant."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from parity_tests.planted.ascent import CLIMB
from parity_tests.planted.bugs import BUGS
from parity_tests.planted.run import Record, read

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "planted-bugs.md"
RESULTS = Path(__file__).parent / "results.json"
MUTANTS = ROOT / "parity_tests" / "mutants" / "results.json"
COMMAND = "python -m parity_tests.planted"
NOT_RUN = "not run"

INTRODUCTION = """\
# Planted bugs

A ladder of tests that never fails shows nothing. So bugs are planted, one at a time, each a change in one place of
either trainer that still trains, and the ladder is climbed from rung 0. The lowest red rung must be the one that the
bug belongs to: then a red rung says where to look.

```
{command} --processes 2              # all, about {minutes} minutes of one core
{command} --only rotary-sign         # one
{command} --check                    # does this page say what was found, and does every bug still apply?
```

Each bug is a text in a file and what is put in its place: [`bugs.py`](../parity_tests/planted/bugs.py). It is planted
in a copy of `jaxgpt/`, `torch_ref/` and `parity_tests/`; nothing here changes. A climb runs each rung's tests on a CPU,
in float64 where a test has that, and stops at the first failure. The unchanged copy climbs first and has to be green.
Last run with {versions}."""

SOURCES = """\
[1] a trap that was met when the two trainers were written. [2] what `optax.contrib.muon` does. [3] a kind of silent
bug that [TTrace](https://arxiv.org/abs/2506.09280) found in a distributed trainer, carried over to what there is here.
[4] a framework's default: see [defaults.md](defaults.md)."""


def render() -> str:
    """The page, from both files of results; what hasn't been run says so."""
    found = {record.bug: record for record in read(RESULTS)} if RESULTS.exists() else {}
    versions = json.loads(RESULTS.read_text(encoding="utf-8"))["versions"] if found else {}
    minutes = max(1, round(sum(record.seconds for record in found.values()) / 60))
    said = ", ".join(f"{name} {version}" for name, version in versions.items()) or NOT_RUN
    parts = [INTRODUCTION.format(command=COMMAND, minutes=minutes, versions=said)]
    caught = sum(record.caught for record in found.values())
    frameworks = Counter(bug.framework for bug in BUGS)
    parts.append(
        f"## {len(BUGS)} bugs\n\n{frameworks['jax']} in JAX and {frameworks['torch']} in PyTorch; {caught} of them are "
        "found by their own rung and by none below."
    )
    parts.append("\n".join(_bugs(found)))
    parts.append(SOURCES)
    if MUTANTS.exists():
        parts += _mutants(json.loads(MUTANTS.read_text(encoding="utf-8")))
    return "\n\n".join(parts) + "\n"


def cell(text: object) -> str:
    """Text as a table's cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def code(text: object) -> str:
    """The same as code."""
    return f"`{cell(text).replace('`', chr(39))}`"


def _table(heads: str, rows: list[list[str]]) -> list[str]:
    columns = heads.split(" | ")
    return [f"| {heads} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _bugs(found: dict[str, Record]) -> list[str]:
    rows = []
    for rung in CLIMB:
        for bug in (bug for bug in BUGS if bug.rung == rung):
            where = f"{bug.framework}, {code(Path(bug.file).name)}"
            rows.append([rung, cell(bug.claim), where, cell(bug.why), _said(found.get(bug.name))])
    return _table("rung | bug | in | why it trains all the same | the first red test, and what it said", rows)


def _said(record: Record | None) -> str:
    if record is None:
        return NOT_RUN
    if record.test is None:
        return f"**{record.ended}**"
    test, message = record.test.split("::")[-1], (record.message or "").removeprefix("AssertionError: ")
    said = f"{code(test)}: {code(message[:160])}"
    return said if record.caught else f"**rung {record.rung}, {record.ended}**: {said}"


def _mutants(results: dict[str, Any]) -> list[str]:
    """The mutants' part of the page."""
    mutants = results["mutants"]
    survivors = [each for each in mutants if each["outcome"] != "killed"]
    equivalent = sum((each["why"] or "").startswith("Equivalent") for each in survivors)
    intro = (
        f"## {results['generated']} mutants\n\nBugs that nobody chose: single operators, numbers and comparisons "
        f"changed by a generator (seed {results['seed']}), each climbed with the same ladder "
        f"(`python -m parity_tests.mutants`). {results['killed']} of {results['generated']} are found. Of the "
        f"others, {equivalent} of {len(survivors)} change nothing that a program computes."
    )
    generated = Counter((each["framework"], each["file"]) for each in mutants)
    killed = Counter((each["framework"], each["file"]) for each in mutants if each["outcome"] == "killed")
    files = [[*each[:1], code(each[1]), str(n), str(killed[each])] for each, n in generated.items()]
    rungs = Counter(each["rung"] for each in mutants if each["outcome"] == "killed")
    by_rung = [[rung, str(rungs.pop(rung, 0))] for rung in CLIMB] + [
        ["beside the ladder", str(n)] for n in rungs.values()
    ]
    survived = [
        [
            code(each["id"]),
            f"{code(each['file'])}, line {each['line']}",
            f"{code(each['before'])} → {code(each['after'])}",
            cell(each["outcome"]),
            cell(each["why"] or "not known"),
        ]
        for each in survivors
    ]
    parts = [intro, "\n".join(_table("trainer | file | generated | killed", sorted(files)))]
    parts += ["Killed by the lowest red rung:", "\n".join(_table("rung | killed", by_rung))]
    if survived:
        parts += ["### Survivors", "\n".join(_table("mutant | where | change | outcome | why", survived))]
    return parts
