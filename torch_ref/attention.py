"""Causal attention behind one signature: written out, or PyTorch's own kernels."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def attend(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H K"],
    implementation: Literal["exact", "fast"] = "exact",
    scale: float | None = None,
) -> Float[Tensor, "B T H K"]:
    """softmax(scale q k^T, over the past and the present) v, in the dtype of the inputs; scale is 1/sqrt(K) if absent.

    "exact" is written out: scores and softmax are in at least float32, whatever autocast says. "fast" is the published
    scripts' call; PyTorch picks a kernel by device and dtype, and it takes every dtype.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if implementation == "exact":
        return _written_out(q, k, v, scale)
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    y_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return y_BHTK.transpose(1, 2)


def _written_out(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, scale: float) -> Tensor:
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    context = q_BTHK.shape[1]
    with torch.autocast(q_BTHK.device.type, enabled=False):
        scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK.to(wide), k_BTHK.to(wide)) * scale
        past_TS = torch.ones(context, context, dtype=torch.bool, device=q_BTHK.device).tril()
        weights_BHTS = torch.softmax(scores_BHTS.masked_fill(~past_TS, -math.inf), dim=-1)
        return torch.einsum("bhts,bshk->bthk", weights_BHTS.to(q_BTHK.dtype), v_BTHK)
