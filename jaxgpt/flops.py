"""Floating-point operations of a recipe, and what a card can do at most. Imports neither JAX nor PyTorch.

An operation is a multiplication or an addition, so a product of (m, k) and (k, n) has 2 m k n. Counted are matrix
products and attention, forward and backward, as in the appendices of arXiv 2001.08361 and 2204.02311; not what a
program recomputes, norms, activations or the optimiser.
"""

import math
from collections import Counter

from jaxgpt.recipes import ModelConfig, OptimizerConfig


def token_flops(model: ModelConfig, causal: bool = True) -> int:
    """Operations of one token of training: 6 a number in a matrix, and 12 L T D for attention, or half of it.

    6 N: two in the forward pass, four in the backward pass, where N are the numbers in the blocks' matrices and in the
    head; the embedding is looked up. Attention multiplies a token's query with T keys and its weights with T values of
    D numbers, 4 T D a layer, and twice that backward.

    Args:
      model: whose token.
      causal: count the (T + 1)/2 keys that a token sees on average; otherwise all T, which a plain product computes.
    """
    blocks = (math.prod(shape) for name, shape in model.shapes.items() if name.startswith("h.") and len(shape) == 2)
    seen_twice = model.context + 1 if causal else 2 * model.context
    return 6 * (sum(blocks) + model.vocab * model.width) + 6 * model.layers * seen_twice * model.width


def newton_schulz_flops(model: ModelConfig, optimizer: OptimizerConfig) -> int:
    """Operations of Muon's products in one update, all matrices of a model together; 0 for another optimiser."""
    if optimizer.kind != "muon" or optimizer.orthogonalise != "newton_schulz":
        return 0
    return sum(count * newton_schulz_matrix_flops(shape, optimizer) for shape, count in matrices(model).items())


def newton_schulz_matrix_flops(shape: tuple[int, ...], optimizer: OptimizerConfig) -> int:
    """Operations of the iteration's products on one matrix of that shape.

    For a matrix of r rows and c columns, r <= c, and each iteration: X X^T, A X and A B are 2 r^2 c each; or, where the
    polynomial comes first, X X^T and B X are and A A is 2 r^3.
    """
    r, c = min(shape), max(shape)
    iteration = 6 * r * r * c if optimizer.newton_schulz_form == "product_first" else 4 * r * r * c + 2 * r**3
    return optimizer.newton_schulz_steps * iteration


def matrices(model: ModelConfig) -> Counter[tuple[int, ...]]:
    """(fan-out, fan-in) -> how many hidden matrices have it; a fused query-key-value weight counts as three."""
    counted: Counter[tuple[int, ...]] = Counter()
    for name, shape in model.shapes.items():
        if not name.startswith("h.") or len(shape) != 2:
            continue
        fused = name.endswith("attn.c_attn.weight")
        counted[(shape[0] // 3, shape[1]) if fused else shape] += 3 if fused else 1
    return counted


BF16_PEAKS = {
    # NVIDIA H100 and H200 datasheets: 1,979 (SXM), 1,513 (PCIe) and 1,671 (NVL) TFLOP/s with sparsity, twice the dense
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H200": 989.5e12,
    # NVIDIA A100 datasheet: 312 TFLOP/s dense
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    # Google Cloud's pages of TPU v4, v5e, v5p and v6e: a chip
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16 operations a second by the makers' datasheets, by the name that both frameworks give a device."""


def peak_flops(devices: list[str]) -> float | None:
    """Datasheet operations a second of these devices together, by their names; None where one isn't known, as CPUs."""
    peaks = [BF16_PEAKS.get(name) for name in devices]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None
