"""Causal attention behind one signature: written out, or the GPU's own kernel."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    implementation: Literal["exact", "fast"] = "exact",
    scale: float | None = None,
) -> Float[Array, "B T H K"]:
    """softmax(scale q k^T, over the past and the present) v, in the dtype of the inputs; scale is 1/sqrt(K) if absent.

    "exact" is written out: products accumulate and the softmax runs in at least float32 (`jax.nn.dot_product_attention`
    would take float32 for float64 inputs as well and lose 6 digits). "fast" is cuDNN's kernel on a GPU, for bfloat16,
    and XLA's own lowering elsewhere.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if implementation == "exact":
        return _written_out(q, k, v, scale)
    kernel: Literal["cudnn", "xla"] = "cudnn" if jax.default_backend() == "gpu" else "xla"
    return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation=kernel)


def _written_out(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, scale: float) -> jax.Array:
    wide = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    context = q_BTHK.shape[1]
    scores_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK, preferred_element_type=wide) * scale
    past_TS = lax.iota(jnp.int32, context)[:, None] >= lax.iota(jnp.int32, context)[None, :]
    weights_BHTS = jax.nn.softmax(jnp.where(past_TS, scores_BHTS, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights_BHTS.astype(q_BTHK.dtype), v_BTHK)
