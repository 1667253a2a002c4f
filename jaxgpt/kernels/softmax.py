"""Cross-entropy of rows of logits and its gradient, as one kernel.

XLA reads the logits three times, for the maximum, the sum and the gradient. Here a row is read from memory
once and then from the cache, and its gradient is written in its place.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from jaxgpt.kernels import interpreted

BLOCK, WARPS = 4096, 16
"""Logits that a program takes at once, and its warps."""


def softmax_gradient(
    logits: Float[Array, "N V"], targets: Int[Array, " N"], ids: int, scale: float
) -> tuple[Float[Array, "N V"], Float[Array, " N"]]:
    """(softmax - one-hot of the target) * scale in the logits' dtype, and logsumexp - logits[target], row by row.

    Args:
      logits: taken: the gradient stands in their memory. Computed with in at least float32.
      targets: token ids below `ids`.
      ids: columns from here on are left out of the softmax, and their gradient is 0.
      scale: of the gradient.
    """
    rows, columns = logits.shape
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    row = pl.BlockSpec((None, columns), lambda i: (i, 0))
    one = pl.BlockSpec((None,), lambda i: (i,))
    return pl.pallas_call(
        functools.partial(_kernel, ids=ids, scale=scale, block=min(BLOCK, pl.next_power_of_2(columns))),
        grid=(rows,),
        in_specs=[row, one],
        out_specs=[row, one],
        out_shape=[jax.ShapeDtypeStruct(logits.shape, logits.dtype), jax.ShapeDtypeStruct((rows,), wide)],
        input_output_aliases={0: 0},
        interpret=interpreted(),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
    )(logits, targets)


def plain_softmax_gradient(logits, targets, ids, scale):
    """`softmax_gradient` without a kernel."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    column = lax.broadcasted_iota(jnp.int32, wide.shape, 1)
    logsumexp = jax.nn.logsumexp(jnp.where(column < ids, wide, -jnp.inf), axis=1)
    picked = jnp.take_along_axis(wide, targets[:, None], axis=1)[:, 0]
    softmax = jnp.where(column < ids, jnp.exp(wide - logsumexp[:, None]), 0)
    return ((softmax - (column == targets[:, None])) * scale).astype(logits.dtype), logsumexp - picked


def _kernel(logits_ref, target_ref, gradient_ref, loss_ref, *, ids, scale, block):
    columns, wide, lane = logits_ref.shape[0], loss_ref.dtype, jnp.arange(block)
    target = target_ref[...]

    def read(i, keep):
        at = i * block + lane
        kept = {"eviction_policy": keep}
        return triton.load(logits_ref.at[pl.ds(i * block, block)], mask=at < ids, other=-jnp.inf, **kept).astype(wide)

    blocks = pl.cdiv(columns, block)
    lanes = jnp.full((block,), -jnp.inf, wide)
    most = jnp.max(lax.fori_loop(0, blocks, lambda i, so_far: jnp.maximum(so_far, read(i, "evict_last")), lanes))
    add = lambda i, so_far: so_far + jnp.exp(read(i, "evict_last") - most)  # noqa: E731
    logsumexp = most + jnp.log(jnp.sum(lax.fori_loop(0, blocks, add, jnp.zeros((block,), wide))))
    loss_ref[...] = logsumexp - triton.load(logits_ref.at[target]).astype(wide)

    def write(i, _):
        at = i * block + lane
        gradient = (jnp.exp(read(i, "evict_first") - logsumexp) - (at == target)) * scale
        place = gradient_ref.at[pl.ds(i * block, block)]
        triton.store(place, gradient.astype(gradient_ref.dtype), mask=at < columns, eviction_policy="evict_first")

    lax.fori_loop(0, blocks, write, None)
