"""Cross-entropy of the head, plain: all logits at once."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cap(logits: Float[Tensor, "*batch V"], at: float | None) -> Float[Tensor, "*batch V"]:
    """c z / sqrt(z^2 + c^2), which keeps logits within -c..c; None leaves them as they are."""
    return logits if at is None else at * logits * torch.rsqrt(logits.square() + at**2)


def logits(
    x: Float[Tensor, "*batch D"], w: Float[Tensor, "V D"], bias: Float[Tensor, " V"] | None
) -> Float[Tensor, "*batch V"]:
    """x w^T + bias in the surrounding autocast's dtype, or that of x and w; then in at least float32."""
    narrow = F.linear(x, w, bias)
    return narrow.to(torch.promote_types(narrow.dtype, torch.float32))


def plain_cross_entropy(
    logits: Float[Tensor, "N V"],
    targets: Int[Tensor, " N"],
    token_ids: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """logsumexp(logits) - logits[target] in the logits' dtype, the mean or the sum over N.

    Rows from `token_ids` on are left out of the softmax; without it all take part, padding rows too. Targets are int64,
    which `F.cross_entropy` insists on.
    """
    return F.cross_entropy(logits[:, :token_ids], targets, reduction=reduction)


def cross_entropy(
    x: Float[Tensor, "N D"],
    w: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    bias: Float[Tensor, " V"] | None = None,
    logit_cap: float | None = None,
    token_ids: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Cross-entropy of the logits x w^T + bias.

    Args:
      x: what the head multiplies.
      w: the head, one row a token id.
      targets: the next token of each row of x, int64.
      bias: of the head.
      logit_cap: see `cap`.
      token_ids: see `plain_cross_entropy`.
      reduction: over N.

    Returns:
      The mean or sum, in at least float32. The product runs in the surrounding autocast's dtype, or in that of x and w.
    """
    return plain_cross_entropy(cap(logits(x, w, bias), logit_cap), targets, token_ids, reduction)
