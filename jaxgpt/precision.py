"""How exactly a recipe is computed. This file imports neither JAX nor PyTorch."""

from dataclasses import dataclass
from typing import Literal

from jaxgpt.config import DType, Recipe


@dataclass(frozen=True)
class Precision:
    """How exactly a recipe is computed; nothing else decides it.

    `parameters` is the dtype of weights, gradients and optimiser state, `embedding` that of the embedding's and of the
    residual stream. `matmul` "highest" forbids TF32 and its like. `attention` "exact" is written out and works in every
    dtype, "fast" is the accelerator's own kernel. `rounding` "pinned" keeps each rounding to bfloat16 where PyTorch has
    it (by `reduce_precision` and `mesh.compiler_options`). `kernels` "fused": `jaxgpt.kernels`, where they can run.
    """

    compute: DType
    validation: DType
    parameters: DType
    embedding: DType
    newton_schulz: DType
    newton_schulz_norm: DType
    matmul: Literal["default", "highest"]
    attention: Literal["exact", "fast"]
    rounding: Literal["free", "pinned"] = "free"
    kernels: Literal["plain", "fused"] = "plain"


def precision(
    recipe: Recipe,
    dtype: DType | None,
    attention: Literal["exact", "fast"],
    rounding: Literal["free", "pinned"] = "free",
    kernels: Literal["plain", "fused"] = "plain",
) -> Precision:
    """The recipe's own precision, or `dtype` for the model, Newton-Schulz and its norm alike.

    Weights are at least float32, but for an embedding that the recipe itself keeps in bfloat16. Fast attention kernels
    exist for bfloat16 alone: any other compute dtype gets "exact", and "plain" kernels.
    """
    compute = dtype or recipe.model.compute_dtype
    return Precision(
        compute=compute,
        validation=dtype or recipe.model.validation_dtype,
        parameters="float64" if compute == "float64" else "float32",
        embedding=recipe.model.embedding_dtype if compute == "bfloat16" else compute,
        newton_schulz=dtype or recipe.optimizer.newton_schulz_dtype,
        newton_schulz_norm=dtype or recipe.optimizer.newton_schulz_norm_dtype,
        matmul="default" if compute == "bfloat16" else "highest",
        attention=attention if compute == "bfloat16" else "exact",
        rounding=rounding,
        kernels=kernels if compute == "bfloat16" else "plain",
    )
