"""How far apart two computations of the same thing may be: Frobenius-relative, unless a name says otherwise.

Each allowance stands beside the largest difference that was measured over every recipe at reduced size (JAX 0.10.2,
torch 2.13, Python 3.11, CPU). There is a factor of about ten between the two, no more: a loose tolerance hides a bug.
"""

NEWTON_SCHULZ_TO_ORACLE = {
    "published": {"float64": 3e-12, "float32": 1e-4},
    "convergent": {"float64": 3e-12, "float32": 5e-4},
}
"""Measured in float64 3.1e-13; in float32 3.5e-6 for Gaussian matrices up to 768 x 3072, more for low rank and
noise. Twelve steps of (2, -1.5, 0.5) lift noise a thousandth of the matrix to its size: 1.3e-4 in both frameworks."""

HIDDEN = {"float64": 1e-14, "float32": 5e-6}
"""Residual stream after each layer, and modules alone, forward and backward. Measured 9.4e-16 and 5.4e-7."""

LOGITS = {"float64": 1e-14, "float32": 5e-6}
"""Measured 9.9e-16 and 5.6e-7."""

LOSS = {"float64": 5e-15, "float32": 1e-6}
"""Measured 3.1e-16 and 8.2e-8."""

GRADIENTS = {"float64": 2e-14, "float32": 1e-5}
"""Measured 1.9e-15 and 1.1e-6."""

UPDATE = {"float64": 1e-13, "float32": 1e-6}
"""Weights and moments after three updates; in float64 the change of the weights alone too. Measured 1.0e-14, 6.8e-8."""

TRAINING_LOSS = {"float64": 2e-14, "float32": 1e-5}
"""Absolute, at every one of 100 steps. Measured 1.8e-15 and 9.5e-7."""

TRAINED_WEIGHTS = {"float64": 5e-14, "float32": 2e-5}
"""After 100 steps. Measured 3.4e-15 and 1.7e-6."""

MESH = {"float64": 2e-14, "float32": 1e-5}
"""The same framework, a step's tokens divided otherwise. Measured 1.2e-15 and 6.9e-7."""

FAST = {"float64": 2e-14, "float32": 1e-5}
"""A fast path against the plain form in the same framework. Measured 1.8e-15 and 9.9e-7."""
