"""Weights to and from torch_ref, through one safetensors file in torch's names and layout.

Tensors are called `model.<name>`, such as `model.h.3.attn.c_attn.weight`, and are (out, in) as `nn.Linear` has them.
JAX stacks the layers, keeps queries, keys and values apart, and has kernels (in, out). Tensors that a recipe keeps in
bfloat16 are float32 in the file, which loses nothing. A file may also hold all that training goes on from: see
`jaxgpt.statefile`.

`python -m jaxgpt.bridge --recipe NAME --out FILE` writes initial weights that both trainers can start from; the model's
fields can be overridden as in the trainers.
"""

import dataclasses
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.commands import parse
from jaxgpt.errors import BadInput, exit_codes
from jaxgpt.files import check_name, check_ordinary
from jaxgpt.flags import check_seed, last_value
from jaxgpt.model import GPT
from jaxgpt.recipes import ModelConfig, Recipe, named
from jaxgpt.statefile import DTYPES, check_moments, checked_header, moment_shapes, sort_metadata
from jaxgpt.tokens import Position

Params = dict


class TrainingState(NamedTuple):
    """All that training goes on from."""

    params: Params
    moments: dict[str, np.ndarray]
    """What the optimiser keeps, by the names in files: `jaxgpt.moments.moments_from_torch` puts it in its place."""
    step: int
    """Updates done."""
    position: Position
    """Where the next step's tokens start."""


def to_torch(params: Params, config: ModelConfig, transpose: bool = True) -> dict[str, np.ndarray]:
    """torch_ref's name -> weight, in its layout, of JAX's parameters or of a part of them; dtypes are kept.

    Without `transpose` kernels stay as they are: for statistics of one side of a matrix, which have no other.
    """
    weights: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        module, _, part = jax.tree_util.keystr(path, simple=True, separator=".").rpartition(".")
        if not module:  # an embedding is an array, not a module with a weight
            module, part = part, "weight"
        array = np.asarray(leaf)
        if part == "kernel":
            part, array = "weight", array.mT if transpose else array
        if not module.startswith("h."):
            weights[f"{module}.{part}"] = array
            continue
        for layer in range(config.layers):
            weights[f"h.{layer}.{module.removeprefix('h.')}.{part}"] = np.ascontiguousarray(array[layer])
    if config.qkv == "fused":
        for name in [name for name in weights if ".c_q." in name]:
            parts = [weights.pop(name.replace(".c_q.", f".c_{each}.")) for each in "qkv"]
            weights[name.replace(".c_q.", ".c_attn.")] = np.concatenate(parts)
    return weights


def from_torch(weights: dict[str, np.ndarray], config: ModelConfig, transpose: bool = True) -> Params:
    """The reverse of `to_torch`: JAX's parameters, as NumPy arrays."""
    apart: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        if ".c_attn." in name:
            apart |= {name.replace(".c_attn.", f".c_{n}."): w for n, w in zip("qkv", np.split(weight, 3), strict=True)}
        else:
            apart[name] = weight
    params: Params = {}
    for name in [name for name in apart if not name.startswith("h.") or name.startswith("h.0.")]:
        array, path = apart[name], name.split(".")
        if path[0] == "h":
            array = np.stack([apart[f"h.{layer}.{'.'.join(path[2:])}"] for layer in range(config.layers)])
            path = ["h", *path[2:]]
            if path[1] in ("attn", "mlp") and path[-1] == "weight":
                path, array = [*path[:-1], "kernel"], array.mT if transpose else array
        elif path[0] in ("wte", "wpe"):
            path = path[:1]
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return params


