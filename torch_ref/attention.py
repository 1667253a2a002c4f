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
) -> Float[Tensor, "B T H K"]:
    """softmax(q k^T / sqrt(K), over the past and the present) v, in the dtype of the inputs.

    "exact" is written out: scores and softmax are in at least float32, whatever autocast says. "fast" is the published
    scripts' call; PyTorch picks a kernel by device and dtype, and it takes every dtype.
    """
    if implementation == "exact":
        return _written_out(q, k, v)
    y_BHTK = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    return y_BHTK.transpose(1, 2)


def _written_out(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> Tensor:
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    context, head_width = q_BTHK.shape[1], q_BTHK.shape[3]
    with torch.autocast(q_BTHK.device.type, enabled=False):
        scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK.to(wide), k_BTHK.to(wide)) / math.sqrt(head_width)
        past_TS = torch.ones(context, context, dtype=torch.bool, device=q_BTHK.device).tril()
        weights_BHTS = torch.softmax(scores_BHTS.masked_fill(~past_TS, -math.inf), dim=-1)
        return torch.einsum("bhts,bshk->bthk", weights_BHTS.to(q_BTHK.dtype), v_BTHK)
