"""Devices and shardings. Weights are replicated, a step's sequences are split over the axis `data`."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgpt.coordinator import Coordinator
from jaxgpt.errors import BAD_INPUT, BadInput
from jaxgpt.flags import Flags
from jaxgpt.peers import Peers

Rows = TypeVar("Rows", np.ndarray, range)


MEETS = 300
"""Seconds within which all processes of a run have to start."""


def _alone(flags: Flags) -> None:
    where = flags.coordinator or "the address that --processes auto found"
    line = f"error: not all of --processes came to {where} within {MEETS} s: start them all, or mend --coordinator"
    print(line, file=sys.stderr, flush=True)
    os._exit(BAD_INPUT)


@contextlib.contextmanager
def processes(flags: Flags) -> Iterator[Mesh]:
    """The mesh of `--mesh` over all of a run's processes, or over this one alone. In the block, losing one ends it.

    Must come before anything else asks JAX for a device. JAX has no public name for its store of words.

    Raises:
      BadInput: the others didn't come, or as `make_mesh`.
    """
    if flags.processes is None:
        yield make_mesh(flags.mesh)
        return
    count = None if flags.processes == "auto" else int(flags.processes)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    distributed._jax.get_distributed_runtime_service = Coordinator
    meeting = threading.Timer(MEETS, _alone, [flags])  # JAX's own limit, made longer here, ends in an abort
    meeting.daemon = True
    meeting.start()
    try:
        jax.distributed.initialize(
            flags.coordinator, count, flags.process, initialization_timeout=2 * MEETS, shutdown_timeout_seconds=30
        )
    except ValueError:  # of its cluster detection
        raise BadInput(
            "--processes auto: there is no SLURM, Open MPI or Cloud TPU pod here; give --coordinator HOST:PORT, "
            "--processes N and --process I"
        ) from None
    meeting.cancel()
    of_all = distributed.global_state
    client, index = of_all.client, of_all.process_id
    assert client is not None

    def exchange(word: str) -> dict[str, str]:
        client.key_value_set(f"jaxgpt/peers/{index}", word, allow_overwrite=True)
        return {name.rsplit("/", 1)[1]: each for name, each in client.key_value_dir_get("jaxgpt/peers/")}

    with Peers(index, of_all.num_processes, exchange, jax.distributed.shutdown, flags.run):
        yield make_mesh(flags.mesh)


_DETERMINISM = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
_GPU = ("gpu", "cuda")  # a device that is there, and one of a topology that is only described


def make_mesh(devices: int | None) -> Mesh:
    """A mesh of `devices` along one axis, `data`: accelerators, or virtual CPU devices where there is none.

    Must come before anything else asks JAX for a device, for the number of virtual CPU devices is fixed then.

    Args:
      devices: how many, of all processes together, each having the same share; None is every accelerator, or one CPU
        device each.

    Raises:
      BadInput: more accelerators than this machine has, or a number below 1, or one that the processes can't share.
    """
    if devices is not None and devices < 1:
        raise BadInput(f"--mesh {devices}: give at least 1")
    processes = distributed.global_state.num_processes
    share, rest = divmod(devices or processes, processes)
    if rest:
        raise BadInput(f"--mesh {devices}: {processes} processes can't share it evenly; give a multiple of {processes}")
    jax.config.update("jax_num_cpu_devices", share)
    there = jax.devices()
    if processes > 1:
        own = [jax.local_devices(process_index=i) for i in range(processes)]
        if devices is not None and (fewest := min(map(len, own))) < share:
            raise BadInput(
                f"--mesh {devices}: that is {share} devices each of {processes} processes, and one has {fewest}; give "
                f"--mesh {fewest * processes}"
            )
        there = [device for each in own for device in (each if devices is None else each[:share])]
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


def own_rows(rows: Rows) -> Rows:
    """This process's part of all processes' rows."""
    share = len(rows) // jax.process_count()
    return rows[jax.process_index() * share :][:share]


def wait_for_all() -> None:
    """Return when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("jaxgpt")


def same_time() -> float:
    """Seconds since 1970, by the first process's clock."""
    now = int(time.time())
    return int(multihost_utils.broadcast_one_to_all(np.uint32(now))) if jax.process_count() > 1 else now


def agreeing(mesh: Mesh, step: Callable) -> jax.stages.Wrapped:
    """A train step with one more argument, a number of each device (P,), whose largest is the metrics' `signal`.

    It is part of the step, for virtual CPU devices can wait for ever for two programs at once (see `validate`).
    """

    def together(state, inputs: jax.Array, targets: jax.Array, signal_P: jax.Array):
        state, metrics = step(state, inputs, targets)
        return state, metrics | {"signal": signal_P.max()}

    return jax.jit(together, donate_argnums=0, out_shardings=replicated(mesh))


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


def attention(mesh: Mesh) -> Literal["exact", "fast"]:
    """Written out on a CPU, the accelerator's own kernel elsewhere, unless XLA_FLAGS ask a GPU for determinism.

    cuDNN's kernel adds up gradients in any order. Where the flags forbid that, XLA ends its first run with "IndexError:
    raw_hash_map<>::at" (JAX 0.11.2), with kernels and command buffers or without; in float32, which has no such kernel,
    two runs of 12 steps were then equal to the bit (one H100).
    """
    platform = mesh.devices.flat[0].platform
    return "exact" if platform == "cpu" or (platform in _GPU and asked_for_determinism()) else "fast"


def asked_for_determinism() -> bool:
    """Whether XLA_FLAGS have one of XLA's two switches for deterministic GPU programs on; the last word counts."""
    words = os.environ.get("XLA_FLAGS", "").split()
    given = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
    return any(given.get(name, "false").lower() in ("", "true", "1") for name in _DETERMINISM)


def kernels(
    mesh: Mesh, asked: Literal["auto", "plain", "fused"], rounding: Literal["free", "pinned"] = "free"
) -> Literal["plain", "fused"]:
    """Whether to take the kernels of `jaxgpt.kernels`: "auto" does on GPUs, unless roundings are to be PyTorch's.

    Raises:
      BadInput: they are asked for, and the devices aren't GPUs.
    """
    platform = mesh.devices.flat[0].platform
    if asked == "fused" and platform not in _GPU:
        raise BadInput(f"--kernels fused: they are for GPUs, and this runs on a {platform}; leave it out")
    if asked != "auto":
        return asked
    return "fused" if platform in _GPU and rounding == "free" else "plain"


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
