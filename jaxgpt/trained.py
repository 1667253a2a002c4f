"""The weights of a trained model: of a run's folder, finished or not, of either trainer, or of a file."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxgpt import bridge
from jaxgpt.checkpoint import restore_weights
from jaxgpt.curves import read_config
from jaxgpt.errors import BadInput
from jaxgpt.model import GPT
from jaxgpt.recipes import ModelConfig, Recipe
from jaxgpt.recorded import from_json
from jaxgpt.saved import Damaged, newest, unsealed


class Trained(NamedTuple):
    """A model and where it is from."""

    recipe: Recipe
    """With the overrides that it was trained with."""
    params: bridge.Params
    """float32, as NumPy arrays."""
    source: str
    """The file or checkpoint that was read."""


def of_run(folder: Path) -> Trained:
    """The weights of a run: weights.safetensors where it has finished, else those of its newest whole checkpoint.

    Raises:
      BadInput: no run's folder, or one without weights; a file that can't be used.
    """
    recipe = recipe_of(folder)
    weights, checkpoints = folder / "weights.safetensors", folder / "checkpoints"
    if weights.exists():
        return of_file(weights, recipe)
    config = read_config(folder / "config.json")
    if config.get("trainer") == "torch_ref":
        state = newest(checkpoints, _whole_state)[0]
        if state is not None:
            return of_file(state, recipe)
    else:
        shapes = _jax_shapes(recipe.model)
        if found := restore_weights(checkpoints, shapes):
            arrays, step = found
            return Trained(recipe, _tree(arrays), str(checkpoints / str(step)))
    raise BadInput(f"{folder} has no weights.safetensors and no checkpoint yet: wait for one, or give another run")


def recipe_of(folder: Path) -> Recipe:
    """The recipe in a run's config.json, with its overrides. Raises `BadInput` where there is none."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such run folder; give one that holds config.json, or a .safetensors file")
    file = folder / "config.json"
    return from_json(Recipe, read_config(file).get("recipe"), f"{file}: recipe")


def of_file(path: Path, recipe: Recipe) -> Trained:
    """The weights in a safetensors file that either trainer wrote, an optimiser's state beside them or not.

    Raises:
      BadInput: whatever `jaxgpt.bridge.load_state` refuses.
    """
    try:
        return Trained(recipe, bridge.load_state(path, recipe), str(path))
    except BadInput as error:
        raise BadInput(str(error).removeprefix("--init-from ")) from None


def _whole_state(checkpoint: Path) -> Path:
    """The state file of a checkpoint of torch_ref. Raises `Damaged`."""
    state = checkpoint / "state.safetensors"
    try:
        _, facts = unsealed(json.loads((checkpoint / "facts.json").read_bytes()))
        with state.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Damaged(f"{Path(error.filename or state).name}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Damaged("facts.json isn't JSON") from None
    if found != facts.get("state_sha256"):
        raise Damaged("state.safetensors has other bytes than were saved")
    return state


def _jax_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of JAX's weights, without making any."""
    params = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))))[1])
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _tree(arrays: dict[str, np.ndarray]) -> bridge.Params:
    """The nested form of weights by path, in float32."""
    params: bridge.Params = {}
    for name, array in arrays.items():
        *path, last = name.split(".")
        node = params
        for key in path:
            node = node.setdefault(key, {})
        node[last] = array.astype(np.float32)
    return params
