"""What to look at when a rung is red: what usually stands behind it; differences of dtype and of a count."""

import numpy as np
from numpy.typing import NDArray

SUSPECTS = {
    "3": "GELU (JAX's is tanh, torch's erf), eps of a norm and where it stands, the scale and the mask of attention, "
    "a kernel's layout in the name map, dropout left on",
    "4": "sum for mean, targets moved by one, padding and ignored targets, label smoothing, a cap of the logits",
    "5": "stop_gradient or detach, a tied weight, a sum over devices or micro-batches for a mean, clipping inside "
    "`gradients`",
    "6": "eps inside the root, bias correction, decay added to the gradient, decay by default (optax.adamw 1e-4, torch "
    "1e-2), an average for a sum in momentum, the scale of Muon",
    "7": "the step count of bias correction or schedule, a state that is not handed on, betas",
    "8": "what changes from call to call in `gradients` or `batch`: state, random numbers, the order of the data",
}
"""By rung; each is met in practice. docs/porting.md says more."""

SMALL = "float32's rounding, or an eps: if a part is in float32 and that is meant, climb with --dtype float32"


def other_dtype(got: NDArray, want: NDArray, dtype: str) -> str | None:
    """Words where a result isn't of the dtype that was asked for, which explains a difference before all else."""
    for whose, array in (("port", got), ("reference", want)):
        if np.asarray(array).dtype != dtype:
            return f"the {whose}'s is {np.asarray(array).dtype} where {dtype} was asked for"
    return None


def rounding(apart: float, dtype: str) -> str | None:
    """Words where float64 numbers are as far apart as float32 rounds them, or not much further."""
    return SMALL if dtype == "float64" and 1e-9 < apart < 1e-6 else None


def multiple_of_count(got: float, want: float, shape: tuple[int, ...]) -> str | None:
    """Words where one loss is a count of the targets (batch, T) times the other: a sum for a mean."""
    counts = {int(np.prod(shape)): "the number of targets"}
    if len(shape) > 1:
        counts |= {shape[0]: "the number of sequences", shape[1]: "the length of a sequence"}
    for count, words in counts.items():
        for factor, name in ((count, f"{count}"), (1 / count, f"1/{count}")):
            if count > 1 and np.isclose(got, factor * want, rtol=1e-6, atol=0):
                return f"a factor {name}, {words}"
    return None
