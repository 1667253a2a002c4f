"""Muon: momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

`newton_schulz` is the quintic iteration, `Muon` the optimiser: one matrix after the other, as they were published.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
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
    form: Literal["product_first", "polynomial_first"] = "product_first",
) -> Float[Tensor, "*batch rows cols"]:
    """Push the singular values of G towards 1: X <- aX + bAX + cAAX with A = X X^T, from X = G / (||G||_F + eps).

    Args:
      G: any batch of matrices.
      steps: iterations.
      coefficients: a, b, c. The default takes singular values to about 0.7..1.2, not to 1.
      dtype: dtype of the iteration and of the result; callers cast.
      norm_dtype: G is rounded to this before its Frobenius norm is taken, and so is the norm.
      eps: keeps a zero matrix zero.
      form: B = AX, X <- aX + bB + (cA)B, or B = bA + (cA)A, X <- aX + BX: equal but for rounding.

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
        if form == "product_first":
            B = A @ X
            X = (a * X + b * B) + (c * A) @ B
        else:
            B = b * A + (c * A) @ A
            X = a * X + B @ X
    return X.mT if transposed else X


def orthogonal_factor(G: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch rows cols"]:
    """U V^T for G = U S V^T, by singular value decomposition in at least float32: exact, slow, in G's dtype."""
    U, _, Vt = torch.linalg.svd(G.to(torch.promote_types(G.dtype, torch.float32)), full_matrices=False)
    return (U @ Vt).to(G.dtype)


class Muon(torch.optim.Optimizer):
    """m <- momentum m + g, u = g + momentum m, w <- w - lr scale(rows, cols) NS(u), for matrices (fan_out, fan_in).

    The momentum has no bias correction. On a GPU the iteration is compiled, once for each shape; the learning rate
    stays outside it.

    Args:
      params: matrices, or torch's groups of them. Embeddings, heads, gains and biases belong to another optimiser.
      lr: learning rate.
      momentum: the decay above.
      momentum_form: as above, or an "average", with (1 - momentum) g for g in both formulas.
      orthogonalise: the iteration, or `orthogonal_factor`.
      steps, coefficients, dtype, norm_dtype, form: see `newton_schulz`.
      scale: max(rows, cols)^(1/2), so that an update's RMS is about one lr, or max(1, rows/cols)^(1/2).
      weight_decay: decoupled, times the learning rate, before the update.
      distributed: matrix i is process i mod P's, which alone holds its momentum; scaled updates are rounded to `dtype`
        and summed over the processes.
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
        momentum_form: Literal["sum", "average"] = "sum",
        orthogonalise: Literal["newton_schulz", "svd"] = "newton_schulz",
        steps: int = 5,
        coefficients: tuple[float, float, float] = COEFFICIENTS,
        dtype: torch.dtype = torch.bfloat16,
        norm_dtype: torch.dtype = torch.float32,
        form: Literal["product_first", "polynomial_first"] = "product_first",
        scale: Literal["sqrt_max", "sqrt_ratio"] = "sqrt_max",
        weight_decay: float = 0.0,
        distributed: bool = False,
        parts: int = 1,
    ):
        iteration = {"steps": steps, "coefficients": coefficients, "dtype": dtype, "norm_dtype": norm_dtype}
        iteration |= {"orthogonalise": orthogonalise, "form": form, "scale": scale, "parts": parts}
        update = {"lr": lr, "momentum": momentum, "momentum_form": momentum_form, "weight_decay": weight_decay}
        super().__init__(params, update | iteration)
        self.distributed = distributed
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
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.distributed:
            self._step_distributed(moved)
            return loss
        for p, group in moved:
            o = self.orthogonalise(self._momentum(p, group), group)
            if group["weight_decay"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(o.to(p.dtype), alpha=-group["lr"] * _scale(p, group))
        return loss

    def _step_distributed(self, moved: list[tuple[Tensor, dict[str, Any]]]) -> None:
        """The same, each process orthogonalising its own matrices; one sum over all of them brings the others'."""
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        updates = []
        for i, (p, group) in enumerate(moved):
            if i % size == rank:
                o = self.orthogonalise(self._momentum(p, group), group)
                updates.append((_scale(p, group) * o).flatten())
            else:
                updates.append(torch.zeros(p.numel(), dtype=group["dtype"], device=p.device))
        summed = torch.cat(updates)
        if size > 1:
            dist.all_reduce(summed)
        for (p, group), o in zip(moved, summed.split([p.numel() for p, _ in moved]), strict=True):
            if group["weight_decay"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(o.view_as(p).to(p.dtype), alpha=-group["lr"])

    def _momentum(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """u, after the momentum has taken in p's gradient."""
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        assert p.grad is not None
        fresh = p.grad * (1 - group["momentum"]) if group["momentum_form"] == "average" else p.grad
        buffer = state["momentum"].mul_(group["momentum"]).add_(fresh)
        return fresh.add(buffer, alpha=group["momentum"])

    @torch.no_grad()
    def orthogonalise(self, u: Float[Tensor, "rows cols"], group: dict[str, Any]) -> Float[Tensor, "rows cols"]:
        """`newton_schulz` of each of u's parts by the settings of its group, in the group's `dtype`."""
        parts = u.chunk(group["parts"])
        if group["orthogonalise"] == "svd":
            done = [orthogonal_factor(part) for part in parts]
        else:
            settings = group["steps"], group["coefficients"], group["dtype"], group["norm_dtype"]
            done = [self._newton_schulz(part, *settings, form=group["form"]) for part in parts]
        return torch.cat(done) if len(done) > 1 else done[0]


def gather(optimizers: list[torch.optim.Optimizer]) -> None:
    """Give every process all of a distributed Muon's momentum, to be saved."""
    for p, state, owner in _dealt(optimizers):
        if dist.get_rank() != owner:
            state["momentum"] = torch.empty_like(p)
        dist.broadcast(state["momentum"], src=owner)


def keep_own(optimizers: list[torch.optim.Optimizer]) -> None:
    """Leave each process a distributed Muon's momentum of its own matrices alone, after `gather` or a restore."""
    for _, state, owner in _dealt(optimizers):
        if dist.get_rank() != owner:
            state.pop("momentum", None)


def _dealt(optimizers: list[torch.optim.Optimizer]) -> list[tuple[Tensor, dict[str, Any], int]]:
    """Each matrix of a distributed Muon over several processes: itself, its state, the process that holds that."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    muons = [each for each in optimizers if isinstance(each, Muon) and each.distributed and size > 1]
    matrices = [(muon, p) for muon in muons for group in muon.param_groups for p in group["params"]]
    return [(p, muon.state[p], i % size) for i, (muon, p) in enumerate(matrices)]


def _scale(p: Tensor, group: dict[str, Any]) -> float:
    """What the orthogonalised update of a weight is multiplied by."""
    rows, cols = p.shape[0] // group["parts"], p.shape[1]
    return max(rows, cols) ** 0.5 if group["scale"] == "sqrt_max" else max(1.0, rows / cols) ** 0.5
