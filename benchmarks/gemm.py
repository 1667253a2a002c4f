"""How fast this card multiplies: `python -m benchmarks.gemm jax|torch`, the ceiling that MFU is stated against.

Two square bfloat16 matrices of normal numbers (never zeros: they are faster), many products queued at once and timed
together. Prints one JSON object with operations a second of each group of products.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes


@dataclass(frozen=True)
class Flags:
    """Time bfloat16 matrix products."""

    framework: Annotated[Literal["jax", "torch"], tyro.conf.Positional]
    size: int = 8192
    """Rows and columns."""
    groups: int = 7
    """Measurements; the first is left out."""
    products: int = 100
    """Of one measurement."""


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `Flags`."""
    flags = parse(Flags, sys.argv[1:] if argv is None else argv, "python -m benchmarks.gemm")
    if min(flags.size, flags.products) < 1 or flags.groups < 2:
        raise BadInput("--size and --products must be at least 1, --groups at least 2")
    card, multiply = {"jax": _jax, "torch": _torch}[flags.framework](flags.size)
    multiply(3)
    rates = []
    for _ in range(flags.groups):
        started = time.perf_counter()
        multiply(flags.products)
        rates.append(2 * flags.size**3 * flags.products / (time.perf_counter() - started))
    print(json.dumps({"framework": flags.framework, "size": flags.size, "card": card, "flops": rates[1:]}))


def _jax(size: int) -> tuple[str, Callable[[int], None]]:
    """The card's name, and a function that makes so many products and waits for them."""
    import jax
    import jax.numpy as jnp

    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.matmul)

    def multiply(times: int) -> None:
        for _ in range(times):
            c = product(a, b)
        c.block_until_ready()

    return jax.devices()[0].device_kind, multiply


def _torch(size: int) -> tuple[str, Callable[[int], None]]:
    import torch

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    a, b, c = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(3))

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.matmul(a, b, out=c)
        if on_gpu:
            torch.cuda.synchronize()

    return torch.cuda.get_device_name() if on_gpu else "cpu", multiply


if __name__ == "__main__":
    main()
