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

TRAINED_WEIGHTS = {
    "muon": {"float64": 5e-14, "float32": 2e-5},
    "adamw": {"float64": 7e-12, "float32": 2e-3},
    "shampoo": {"float64": 7e-12, "float32": 2e-3},
    "soap": {"float64": 3e-13, "float32": 3e-2},
}
"""After 20 or 100 steps, by optimiser. Measured 3.4e-15 and 1.7e-6; 7.1e-13 and 2.2e-4; 6.8e-13 and 2.1e-4; 3e-14 and
3.2e-3. Behind zero-initialised projections gradients are next to nothing at first, and all but Muon divide each number
by its own size, rounding and all."""

MESH = {"float64": 2e-14, "float32": 1e-5}
"""The same framework, a step's tokens divided otherwise. Measured 1.2e-15 and 6.9e-7."""

FAST = {"float64": 2e-14, "float32": 1e-5}
"""A fast path against the plain form in the same framework. Measured 1.8e-15 and 9.9e-7."""

SECOND_ORDER_WEIGHTS = {"float64": 1e-13, "float32": 1e-5}
"""SOAP's and Shampoo's, after each of 26 calls, between the two frameworks and the oracle. Measured 1.2e-14, 1.2e-6;
7.9e-6 for `tiny-soap` reduced, at the update that divides by projections near zero."""

SECOND_ORDER_CHANGE = 1e-12
"""What a call adds to them, float64. Measured 1.2e-13: SOAP's first update divides by projections near zero."""

SECOND_ORDER_MOMENTS = {"float64": 1e-14, "float32": 3e-6}
"""Both moments and both sides' averages, likewise. Measured 9.5e-16 and 2.8e-7."""

SECOND_ORDER_MATRICES = {"float64": 3e-14, "float32": 1e-5}
"""SOAP's bases and Shampoo's roots, likewise. Measured 2.7e-15 and 1.3e-6."""

FIRST_BASIS = 3e-14
"""Q diag Q^T against the statistics; weights from bases of each framework's own. float64, measured 2.7e-15."""

NULL_SPACE = 1e-14
"""Range projectors, eigenvalues and orthogonality where the statistics have no full rank. float64, measured 1.2e-15."""

NULL_SPACE_UPDATES = 1e-10
"""Weights there, SOAP's until the first recomputation. float64, measured 1.0e-11: rounding divided by eps."""

ROOTS = 1e-13
"""Shampoo's roots to the fourth times what they are of, against I. float64, measured 1.2e-14."""

SOAP_TRAINING_LOSS = {"float64": 2e-14, "float32": 2e-4}
"""Rung 8 of SOAP, 20 steps. Measured 1.3e-15; in float32 1.9e-5 for the reason of `TRAINED_WEIGHTS`."""

ORTHOGONAL_FACTOR = {"float64": 4e-14, "float32": 1.5e-5}
"""U V^T by either framework's decomposition against NumPy's. Measured 4.0e-15 and 1.3e-6."""

OWN_PRECISION_LOSS = {
    "simple-2026-06-11": 2e-3,
    "llmc-2024-10-13": 1e-3,
    "distmuon-2024-10-17": 9e-3,
    "opt-soap-2024-10-29": 7e-2,
}
"""Absolute, at each of ten steps in bfloat16. Measured 2e-4, 1e-4, 9e-4 and 6.6e-3."""

BRIDGE = {"float64": 5e-14, "float32": 1e-5}
"""Weights and moments after 6 steps in one framework and 6 in the other against 12 in either. Measured 5.5e-15 and
1.3e-6; weights alone 2.6e-15 and 1.2e-7."""

SECOND_ORDER_BRIDGE = {"float64": 3e-12}
"""The same of SOAP and Shampoo, each leg with a recomputation. Measured 2.5e-13, in a root; weights alone 2.6e-14."""

PUBLISHED = {"float64": 1e-13, "float32": 1e-6}
"""Rung 14, a trainer against a published script. Measured 1.1e-14 and 5.6e-7."""

PUBLISHED_GRADIENTS = {"float64": 1e-13, "float32": 3e-6}
"""Measured 2.2e-15 and 1.3e-6: rounding alone."""

PUBLISHED_NEWTON_SCHULZ = {"float64": 1e-13, "float32": 1e-5}
"""Measured 5.4e-15 and 2.1e-6: the norm summed in another order, magnified by five steps."""

REPLAY_MOMENTS = {"float64": 1e-14, "float32": 3e-6}
"""Rung 7, after each of 50 steps, the gradients of either. Measured 1.8e-15 and 3.5e-7."""

REPLAY_MATRICES = {"float64": 7e-13, "float32": 2e-4}
"""SOAP's bases and Shampoo's roots likewise. Measured 7.3e-14 and 2.2e-5. In float32 SOAP can't be held to any: after
41 steps near-equal eigenvalues of `tiny-soap` reduced came in another order, and a basis was 0.45 apart."""

REPLAY_CHANGE = {
    "muon": {"float64": 5e-13, "float32": 3e-4},
    "adamw": {"float64": 1e-12, "float32": 1e-3},
    "shampoo": {"float64": 3e-13, "float32": 1e-4},
    "soap": {"float64": 6e-12},
}
"""What each step adds to a weight, by optimiser: a weight's own last digits, so most where it changes least. Measured
5.5e-14 and 3.0e-5; 9.6e-14 and 1.1e-4; 3.0e-14 and 1.3e-5; 6.6e-13 for the reason of `SECOND_ORDER_CHANGE`."""

TORCH_MUON = 2e-15
"""torch.optim.Muon's momentum, norm, scale and decay, the iteration left out. float64, measured 2e-16."""

TORCH_MUON_BFLOAT16 = {"published": 0.1, "convergent": 0.03}
"""Its updates. Measured 0.037 and 0.0090: roundings of bfloat16, which another CPU may make otherwise."""

TORCH_MUON_ERRORS = 6
"""Our distance from the oracle in its own. Measured 2.6: it rounds a sum and its product once, we and the published
scripts each of them."""

OPTAX_MUON = 3e-14
"""optax.contrib.muon's updates, where it can agree. float64, measured 3e-15."""

GPT2_LOGITS = {"float64": 1e-14, "float32": 5e-6}
"""transformers.GPT2LMHeadModel and `llmc-2024-10-13`. Measured 8.5e-16 and 4.2e-7."""

GPT2_LOSS = {"float64": 5e-15, "float32": 1e-6}
"""Measured 3.2e-16 and 0; 1.7e-7 at initial weights."""

GPT2_GRADIENTS = {"float64": 2e-14, "float32": 1e-5}
"""Measured 1.5e-15 and 9.6e-7."""
