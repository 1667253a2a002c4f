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

NEWTON_SCHULZ_PROPERTIES = 3e-14
"""Small matrices drawn at random, published coefficients, float64. Measured 3.4e-15."""

NEWTON_SCHULZ_GAUSSIAN = 3e-5
"""float32, Gaussian matrices at the size that trains. Measured 3.5e-6."""

NEWTON_SCHULZ_BFLOAT16_SPECTRA = {"gaussian": 0.1, "low rank and noise": 0.5, "power law": 0.1}
"""Largest difference of singular values between the frameworks, absolute. Measured 0.034, 0.139 and 0.017, and 0.003
with rounding pinned; torch's own to float64 are 0.040, 0.56 and 0.070."""

NEWTON_SCHULZ_PINNED_RMS = 2e-3
"""Size of an update, JAX's in torch's, rounding pinned. Measured 2e-4, on an H100 1.6e-4."""

NEWTON_SCHULZ_RMS = 5e-3
"""The same with rounding free, beside `ERROR_RATIO` of what torch's own is off in float64's. Measured for Gaussian
matrices, noise and power laws 0.0063, 0.10 and 0.0051 where torch is 0.004, 0.67 and 0.007 off; on an H100 0.0084, 0.41
and 0.021 where it is 0.0078, 0.71 and 0.021 off: what bfloat16 makes of noise a thousandth of the matrix is larger than
the noise, and XLA, which leaves roundings out, makes less of it."""

NEWTON_SCHULZ_BFLOAT16_SUBSPACES = 0.1
"""Sine of the largest angle between the first four singular vectors of each. Measured 0.014."""

NEWTON_SCHULZ_PINNED = {"cpu": 1.5, "gpu": 3}
"""JAX's distance from torch with rounding pinned, in torch's own from torch with one number moved by an ulp: what is
left is the order in which each sums a product. Measured 0.55, and 0.93 at 768 x 1536, both on a CPU."""

HIDDEN = {"float64": 1e-14, "float32": 5e-6}
"""Residual stream after each layer, and modules alone, forward and backward. Measured 9.4e-16 and 5.4e-7."""

ERROR_RATIO = {"cpu": 3, "gpu": 1.5}
"""In bfloat16 a framework's error to float64 in the other's. Measured on a CPU 1.2. On one with instructions for
bfloat16 oneDNN, PyTorch's library, sums a product in float32 there and JAX doesn't: 1.9. No allowance may hang on which
CPU it is, so a CPU has twice the GPU's."""

FLOAT32_ERROR_RATIO = {"cpu": 3, "gpu": 15}
"""The same of an update by Muon in float32, which each library multiplies by its own order of sums. Measured on an
H100 1.65 and, in another process, 4.75: XLA chooses kernels by their time. Both are rounding, 1e-5 at most."""

MODULE_ERRORS = 1.5
"""A module's distance from float64 in bfloat16 in JAX, in torch's. Measured 1.25; 1.0 in most."""

ROUNDED_ONCE = 1e-4
"""Modules without products in bfloat16. Measured 4.6e-8; one number of 8,192 rounded the other way makes up to 4e-5."""

LOGITS = {"float64": 1e-14, "float32": 5e-6}
"""Measured 9.9e-16 and 5.6e-7."""

LOSS = {"float64": 5e-15, "float32": 1e-6}
"""Measured 3.1e-16 and 8.2e-8."""

GRADIENTS = {"float64": 2e-14, "float32": 1e-5}
"""Measured 1.9e-15 and 1.1e-6."""

FLOAT32_PRODUCT = 2e-6
"""Of two 1024 x 1024 matrices. Measured 5.7e-7; TF32 makes 3e-4 of it."""

HIDDEN_AT_SCALE = {"cpu": HIDDEN, "gpu": {"float64": 5e-14, "float32": 2e-5}}
"""At 124M on a GPU, beside what the same test allows the reduced recipe on a CPU. Measured on an H100 5.2e-15 and
1.8e-6."""

LOGITS_AT_SCALE = {"cpu": LOGITS, "gpu": {"float64": 5e-14, "float32": 2e-5}}
"""Likewise. Measured on an H100 5.3e-15 and 1.9e-6."""

LOSS_AT_SCALE = {"cpu": LOSS, "gpu": {"float64": 5e-15, "float32": 2e-6}}
"""Likewise. Measured on an H100 3.2e-16 and 1.8e-7."""

GRADIENTS_AT_SCALE = {"cpu": GRADIENTS, "gpu": {"float64": 1e-13, "float32": 5e-5}}
"""Likewise. Measured on an H100 9.4e-15 and 4.9e-6."""

UPDATE = {"float64": 1e-13, "float32": 1e-6}
"""Weights and moments after three updates; in float64 the change of the weights alone too. Measured 1.0e-14, 6.8e-8."""

UPDATE_AT_SCALE = {"cpu": {"muon": 2e-5, "adamw": 1e-6}, "gpu": {"muon": 1e-4, "adamw": 1e-6}}
"""float32, weights after each of three updates from zero, by optimiser. Measured on a CPU 2.2e-6 and 8.3e-8, on an H100
1.0e-5 and 1.1e-7."""

UPDATE_MOMENTS_AT_SCALE = {"cpu": 6e-7, "gpu": 2e-6}
"""After the last of them. Measured on a CPU 6.0e-8, on an H100 2.3e-7."""

