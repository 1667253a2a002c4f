"""Causal attention behind one signature: written out, the GPU's own kernel, or over keys and values that were kept."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

Implementation = Literal["exact", "fast"] | Callable[..., jax.Array]
"""A way to compute attention: one of the two that `attend` knows, or a function (q, k, v, scale) -> y."""


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    implementation: Implementation = "exact",
    scale: float | None = None,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "B T H K"]:
    """softmax(scale q k^T, over the past and the present) v, in the dtype of the inputs; scale is 1/sqrt(K) if absent.

    "exact" is written out: products accumulate and the softmax runs in at least float32 (`jax.nn.dot_product_attention`
    would take float32 for float64 inputs as well and lose 6 digits). "fast" is cuDNN's kernel on a GPU, for bfloat16,
    and XLA's own lowering elsewhere. With "exact" there may be more keys than queries: `first` is the first query's
    place among them.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if callable(implementation):
        return implementation(q, k, v, scale)
    if implementation == "exact":
        return _written_out(q, k, v, scale, first)
    kernel: Literal["cudnn", "xla"] = "cudnn" if jax.default_backend() == "gpu" else "xla"
    return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation=kernel)


def _written_out(
    q_BTHK: Float[Array, "B T H K"],
    k_BSHK: Float[Array, "B S H K"],
    v_BSHK: Float[Array, "B S H K"],
    scale: float,
    first: int | Int[Array, ""],
) -> Float[Array, "B T H K"]:
    wide = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    queries, keys = q_BTHK.shape[1], k_BSHK.shape[1]
    scores_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=wide) * scale
    past_TS = first + lax.iota(jnp.int32, queries)[:, None] >= lax.iota(jnp.int32, keys)[None, :]
    weights_BHTS = jax.nn.softmax(jnp.where(past_TS, scores_BHTS, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights_BHTS.astype(q_BTHK.dtype), v_BSHK)
