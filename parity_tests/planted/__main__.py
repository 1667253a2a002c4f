"""Plant bugs, climb the ladder, and write what was found: `python -m parity_tests.planted`."""

import dataclasses
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from parity_tests.planted.bug import Bug
from parity_tests.planted.bugs import BUGS
from parity_tests.planted.page import COMMAND, PAGE, RESULTS, ROOT, render
from parity_tests.planted.run import Record, read, run, unchanged, write


@dataclasses.dataclass(frozen=True)
class Flags:
    """Plant each bug in a copy of the trainers, climb the ladder there, and write down the lowest red rung."""

    processes: int = 1
    """climbs at a time; each takes one core and 3 GB"""
    only: tuple[str, ...] = ()
    """names of bugs; the others keep the results they have"""
    out: Path = RESULTS
    """where results are written; docs/planted-bugs.md is written from the usual place alone"""
    check: bool = False
    """run nothing: exit with 1 where the page isn't what the results give, or a bug doesn't apply any more"""


def chosen(names: Iterable[str]) -> list[Bug]:
    """The bugs of those names, or all.

    Raises:
      BadInput: a name that no bug has.
    """
    named = {bug.name: bug for bug in BUGS}
    for name in (name for name in names if name not in named):
        near = get_close_matches(name, named, n=1, cutoff=0)
        raise BadInput(f"--only {name}: no such bug; did you mean {near[0]}?")
    return [named[name] for name in names] or BUGS


def faults() -> list[str]:
    """What `--check` finds, a line each."""
    found = []
    for bug in BUGS:
        if (count := (ROOT / bug.file).read_text(encoding="utf-8").count(bug.old)) != 1:
            found.append(f"{bug.name} doesn't apply: {bug.file} has {count} places that read {bug.old!r}")
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != render():
        found.append(f"{PAGE.name} isn't what {RESULTS.name} gives: run {COMMAND}, and look at the difference")
    return found


def line(record: Record) -> str:
    """How a record is printed."""
    verdict = "caught" if record.caught else "MISSED"
    where = f"{record.ended}, rung {record.rung or '-'} of {record.named}"
    return f"{verdict}  {record.seconds:6.1f} s  {where:18}  {record.bug}: {record.message or 'nothing said'}"


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, COMMAND)
    if flags.check:
        found = faults()
        print("\n".join(found), end="\n" if found else "")
        sys.exit(bool(found))
    if flags.processes < 1:
        raise BadInput(f"--processes {flags.processes}: give at least 1")
    bugs = chosen(flags.only)
    if bugs == BUGS and (control := unchanged()).ended != "green":
        raise BadInput(
            f"the unchanged trainers are {control.ended} at {control.test}: {control.message}; mend that first"
        )
    kept = {record.bug: record for record in read(flags.out)} if flags.out.exists() else {}
    missed = 0
    for record in run(bugs, flags.processes):
        print(line(record), flush=True)
        kept[record.bug] = record
        missed += not record.caught
        write(flags.out, [kept[bug.name] for bug in BUGS if bug.name in kept])
    if flags.out.resolve() == RESULTS:
        PAGE.write_text(render(), encoding="utf-8")
    print(f"{len(bugs) - missed} of {len(bugs)} caught by their own rung")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
