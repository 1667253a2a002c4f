"""Chips that a plan is made for: what their makers state, and how fast they are. No framework is imported."""

from dataclasses import dataclass

from jaxgpt.flops import BF16_PEAKS
from jaxgpt.rates import RATES, WITHOUT_KERNELS, Rates, scaled

GIB = 2**30
_MEASURED = "NVIDIA H100 80GB HBM3"


@dataclass(frozen=True)
class Chip:
    """One device. Speeds are bytes a second, of links one way."""

    kind: str
    """As JAX names the device."""
    platform: str
    """cuda, tpu or cpu."""
    memory: int | None
    """Bytes that a program may use; None is unknown."""
    bandwidth: float = 0.0
    """Of its own memory."""
    link: float = 0.0
    """To its neighbours: NVLink through switches; on TPUs two ports together, for in a slice of 2x2 or 2x4, without
    wrap-around links, a corner has two neighbours."""
    host: int = 8
    """Devices of a host."""
    network: float | None = None
    """From a device to those of other hosts; None where `link` goes there too."""
    source: str = ""


_NVIDIA = "NVIDIA datasheets: HBM {}, NVLink {} both ways"
_TPU = "docs.cloud.google.com/tpu/docs/{}: {} GB of HBM at {} GB/s, ICI {} GB/s a port and way"

CHIPS = {
    # DGX H100 and H200 have a 400 Gb/s ConnectX-7 for each GPU, DGX A100 one of 200 Gb/s.
    "h100": Chip(
        _MEASURED,
        "cuda",
        80 * 10**9,
        3.35e12,
        450e9,
        8,
        50e9,
        _NVIDIA.format("3.35 TB/s", "900 GB/s") + "; DGX H100: 400 Gb/s a GPU between hosts",
    ),
    "h200": Chip(
        "NVIDIA H200",
        "cuda",
        141 * 10**9,
        4.8e12,
        450e9,
        8,
        50e9,
        _NVIDIA.format("4.8 TB/s", "900 GB/s") + "; DGX H200: 400 Gb/s a GPU between hosts",
    ),
    "a100": Chip(
        "NVIDIA A100-SXM4-80GB",
        "cuda",
        80 * 10**9,
        2.039e12,
        300e9,
        8,
        25e9,
        _NVIDIA.format("2.039 TB/s", "600 GB/s") + "; DGX A100: 200 Gb/s a GPU between hosts",
    ),
    # A TPU's memory is what its compiler says in its refusals, in GiB.
    "v4": Chip("TPU v4", "tpu", int(30.5 * GIB), 1.2e12, 2 * 50e9, 4, source=_TPU.format("v4", 32, 1200, 50)),
    "v5e": Chip("TPU v5 lite", "tpu", int(15.75 * GIB), 0.819e12, 2 * 50e9, 8, source=_TPU.format("v5e", 16, 819, 50)),
    "v5p": Chip("TPU v5", "tpu", int(95.74 * GIB), 2.765e12, 2 * 100e9, 4, source=_TPU.format("v5p", 95, 2765, 100)),
    "v6e": Chip("TPU v6 lite", "tpu", int(31.25 * GIB), 1.6e12, 2 * 100e9, 8, source=_TPU.format("v6e", 32, 1600, 100)),
    "cpu": Chip("cpu", "cpu", None, host=1024, source="virtual devices of this machine's CPU"),
}
"""By the name that `--topology` takes."""

SLICES = {
    "v4": {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"},
    "v5p": {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"},
    "v5e": {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"},
    "v6e": {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"},
}
"""Shapes of TPU slices by their number of chips (the same pages, supported configurations)."""


def rates_of(chip: Chip) -> Rates | None:
    """Measured rates of a chip, or those of the one that was measured, scaled by datasheets; None for a CPU."""
    if chip.kind in RATES:
        return RATES[chip.kind]
    if chip.kind not in BF16_PEAKS:
        return None
    measured = next(each for each in CHIPS.values() if each.kind == _MEASURED)
    operations = BF16_PEAKS[chip.kind] / BF16_PEAKS[_MEASURED]
    rates = WITHOUT_KERNELS if chip.platform == "tpu" else RATES[_MEASURED]
    return scaled(rates, operations, chip.bandwidth / measured.bandwidth, chip.kind)