UPDATE_SIZE_AT_SCALE = {"cpu": 0.02, "gpu": 0.02}
"""RMS of an update by Muon in bfloat16, relative. Measured on a CPU 2.8e-3; with rounding pinned 3.0e-4."""

PINNED_UPDATE_AT_SCALE = 3
"""Its distance from PyTorch's in what an ulp of one number of each gradient moves PyTorch's by. Measured on a CPU
0.36; of single matrices of 768 x 768, from 0.9 (Gaussian) to 2.2 (power-law spectra)."""

SECOND_ORDER_AT_SCALE = {"cpu": (8e-5, 6e-6), "gpu": (8e-4, 2e-5)}
"""float32, SOAP's and Shampoo's weights, and their moments and matrices, after three updates. Measured on a CPU 8.6e-6,
SOAP's for the reason of `SECOND_ORDER_CHANGE`, and 6.0e-7; the latter on an H100 1.8e-6."""

REPLAY_AT_SCALE = {
    "cpu": {"muon": (3e-6, 3e-4), "adamw": (3e-6, 1e-3)},
    "gpu": {"muon": (3e-6, 1e-3), "adamw": (3e-6, 1e-3)},
}
"""Rung 7 in float32, by optimiser: moments, and what each step adds to a weight. Measured on a CPU over 50 steps:
moments 2.8e-7 and 3.4e-7; the changes used less of theirs."""

TRAINING_LOSS_AT_SCALE = {"cpu": 1e-5, "gpu": 1e-4}
"""float32, absolute, at every one of 20 steps. Measured on a CPU 9.5e-7."""

NOISE_AT_SCALE = {"cpu": {"free": 6, "pinned": 3}, "gpu": {"free": 1.5, "pinned": 1.5}}
"""Of `parity_tests.noise_floor`: the distance JAX-torch in the noise floor, by rounding. Measured on a CPU 1.04 to 2.0
where XLA may leave roundings out: nothing grows at that size, and those left out are seen. With each made, 0.87 to 1.2,
and 2.3 on a CPU with instructions for bfloat16: see `ERROR_RATIO`."""

FIRST_LOSSES_AT_SCALE = {"cpu": {"free": 7e-3, "pinned": 7e-3}, "gpu": {"free": 1e-2, "pinned": 1e-2}}
"""bfloat16, RMS over ten steps. Measured on a CPU 6.2e-4 and 7.6e-4."""

BRIDGE_AT_SCALE = {"cpu": 1e-5, "gpu": 1e-4}
"""float32, weights and moments after 3 steps in each framework against 6 in either. Measured on a CPU 8.2e-7."""

SCHEDULE = 2e-15
"""A multiplier of a learning rate, absolute, float64. Measured 2.2e-16."""

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

LONG_TRAINED_WEIGHTS = {"float64": 2e-13, "float32": 8e-5}
"""Muon's after 300 steps. Measured 1.6e-14 and 8.0e-6; the losses, 8.9e-16 and 9.5e-7, keep theirs."""

MESH = {"float64": 2e-14, "float32": 1e-5}
"""The same framework, a step's tokens divided otherwise. Measured 1.2e-15 and 6.9e-7."""

FAST = {"float64": 2e-14, "float32": 1e-5}
"""A fast path against the plain form in the same framework. Measured 1.8e-15 and 9.9e-7."""

SECOND_ORDER_WEIGHTS = {"float64": 1e-13, "float32": 1e-4}
"""SOAP's and Shampoo's, after each of 26 calls, between the two frameworks and the oracle. Measured 1.2e-14, 1.2e-6. At
the update that divides by projections near zero 7.9e-6 for `tiny-soap` reduced, and 2.6e-5 on another CPU (JAX 0.11.2,
torch 2.11.0)."""

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

FOREIGN_CHANGE = {"float64": 1e-12, "float32": 1e-5}
"""Rung 15, what an update adds to a weight, beyond four of the weight's own last digits: AdamW of the example pair.
Measured, where those digits are the smaller part, 1.2e-13 and 1.3e-6."""

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

RESUMED_ON_ANOTHER_MESH = 1e-6
"""Losses and gradient norms after a checkpoint that another number of devices goes on from, relative. float32. Measured
8.4e-8, from 2 devices to 4; 0 from 8 to 1 and from 1 to 8."""

FUSED_GRADIENTS = 1e-5
"""A step's loss and gradients in float32 with `jaxgpt.kernels` and without. Measured 5.6e-7."""

MESH_AT_SCALE = {
    "cpu": {"loss": 1e-5, "gradients": 1e-5, "weights": 1e-4},
    "gpu": {"loss": 1e-5, "gradients": 5e-5, "weights": 1e-4},
}
"""Several devices against one in float32."""

FUSED_AT_SCALE = 5e-3
"""A bfloat16 kernel on a GPU against its plain form, which XLA may round elsewhere: half a step of bfloat16, 2e-3."""

DECODED_LOGITS = {"float64": 1e-14, "float32": 5e-6}
"""Logits by kept keys and values, and by a full forward. Measured 9.1e-16 and 4.8e-7."""

OWN_MODELS = 5e-6
"""Losses of 20 steps with Muon, absolute, of the same model in Flax and in Equinox. float32. Measured 4.8e-7; with
fan-in for fan-out in one of the two, 0.016."""

SEVERAL_PROCESSES = 1e-6
"""Losses of 20 steps of several processes, and after a checkpoint that one of them goes on from, relative to those of
one process. float32. Measured 2.0e-7."""
