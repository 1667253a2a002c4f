"""A recipe's optimisers: its schedule, and which weight gets which of them."""

from collections.abc import Callable

import torch

from jaxgpt.recipes import Precision, Recipe, ScheduleConfig
from torch_ref.model import GPT
from torch_ref.muon import Muon


def multiplier(schedule: ScheduleConfig) -> Callable[[int], float]:
    """Step s, from 0 -> what each learning rate is multiplied by: (s+1)/warmup, 1, then (steps-s)/warmdown.

    The last update uses 1/warmdown; 0 is never applied.
    """

    def at(step: int) -> float:
        if step < schedule.warmup:
            return (step + 1) / schedule.warmup
        if step >= schedule.steps - schedule.warmdown:
            return (schedule.steps - step) / max(schedule.warmdown, 1)
        return 1.0

    return at


def make_optimizer(recipe: Recipe, precision: Precision, model: GPT) -> list[torch.optim.Optimizer]:
    """AdamW on the tied matrix, Muon on the weights of the blocks; each group keeps its peak learning rate, `peak_lr`.

    Args:
      recipe: learning rates, momenta.
      precision: dtypes of Newton-Schulz.
      model: whose weights they change, already on its device.
    """
    config = recipe.optimizer
    adamw = torch.optim.AdamW(
        [model.wte.weight],
        lr=config.embedding_lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=model.wte.weight.is_cuda,
    )
    hidden = dict(model.h.named_parameters())
    fused_qkv = [p for name, p in hidden.items() if name.endswith("c_attn.weight")]
    others = [p for name, p in hidden.items() if not name.endswith("c_attn.weight")]
    muon = Muon(
        [{"params": params, "parts": parts} for params, parts in ((fused_qkv, 3), (others, 1)) if params],
        lr=config.lr,
        momentum=config.momentum,
        steps=config.newton_schulz_steps,
        coefficients=config.newton_schulz_coefficients,
        dtype=getattr(torch, precision.newton_schulz),
        norm_dtype=getattr(torch, precision.newton_schulz_norm),
    )
    for group in adamw.param_groups + muon.param_groups:
        group["peak_lr"] = group["lr"]
    return [adamw, muon]


def set_learning_rates(optimizers: list[torch.optim.Optimizer], at: float) -> None:
    """Each group's learning rate is `at` times its peak: `multiplier` of the step about to be taken."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * at
