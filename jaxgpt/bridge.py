"""Weights to and from torch_ref, through one safetensors file in torch's names and layout.

Tensors are called `model.<name>`, such as `model.h.3.attn.c_attn.weight`, and are (out, in) as `nn.Linear` has them.
JAX stacks the layers, keeps queries, keys and values apart, and has kernels (in, out).

`python -m jaxgpt.bridge --recipe NAME --out FILE` writes initial weights that both trainers can start from.
"""

import dataclasses
import importlib.metadata
import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.flags import check_seed
from jaxgpt.model import GPT
from jaxgpt.recipes import ModelConfig, Recipe, named

Params = dict


def to_torch(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """torch_ref's name -> weight, in its layout, of JAX's parameters; dtypes are kept."""
    weights = {"wte.weight": np.asarray(params["wte"])}
    for module, names in params["h"].items():
        kernels = {name: np.asarray(leaf["kernel"]) for name, leaf in names.items()}
        if module == "attn" and config.qkv == "fused":
            kernels["c_attn"] = np.concatenate([kernels.pop(n) for n in ("c_q", "c_k", "c_v")], axis=-1)
        for name, kernel in kernels.items():
            for layer in range(config.layers):
                weights[f"h.{layer}.{module}.{name}.weight"] = np.ascontiguousarray(kernel[layer].T)
    return weights


def from_torch(weights: dict[str, np.ndarray], config: ModelConfig) -> Params:
    """The reverse of `to_torch`: JAX's parameters, as NumPy arrays."""

    def kernel(name: str) -> np.ndarray:
        return np.stack([weights[f"h.{layer}.{name}.weight"].T for layer in range(config.layers)])

    if config.qkv == "fused":
        qkv = dict(zip(("c_q", "c_k", "c_v"), np.split(kernel("attn.c_attn"), 3, axis=-1), strict=True))
    else:
        qkv = {name: kernel(f"attn.{name}") for name in ("c_q", "c_k", "c_v")}
    attn = qkv | {"c_proj": kernel("attn.c_proj")}
    mlp = {name: kernel(f"mlp.{name}") for name in ("c_fc", "c_proj")}
    return {
        "wte": weights["wte.weight"],
        "h": {module: {n: {"kernel": k} for n, k in each.items()} for module, each in (("attn", attn), ("mlp", mlp))},
    }


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """torch_ref's name -> shape of every weight of the model."""
    d, f = config.width, config.mlp_width
    attn = {"c_attn": (3 * d, d)} if config.qkv == "fused" else dict.fromkeys(("c_q", "c_k", "c_v"), (d, d))
    block: dict[str, tuple[int, ...]] = {f"attn.{n}": s for n, s in attn.items()}
    block |= {"attn.c_proj": (d, d), "mlp.c_fc": (f, d), "mlp.c_proj": (d, f)}
    layers = {f"h.{i}.{n}.weight": s for i in range(config.layers) for n, s in block.items()}
    return {"wte.weight": (config.vocab, d)} | layers


def save_state(path: str | Path, params: Params, recipe: Recipe, step: int = 0) -> None:
    """Write the weights after `step` updates; a file of that name is replaced whole or not at all."""
    tensors = {f"model.{name}": weight for name, weight in to_torch(params, recipe.model).items()}
    versions = {package: importlib.metadata.version(package) for package in ("jax", "flax")}
    metadata = {"recipe": recipe.name, "step": str(step), "versions": json.dumps(versions)}
    new = Path(f"{path}.new")
    save_file(tensors, new, metadata=metadata)
    new.replace(path)


def load_state(path: str | Path, recipe: Recipe, dtype: str = "float32") -> Params:
    """Read weights that either trainer wrote, as NumPy arrays of `dtype` in JAX's tree.

    Raises:
      BadInput: no such file, not a safetensors file, or a tensor that is missing, unknown or of another shape.
    """
    wanted = shapes(recipe.model)
    try:
        with safe_open(path, framework="numpy") as file:
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
            weights = {name: file.get_tensor(found[name]).astype(dtype) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"--init-from {path} can't be read as safetensors ({error}): give a file of either trainer"
        ) from None
    return from_torch(weights, recipe.model)


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Write the weights that jaxgpt.train starts from with this recipe and seed, for --init-from of both trainers."""

    out: Path
    """The safetensors file to write; it must not exist."""
    recipe: str = "tiny"
    seed: int = 0


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `InitialWeights`."""
    flags = parse(InitialWeights, sys.argv[1:] if argv is None else argv, "python -m jaxgpt.bridge")
    recipe = named(flags.recipe)
    check_seed(flags.seed)
    if flags.out.exists():
        raise BadInput(f"--out {flags.out} exists already and is left as it is: give another name")
    params = nnx.to_pure_dict(nnx.split(GPT(recipe.model, rngs=nnx.Rngs(flags.seed)))[1])
    try:
        save_state(flags.out, jax.device_get(params), recipe)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"--out {flags.out} can't be written ({error}): give a file in a folder that can") from None
    print(f"{recipe.model.parameters:,} weights of {recipe.name}, seed {flags.seed}: {flags.out}")


if __name__ == "__main__":
    main()
