"""A recipe's step compiled for a topology: what memory it takes, what its devices say to each other, or why not."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.errors import BadInput
from jaxgpt.recipes import Precision, Recipe
from launch.chips import GIB
from launch.collectives import Collective, collectives

_UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40, "": 1}
_USED_OF = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_EXCEEDS = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)")


@dataclass(frozen=True)
class Compiled:
    """What compiling a step with one micro-batch showed."""

    micro_batch: int
    """Sequences a device takes at once."""
    fits: bool
    needs: int | None
    """Bytes on each device, where they are known."""
    limit: int | None
    """Bytes that each device has; None is unknown, and then all fits."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes by what they are for; none where the compiler refused."""
    collectives: list[Collective] = field(default_factory=list)
    refusal: str = ""
    """The compiler's words."""
    seconds: float = 0.0
    """That compiling took."""


def compiled(recipe: Recipe, precision: Precision, devices: list[Any], micro_batch: int, limit: int | None) -> Compiled:
    """Compile the step that trains on a mesh of these devices.

    Args:
      recipe, precision, micro_batch: see `jaxgpt.train.make_step`.
      devices: of this machine or of a topology.
      limit: bytes of each.
    """
    import jax

    from jaxgpt import ahead
    from jaxgpt.mesh import make_mesh_of
    from jaxgpt.train import make_step

    jax.config.update("jax_enable_x64", precision.parameters == "float64")
    mesh = make_mesh_of(devices)
    started = time.perf_counter()
    try:
        step = ahead.compile_step(make_step(recipe, precision, mesh, micro_batch), recipe, precision, mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs, stated = refused(str(error))
        refusal = " ".join(str(error).split())[:400]
        seconds = time.perf_counter() - started
        return Compiled(micro_batch, False, needs, stated or limit, refusal=refusal, seconds=seconds)
    memory, seconds = ahead.memory(step), time.perf_counter() - started
    fits = limit is None or memory.total <= limit
    found = collectives(step.as_text() or "")
    return Compiled(micro_batch, fits, memory.total, limit, memory._asdict(), found, "", seconds)


def refused(text: str) -> tuple[int | None, int | None]:
    """Bytes that a program needs and that there are, from XLA's RESOURCE_EXHAUSTED; None where it says none."""
    said = _USED_OF.search(text) or _EXCEEDS.search(text)
    if not said:
        return None, None
    return int(float(said[1]) * _UNITS[said[2]]), int(float(said[3]) * _UNITS[said[4]])


def divisors(share: int) -> list[int]:
    """Micro-batches that a device's share of a step's sequences divides into."""
    return [n for n in range(1, share + 1) if share % n == 0]


def largest(choices: list[int], fits: Callable[[int], bool], first: int) -> int | None:
    """The last of rising `choices` that fits, by bisection; None where none does.

    Args:
      choices: of which all up to one fit and all beyond don't.
      fits: asked as seldom as may be.
      first: of `choices`, asked first.

    Raises:
      BadInput: `first` isn't one of them.
    """
    if first not in choices:
        raise BadInput(f"--micro-batch {first}: a device's {choices[-1]} sequences a step don't divide by it")
    low, high, middle = -1, len(choices), choices.index(first)
    while high - low > 1:
        if fits(choices[middle]):
            low = middle
        else:
            high = middle
        middle = (low + high) // 2
    return choices[low] if low >= 0 else None
