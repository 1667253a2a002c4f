"""A residual addition and the RMSNorm after it, as one kernel forward and one backward.

XLA takes two passes each way, for a row's sum of squares has to be whole before the row is scaled. And it keeps the wide
sum for the backward pass; here the normalised row is enough, which the next product keeps anyway.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from jaxgpt.kernels import interpreted

ROWS, WARPS = 4, 4
"""Rows and warps of one program. On an H100, 1 to 8 of either took the same time."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def add_norm(
    x: Float[Array, "N D"], y: Float[Array, "N D"], eps: float, copies: int
) -> tuple[Float[Array, "N D"], ...]:
    """x + y in x's dtype, then (x + y) / sqrt(mean((x + y)^2) + eps) over the last axis in y's, `copies` times.

    The copies are one array. That they are several results lets the kernel add up their gradients, each from a product
    of its own.

    Args:
      x: the residual stream; N must be divisible by `ROWS`.
      y: what is added to it.
      eps: under the root.
      copies: how many users the normalised rows have.
    """
    total, normed, _ = _forward(x, y, eps)
    return total, *[normed] * copies


def _add_norm_forward(x, y, eps, copies):
    total, normed, scale = _forward(x, y, eps)
    return (total, *[normed] * copies), (normed, scale)


def _add_norm_backward(eps, copies, kept, gradients):
    return _backward(*kept, *gradients)


add_norm.defvjp(_add_norm_forward, _add_norm_backward)


def plain_add_norm(x, y, eps, copies):
    """`add_norm` without a kernel."""
    total = x + y
    wide = total.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return total, *[normed.astype(y.dtype)] * copies


def _slices(width: int) -> list:
    """The row in pieces of a power of two, which Triton's arrays must be."""
    piece = width & -width
    return [(slice(None), pl.ds(start, piece)) for start in range(0, width, piece)]


def _call(kernel, results, *operands, **settings):
    """`kernel` on blocks of `ROWS` rows; a scale has one number a row."""
    rows = pl.BlockSpec((ROWS,), lambda i: (i,))
    whole = pl.BlockSpec((ROWS, operands[0].shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        grid=(len(operands[0]) // ROWS,),
        in_specs=[whole if each.ndim == 2 else rows for each in operands],
        out_specs=[whole if len(each.shape) == 2 else rows for each in results],
        out_shape=results,
        interpret=interpreted(),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        **settings,
    )(*operands)


def _forward(x, y, eps):
    """The sum, its norm, and 1 / sqrt(mean + eps) of each row."""
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def kernel(x_ref, y_ref, total_ref, normed_ref, scale_ref):
        parts, slices = [], _slices(x_ref.shape[1])
        for at in slices:
            part = (x_ref[at] + y_ref[at].astype(x_ref.dtype)).astype(x_ref.dtype)
            total_ref[at] = part
            parts.append(part.astype(wide))
        scale = lax.rsqrt(sum(jnp.sum(part * part, axis=1) for part in parts) / x_ref.shape[1] + eps)
        scale_ref[...] = scale
        for at, part in zip(slices, parts, strict=True):
            normed_ref[at] = (part * scale[:, None]).astype(normed_ref.dtype)

    results = [jax.ShapeDtypeStruct(x.shape, a.dtype) for a in (x, y)] + [jax.ShapeDtypeStruct(x.shape[:1], wide)]
    return _call(kernel, results, x, y)


def _backward(normed, scale, d_total, *d_normed):
    """d_total + scale (g - n mean(n g)) for the sum g of d_normed, in the dtype of x, then of y."""

    def kernel(normed_ref, scale_ref, d_total_ref, *refs):
        *d_normed_refs, dx_ref, dy_ref = refs
        scale, units, sums = scale_ref[...], [], []
        slices = _slices(normed_ref.shape[1])
        for at in slices:
            units.append(normed_ref[at].astype(scale.dtype))
            sums.append(sum(ref[at].astype(scale.dtype) for ref in d_normed_refs))
        along = sum(jnp.sum(n * g, axis=1) for n, g in zip(units, sums, strict=True)) / normed_ref.shape[1]
        for at, n, g in zip(slices, units, sums, strict=True):
            dx = d_total_ref[at].astype(scale.dtype) + scale[:, None] * (g - n * along[:, None])
            dx_ref[at] = dx.astype(dx_ref.dtype)
            dy_ref[at] = dx.astype(dy_ref.dtype)

    results = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (d_total, normed)]
    return _call(kernel, results, normed, scale, d_total, *d_normed, input_output_aliases={2: 0})
