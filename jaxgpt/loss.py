"""Cross-entropy of the head that never holds all logits of a micro-batch."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgpt.kernels.softmax import softmax_gradient

CHUNK_TOKENS = 8192
"""Tokens whose logits exist at once, at most. 8 chunks of a 65,536-token micro-batch cost 0.6% against all at once."""


def cap(logits: Float[Array, "*batch V"], at: float | None) -> Float[Array, "*batch V"]:
    """c z / sqrt(z^2 + c^2), which keeps logits within -c..c; None leaves them as they are."""
    return logits if at is None else at * logits * lax.rsqrt(jnp.square(logits) + at**2)


def logits(
    x: Float[Array, "*batch D"], w: Float[Array, "V D"], bias: Float[Array, " V"] | None, compute: str
) -> Float[Array, "*batch V"]:
    """x w^T + bias in `compute`, then in at least float32."""
    narrow = x.astype(compute) @ w.astype(compute).T
    narrow = narrow if bias is None else narrow + bias.astype(compute)
    return narrow.astype(jnp.promote_types(compute, jnp.float32))


def plain_cross_entropy(
    logits: Float[Array, "N V"],
    targets: Int[Array, " N"],
    token_ids: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Array, ""]:
    """logsumexp(logits) - logits[target] in the logits' dtype, the mean or the sum over N.

    Rows from `token_ids` on are left out of the softmax; without it all take part, padding rows too.
    """
    logits = logits[:, :token_ids]
    picked_N = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    losses_N = jax.nn.logsumexp(logits, axis=1) - picked_N
    return jnp.mean(losses_N) if reduction == "mean" else jnp.sum(losses_N)


def chunks(tokens: int) -> int:
    """How many equal chunks: the fewest, from 2, that keep a chunk at `CHUNK_TOKENS` or below.

    Where only crumbs would divide `tokens` so (it is a large prime, say), 2, or 1: slow is worse than large.
    """
    divisors = [n for n in range(2, max(tokens // 256, 2) + 1) if tokens % n == 0]
    return next((n for n in divisors if tokens // n <= CHUNK_TOKENS), min(divisors, default=1))


class _Form(NamedTuple):
    """What of a cross-entropy is fixed when it is compiled."""

    compute: str
    logit_cap: float | None
    token_ids: int | None
    reduction: Literal["mean", "sum"]
    kernels: Literal["plain", "fused"]


def cross_entropy(
    x: Float[Array, "N D"],
    w: Float[Array, "V D"],
    targets: Int[Array, " N"],
    compute: str,
    bias: Float[Array, " V"] | None = None,
    logit_cap: float | None = None,
    token_ids: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    kernels: Literal["plain", "fused"] = "plain",
) -> Float[Array, ""]:
    """Cross-entropy of the logits x w^T + bias, chunk by chunk.

    Args:
      x: what the head multiplies.
      w: the head, one row a token id.
      targets: the next token of each row of x.
      compute: dtype of the products and of the logits; capping and logsumexp run in at least float32.
      bias: of the head.
      logit_cap: see `cap`.
      token_ids: see `plain_cross_entropy`.
      reduction: over N.
      kernels: "fused" takes `jaxgpt.kernels.softmax` for gradients, where there is no bias and no cap.

    Returns:
      The mean or sum, in at least float32. Differentiating computes all gradients in the forward pass, where the logits
      are at hand: they are never stored and never computed twice. w's gradient sums its chunks in at least float32.
    """
    return _cross_entropy(x, w, bias, targets, _Form(compute, logit_cap, token_ids, reduction, kernels))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(x_ND, w_VD, bias_V, targets_N, form: _Form):
    return _scan_chunks(x_ND, w_VD, bias_V, targets_N, form, gradients=False)[0]


def _forward(x_ND, w_VD, bias_V, targets_N, form):
    loss, *gradients = _scan_chunks(x_ND, w_VD, bias_V, targets_N, form, gradients=True)
    return loss, gradients


def _backward(form, gradients, g):
    return *(None if d is None else (g * d).astype(d.dtype) for d in gradients), None


_cross_entropy.defvjp(_forward, _backward)


def _scan_chunks(x_ND, w_VD, bias_V, targets_N, form, gradients):
    tokens, width = x_ND.shape
    wide = jnp.promote_types(form.compute, jnp.float32)
    w_compute = w_VD.astype(form.compute)
    counted = tokens if form.reduction == "mean" else 1
    is_fused = gradients and form.kernels == "fused" and bias_V is None and form.logit_cap is None

    def scored(narrow_CV, targets_C):
        """The losses of a chunk's logits, with the gradient of the logits and of the bias; None where not wanted."""
        if is_fused:
            ids = form.token_ids or w_VD.shape[0]
            dlogits_CV, losses_C = softmax_gradient(narrow_CV, targets_C, ids, 1 / counted)
            return losses_C, dlogits_CV, None
        narrow_CV = narrow_CV if bias_V is None else narrow_CV + bias_V.astype(form.compute)
        # Targets are picked before the cast: a gather from wide logits would have them all written out wide.
        picked_C = cap(jnp.take_along_axis(narrow_CV, targets_C[:, None], axis=1)[:, 0].astype(wide), form.logit_cap)
        raw_CV = narrow_CV.astype(wide)
        logits_CV = cap(raw_CV, form.logit_cap)
        ids_CV = lax.broadcasted_iota(jnp.int32, logits_CV.shape, 1)
        if form.token_ids is not None:
            logits_CV = jnp.where(ids_CV < form.token_ids, logits_CV, -jnp.inf)
        logsumexp_C = jax.nn.logsumexp(logits_CV, axis=1)
        losses_C = logsumexp_C - picked_C
        if not gradients:
            return losses_C, None, None
        target_CV = ids_CV == targets_C[:, None]
        dlogits_CV = (jnp.exp(logits_CV - logsumexp_C[:, None]) - target_CV) / counted
        if form.logit_cap is not None:  # the derivative of c z / sqrt(z^2 + c^2)
            dlogits_CV *= (form.logit_cap * lax.rsqrt(jnp.square(raw_CV) + form.logit_cap**2)) ** 3
        db_V = None if bias_V is None else jnp.sum(dlogits_CV, axis=0)
        return losses_C, dlogits_CV.astype(form.compute), db_V

    def chunk(sums, xs):
        x_CD, targets_C = xs
        x_CD = x_CD.astype(form.compute)
        losses_C, dlogits_CV, db_V = scored(x_CD @ w_compute.T, targets_C)
        loss = sums[0] + jnp.sum(losses_C)
        if not gradients:
            return (loss, *sums[1:]), None
        dw_VD = sums[1] + lax.dot_general(dlogits_CV, x_CD, (((0,), (0,)), ((), ())), preferred_element_type=wide)
        db_V = None if db_V is None else sums[2] + db_V
        return (loss, dw_VD, db_V), (dlogits_CV @ w_compute).astype(x_ND.dtype)

    n = chunks(tokens)
    start = [jnp.zeros((), wide), None, None]
    if gradients:
        start[1:] = [None if each is None else jnp.zeros(each.shape, wide) for each in (w_VD, bias_V)]
    split = x_ND.reshape(n, tokens // n, width), targets_N.reshape(n, tokens // n)
    (loss, dw_VD, db_V), dx_ND = lax.scan(chunk, tuple(start), split)
    loss = loss / counted
    if not gradients:
        return (loss,)
    db_V = None if db_V is None else db_V.astype(bias_V.dtype)
    return loss, dx_ND.reshape(x_ND.shape), dw_VD.astype(w_VD.dtype), db_V
