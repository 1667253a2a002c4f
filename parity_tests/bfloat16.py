"""How results of bfloat16 are judged: number by number they mean nothing.

Two correct Newton-Schulz iterations are 4 to 70% apart, both as far from float64 (low rank and noise more than Gaussian
matrices). What can be asked is that an update has the same singular values, the same leading subspaces and the same
size; and that one framework's error to float64 isn't much larger than the other's. Everything here is NumPy.
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from parity_tests.measured import assert_within
from parity_tests.scale import error_ratio

JUDGED = {"cpu": ("simple-2026-06-11",), "gpu": ("muon-2024-10-12", "simple-2026-06-11")}
"""Recipes whose model is held against float64 at scale: one with a tied head and fused q, k, v, and one with biases,
gains, QK-norm, capped logits and an embedding in bfloat16. A CPU has half a minute for it, and takes the second."""


def spectra_apart(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference of singular values of the same rank, over a batch (..., rows, cols)."""
    return float(np.abs(_singular_values(got) - _singular_values(want)).max())


def subspaces_apart(got: np.ndarray, want: np.ndarray, k: int) -> float:
    """The sine of the largest angle between the spans of the first k singular vectors, left or right, of two matrices.

    0 is the same span, 1 a direction of one that is missing in the other. It is arbitrary where the k-th singular value
    isn't well above the next.
    """
    U, _, Vt = np.linalg.svd(np.asarray(got, np.float64), full_matrices=False)
    U_want, _, Vt_want = np.linalg.svd(np.asarray(want, np.float64), full_matrices=False)
    spans = (U[:, :k], U_want[:, :k]), (Vt[:k].T, Vt_want[:k].T)
    return max(float(np.linalg.norm(span - other @ (other.T @ span), ord=2)) for span, other in spans)


def root_mean_square(x: np.ndarray) -> float:
    """Of all numbers, in float64."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def moved_by_an_ulp(G: np.ndarray, rank: int = 0) -> np.ndarray:
    """float32 matrices (..., rows, cols) with the largest number of each one bfloat16 unit in the last place larger.

    With `rank` the next largest, and so on, in its place.
    """
    moved = np.asarray(G, np.float32).copy()
    rows = moved.reshape(-1, moved.shape[-2] * moved.shape[-1])
    at = np.arange(len(rows)), np.abs(rows).argpartition(-1 - rank, axis=1)[:, -1 - rank]
    rows.view(np.uint32)[at] += 1 << 16  # bfloat16 is float32 without its last 16 bits
    return rows.reshape(moved.shape)


def as_kept(start: Mapping[str, np.ndarray], embedding: str) -> dict[str, np.ndarray]:
    """Weights as a recipe keeps them: its embedding rounded where that is bfloat16, in the dtype it had.

    An oracle that started from other weights than the trainers would call that an error of both.
    """
    kept = dict(start)
    if embedding == "bfloat16":
        wte = start["wte.weight"]
        kept["wte.weight"] = wte.astype(ml_dtypes.bfloat16).astype(wte.dtype)
    return kept


def assert_as_exact(errors: Mapping[str, tuple[float, float]], what: str, allowed: float, each: bool = False) -> None:
    """Each of JAX's errors to float64 is at most `allowed` times PyTorch's.

    Both ends are kept for the certificate, for PyTorch may be the less exact one: the largest and the smallest ratio,
    or with `each` all of them, in their order.

    Args:
      errors: what was computed -> JAX's error, PyTorch's.
      what: their common name.
      allowed: the ratio.
      each: as above.
    """
    ratios = {name: error_ratio(*pair) for name, pair in errors.items()}
    ordered = sorted(errors, key=lambda name: np.inf if np.isnan(ratios[name]) else ratios[name])
    for name in errors if each else dict.fromkeys((ordered[0], ordered[-1])):
        in_jax, in_torch = errors[name]
        assert_within(in_jax, allowed * in_torch, f"{what}: {name}", oracle=in_torch)


def _singular_values(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.svd(np.asarray(matrices, np.float64), compute_uv=False)
