"""Which tensor isn't finite: found on the device."""

import torch
from torch import Tensor


def norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The Frobenius norm of each tensor, in at least float32."""
    wide = {name: torch.promote_types(each.dtype, torch.float32) for name, each in tensors.items()}
    return {name: torch.linalg.vector_norm(each, dtype=wide[name]) for name, each in tensors.items()}
