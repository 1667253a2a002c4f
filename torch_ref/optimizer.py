"""A recipe's optimisers: its schedule, and which weight gets which of them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from jaxgpt.recipes import OptimizerConfig, Precision, Recipe, ScheduleConfig
from torch_ref.model import GPT
from torch_ref.muon import Muon
from torch_ref.shampoo import Shampoo
from torch_ref.soap import SOAP


def multiplier(schedule: ScheduleConfig) -> Callable[[int], float]:
    """Step s, from 0 -> what each learning rate is multiplied by: (s+1)/warmup, 1, then the fall.

    The last update of a linear fall, (steps-s)/warmdown, uses 1/warmdown; 0 is never applied.
    """

    def at(step: int) -> float:
        if step < schedule.warmup:
            return (step + 1) / schedule.warmup
        if step >= schedule.steps - schedule.warmdown:
            down = (schedule.steps - step) / max(schedule.warmdown, 1)
            return (1 - math.cos(math.pi * down)) / 2 if schedule.fall == "cosine" else down
        return 1.0

    return at


def group(name: str) -> str:
    """Which of a recipe's groups the weight of that name, such as "h.0.attn.c_q.weight", belongs to."""
    if name.startswith("h.") and ".ln_" not in name and name.endswith(".weight"):
        return "hidden"
    if name in ("wte.weight", "wpe.weight"):
        return "embedding"
    return "head" if name == "lm_head.weight" else "vector"


def make_optimizer(recipe: Recipe, precision: Precision, model: GPT) -> list[torch.optim.Optimizer]:
    """AdamW on embedding, head, gains and biases; the recipe's optimiser on the hidden matrices.

    Each group of parameters keeps its peak learning rate, `peak_lr`.

    Args:
      recipe: learning rates, momenta.
      precision: dtypes of Newton-Schulz.
      model: whose weights they change, already on its device.
    """
    config = recipe.optimizer
    members: dict[str, dict[str, torch.nn.Parameter]] = {}
    for name, p in model.named_parameters():
        members.setdefault(group(name), {})[name] = p

    groups: list[dict[str, Any]] = []
    for kind, lr in (("embedding", config.embedding_lr), ("head", config.head_lr), ("vector", config.vector_lr)):
        if kind in members:
            decay = config.weight_decay if kind != "vector" or config.decays_vectors else 0.0
            groups.append({"params": list(members[kind].values()), "lr": lr, "weight_decay": decay})
    fused = model.wte.weight.is_cuda
    others = torch.optim.AdamW(groups, lr=config.embedding_lr, betas=config.betas, eps=config.eps, fused=fused)
    optimizers = [others, _hidden(config, precision, members["hidden"])]
    for each in (group for optimizer in optimizers for group in optimizer.param_groups):
        each["peak_lr"] = each["lr"]
    return optimizers


def _hidden(
    config: OptimizerConfig, precision: Precision, weights: dict[str, torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimiser of the hidden matrices."""
    params = list(weights.values())
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.hidden_weight_decay}
    if config.kind == "muon":
        fused_qkv = [p for name, p in weights.items() if name.endswith("c_attn.weight")]
        others = [p for name, p in weights.items() if not name.endswith("c_attn.weight")]
        return Muon(
            [{"params": params, "parts": parts} for params, parts in ((fused_qkv, 3), (others, 1)) if params],
            **settings,
            momentum=config.momentum,
            momentum_form=config.momentum_form,
            orthogonalise=config.orthogonalise,
            steps=config.newton_schulz_steps,
            coefficients=config.newton_schulz_coefficients,
            dtype=getattr(torch, precision.newton_schulz),
            norm_dtype=getattr(torch, precision.newton_schulz_norm),
            form=config.newton_schulz_form,
            scale=config.muon_scale,
            distributed=config.distributed,
        )
    settings |= {"betas": config.hidden_betas, "eps": config.hidden_eps}
    if config.kind == "adamw":
        return torch.optim.AdamW(params, **settings, fused=params[0].is_cuda)
    kind = {"soap": SOAP, "shampoo": Shampoo}[config.kind]
    return kind(params, **settings, precondition_every=config.precondition_every)


def set_learning_rates(optimizers: list[torch.optim.Optimizer], at: float) -> None:
    """Each group's learning rate is `at` times its peak: `multiplier` of the step about to be taken."""
    for optimizer in optimizers:
        for each in optimizer.param_groups:
            each["lr"] = each["peak_lr"] * at


def clip(gradients: dict[str, torch.Tensor], to: float | None) -> None:
    """Scale gradients down, in place, to the global norm `to` where theirs is larger; None leaves them."""
    if to is None:
        return
    norm = get_total_norm(list(gradients.values()))
    by = torch.where(norm > to, to / norm, torch.ones_like(norm))
    for gradient in gradients.values():
        gradient.mul_(by)


def state_bytes(optimizers: list[torch.optim.Optimizer]) -> dict[str, int]:
    """Bytes that the optimisers keep between steps, on this device: of the `hidden` matrices, and of `all` weights."""

    def count(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        return sum(map(count, value)) if isinstance(value, list | tuple) else 0

    each = [sum(count(v) for state in o.state.values() for v in state.values()) for o in optimizers]
    return {"hidden": each[-1], "all": sum(each)}
