"""Climb the ladder with the mutants that a seed chooses: `python -m parity_tests.mutants --processes 16`."""

import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from parity_tests.mutants import results
from parity_tests.mutants.mutate import SEED, Mutant, chosen, sources
from parity_tests.mutants.run import climbs, unchanged, warm
from parity_tests.planted.run import copied
from parity_tests.programs import ROOT

PROG = "python -m parity_tests.mutants"


@dataclass
class Flags:
    """Count the mutants of both trainers that turn a rung of the ladder red; what is done is not done again"""

    processes: int = max((os.cpu_count() or 1) // 2, 1)
    """mutants at once, each needing 2 GB of memory"""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """the mutant of this id, done before or not; once for each"""
    survivors: bool = False
    """those that survived, again"""
    shard: str = "1/1"
    """i/n: every n-th of them, from the i-th"""
    out: Path = results.RESULTS
    """the file of results, which grows; where it is there, the run goes on with what it lacks"""
    seed: int = SEED
    """of the choice"""
    patience: float = 180
    """seconds after which a test that hasn't ended is a failed one"""


def wanted(flags: Flags, mutants: list[Mutant], done: dict[str, dict]) -> list[Mutant]:
    """Those of the mutants that this run is about."""
    if unknown := set(flags.only) - {mutant.id for mutant in mutants}:
        raise BadInput(f"--only {min(unknown)}: seed {flags.seed} chooses no such mutant; --out lists them")
    if flags.only:
        return [mutant for mutant in mutants if mutant.id in flags.only]
    if flags.survivors:
        return [mutant for mutant in mutants if done.get(mutant.id, {}).get("outcome") == "survived"]
    i, n = map(int, flags.shard.split("/"))
    return [mutant for mutant in mutants[i - 1 :: n] if mutant.id not in done]


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, PROG)
    shard = re.fullmatch(r"(\d+)/(\d+)", flags.shard)
    if not shard or not 1 <= int(shard[1]) <= int(shard[2]):
        raise BadInput(f"--shard {flags.shard}: give i/n, i from 1 to n")
    if flags.processes < 1:
        raise BadInput(f"--processes {flags.processes}: give 1 or more")
    texts = sources(ROOT)
    before = results.read(flags.out) if flags.out.exists() else None
    warm()
    mutants = chosen(texts, flags.seed)
    done = results.still_true(before, mutants, texts) if before else {}
    todo = wanted(flags, mutants, done)
    print(f"{len(todo)} of {len(mutants)} mutants are to be run", flush=True)
    results.write(flags.out, flags.seed, mutants, done, texts)
    with tempfile.TemporaryDirectory(prefix="jaxgpt-mutants-") as folder, copied() as base:
        control = unchanged(base, Path(folder), flags.processes, flags.patience) if todo else (Path(folder), [])
        for mutant, outcome in climbs(todo, base, Path(folder), control, flags.processes, flags.patience):
            done[mutant.id] = entry = results.result(mutant, outcome) | {"left_out": control[1]}
            results.write(flags.out, flags.seed, mutants, done, texts)
            print(f"{entry['outcome']} {outcome.seconds:5.0f} s  {mutant.id}  {entry['test'] or ''}", flush=True)
    survived = [entry for entry in done.values() if entry["outcome"] == "survived"]
    for entry in survived:
        print(f"\n{entry['id']}\n- {entry['before']}\n+ {entry['after']}\n{entry['why'] or 'NOT EXPLAINED'}")
    print(f"\n{len(done) - len(survived)} of {len(done)} killed")


if __name__ == "__main__":
    main()
