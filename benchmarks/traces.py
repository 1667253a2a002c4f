"""Kernels from the traces that `--profile` writes: Chrome's JSON, of JAX's profiler and of PyTorch's."""

import bisect
import gzip
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hlo import Instruction, instructions
from benchmarks.kinds import kind_of_jax, kind_of_torch
from jaxgpt.errors import BadInput
from jaxgpt.profiled import FOLDER, PROGRAM

_CONTAINERS = {"while", "call", "conditional", "async-start", "async-done"}
"""Whose time is that of what they run."""
_STEP = "jit_step"
"""XLA's name of the program that a step is."""


@dataclass(frozen=True)
class Kernel:
    """One run of a kernel, in microseconds of the trace."""

    name: str
    kind: str
    device: str
    start: float
    duration: float


def kernels(run: Path, trainer: str) -> list[Kernel]:
    """All kernels in the trace of a run's folder, by `jaxgpt` or `torch_ref`.

    Raises:
      BadInput: there is no trace, or it holds no kernel.
    """
    folder = run / FOLDER
    files = sorted(folder.glob("**/*.trace.json.gz")) or sorted(folder.glob("**/*.xplane.pb"))
    if not files:
        raise BadInput(f"{folder} holds no trace: train that run with --profile 3")
    if trainer == "jaxgpt":
        program = folder / PROGRAM
        known = instructions(program.read_text(encoding="utf-8")) if program.exists() else {}
        found = [kernel for file in files for kernel in jax_kernels(_events(file), known)]
    else:
        found = [kernel for file in files for kernel in torch_kernels(_events(file))]
    if not found:
        raise BadInput(f"{folder} holds a trace without kernels: profile on a GPU (PyTorch's CPU has none)")
    return found


def _events(file: Path) -> list[dict]:
    if file.suffix == ".pb":
        return _profile_events(file)
    try:
        with gzip.open(file, "rt", encoding="utf-8") as text:
            events = json.load(text)["traceEvents"]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        raise BadInput(f"{file} is no trace: profile that run again") from None
    return [event for event in events if isinstance(event, dict)]


def _profile_events(file: Path) -> list[dict]:
    """The same of the profiler's own file, which JAX reads; not every version writes Chrome's beside it."""
    import jax

    events: list[dict] = []
    for pid, plane in enumerate(jax.profiler.ProfileData.from_file(str(file)).planes):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": plane.name}})
        for tid, line in enumerate(plane.lines):
            where = {"pid": pid, "tid": tid}
            events.append({"ph": "M", "name": "thread_name", "args": {"name": line.name}} | where)
            for e in line.events:
                times = {"ts": e.start_ns / 1000, "dur": e.duration_ns / 1000}
                events.append({"ph": "X", "name": e.name, "args": dict(e.stats)} | times | where)
    return events


def jax_kernels(events: list[dict], known: dict[str, Instruction]) -> list[Kernel]:
    """What ran on streams of devices; on a CPU, the operations of the step.

    Args:
      events: of the trace.
      known: the step's instructions, by name.
    """
    by_kernel = {_as_kernel(name): instruction for name, instruction in known.items()}
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    streams = {
        (e["pid"], e["tid"])
        for e in events
        if e.get("name") == "thread_name" and str(e["args"]["name"]).lower().startswith("stream")
    }
    found = []
    for e in events:
        if e.get("ph") != "X":
            continue
        device, args = names.get(e["pid"], ""), e.get("args", {})
        operation = str(args.get("hlo_op", ""))
        on_device = "device:" in device and (e["pid"], e.get("tid")) in streams
        if not on_device and not (operation and "device:" not in device):
            continue
        of_step = str(args.get("hlo_module", _STEP)).startswith(_STEP)
        instruction = (known.get(operation) or by_kernel.get(_as_kernel(e["name"]))) if of_step else None
        if instruction is not None and instruction.opcode in _CONTAINERS and not on_device:
            continue
        found.append(Kernel(e["name"], kind_of_jax(e["name"], instruction), device, e["ts"], e.get("dur", 0.0)))
    return found


def torch_kernels(events: list[dict]) -> list[Kernel]:
    """Kernels and copies of devices, each with the ranges around its launch."""
    launches: dict[int, tuple[int, float]] = {}
    ranges: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
    for e in events:
        if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {}):
            launches[e["args"]["correlation"]] = (e["tid"], e["ts"])
        elif e.get("cat") == "user_annotation" and "dur" in e:
            ranges[e["tid"]].append((e["ts"], e["ts"] + e["dur"], e["name"]))
    found = []
    for each in ranges.values():
        each.sort()
    for e in events:
        if e.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        args = e.get("args", {})
        thread, at = launches.get(args.get("correlation"), (-1, 0.0))
        around = _around(ranges.get(thread, []), at)
        device = f"device:{args.get('device', e.get('pid'))}"
        found.append(Kernel(e["name"], kind_of_torch(e["name"], around), device, e["ts"], e.get("dur", 0.0)))
    return found


def _around(ranges: list[tuple[float, float, str]], at: float) -> list[str]:
    """Names of the ranges that hold a time; sorted by their starts. A few hundred are looked at."""
    last = bisect.bisect_right(ranges, (at, float("inf"), ""))
    return [name for start, end, name in ranges[max(last - 300, 0) : last] if start <= at <= end]


def _as_kernel(name: str) -> str:
    """XLA names a kernel after its instruction, with underscores."""
    return re.sub(r"[.\-]", "_", name)
