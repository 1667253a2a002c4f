"""Weights to and from jaxgpt, through one safetensors file in torch's names and layout.

Tensors are called `model.<name>`, such as `model.h.3.attn.c_attn.weight`, and are (out, in) as `nn.Linear` has them.
Tensors that a recipe keeps in bfloat16 are float32 in the file, which loses nothing. A file may also hold all that
training goes on from: see `jaxgpt.statefile`.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jaxgpt.errors import BadInput
from jaxgpt.files import check_ordinary
from jaxgpt.recipes import DType, Recipe
from jaxgpt.statefile import DTYPES, check_moments, checked_header, moment_shapes, sort_metadata
from torch_ref.tokens import Position


class TrainingState(NamedTuple):
    """All that training goes on from, on the CPU."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """What the optimisers keep, by the names in files: `torch_ref.moments.set_moments` puts it in its place."""
    step: int
    """Updates done."""
    position: Position
    """Where the next step's tokens start."""


def save_state(
    path: str | Path,
    weights: dict[str, Tensor],
    recipe: Recipe,
    step: int = 0,
    moments: dict[str, Tensor] | None = None,
    position: Position | None = None,
) -> None:
    """Write a model's `state_dict()` after `step` updates; a file of that name is replaced whole or not at all.

    With `moments`, as `torch_ref.moments.moments` names them, and `position`, where the next step's tokens start, the
    file is a training state.

    Raises:
      ValueError: one of the two without the other; moments that aren't all that the optimisers keep after an update.
    """
    if (moments is None) != (position is None):
        raise ValueError("a training state has both moments and position, a file of weights neither: give both or none")
    wide = lambda w: w if w.itemsize >= 4 else w.float()  # noqa: E731
    tensors = {f"model.{name}": wide(weight.detach().cpu()).contiguous() for name, weight in weights.items()}
    versions = {"torch": importlib.metadata.version("torch")}
    metadata = {"recipe": recipe.name, "step": str(step), "versions": json.dumps(versions)}
    if moments is not None and position is not None:
        check_moments({name: tuple(each.shape) for name, each in moments.items()}, recipe, step)
        tensors |= {name: wide(each.detach().cpu()).contiguous() for name, each in moments.items()}
        metadata |= {"shard": str(position.shard), "offset": str(position.offset)}
    new = Path(f"{path}.new")
    save_file(tensors, new, metadata=metadata)
    sort_metadata(new)
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
        check_ordinary(path)
        with safe_open(path, framework="pt") as file:
            found = {name.removeprefix("model."): name for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
            for name, shape in wanted.items():
                has = tuple(file.get_slice(found[name]).get_shape()) if name in found else None
                if has != shape:
                    raise BadInput(
                        f"--init-from {path}: {name} is {has or 'missing'} there and {shape} in {recipe.name}; give "
                        "the recipe and overrides that the file was written with"
                    )
                if (dtype_there := file.get_slice(found[name]).get_dtype()) not in DTYPES:
                    raise BadInput(
                        f"--init-from {path}: {name} is {dtype_there} there, not F32 or F64: give a file of either "
                        "trainer"
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


def load_training_state(
    path: str | Path, recipe: Recipe, dtype: DType = "float32", embedding: DType | None = None
) -> TrainingState:
    """Read all that training goes on from, which either trainer wrote. Dtypes as in `load_state`: moments have those of
    their weights.

    Raises:
      BadInput: whatever `jaxgpt.statefile.checked_header` refuses.
    """
    step, shard, offset = checked_header(path, recipe)
    weights = load_state(path, recipe, dtype, embedding)
    with safe_open(path, framework="pt") as file:
        moments = {
            name: file.get_tensor(name).to(getattr(torch, (embedding or dtype) if ".wte.weight." in name else dtype))
            for name in moment_shapes(recipe)
        }
    return TrainingState(weights, moments, step, Position(shard, offset))
