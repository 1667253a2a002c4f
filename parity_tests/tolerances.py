"""How far apart two computations of the same thing may be: Frobenius-relative, unless a name says otherwise.

Each allowance stands beside the largest difference that was measured (JAX 0.10.2, torch 2.13, CPU, every recipe at
reduced size); there is a factor of about ten between the two, no more, for a loose tolerance hides a bug.
"""

NEWTON_SCHULZ_TO_ORACLE = {
    "published": {"float64": 1e-12, "float32": 1e-4},
    "convergent": {"float64": 1e-12, "float32": 5e-4},
}
"""Published coefficients: measured 8e-14 and 4.6e-5, both at 768 x 3072. Twelve steps of (2, -1.5, 0.5) lift noise that
is a thousandth of the matrix to its size: 1.3e-4 in float32, the same in both frameworks."""

HIDDEN = {"float64": 1e-14, "float32": 2e-6}
"""Residual stream after each layer, and modules alone."""

LOGITS = {"float64": 1e-14, "float32": 2e-6}

LOSS = {"float64": 1e-14, "float32": 1e-6}

GRADIENTS = {"float64": 1e-13, "float32": 1e-5}

UPDATE = {"float64": 1e-12, "float32": 1e-5}

TRAINING_LOSS = {"float64": 1e-12, "float32": 5e-5}
"""Absolute, at every one of 100 steps."""

TRAINED_WEIGHTS = {"float64": 1e-11, "float32": 1e-4}

MESH = {"float64": 1e-13, "float32": 1e-5}
"""The same framework, a step's tokens divided otherwise."""

FAST = {"float64": 1e-13, "float32": 2e-6}
"""A fast path against the plain form in the same framework."""
