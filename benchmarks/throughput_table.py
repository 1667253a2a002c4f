"""The tables of `benchmarks.throughput`, computed from its results file alone: the docs' figures come from here."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.errors import BadInput

_LARGEST_FILE = 64 * 2**20
REFERENCES = ("torch_ref", "published")
"""What the others are compared with."""


@dataclass(frozen=True)
class Row:
    """One trainer on so many devices, all its alternations together."""

    trainer: str
    devices: int
    runs: int
    step_ms: float
    """Median of the runs' medians."""
    lowest_ms: float
    highest_ms: float
    """Of the runs' medians."""
    tokens_per_s: float
    """Of all devices."""
    mfu: float | None
    """Share of the card's measured peak that the counted operations take; None where no peak was measured."""
    peak_bytes: int
    cold_s: float | None
    warm_s: float | None
    """Seconds of compiling with an empty cache, and with a full one; medians."""
    speed: dict[str, tuple[float, float, float]]
    """Reference -> how many times as fast, in the same alternation: median, lowest, highest."""
    memory: dict[str, float]
    """Reference -> share of its peak memory."""


def read_results(file: Path) -> dict:
    """A results file.

    Raises:
      BadInput: it can't be read, or isn't one.
    """
    try:
        text = file.read_bytes() if file.stat().st_size <= _LARGEST_FILE else b""
        results = json.loads(text)
        for run in results["runs"]:
            run["trainer"], run["alternation"], run["devices"], run["step_ms"][0], run["peak_bytes"], run["step_tokens"]
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}; give a results file that can be read") from None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise BadInput(f"{file} holds no measured runs: give a file that benchmarks.throughput wrote") from None
    return results


def median_ms(run: dict, skip: int) -> float:
    """Of a run's steps after the first `skip`."""
    return statistics.median(run["step_ms"][skip:] or run["step_ms"])


def peak(results: dict) -> float | None:
    """The card's measured operations a second: the faster framework's median."""
    medians = [statistics.median(rates) for rates in results.get("gemm_flops", {}).values() if rates]
    return max(medians, default=None)


def rows(results: dict) -> list[Row]:
    """One for each trainer and number of devices, in the order in which they were run."""
    skip, card = results.get("skip", 0), peak(results)
    groups: dict[tuple[str, int], list[dict]] = {}
    for run in results["runs"]:
        groups.setdefault((run["trainer"], run["devices"]), []).append(run)
    made = []
    for (trainer, devices), runs in groups.items():
        medians = [median_ms(run, skip) for run in runs]
        ms = statistics.median(medians)
        tokens_per_s = runs[0]["step_tokens"] / ms * 1000
        others = {name: groups[name, devices] for name in REFERENCES if name != trainer and (name, devices) in groups}
        made.append(
            Row(
                trainer,
                devices,
                len(runs),
                ms,
                min(medians),
                max(medians),
                tokens_per_s,
                tokens_per_s * runs[0]["token_flops"] / devices / card if card else None,
                max(run["peak_bytes"] for run in runs),
                _compiling(runs, "cold"),
                _compiling(runs, "warm"),
                {name: ratio for name, other in others.items() if (ratio := _speed(runs, other, skip))},
                {name: _memory(runs) / _memory(other) for name, other in others.items()},
            )
        )
    return made


def _speed(runs: list[dict], others: list[dict], skip: int) -> tuple[float, float, float] | None:
    """How many times as fast as another trainer in the same alternation: median, lowest, highest."""
    theirs = {run["alternation"]: median_ms(run, skip) for run in others}
    ratios = [theirs[r["alternation"]] / median_ms(r, skip) for r in runs if r["alternation"] in theirs]
    return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def _memory(runs: Sequence[dict]) -> float:
    return max(run["peak_bytes"] for run in runs)


def _compiling(runs: list[dict], cache: str) -> float | None:
    seconds = [run["compile_s"] for run in runs if run["cache"] == cache and run["compile_s"] is not None]
    return statistics.median(seconds) if seconds else None


def table(results: dict) -> str:
    """A Markdown table of `rows`, what it was measured on, and what failed."""
    made, card = rows(results), peak(results)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results.get("versions", {}).items()))
    recipes = ", ".join(dict.fromkeys(run["recipe"] for run in results["runs"]))
    said = [f"{recipes} on {results.get('card')}, {results.get('date')}; {versions}", ""]
    if card:
        measured = ", ".join(
            f"{name} {statistics.median(rates) / 1e12:.0f}" for name, rates in results["gemm_flops"].items() if rates
        )
        said.insert(1, f"bfloat16 products, TFLOP/s: {measured}; MFU is stated against the faster")
    heads = ["trainer", "devices", "runs", "step, ms (lowest to highest run)", "Ktok/s", "MFU", "peak, GiB"]
    heads += ["compile cold, warm, s"]
    heads += [f"{what} {name}" for name in REFERENCES for what in ("speed to", "memory to")]
    compared = {f"{what} {name}" for name in REFERENCES for what in ("speed to", "memory to")}
    there = {f"{what} {name}" for row in made for name in row.memory for what in ("speed to", "memory to")}
    used = [i for i, head in enumerate(heads) if head not in compared - there]
    said += ["| " + " | ".join(heads[i] for i in used) + " |", "|---|" + "---:|" * (len(used) - 1)]
    for row in made:
        cells = [row.trainer, str(row.devices), str(row.runs)]
        cells += [f"{row.step_ms:.1f} ({row.lowest_ms:.1f} to {row.highest_ms:.1f})", f"{row.tokens_per_s / 1e3:,.1f}"]
        cells += [f"{row.mfu:.1%}" if row.mfu else "", f"{row.peak_bytes / 2**30:.1f}"]
        cells += [", ".join("-" if s is None else f"{s:.1f}" for s in (row.cold_s, row.warm_s))]
        for name in REFERENCES:
            ratio = row.speed.get(name)
            cells += [f"{ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f})" if ratio else ""]
            cells += [f"{row.memory[name]:.2f}" if name in row.memory else ""]
        said.append("| " + " | ".join(cells[i] for i in used) + " |")
    for failed in results.get("failed", []):
        said.append(f"\nnot measured: {failed['trainer']} on {failed['devices']}, run {failed['alternation'] + 1}")
    return "\n".join(said)
