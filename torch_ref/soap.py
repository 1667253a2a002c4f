"""SOAP: Adam in the eigenbasis of Shampoo's statistics (Vyas et al. 2024, arXiv 2409.11321).

`eigenbasis` and `next_basis` find the basis, `SOAP` is the optimiser: one matrix after the other. Details are those of
the runs of October 2024 (recipes soap-2024-10-09 and opt-soap-2024-10-29): the first call only gathers statistics,
decay comes last, a basis is used before it is renewed.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def eigenbasis(GG: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Eigenvectors of GG + 1e-30 I in columns, largest eigenvalue first. Their signs are arbitrary.

    Args:
      GG: symmetric, not negative. Where eigenvalues coincide, as those of the null space do, the basis of their space
        is arbitrary too.
    """
    vectors = torch.linalg.eigh(GG + 1e-30 * torch.eye(len(GG), dtype=GG.dtype, device=GG.device))[1]
    return vectors.flip(-1).contiguous()  # as a file would give it back: products with it are rounded by its layout


def next_basis(GG: Float[Tensor, "n n"], Q: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], Int[Tensor, " n"]]:
    """One power iteration from Q towards the eigenbasis of GG, and a QR decomposition (arXiv 2409.11321, algorithm 4).

    Returns:
      The basis, orthonormal columns; and the order by diag(Q^T GG Q), largest first, in which Q's columns were taken:
      what is kept in the old basis must be put in this order too.
    """
    moved = GG @ Q
    order = (Q * moved).sum(dim=0).argsort(descending=True, stable=True)
    return torch.linalg.qr(moved[:, order])[0].contiguous(), order


class SOAP(torch.optim.Optimizer):
    """w <- w - lr u, then w <- w - lr weight_decay w, with u = Q_L [(Q_L^T m Q_R) / (sqrt(v) + eps)] Q_R^T.

    m averages g, v the squares of Q_L^T g Q_R; u has Adam's bias corrections. The first call of a weight decomposes the
    statistics of its gradient and changes nothing. Later ones use Q, then add to the statistics, and every
    `precondition_every` updates then renew Q.

    State of a parameter, in its dtype but at least float32: `step`, updates so far (0 after the first call); `exp_avg`,
    m; `exp_avg_sq`, v, in the basis Q; `GG`, averages of g g^T and g^T g; `Q`, a basis for each, in columns.

    Args:
      params: matrices (fan_out, fan_in), or torch's groups of them.
      lr: learning rate.
      betas: decays of m and v.
      eps: added outside the root.
      weight_decay: decoupled, of the updated weight.
      precondition_every: updates between two bases.
      statistics_beta: decay of the statistics.

    Raises:
      ValueError: a parameter that isn't a matrix.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        precondition_every: int = 10,
        statistics_beta: float = 0.95,
    ):
        decays = {"betas": betas, "weight_decay": weight_decay, "statistics_beta": statistics_beta}
        super().__init__(params, {"lr": lr, "eps": eps, "precondition_every": precondition_every} | decays)
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2:
                raise ValueError(f"SOAP takes matrices alone, not a weight {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient, or its first statistics."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                g = p.grad.to(torch.promote_types(p.dtype, torch.float32))
                if "step" not in state:
                    state["step"] = 0
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(g), torch.zeros_like(g)
                    state["GG"] = [g.new_zeros(n, n) for n in g.shape]
                    self._add_statistics(g, state, group)
                    state["Q"] = [eigenbasis(GG) for GG in state["GG"]]
                    continue
                state["step"] += 1
                u = self._update(g, state, group)
                p.add_(u.to(p.dtype), alpha=-group["lr"])
                if group["weight_decay"]:
                    p.add_(p, alpha=-group["lr"] * group["weight_decay"])
                self._add_statistics(g, state, group)
                if state["step"] % group["precondition_every"] == 0:
                    self._renew(state)
        return loss

    def _update(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        (beta1, beta2), t, m, v = group["betas"], state["step"], state["exp_avg"], state["exp_avg_sq"]
        left, right = state["Q"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).add_((left.T @ g @ right).square(), alpha=1 - beta2)
        u = left @ ((left.T @ m @ right) / (v.sqrt() + group["eps"])) @ right.T
        return u * ((1 - beta2**t) ** 0.5 / (1 - beta1**t))

    def _add_statistics(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta = group["statistics_beta"]
        for GG, new in zip(state["GG"], (g @ g.T, g.T @ g), strict=True):
            GG.mul_(beta).add_(new, alpha=1 - beta)

    def _renew(self, state: dict[str, Any]) -> None:
        (left, rows), (right, cols) = (next_basis(GG, Q) for GG, Q in zip(state["GG"], state["Q"], strict=True))
        state["Q"] = [left, right]
        state["exp_avg_sq"] = state["exp_avg_sq"][rows][:, cols]
