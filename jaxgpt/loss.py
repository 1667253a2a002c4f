"""Cross-entropy of the tied head that never holds all logits of a micro-batch."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

CHUNK_TOKENS = 8192
"""Tokens whose logits exist at once, at most. 8 chunks of a 65,536-token micro-batch cost 0.6% against all at once."""


def plain_cross_entropy(logits: Float[Array, "N V"], targets: Int[Array, " N"]) -> Float[Array, ""]:
    """mean(logsumexp(logits) - logits[target]) in the logits' dtype. All V rows take part, padding rows too."""
    picked_N = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked_N)


def chunks(tokens: int) -> int:
    """How many equal chunks: the fewest, from 2, that keep a chunk at `CHUNK_TOKENS` or below.

    Where only crumbs would divide `tokens` so (it is a large prime, say), 2, or 1: slow is worse than large.
    """
    divisors = [n for n in range(2, max(tokens // 256, 2) + 1) if tokens % n == 0]
    return next((n for n in divisors if tokens // n <= CHUNK_TOKENS), min(divisors, default=1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(
    x: Float[Array, "N D"], w: Float[Array, "V D"], targets: Int[Array, " N"], compute: str
) -> Float[Array, ""]:
    """Mean cross-entropy of the logits x w^T, chunk by chunk.

    Args:
      x: what the head multiplies.
      w: the tied matrix, one row a token id.
      targets: the next token of each row of x.
      compute: dtype of the products and of the logits; logsumexp runs in at least float32.

    Returns:
      The mean over N, in at least float32. Differentiating computes both gradients in the forward pass, where the
      logits are at hand: they are never stored and never computed twice. w's gradient sums its chunks in at least
      float32.
    """
    return _scan_chunks(x, w, targets, compute, gradients=False)[0]


def _forward(x_ND, w_VD, targets_N, compute):
    loss, dx_ND, dw_VD = _scan_chunks(x_ND, w_VD, targets_N, compute, gradients=True)
    return loss, (dx_ND, dw_VD)


def _backward(compute, gradients, g):
    dx_ND, dw_VD = gradients
    return (g * dx_ND).astype(dx_ND.dtype), (g * dw_VD).astype(dw_VD.dtype), None


cross_entropy.defvjp(_forward, _backward)


def _scan_chunks(x_ND, w_VD, targets_N, compute, gradients):
    tokens, width = x_ND.shape
    wide = jnp.promote_types(compute, jnp.float32)
    w_compute = w_VD.astype(compute)

    def chunk(sums, xs):
        x_CD, targets_C = xs
        x_CD = x_CD.astype(compute)
        # Targets are picked before the cast: a gather from wide logits would have them all written out wide.
        narrow_CV = x_CD @ w_compute.T
        picked_C = jnp.take_along_axis(narrow_CV, targets_C[:, None], axis=1)[:, 0].astype(wide)
        logits_CV = narrow_CV.astype(wide)
        logsumexp_C = jax.nn.logsumexp(logits_CV, axis=1)
        loss = sums[0] + jnp.sum(logsumexp_C - picked_C)
        if not gradients:
            return (loss,), None
        target_CV = lax.broadcasted_iota(jnp.int32, logits_CV.shape, 1) == targets_C[:, None]
        dlogits_CV = ((jnp.exp(logits_CV - logsumexp_C[:, None]) - target_CV) / tokens).astype(compute)
        dw_VD = sums[1] + lax.dot_general(dlogits_CV, x_CD, (((0,), (0,)), ((), ())), preferred_element_type=wide)
        return (loss, dw_VD), (dlogits_CV @ w_compute).astype(x_ND.dtype)

    n = chunks(tokens)
    start = (jnp.zeros((), wide), jnp.zeros(w_VD.shape, wide)) if gradients else (jnp.zeros((), wide),)
    sums, dx = lax.scan(chunk, start, (x_ND.reshape(n, tokens // n, width), targets_N.reshape(n, tokens // n)))
    if not gradients:
        return (sums[0] / tokens,)
    return sums[0] / tokens, dx.reshape(x_ND.shape), sums[1].astype(w_VD.dtype)
