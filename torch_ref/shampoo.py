"""Shampoo: both sides of a gradient times an inverse root of their statistics (arXiv 1802.09568, 2002.09018).

`inverse_root` is the root, `Shampoo` the optimiser: one matrix after the other. Details are those of the run of October
2024 (recipe opt-shampoo-2024-10-29): averages instead of sums, Adam's update gives each matrix its norm, and is the
update until there is a first root.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def inverse_root(GG: Float[Tensor, "n n"], eps: float = 1e-12) -> Float[Tensor, "n n"]:
    """GG^(-1/4), by eigendecomposition.

    Args:
      GG: symmetric; eigenvalues below zero are rounding, and lift all of them so that the least one is zero.
      eps: added to each eigenvalue then.
    """
    values, U = torch.linalg.eigh(GG)
    values = values - values[0].clamp(max=0) + eps
    return (U * values**-0.25) @ U.T


class Shampoo(torch.optim.Optimizer):
    """w <- w - lr weight_decay w - lr u, u = L^(-1/4) m R^(-1/4) scaled to the Frobenius norm of Adam's update.

    m, L, R and Adam's second moment are averages with bias correction, and include the gradient at hand. Until update
    `precondition_every`, which is the first to have roots, Adam's update is taken itself.

    State of a parameter, in its dtype but at least float32: `step`, updates so far; `exp_avg`, average of the
    gradients; `exp_avg_sq`, of their squares; `GG`, averages of g g^T and g^T g; `roots`, the inverse fourth root of
    each as it was at the last multiple of `precondition_every`, zero before the first.

    Args:
      params: matrices (fan_out, fan_in), or torch's groups of them.
      lr: learning rate.
      betas: decays of m, and of L and R.
      eps: added to the eigenvalues of L and R.
      weight_decay: decoupled, of the weight before the update.
      graft_beta: decay of the second moment of Adam's update.
      graft_eps: added to its root.
      precondition_every: updates between two computations of the roots.

    Raises:
      ValueError: a parameter that isn't a matrix.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        graft_beta: float = 0.95,
        graft_eps: float = 1e-8,
        precondition_every: int = 10,
    ):
        graft = {"graft_beta": graft_beta, "graft_eps": graft_eps, "precondition_every": precondition_every}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay} | graft)
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2:
                raise ValueError(f"Shampoo takes matrices alone, not a weight {tuple(p.shape)}")

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
                g = p.grad.to(torch.promote_types(p.dtype, torch.float32))
                if "step" not in state:
                    state["step"] = 0
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(g), torch.zeros_like(g)
                    state["GG"], state["roots"] = ([g.new_zeros(n, n) for n in g.shape] for _ in range(2))
                state["step"] += 1
                self._add_statistics(g, state, group)
                if state["step"] % group["precondition_every"] == 0:
                    weight = 1 - group["betas"][1] ** state["step"]
                    state["roots"] = [inverse_root(GG / weight, group["eps"]) for GG in state["GG"]]
                if group["weight_decay"]:
                    p.add_(p, alpha=-group["lr"] * group["weight_decay"])
                p.add_(self._update(state, group).to(p.dtype), alpha=-group["lr"])
        return loss

    def _add_statistics(self, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        state["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(group["graft_beta"]).add_(g.square(), alpha=1 - group["graft_beta"])
        for GG, new in zip(state["GG"], (g @ g.T, g.T @ g), strict=True):
            GG.mul_(beta2).add_(new, alpha=1 - beta2)

    def _update(self, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        t = state["step"]
        m = state["exp_avg"] / (1 - group["betas"][0] ** t)
        graft = m / ((state["exp_avg_sq"] / (1 - group["graft_beta"] ** t)).sqrt() + group["graft_eps"])
        if t < group["precondition_every"]:
            return graft
        left, right = state["roots"]
        S = left @ m @ right
        return S * (graft.norm() / (S.norm() + 1e-16))
