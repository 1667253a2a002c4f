"""Weights to and from jaxgpt, through one safetensors file in torch's names and layout.

Tensors are called `model.<name>`, such as `model.h.3.attn.c_attn.weight`, and are (out, in) as `nn.Linear` has them.
"""

import importlib.metadata
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jaxgpt.errors import BadInput
from jaxgpt.recipes import DType, ModelConfig, Recipe


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of the model."""
    d, f = config.width, config.mlp_width
    names = {"fused": {"c_attn": 3 * d}, "separate": {"c_q": d, "c_k": d, "c_v": d}}[config.qkv]
    block: dict[str, tuple[int, ...]] = {f"attn.{name}": (rows, d) for name, rows in names.items()}
    block |= {"attn.c_proj": (d, d), "mlp.c_fc": (f, d), "mlp.c_proj": (d, f)}
    layers = {f"h.{i}.{n}.weight": s for i in range(config.layers) for n, s in block.items()}
    return {"wte.weight": (config.vocab, d)} | layers


def save_state(path: str | Path, weights: dict[str, Tensor], recipe: Recipe, step: int = 0) -> None:
    """Write a model's `state_dict()` after `step` updates; a file of that name is replaced whole or not at all."""
    tensors = {f"model.{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()}
    versions = {"torch": importlib.metadata.version("torch")}
    metadata = {"recipe": recipe.name, "step": str(step), "versions": json.dumps(versions)}
    new = Path(f"{path}.new")
    save_file(tensors, new, metadata=metadata)
    new.replace(path)


def load_state(path: str | Path, recipe: Recipe, dtype: DType = "float32") -> dict[str, Tensor]:
    """Read weights that either trainer wrote: name -> tensor of `dtype` on the CPU, as `load_state_dict` takes them.

    Raises:
      BadInput: no such file, not a safetensors file, or a tensor that is missing, unknown or of another shape.
    """
    wanted = shapes(recipe.model)
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
            return {name: file.get_tensor(found[name]).to(getattr(torch, dtype)) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"--init-from {path} can't be read as safetensors ({error}): give a file of either trainer"
        ) from None
