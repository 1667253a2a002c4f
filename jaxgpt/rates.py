"""How long a step takes on a card whose rates were measured. Imports neither JAX nor PyTorch.

A step is taken apart into kinds of work that each have one measure: products and Newton-Schulz in operations (see
`jaxgpt.flops`), attention in operations on the keys that a token sees, what is bound by memory in numbers passed. Each
kind's rate was measured on one card at one size, so a prediction for another size is an extrapolation.
"""

import math
from collections import Counter
from dataclasses import dataclass, fields, replace

from jaxgpt.flops import matrices, newton_schulz_matrix_flops, token_flops
from jaxgpt.recipes import Recipe

UPDATE_PASSES = 8
"""How often an update reads or writes each weight's number, its gradient or its moments, in float32: Muon reads weight,
momentum and gradient, writes two, and writes and reads what it orthogonalises; AdamW reads four and writes three; the
gradient's norm reads once more."""


@dataclass(frozen=True)
class Rates:
    """What was measured on a card, with bfloat16 compute."""

    products: float
    """Operations a second of the model's matrix products."""
    attention: float
    """Operations a second of attention, half of them counted, as a causal mask leaves them."""
    block: float
    """Seconds for each number of the residual stream and layer: norms, sums, rotary, activation, both ways."""
    logit: float
    """Seconds for each logit: the cross-entropy without its products, forward and backward."""
    newton_schulz: float
    """Operations a second in a batch of equal matrices."""
    newton_schulz_start: float
    """Seconds that such a batch takes beside that."""
    update: float
    """Bytes a second of the update's passes over weights and moments."""
    source: str


_TOKENS, _WIDTH, _LAYERS, _VOCAB = 64 * 1024, 768, 12, 50_304


def _measured(step: float, products: float, attention: float, cross_entropy: float, results: str) -> Rates:
    """From seconds of a step of muon-2024-10-12 on one H100, and of the parts of a micro-batch, an eighth of it."""
    # Newton-Schulz takes 4.4 ms of the step, the update's passes 1.3.
    rest = (step - 4.4e-3 - 1.3e-3) / 8 - (products + attention + cross_entropy)
    return Rates(
        products=_TOKENS * 741.4e6 / products,
        attention=_TOKENS * 56.7e6 / attention,
        block=rest / (_TOKENS * _LAYERS * _WIDTH),
        logit=cross_entropy / (_TOKENS * _VOCAB),
        newton_schulz=1.957e12 / (4.4e-3 - 2 * 0.1e-3),
        newton_schulz_start=0.1e-3,
        update=3.0e12,
        source="one H100, muon-2024-10-12, micro-batches of 64 x 1024 tokens, JAX 0.11.2: products "
        f"{products * 1e3:.1f} ms, attention {attention * 1e3:.1f}, cross-entropy {cross_entropy * 1e3:.1f}, "
        f"Newton-Schulz 4.4 a step and 0.13 for one matrix (benchmarks/NOTES.md); {step * 1e3:.1f} ms a step "
        f"(benchmarks/results/{results}), what is left being the blocks' memory-bound work",
    )


WITHOUT_KERNELS = _measured(1019.4e-3, 64e-3, 19e-3, 10e-3, "muon-2024-10-12-h100")
"""The same card where all is left to XLA, as on a TPU."""

RATES = {"NVIDIA H100 80GB HBM3": _measured(936.2e-3, 68.4e-3, 21.7e-3, 6.3e-3, "kernels-h100")}
"""By the name that both frameworks give a device."""


def why_unknown(recipe: Recipe) -> str | None:
    """Why a recipe's time can't be said from these rates; None where it can."""
    optimizer = recipe.optimizer
    if recipe.model.compute_dtype != "bfloat16":
        return f"rates were measured with bfloat16 compute, and the recipe's is {recipe.model.compute_dtype}"
    if optimizer.kind in ("soap", "shampoo") or optimizer.orthogonalise == "svd":
        kind = "the exact back end of Muon" if optimizer.kind == "muon" else optimizer.kind
        return f"the decompositions of {kind} have no measured rate here"
    return None


def step_seconds(recipe: Recipe, devices: int, rates: Rates) -> dict[str, float]:
    """Seconds of a step by kind of work, on each of `devices` that share its sequences and deal out Muon's matrices.

    What the devices say to each other isn't in it.

    Args:
      recipe: of which `why_unknown` has nothing to say.
      devices: P.
      rates: of one device.
    """
    model, tokens = recipe.model, recipe.step_tokens / devices
    attention = 6 * model.layers * (model.context + 1) * model.width
    return {
        "products": tokens * (token_flops(model) - attention) / rates.products,
        "attention": tokens * attention / rates.attention,
        "blocks": tokens * model.layers * model.width * rates.block,
        "cross-entropy": tokens * model.vocab * rates.logit,
        "newton-schulz": _newton_schulz_seconds(recipe, devices, rates),
        "update": UPDATE_PASSES * 4 * model.parameters / rates.update,
    }


def _newton_schulz_seconds(recipe: Recipe, devices: int, rates: Rates) -> float:
    if recipe.optimizer.kind != "muon" or not recipe.optimizer.newton_schulz_steps:
        return 0.0
    batches: Counter[tuple[int, ...]] = Counter()
    for shape, count in matrices(recipe.model).items():
        batches[tuple(sorted(shape))] += count  # wide and tall ones go through the iteration together
    return sum(
        rates.newton_schulz_start
        + math.ceil(count / devices) * newton_schulz_matrix_flops(shape, recipe.optimizer) / rates.newton_schulz
        for shape, count in batches.items()
    )


def scaled(rates: Rates, operations: float, bandwidth: float, of: str) -> Rates:
    """Rates of a card that wasn't measured, from those of one that was.

    Args:
      rates: measured.
      operations: the ratio of the datasheets' dense bfloat16 operations.
      bandwidth: the ratio of their memory's bytes a second.
      of: the card's name.
    """
    by = {"products": operations, "attention": operations, "newton_schulz": operations, "update": bandwidth}
    by |= {"block": 1 / bandwidth, "logit": 1 / bandwidth}
    changed = {f.name: getattr(rates, f.name) * by[f.name] for f in fields(rates) if f.name in by}
    return replace(rates, **changed, source=f"not measured on {of}: scaled by the datasheets from {rates.source}")
