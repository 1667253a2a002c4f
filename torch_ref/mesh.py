"""Devices, one process each, as torchrun starts them. Weights are replicated, a step's sequences are split."""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from jaxgpt.errors import BadInput
from jaxgpt.flags import Flags
from jaxgpt.peers import Peers


@dataclass(frozen=True)
class Mesh:
    """This process's place among `size` of them, and its device."""

    rank: int
    size: int
    device: torch.device


@contextlib.contextmanager
def processes(flags: Flags) -> Iterator[Mesh]:
    """This process's place among those that torchrun started, or alone. In the block, losing one of them ends it.

    Raises:
      BadInput: as `make_mesh`.
    """
    if flags.processes is not None:
        raise BadInput(f"--processes {flags.processes} is JAX's: several processes of PyTorch are torchrun's to start")
    devices = make_mesh(flags.mesh)
    if devices.size == 1:
        yield devices
        return
    store = dist.PrefixStore("jaxgpt/peers", next(dist.rendezvous("env://"))[0])
    names = [str(i) for i in range(devices.size)]

    def exchange(word: str) -> dict[str, str]:
        store.set(str(devices.rank), word)
        there = [name for name in names if store.check([name])]
        return dict(zip(there, (each.decode() for each in store.multi_get(there)), strict=True))

    with Peers(devices.rank, devices.size, exchange, dist.destroy_process_group, flags.run):
        yield devices


def make_mesh(devices: int | None) -> Mesh:
    """The processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), or this one alone.

    Each has a GPU of its own, or the CPU where there is none; several talk through nccl or gloo.

    Args:
      devices: how many there should be; None is as many as there are.

    Raises:
      BadInput: another number of processes, more of them on this machine than it has GPUs, or a number below 1.
    """
    rank, size, local_rank = (
        int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    if devices is not None and devices < 1:
        raise BadInput(f"--mesh {devices}: give at least 1")
    if devices is not None and devices != size:
        # Without the --, torchrun takes our --run for one of its own options.
        command = f"torchrun --nproc-per-node {devices} -m --" if devices > 1 else "python -m"
        raise BadInput(
            f"--mesh {devices}: {size} process{'es' * (size > 1)} started, and PyTorch takes one a device; type "
            f"{command} torch_ref.train --mesh {devices} and the other flags"
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if gpus and here > gpus:
        raise BadInput(
            f"--mesh {size}: torchrun started {here} processes here and this machine has {gpus} GPU{'s' * (gpus > 1)}; "
            f"give --nproc-per-node {gpus}, or set CUDA_VISIBLE_DEVICES= for the CPU"
        )
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if size > 1:
        dist.init_process_group("nccl" if gpus else "gloo", device_id=device if gpus else None)
    return Mesh(rank, size, device)


def mean_over_processes(devices: Mesh, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean of every process's value, on each of them; `value` is taken."""
    if devices.size > 1:
        dist.all_reduce(value)  # a sum: gloo has no mean
        value /= devices.size
    return value


def wait_for_device(devices: Mesh) -> None:
    """Return when this process's device has done what was asked of it."""
    if devices.device.type == "cuda":
        torch.cuda.synchronize(devices.device)


def wait_for_all(devices: Mesh) -> None:
    """Return when every process has come here."""
    if devices.size > 1:
        dist.barrier()


def largest_over_processes(devices: Mesh, value: int) -> Int[Tensor, ""]:
    """The largest of every process's values, on each of them; on a GPU once the queue has come to it."""
    largest = torch.full((), value, device=devices.device)  # a copy from the host would wait for the whole queue
    if devices.size > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def place(devices: Mesh, rows: Int[Tensor, "rows T"]) -> Int[Tensor, "rows T"]:
    """Rows of a batch on this process's device. On a GPU the copy joins the queue that its users will join later."""
    if devices.device.type == "cpu":
        return rows
    with torch.cuda.device(devices.device):  # pinning would otherwise open a context on GPU 0 in a thread of its own
        return rows.pin_memory().to(devices.device, non_blocking=True)


def fetch(devices: Mesh, values: list[Float[Tensor, ""]]) -> Callable[[], list[float]]:
    """Start copying scalars to the host. What is returned waits for that copy alone, not for work queued after it."""
    stacked = torch.stack([value.double() for value in values])
    if devices.device.type == "cpu":
        return stacked.tolist
    copied = stacked.to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> list[float]:
        done.synchronize()
        return copied.tolist()

    return wait


def peak_bytes(devices: Mesh) -> int:
    """Most memory in use at once on this process's device so far; on a CPU, the process's largest resident size."""
    if devices.device.type == "cuda":
        return torch.cuda.max_memory_allocated(devices.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
