"""Kernels of our own, for GPUs: each does in one pass over memory what XLA does in two or three.

`norm` and `softmax` are Triton through Pallas, for any GPU that has bfloat16; `mlp` is Pallas's Mosaic for Hopper. Each
file holds the plain form beside the kernel: rung 3b compares the two, and where a kernel can't run the plain form does.
On a CPU kernels run interpreted, which is for tests.

What every layer calls is jitted by itself: it is traced once for its shapes and lowered to one function of the program,
which XLA inlines. Lowered anew for each layer, in Python, kernels take more time than all the rest of the step.
"""

import jax


def interpreted() -> bool:
    """Whether there is no GPU to compile a kernel for."""
    return jax.default_backend() != "gpu"
