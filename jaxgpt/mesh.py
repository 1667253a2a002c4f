"""Devices and shardings. Weights are replicated, a step's sequences are split over the axis `data`."""

import os
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgpt.errors import BadInput

_GPU = ("gpu", "cuda")  # a device that is there, and one of a topology that is only described


def make_mesh(devices: int | None) -> Mesh:
    """A mesh of `devices` along one axis, `data`: accelerators, or virtual CPU devices where there is none.

    Must come before anything else asks JAX for a device, for the number of virtual CPU devices is fixed then.

    Args:
      devices: how many; None is every accelerator, or one CPU device.

    Raises:
      BadInput: more accelerators than this machine has, or a number below 1.
    """
    if devices is not None and devices < 1:
        raise BadInput(f"--mesh {devices}: give at least 1")
    jax.config.update("jax_num_cpu_devices", devices or 1)
    there = jax.devices()
    if devices is not None and len(there) < devices:
        raise BadInput(
            f"--mesh {devices}: this machine has {len(there)} {there[0].platform} device{'s' * (len(there) > 1)}; give "
            f"--mesh {len(there)}, or set JAX_PLATFORMS=cpu for {devices} virtual CPU devices"
        )
    return make_mesh_of(there[: devices or None])


def make_mesh_of(devices: list[jax.Device]) -> Mesh:
    """A mesh of these devices along the axis `data`."""
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis dealt out over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """This process's rows of a batch, (sequences, T), onto its devices."""
    return jax.make_array_from_process_local_data(split(mesh), rows)


def peak_bytes(mesh: Mesh) -> int:
    """Most memory in use at once on the mesh's first device so far; on a CPU, the process's largest resident size."""
    stats = mesh.local_devices[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compiler_options(mesh: Mesh, rounding: Literal["free", "pinned"] = "free") -> dict[str, str | bool]:
    """XLA's options for the programs of this mesh; with `rounding` "pinned" it leaves no rounding to bfloat16 out.

    On a GPU cuBLAS multiplies as fast as XLA's Triton kernels here, and choosing among those takes most of the
    compiling: 10.7 against 7.6 s for the step of muon-2024-10-12 at 1050 against 1044 ms a step, 26.5 against 5.0 s for
    its validation (one H100, JAX 0.11.2, each option tried once).
    """
    options: dict[str, str | bool] = {"xla_allow_excess_precision": False} if rounding == "pinned" else {}
    return options | ({"xla_gpu_enable_triton_gemm": False} if mesh.devices.flat[0].platform in _GPU else {})


def kernels(mesh: Mesh, asked: Literal["auto", "plain", "fused"]) -> Literal["plain", "fused"]:
    """Whether to take the kernels of `jaxgpt.kernels`, which "auto" does on GPUs."""
    if asked != "auto":
        return asked
    return "fused" if mesh.devices.flat[0].platform == "gpu" else "plain"


def cached_compilation() -> dict[str, int]:
    """Keep executables on disk for a second start to find; the counts returned grow as they are found or not."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxgpt"
    setting = "jax_compilation_cache_dir"
    if not getattr(jax.config, setting):
        jax.config.update(setting, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    counts = {"cache_hits": 0, "cache_misses": 0}

    def count(event: str, **_: str | int) -> None:
        for name in counts:
            counts[name] += event == f"/jax/compilation_cache/{name}"

    jax.monitoring.register_event_listener(count)
    return counts


def micro_batch(sequences: int, devices: int, at_most: int, asked: int | None) -> int:
    """Sequences a device takes at once.

    Args:
      sequences: of a step.
      devices: P.
      at_most: the recipe's micro-batch: the largest divisor of a device's share up to this is taken.
      asked: `--micro-batch`, which must divide.

    Raises:
      BadInput: the sequences of a step can't be divided so.
    """
    share, rest = divmod(sequences, devices)
    if rest:
        raise BadInput(
            f"--mesh {devices}: a step's {sequences} sequences don't divide over {devices} devices; choose a divisor "
            f"of {sequences}, or other --data.sequences"
        )
    if asked is None:
        return max(n for n in range(1, min(at_most, share) + 1) if share % n == 0)
    if asked < 1 or share % asked:
        raise BadInput(f"--micro-batch {asked}: a device's {share} sequences a step don't divide by it; give a divisor")
    return asked
