"""Cross-entropy of the tied head, plain: all logits at once."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def plain_cross_entropy(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """mean(logsumexp(logits) - logits[target]) in the logits' dtype. All V rows take part, padding rows too.

    Targets are int64, which `F.cross_entropy` insists on.
    """
    return F.cross_entropy(logits, targets)


def cross_entropy(x: Float[Tensor, "N D"], w: Float[Tensor, "V D"], targets: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the logits x w^T.

    Args:
      x: what the head multiplies.
      w: the tied matrix, one row a token id.
      targets: the next token of each row of x, int64.

    Returns:
      The mean over N, in at least float32. The product runs in the surrounding autocast's dtype, or in that of x and w.
    """
    logits_NV = F.linear(x, w)
    return plain_cross_entropy(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), targets)
