"""Devices of a machine that needn't be here: `--topology CHIP:N` as what JAX compiles for.

GPUs need one of their kind in this machine. TPUs need none, only the package libtpu of the version that JAX was made
with, and environment variables that say which slice this would be, set before JAX is imported.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any

from jaxgpt.errors import BadInput
from launch.chips import CHIPS, SLICES, Chip

_ACCELERATOR_TYPES = {"v5e": "v5litepod"}
_CORES = {"v4": 2, "v5p": 2}  # accelerator types of these count cores
_MOST_HOSTS = 64


@dataclass(frozen=True)
class Topology:
    """So many chips of a kind."""

    name: str
    chip_name: str
    devices: int

    @property
    def chip(self) -> Chip:
        """What is known of each."""
        return CHIPS[self.chip_name]


def topology(name: str) -> Topology:
    """What `CHIP:N` means.

    Raises:
      BadInput: an unknown chip, or a number of them that isn't made.
    """
    chip_name, _, count = name.partition(":")
    if chip_name not in CHIPS:
        raise BadInput(f"--topology {name}: give CHIP:N with a chip of {', '.join(CHIPS)}, such as h100:8 or v5e:8")
    devices = int(count) if count.isascii() and count.isdigit() and len(count) < 6 else 0
    chip = CHIPS[chip_name]
    if chip_name in SLICES and devices not in SLICES[chip_name]:
        raise BadInput(f"--topology {name}: {chip_name} comes in {', '.join(map(str, SLICES[chip_name]))} chips")
    rest = devices % chip.host
    if not 1 <= devices <= chip.host * _MOST_HOSTS or (devices > chip.host and rest):
        raise BadInput(f"--topology {name}: give 1 to {chip.host} devices, or whole hosts of {chip.host}")
    return Topology(name, chip_name, devices)


def described(wanted: Topology) -> tuple[list[Any], int | None]:
    """The devices, for a mesh, and the bytes that each lets a program have where this machine knows.

    Raises:
      BadInput: this machine can't compile for them; the text says which can.
    """
    return {"tpu": _tpus, "cuda": _gpus, "cpu": _cpus}[wanted.chip.platform](wanted)


def _cpus(wanted: Topology) -> tuple[list[Any], int | None]:
    import jax

    jax.config.update("jax_num_cpu_devices", wanted.devices)
    there = jax.devices("cpu")
    if len(there) < wanted.devices:
        raise BadInput(f"--topology {wanted.name}: this process has {len(there)} virtual CPU devices already")
    return there[: wanted.devices], None


def _tpus(wanted: Topology) -> tuple[list[Any], int | None]:
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput(
            f"--topology {wanted.name}: a plan for TPUs needs no TPU but the package libtpu, and it isn't here: in an "
            "environment of its own, pip install -e '.[tpu]' brings the version that fits JAX"
        )
    shape = SLICES[wanted.chip_name][wanted.devices]
    kind = _ACCELERATOR_TYPES.get(wanted.chip_name, wanted.chip_name)
    count = wanted.devices * _CORES.get(wanted.chip_name, 1)
    hosts = max(wanted.devices // wanted.chip.host, 1)
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE=f"{kind}-{count}",
        TPU_WORKER_HOSTNAMES=",".join(["localhost"] * hosts),
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    if "jax" in sys.modules:
        raise RuntimeError("jax was imported before the variables that libtpu reads were set")
    from jax.experimental.topologies import get_topology_desc

    options = {"chip_config_name": "megacore"} if wanted.chip_name == "v4" else {}  # one device a chip, as JAX has it
    described = get_topology_desc(platform="tpu", topology_name=f"{wanted.chip_name}:{shape}", **options)
    return list(described.devices), None


def _gpus(wanted: Topology) -> tuple[list[Any], int | None]:
    import jax

    try:
        here = jax.devices("cuda")[0]
    except RuntimeError:
        here = None
    if here is None or here.device_kind != wanted.chip.kind:
        found = f"this machine has {here.device_kind}" if here else "JAX finds no GPU here"
        raise BadInput(
            f"--topology {wanted.name} is compiled on a machine with one {wanted.chip.kind}, and {found}: run it "
            "there, with pip install -e '.[cuda13]'"
        )
    from jax.experimental.topologies import get_topology_desc

    hosts = max(wanted.devices // wanted.chip.host, 1)
    described = get_topology_desc("", "cuda", topology=f"1x{hosts}x{wanted.devices // hosts}")
    stats = here.memory_stats() or {}
    return list(described.devices), stats.get("bytes_limit")
