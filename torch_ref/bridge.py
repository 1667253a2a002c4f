"""Weights to and from jaxgpt, through one safetensors file in torch's names and layout.

Tensors are called `model.<name>`, such as `model.h.3.attn.c_attn.weight`, and are (out, in) as `nn.Linear` has them.
Tensors that a recipe keeps in bfloat16 are float32 in the file, which loses nothing.
"""

import importlib.metadata
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jaxgpt.errors import BadInput
from jaxgpt.recipes import DType, Recipe


def save_state(path: str | Path, weights: dict[str, Tensor], recipe: Recipe, step: int = 0) -> None:
    """Write a model's `state_dict()` after `step` updates; a file of that name is replaced whole or not at all."""
    wide = lambda w: w if w.itemsize >= 4 else w.float()  # noqa: E731
    tensors = {f"model.{name}": wide(weight.detach().cpu()).contiguous() for name, weight in weights.items()}
    versions = {"torch": importlib.metadata.version("torch")}
    metadata = {"recipe": recipe.name, "step": str(step), "versions": json.dumps(versions)}
    new = Path(f"{path}.new")
    save_file(tensors, new, metadata=metadata)
    new.replace(path)


def load_state(
    path: str | Path, recipe: Recipe, dtype: DType = "float32", embedding: DType | None = None
) -> dict[str, Tensor]:
    """Read weights that either trainer wrote: name -> tensor on the CPU, as `load_state_dict` takes them.

    They have `dtype`, the embedding `embedding` where that is given.

    Raises:
      BadInput: no such file, not a safetensors file, or a tensor that is missing, unknown or of another shape.
    """
    wanted = recipe.model.shapes
    dtypes = {"wte.weight": embedding or dtype}
    try:
        with safe_open(path, framework="pt") as file:
            found = {name.removeprefix("model."): name for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
            for name, shape in wanted.items():
                has = tuple(file.get_slice(found[name]).get_shape()) if name in found else None
                if has != shape:
                    raise BadInput(
                        f"--init-from {path}: {name} is {has or 'missing'} there and {shape} in {recipe.name}; give "
                        "the recipe and overrides that the file was written with"
                    )
            if extra := sorted(found.keys() - wanted.keys()):
                raise BadInput(
                    f"--init-from {path}: {recipe.name} has no weight {extra[0]}; give the file's own recipe"
                )
            return {n: file.get_tensor(found[n]).to(getattr(torch, dtypes.get(n, dtype))) for n in wanted}
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"--init-from {path} can't be read as safetensors ({error}): give a file of either trainer"
        ) from None
