"""The same step on 1, 2, ... devices of one host: `python -m benchmarks.scaling --devices 1 2 4 8 --out FILE.json`.

    python -m benchmarks.scaling --recipe muon-2024-10-12 --devices 1 2 4 8 --data 'GLOB_train_*.bin' \\
        --val-data 'GLOB_val_*.bin' --newton-schulz --out scaling.json
    python -m benchmarks.scaling --table scaling.json more.json

Files given together make one table: numbers of devices can be measured in several calls, on one kind of card.

Both trainers, the same tokens a step whatever the devices, from the same seed of a framework, so that losses can be
compared too. On a machine without accelerators jaxgpt takes virtual CPU devices and torch_ref processes that talk
through gloo. JAX deals Muon's matrices over the devices; PyTorch does with 'torch_ref --optimizer.distributed', and
otherwise each process orthogonalises all.
"""

import shlex
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.throughput import Measured, report
from benchmarks.throughput_table import median_ms, read_results
from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes

_PROG = "python -m benchmarks.scaling"
WITHOUT = " --optimizer.newton-schulz-steps 0"
"""What tells a trainer's entry without the iterations from the one with them."""


@dataclass(frozen=True)
class Flags(Measured):
    """Time the same step on several numbers of devices, or print the table of such measurements."""

    devices: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = (1, 2)
    """Numbers of devices, each of which divides a step's sequences."""
    alternations: int = 1
    newton_schulz: bool = False
    """Run each trainer also without Newton-Schulz iterations: what they take of a step is the difference."""


@dataclass(frozen=True)
class Row:
    """One trainer on so many devices."""

    trainer: str
    devices: int
    step_ms: float
    """Median over runs of their medians."""
    tokens_per_s: float
    """A device."""
    efficiency: float | None
    """That over the same on one device; None where that wasn't measured."""
    newton_schulz: float | None
    """Share of the step."""
    loss_apart: float | None
    """Largest difference of a training loss from the run on the fewest devices, first alternations."""
    peak_bytes: int


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    argv = sys.argv[1:] if argv is None else argv
    flags = parse(Flags, argv, _PROG)
    if flags.table:
        print(table(joined(flags.table)))
        return
    if not flags.devices or min(flags.devices) < 1 or flags.alternations < 1:
        raise BadInput(f"--devices {flags.devices}, --alternations {flags.alternations}: give at least 1")
    if flags.newton_schulz:
        ours = [each for each in flags.trainers if each != "published"]
        flags = replace(flags, trainers=(*flags.trainers, *(each + WITHOUT for each in ours)))
    order = [(alternation, n) for alternation in range(flags.alternations) for n in flags.devices]
    report(flags, order, shlex.join([*_PROG.split(), *argv]), table)


def joined(files: tuple[Path, ...]) -> dict:
    """The results of several files as one. What failed in one of them and ran in another hasn't failed.

    Raises:
      BadInput: they are of different cards, or leave out different numbers of first steps.
    """
    found = [read_results(file) for file in files]
    for name in ("card", "skip"):
        if len(values := {str(each.get(name)) for each in found}) > 1:
            raise BadInput(f"--table: these files have different {name}s, {', '.join(sorted(values))}")
    dates = " and ".join(dict.fromkeys(str(each.get("date")) for each in found))
    runs = [run for each in found for run in each.get("runs", [])]
    ran = [{(run["trainer"], run["devices"]) for run in each.get("runs", [])} for each in found]
    failed = []
    for at, each in enumerate(found):
        elsewhere = set().union(*ran[:at], *ran[at + 1 :])
        failed += [run for run in each.get("failed", []) if (run["trainer"], run["devices"]) not in elsewhere]
    return found[0] | {"runs": runs, "failed": failed, "date": dates}


def rows(results: dict) -> list[Row]:
    """One for each trainer and number of devices, but for those without Newton-Schulz."""
    skip = results.get("skip", 0)
    groups: dict[tuple[str, int], list[dict]] = {}
    for run in results["runs"]:
        groups.setdefault((run["trainer"], run["devices"]), []).append(run)
    step = {key: statistics.median(median_ms(run, skip) for run in runs) for key, runs in groups.items()}
    rate = {key: runs[0]["step_tokens"] / step[key] * 1000 / key[1] for key, runs in groups.items()}
    made = []
    for (trainer, devices), runs in groups.items():
        if trainer.endswith(WITHOUT):
            continue
        key, fewest = (trainer, devices), (trainer, min(n for name, n in groups if name == trainer))
        without = step.get((trainer + WITHOUT, devices))
        apart = None
        if key != fewest:
            pairs = zip(runs[0]["train_loss"], groups[fewest][0]["train_loss"], strict=False)
            apart = max(abs(a - b) for a, b in pairs)
        made.append(
            Row(
                trainer,
                devices,
                step[key],
                rate[key],
                rate[key] / rate[trainer, 1] if (trainer, 1) in rate else None,
                None if without is None else 1 - without / step[key],
                apart,
                max(run["peak_bytes"] for run in runs),
            )
        )
    return made


def table(results: dict) -> str:
    """A Markdown table of `rows`, with what wasn't measured."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results.get("versions", {}).items()))
    recipes = ", ".join(dict.fromkeys(run["recipe"] for run in results["runs"]))
    said = [f"{recipes} on {results.get('card')}, {results.get('date')}; {versions}", ""]
    heads = ["trainer", "devices", "step, ms", "tok/s a device", "efficiency", "Newton-Schulz", "loss apart"]
    heads += ["peak, GiB"]
    said += ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows(results):
        cells = [row.trainer, str(row.devices), f"{row.step_ms:.1f}", f"{row.tokens_per_s:,.0f}"]
        cells += ["" if row.efficiency is None else f"{row.efficiency:.1%}"]
        cells += ["" if row.newton_schulz is None else f"{row.newton_schulz:.1%}"]
        cells += ["" if row.loss_apart is None else f"{row.loss_apart:.1e}", f"{row.peak_bytes / 2**30:.1f}"]
        said.append("| " + " | ".join(cells) + " |")
    for failed in results.get("failed", []):
        said.append(f"\nnot measured: {failed['trainer']} on {failed['devices']}, run {failed['alternation'] + 1}")
    return "\n".join(said)


if __name__ == "__main__":
    main()