def save_state(
    path: str | Path,
    params: Params,
    recipe: Recipe,
    step: int = 0,
    moments: dict[str, np.ndarray] | None = None,
    position: Position | None = None,
) -> None:
    """Write the weights after `step` updates; a file of that name is replaced whole or not at all.

    With `moments`, as `jaxgpt.moments.moments_to_torch` names them, and `position`, where the next step's tokens start,
    the file is a training state.

    Raises:
      ValueError: one of the two without the other; moments that aren't all that the optimiser keeps after an update.
    """
    if (moments is None) != (position is None):
        raise ValueError("a training state has both moments and position, a file of weights neither: give both or none")
    wide = lambda w: w if w.itemsize >= 4 else w.astype(np.float32)  # noqa: E731
    tensors = {f"model.{name}": wide(weight) for name, weight in to_torch(params, recipe.model).items()}
    versions = {package: importlib.metadata.version(package) for package in ("jax", "flax")}
    metadata = {"recipe": recipe.name, "step": str(step), "versions": json.dumps(versions)}
    if moments is not None and position is not None:
        check_moments({name: each.shape for name, each in moments.items()}, recipe, step)
        tensors |= {name: wide(each) for name, each in moments.items()}
        metadata |= {"shard": str(position.shard), "offset": str(position.offset)}
    new = Path(f"{path}.new")
    save_file(tensors, new, metadata=metadata)
    sort_metadata(new)
    new.replace(path)


def load_state(path: str | Path, recipe: Recipe, dtype: str = "float32", embedding: str | None = None) -> Params:
    """Read weights that either trainer wrote, as NumPy arrays of `dtype` (the embedding: `embedding`) in JAX's tree.

    Raises:
      BadInput: no such file, not a safetensors file, or a tensor that is missing, unknown or of another shape.
    """
    wanted = recipe.model.shapes
    dtypes = {"wte.weight": jnp.dtype(embedding or dtype)}
    try:
        check_ordinary(path)
        with safe_open(path, framework="numpy") as file:
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
            weights = {n: file.get_tensor(found[n]).astype(dtypes.get(n, jnp.dtype(dtype))) for n in wanted}
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"--init-from {path} can't be read as safetensors ({error}): give a file of either trainer"
        ) from None
    return from_torch(weights, recipe.model)


def load_training_state(
    path: str | Path, recipe: Recipe, dtype: str = "float32", embedding: str | None = None
) -> TrainingState:
    """Read all that training goes on from, which either trainer wrote. Dtypes as in `load_state`: moments have those of
    their weights.

    Raises:
      BadInput: whatever `jaxgpt.statefile.checked_header` refuses.
    """
    step, shard, offset = checked_header(path, recipe)
    params = load_state(path, recipe, dtype, embedding)
    with safe_open(path, framework="numpy") as file:
        moments = {
            name: file.get_tensor(name).astype(
                jnp.dtype(embedding or dtype) if ".wte.weight." in name else jnp.dtype(dtype)
            )
            for name in moment_shapes(recipe)
        }
    return TrainingState(params, moments, step, Position(shard, offset))


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Write the weights that jaxgpt.train starts from with this recipe and seed, for --init-from of both trainers."""

    out: Path
    """The safetensors file to write; it must not exist."""
    recipe: str = "tiny"
    seed: int = 0
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)


@exit_codes
def main(argv: list[str] | None = None) -> None:
    """The program; see `InitialWeights`."""
    argv = sys.argv[1:] if argv is None else argv
    recipe = named(last_value(argv, "--recipe") or InitialWeights.recipe)
    unset = InitialWeights(out=tyro.MISSING, model=recipe.model)
    flags = parse(InitialWeights, argv, "python -m jaxgpt.bridge", unset)
    recipe = dataclasses.replace(recipe, model=flags.model)
    check_seed(flags.seed)
    check_name(flags.out, "--out")
    if flags.out.exists() or flags.out.is_symlink():
        raise BadInput(f"--out {flags.out} exists already and is left as it is: give another name")
    params = nnx.to_pure_dict(nnx.split(GPT(recipe.model, rngs=nnx.Rngs(flags.seed)))[1])
    try:
        save_state(flags.out, jax.device_get(params), recipe)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"--out {flags.out} can't be written ({error}): give a file in a folder that can") from None
    print(f"{recipe.model.parameters:,} weights of {recipe.name}, seed {flags.seed}: {flags.out}")


if __name__ == "__main__":
    main()
