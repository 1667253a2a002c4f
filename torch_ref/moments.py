"""What a recipe's optimisers keep between steps, under the names that both trainers' files use.

`opt.<kind>.<weight's name>.<slot>`, with the optimiser's kind (muon, adamw, soap, shampoo) and the slots momentum;
exp_avg, exp_avg_sq; GG.0, Q.0 and roots.0 of a matrix's fan-out side, GG.1, Q.1 and roots.1 of its fan-in side.
"""

import torch
from torch import Tensor

from torch_ref.model import GPT


def moments(optimizers: list[torch.optim.Optimizer], model: GPT) -> dict[str, Tensor]:
    """Every tensor of the optimisers' state by its name, not copied. Counters aren't among them."""
    names = {p: name for name, p in model.named_parameters()}
    named: dict[str, Tensor] = {}
    for optimizer in optimizers:
        kind = type(optimizer).__name__.lower()
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            for slot, value in optimizer.state.get(p, {}).items():
                prefix = f"opt.{kind}.{names[p]}.{slot}"
                if isinstance(value, list):
                    named |= {f"{prefix}.{side}": each for side, each in enumerate(value)}
                elif slot != "step":
                    named[prefix] = value
    return named


def set_moments(optimizers: list[torch.optim.Optimizer], model: GPT, tensors: dict[str, Tensor], step: int) -> None:
    """Put copies of `tensors` in the place of the optimisers' state, and their counters to `step` updates done.

    Raises:
      KeyError: a weight that `tensors` holds no state of, where its optimiser keeps one.
    """
    names = {p: name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        kind = type(optimizer).__name__.lower()
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            start = f"opt.{kind}.{names[p]}."
            slots = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            if not slots:
                raise KeyError(start)
            state = optimizer.state[p] = {}
            for slot in sorted(slots):
                value = slots[slot].to(p.device, copy=True)
                name, _, side = slot.partition(".")
                if side:
                    state.setdefault(name, []).append(value)
                else:
                    state[name] = value
            if kind == "adamw":
                state["step"] = torch.tensor(float(step), device=p.device if p.is_cuda else "cpu")
            elif kind in ("soap", "shampoo"):  # SOAP doesn't count its first call, which makes no update
                state["step"] = step - (kind == "soap")
