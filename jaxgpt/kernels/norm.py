"""A residual addition and the RMSNorm after it, as one kernel forward and one backward.

XLA takes two passes each way, for a row's sum of squares has to be whole before the row is scaled. And it keeps the
wide sum for the backward pass; here the normalised row is enough, which the next product keeps anyway.
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def add_norm(
    x: Float[Array, "N D"], y: Float[Array, "N D"], eps: float, copies: int, factor: float | None = None
) -> tuple[Float[Array, "N D"], ...]:
    """s = x + factor y in x's dtype, then s / sqrt(mean(s^2) + eps) over the last axis in y's, `copies` times.

    The copies are one array. That they are several results lets the kernel add up their gradients, each from a product
    of its own.

    Args:
      x: the residual stream; N must be divisible by `ROWS`.
      y: what is added to it.
      eps: under the root.
      copies: how many users the normalised rows have.
      factor: of y, whose product is rounded to y's dtype; None is 1.
    """
    total, normed, _ = _norm_forward(x, y, eps=eps, factor=factor, interpret=interpreted())
    return total, *[normed] * copies


def _add_norm_forward(x, y, eps, copies, factor):
    total, normed, scale = _norm_forward(x, y, eps=eps, factor=factor, interpret=interpreted())
    return (total, *[normed] * copies), (normed, scale)


def _add_norm_backward(eps, copies, factor, kept, gradients):
    return _norm_backward(*kept, *gradients, factor=factor, interpret=interpreted())


add_norm.defvjp(_add_norm_forward, _add_norm_backward)


def plain_add_norm(x, y, eps, copies, factor=None):
    """`add_norm` without a kernel."""
    total = x + _scaled(y, factor, x.dtype)
    wide = total.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return total, *[normed.astype(y.dtype)] * copies


def _scaled(y, factor, wide):
    """The number is as wide as the stream: JAX alone would round it to bfloat16 first."""
    return y if factor is None else (y.astype(wide) * factor).astype(y.dtype)


def _slices(width: int) -> list:
    """The row in pieces of a power of two, which Triton's arrays must be."""
    piece = width & -width
    return [(slice(None), pl.ds(start, piece)) for start in range(0, width, piece)]


def _call(kernel, results, *operands, interpret, **settings):
    """`kernel` on blocks of `ROWS` rows; a scale has one number a row."""
    rows = pl.BlockSpec((ROWS,), lambda i: (i,))
    whole = pl.BlockSpec((ROWS, operands[0].shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        grid=(len(operands[0]) // ROWS,),
        in_specs=[whole if each.ndim == 2 else rows for each in operands],
        out_specs=[whole if len(each.shape) == 2 else rows for each in results],
        out_shape=results,
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        **settings,
    )(*operands)


@functools.partial(jax.jit, static_argnames=("eps", "factor", "interpret"))  # see `jaxgpt.kernels`
def _norm_forward(x, y, *, eps, factor, interpret):
    """The sum, its norm, and 1 / sqrt(mean + eps) of each row."""
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def kernel(x_ref, y_ref, total_ref, normed_ref, scale_ref):
        parts, slices = [], _slices(x_ref.shape[1])
        for at in slices:
            part = x_ref[at] + _scaled(y_ref[at], factor, wide).astype(x_ref.dtype)
            total_ref[at] = part
            parts.append(part.astype(wide))
        scale = lax.rsqrt(sum(jnp.sum(part * part, axis=1) for part in parts) / x_ref.shape[1] + eps)
        scale_ref[...] = scale
        for at, part in zip(slices, parts, strict=True):
            normed_ref[at] = (part * scale[:, None]).astype(normed_ref.dtype)

    results = [jax.ShapeDtypeStruct(x.shape, a.dtype) for a in (x, y)] + [jax.ShapeDtypeStruct(x.shape[:1], wide)]
    return _call(kernel, results, x, y, interpret=interpret)


@functools.partial(jax.jit, static_argnames=("factor", "interpret"))
def _norm_backward(normed, scale, d_total, *d_normed, factor, interpret):
    """d_total + scale (g - n mean(n g)) for the sum g of d_normed, in x's dtype; `factor` times that in y's."""

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
            dy_ref[at] = _scaled(dx.astype(dx_ref.dtype).astype(dy_ref.dtype), factor, scale.dtype)

    results = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (d_total, normed)]
    operands = normed, scale, d_total, *d_normed
    return _call(kernel, results, *operands, interpret=interpret, input_output_aliases={2: 0})
