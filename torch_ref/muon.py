"""Muon: momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

`newton_schulz` is the quintic iteration, `Muon` the optimiser: one matrix after the other, as they were published.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    G: Float[Tensor, "*batch rows cols"],
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    dtype: torch.dtype = torch.bfloat16,
    norm_dtype: torch.dtype = torch.float32,
    eps: float = 1e-7,
) -> Float[Tensor, "*batch rows cols"]:
    """Push the singular values of G towards 1: X <- aX + bAX + cAAX with A = X X^T, from X = G / (||G||_F + eps).

    Args:
      G: any batch of matrices.
      steps: iterations.
      coefficients: a, b, c. The default takes singular values to about 0.7..1.2, not to 1.
      dtype: dtype of the iteration and of the result; callers cast.
      norm_dtype: G is rounded to this before its Frobenius norm is taken, and so is the norm.
      eps: keeps a zero matrix zero.

    Returns:
      About U V^T for G = U S V^T, in `dtype`. Run as it stands, each product is rounded to `dtype`; compiled, sums keep
      the width of their accumulators where operations are fused.
    """
    wide = torch.promote_types(dtype, torch.float32)
    a, b, c = coefficients
    seen = G.to(norm_dtype)
    squares = seen.to(torch.promote_types(norm_dtype, torch.float32)).square()
    norm = squares.sum(dim=(-2, -1), keepdim=True).sqrt().to(norm_dtype)
    X = (G.to(dtype).to(wide) / (norm + eps)).to(dtype)
    if transposed := G.shape[-2] > G.shape[-1]:
        X = X.mT
    for _ in range(steps):
        A = X @ X.mT
        B = A @ X
        X = (a * X + b * B) + (c * A) @ B
    return X.mT if transposed else X


class Muon(torch.optim.Optimizer):
    """m <- momentum m + g, u = g + momentum m, w <- w - lr max(rows, cols)^(1/2) NS(u), for matrices (fan_out, fan_in).

    The momentum is no moving average and has no bias correction. An update's RMS is about one learning rate. On a GPU
    the iteration is compiled, once for each shape; the learning rate stays outside it.

    Args:
      params: matrices, or torch's groups of them. Embeddings, heads, gains and biases belong to another optimiser.
      lr: learning rate.
      momentum: the decay above.
      steps, coefficients, dtype, norm_dtype: see `newton_schulz`.
      parts: how many matrices of equal height a weight holds, one below the other: 3 for a fused query-key-value weight
        (3D, D). Each is orthogonalised and scaled for itself. Give such weights a group of their own:
        `Muon([{"params": [qkv], "parts": 3}, {"params": others}], lr=...)`.

    Raises:
      ValueError: a parameter that isn't a matrix, or whose rows don't divide by its group's `parts`.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.95,
        steps: int = 5,
        coefficients: tuple[float, float, float] = COEFFICIENTS,
        dtype: torch.dtype = torch.bfloat16,
        norm_dtype: torch.dtype = torch.float32,
        parts: int = 1,
    ):
        settings = {"steps": steps, "coefficients": coefficients, "dtype": dtype, "norm_dtype": norm_dtype}
        super().__init__(params, {"lr": lr, "momentum": momentum, "parts": parts} | settings)
        matrices = [(p, group["parts"]) for group in self.param_groups for p in group["params"]]
        for p, n in matrices:
            if p.ndim != 2 or p.shape[0] % n:
                raise ValueError(f"Muon takes matrices whose rows divide by parts={n}, not a weight {tuple(p.shape)}")
        on_gpu = any(p.is_cuda for p, _ in matrices)
        self._newton_schulz = torch.compile(newton_schulz, dynamic=False) if on_gpu else newton_schulz

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].mul_(group["momentum"]).add_(p.grad)
                u = p.grad.add(buffer, alpha=group["momentum"])
                rows, cols = p.shape[0] // group["parts"], p.shape[1]
                p.add_(self.orthogonalise(u, group).to(p.dtype), alpha=-group["lr"] * max(rows, cols) ** 0.5)
        return loss

    @torch.no_grad()
    def orthogonalise(self, u: Float[Tensor, "rows cols"], group: dict[str, Any]) -> Float[Tensor, "rows cols"]:
        """`newton_schulz` of each of u's parts by the settings of its group, in the group's `dtype`."""
        settings = group["steps"], group["coefficients"], group["dtype"], group["norm_dtype"]
        if group["parts"] == 1:
            return self._newton_schulz(u, *settings)
        return torch.cat([self._newton_schulz(part, *settings) for part in u.chunk(group["parts"])])
