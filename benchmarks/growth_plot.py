"""The table and the picture of `benchmarks.growth`, from its results alone."""

from pathlib import Path
from typing import Any

from benchmarks.growth_cases import AXES, bend
from jaxgpt.flops import peak_flops

UNITS = {
    "micro-batch": "sequences a micro-batch",
    "sequence": "tokens a sequence",
    "depth": "layers",
    "width": "width",
    "devices": "devices",
}


def by_axis(results: dict) -> dict[str, list[dict]]:
    """Cases along each axis in the order in which work grows; those of Muon not dealt out have an axis of their own."""
    groups: dict[str, list[dict]] = {}
    for axis in AXES:
        for dealt in (True, False):
            found = [case for case in results["cases"] if case["axis"] == axis and case["dealt"] is dealt]
            if found:
                name = axis if dealt else f"{axis}, replicated Muon"
                groups[name] = sorted(found, key=lambda case: case["value"])
    return groups


def utilisation(case: dict) -> float | None:
    """Share of the card's stated operations a second; None for a CPU."""
    peak = peak_flops([case["card"]] * case["devices"])
    return case["flops_per_s"] / peak if peak else None


def rates(found: list[dict]) -> list[float]:
    """Operations a second of each case: a card's; of virtual CPU devices, which share what there is, all together."""
    return [case["flops_per_s"] / (case["devices"] if utilisation(case) else 1) for case in found]


def table(results: dict) -> str:
    """A Markdown table of all cases, each axis with where it bends; then what is missing."""
    first: dict[str, Any] = next(iter(results["cases"]), {})
    versions = ", ".join(f"{name} {version}" for name, version in sorted(first.get("versions", {}).items()))
    said = [f"{results['recipe']} with {results['trainer']} on {first.get('card')}; {versions}", ""]
    said += ["| grows | value | parameters | micro-batch | step, ms | CPU, ms | tokens/s | TFLOP/s | MFU | |"]
    said += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"]
    for axis, found in by_axis(results).items():
        at = bend(rates(found))
        for i, case in enumerate(found):
            mfu = utilisation(case)
            cells = [axis, f"{case['value']:,}", f"{case['parameters'] / 1e6:,.1f}M", str(case["micro_batch"])]
            cells += [f"{case['step_tokens'] / case['tokens_per_s'] * 1e3:,.1f}", f"{case['cpu_ms']:,.1f}"]
            cells += [f"{case['tokens_per_s']:,.0f}"]
            cells += [f"{case['flops_per_s'] / 1e12:.4g}", "" if mfu is None else f"{mfu:.1%}"]
            said.append("| " + " | ".join([*cells, "bends here" if i == at else ""]) + " |")
    for case in results["failed"]:
        said.append(f"\n{case['axis']} {case['value']} failed: {case['error'].splitlines()[-1][:200]}")
    if left := results.get("left"):
        names = ", ".join(f"{case['axis']} {case['value']}" for case in left)
        said.append(f"\nleft for another call with the same --out, for --budget was spent: {names}")
    return "\n".join(said)


def draw(results: dict, file: Path) -> None:
    """Tokens a second along each axis, where the operations a second bend marked, and their share of the best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = by_axis(results)
    figure, plots = pyplot.subplots(1, max(len(groups), 1), figsize=(4.2 * max(len(groups), 1), 3.6), squeeze=False)
    for plot, (axis, found) in zip(plots[0], groups.items(), strict=False):
        values, speeds = [case["value"] for case in found], rates(found)
        plot.plot(values, [case["tokens_per_s"] for case in found], "o-", label="tokens/s")
        plot.set_xscale("log", base=2)
        plot.set_xticks(values, [f"{value:,}" for value in values])
        plot.minorticks_off()
        plot.set_ylim(bottom=0)
        plot.set_xlabel(UNITS[axis.split(",")[0]] + axis[len(axis.split(",")[0]) :])
        plot.set_ylabel("tokens/s")
        share = plot.twinx()
        share.plot(values, [speed / max(speeds) for speed in speeds], "s--", color="tab:gray", alpha=0.7)
        share.set_ylim(0, 1.05)
        share.set_ylabel("operations/s, share of the best")
        if (at := bend(speeds)) is not None:
            plot.axvline(values[at], color="tab:red", linestyle=":")
            plot.annotate("bends", (values[at], 0), xytext=(3, 6), textcoords="offset points", color="tab:red")
    card = results["cases"][0]["card"] if results["cases"] else None
    figure.suptitle(f"{results['recipe']}, {results['trainer']}, {card}")
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
