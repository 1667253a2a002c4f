"""What benchmarks/NOTES.md says of trainers side by side and of growth: the figures are those of the recorded runs."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import growth, growth_plot, scaling
from benchmarks.growth_cases import cases, key
from benchmarks.throughput_table import Row, read_results, rows
from jaxgpt.commands import parse
from jaxgpt.recipes import RECIPES

ROOT = Path(__file__).parent.parent
NOTES = (ROOT / "benchmarks" / "NOTES.md").read_text(encoding="utf-8")
LINES = " ".join(NOTES.split())
RESULTS = ROOT / "benchmarks" / "results"
BESIDE = [
    ("muon", "jaxgpt", "published", "`muon-2024-10-12`, published script"),
    ("muon", "jaxgpt", "torch_ref", "`muon-2024-10-12`, torch_ref"),
    ("modern", "jaxgpt", "torch_ref", "`modern-2024-10-14`, torch_ref"),
    ("modes", "jaxgpt --micro-batch 32", "published", "`--micro-batch 32`, published script, one run each"),
]
"""File, ours, the other, and the row of the table."""


def measured(file: str) -> dict[str, Row]:
    """Trainer -> what a file of measurements has of it."""
    return {row.trainer: row for row in rows(read_results(RESULTS / "throughput-h100" / f"{file}.json"))}


@pytest.mark.parametrize(("file", "ours", "other", "name"), BESIDE, ids=lambda value: value)
def test_a_row_of_trainers_side_by_side_is_the_measured_one(file, ours, other, name):
    of = measured(file)
    ratio, lowest, highest = of[ours].speed[other]
    speed = f"{ratio:.3f}" + (f" ({lowest:.3f} to {highest:.3f})" if of[ours].runs > 1 else "")
    cells = [name, f"{of[ours].step_ms:.1f} ms", f"{of[other].step_ms:,.1f}", speed, f"{of[ours].memory[other]:.2f}"]
    assert f"| {' | '.join(cells)} |" in NOTES


def test_ratios_without_the_last_step_are_the_measured_ones():
    ratios = []
    for file, ours, other, _ in BESIDE:
        results = read_results(RESULTS / "throughput-h100" / f"{file}.json")
        for run in results["runs"]:
            run["step_ms"].pop()
        (mine,) = [row for row in rows(results) if row.trainer == ours]
        ratios.append(f"{mine.speed[other][0]:.3f}")
    assert f"the four ratios are {', '.join(ratios[:3])} and {ratios[3]}." in LINES


def test_the_reference_beside_the_published_script_is_the_measured_one():
    ratio, lowest, highest = measured("muon")["torch_ref"].speed["published"]
    assert f"torch_ref is {ratio:.3f} times as fast as the published script ({lowest:.3f} to {highest:.3f})" in LINES


def test_our_own_micro_batches_beside_the_lean_ones_are_the_measured_ones():
    ours = measured("modes")["jaxgpt"]
    assert (
        f"(`modes.json`) micro-batches of 64 took {ours.step_ms:.1f} ms, {ours.speed['published'][0]:.3f} times as fast"
        in LINES
    )


def test_compiling_takes_what_was_measured():
    now, muon, modern = (measured(file)["jaxgpt"] for file in ("readme", "muon", "modern"))
    assert f"Compiling takes {now.cold_s:.1f} s cold and {now.warm_s:.1f} s with a full cache" in LINES
    assert f"it took {muon.cold_s:.1f} and {muon.warm_s:.1f} s" in LINES
    assert f"`modern-2024-10-14` (`modern.json`) {modern.cold_s:.1f} and {modern.warm_s:.1f}." in LINES


def grown() -> tuple[growth.Flags, dict]:
    """The command that NOTES gives, and what there is of it."""
    (command,) = re.findall(r"`python -m benchmarks\.growth (--budget 560 .*?)`", LINES)
    flags = parse(growth.Flags, command.split(), "python -m benchmarks.growth")
    assert flags.out == Path("benchmarks/results/growth-h100/growth.json")
    return flags, growth.read(replace(flags, out=ROOT / flags.out))


def test_growth_is_the_measured_one():
    lines = [line for line in growth_plot.table(grown()[1]).splitlines() if line.startswith("|")]
    assert len(lines) > 10
    assert "\n".join(lines) in NOTES


def test_no_case_of_growth_is_missing():
    flags, there = grown()
    wanted = [asdict(case) for axis in flags.axes for case in cases(RECIPES[flags.recipe], axis, flags.step_tokens)]
    assert {key(case) for case in there["cases"]} == {key(case) for case in wanted}


SCALED = {
    "scaling-h100": ("1", "2", "4"),
    "scaling-h100-2": ("1", "2", "2-distributed", "4", "4-distributed"),
}
"""Folder -> its files of one, two and four GPUs."""


def scaled(folder: str) -> dict:
    """Their measurements."""
    return scaling.joined(tuple(RESULTS / folder / f"{name}.json" for name in SCALED[folder]))


@pytest.mark.parametrize("folder", SCALED)
def test_several_gpus_take_what_was_measured(folder):
    lines = [line for line in scaling.table(scaled(folder)).splitlines() if line.startswith("|")]
    assert "\n".join(lines) in NOTES


@pytest.mark.parametrize("folder", SCALED)
def test_several_gpus_side_by_side_are_the_measured_ones(folder):
    of = {(row.trainer, row.devices): row for row in scaling.rows(scaled(folder))}
    ours = {n: of["jaxgpt", n] for n in (1, 2, 4)}
    times = lambda other, n: f"{of[other, n].step_ms / ours[n].step_ms:.3f}"  # noqa: E731
    assert f"jaxgpt keeps {ours[4].efficiency:.1%} of four times one card's speed" in LINES
    assert f"is {times('torch_ref', 4)} times as fast as torch_ref as it is" in LINES
    assert f"{times('torch_ref --optimizer.distributed', 4)} times as fast as torch_ref with Muon dealt out" in LINES
    assert f"on two {times('torch_ref', 2)} times torch_ref" in LINES
    apart = [f"{max(of[name, n].loss_apart for n in (2, 4)):.1e}" for name in ("jaxgpt", "torch_ref")]
    assert "at most {} apart (torch_ref {})".format(*(each.replace("e-0", "e-") for each in apart)) in LINES


def test_dealt_out_newton_schulz_takes_what_was_measured():
    of = {row.devices: row for row in scaling.rows(scaled("scaling-h100-2")) if row.trainer.endswith("distributed")}
    shares = [f"{of[n].newton_schulz:.1%}" for n in (2, 4)]
    assert "Newton-Schulz takes {} of torch_ref's step on two and {} on four".format(*shares) in LINES


@pytest.mark.parametrize("folder", SCALED)
def test_the_share_of_exchanges_that_is_covered_is_the_profiled_one(folder):
    (run,) = json.loads((RESULTS / folder / "breakdown.json").read_text(encoding="utf-8"))["runs"]
    took, covered = run["kinds"]["collectives"], run["overlapped"]
    says = f"exchanges take {took:.2f} ms of a step, and other kernels run during {covered:.2f} of them"
    assert f"{says}, {covered / took:.0%}" in LINES


def test_the_second_machines_step_is_longer_by_what_was_measured():
    uncovered, step = [], []
    for folder in SCALED:
        (run,) = json.loads((RESULTS / folder / "breakdown.json").read_text(encoding="utf-8"))["runs"]
        uncovered.append(run["kinds"]["collectives"] - run["overlapped"])
        (four,) = [row for row in scaling.rows(scaled(folder)) if (row.trainer, row.devices) == ("jaxgpt", 4)]
        step.append(four.step_ms)
    more, longer = (f"{second - first:.1f} ms" for first, second in (uncovered, step))
    assert f"so {more} more aren't covered, where the step is {longer} longer" in LINES


def test_what_pinned_rounding_costs_is_what_was_measured():
    said = " ".join((ROOT / "docs" / "ladder.md").read_text(encoding="utf-8").split())
    for file in ("rounding-cpu/throughput.json", "throughput-h100/pinned.json"):
        free, pinned = sorted(rows(read_results(RESULTS / file)), key=lambda row: row.step_ms)
        assert pinned.trainer == "jaxgpt --rounding pinned"
        took = f"takes {pinned.step_ms:,.1f} ms with it and {free.step_ms:.1f} without"
        assert f"{took}, {pinned.step_ms / free.step_ms:.2f} times as long" in said
    with_kernels, without = re.search(
        r"([\d,.]+) ms without kernels;.* all three ([\d.]+)\.", NOTES, re.DOTALL
    ).groups()[::-1]
    assert f"which alone makes {float(without.replace(',', '')) / float(with_kernels):.2f}" in said
