"""What a recipe's optimiser keeps between steps, under the names that both trainers' files use.

`opt.<kind>.<weight's name>.<slot>`, with the optimiser's kind (muon, adamw, soap, shampoo) and the slots momentum;
exp_avg, exp_avg_sq; GG.0, Q.0 and roots.0 of a matrix's fan-out side, GG.1, Q.1 and roots.1 of its fan-in side.
"""

import functools
from collections import defaultdict
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from jaxgpt.bridge import from_torch, to_torch
from jaxgpt.recipes import Recipe

_SLOTS = {"mu": "exp_avg", "nu": "exp_avg_sq"}
"""optax's names of Adam's moments -> torch's. The other optimisers' are the same here as there."""


class _Slot(NamedTuple):
    """What arrays of the state have in common that belong to different weights."""

    kind: str
    name: str
    is_side: bool
    """Whether it is a statistic of one side of a matrix, which has no other to be transposed to."""


def moments_to_torch(opt_state: optax.OptState, recipe: Recipe) -> dict[str, np.ndarray]:
    """Every array of the optimiser's state by its name, in torch's layout. Counters aren't among them."""
    trees: dict[_Slot, dict] = defaultdict(dict)
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        slot, keys = _place(path, recipe)
        if keys:
            node = trees[slot]
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = leaf
    named: dict[str, np.ndarray] = {}
    for slot, tree in trees.items():
        arrays = to_torch(jax.device_get(tree), recipe.model, transpose=not slot.is_side)
        named |= {f"opt.{slot.kind}.{name}.{slot.name}": array for name, array in arrays.items()}
    return named


def moments_from_torch(
    opt_state: optax.OptState, tensors: dict[str, np.ndarray], recipe: Recipe, step: int
) -> optax.OptState:
    """`opt_state` with every array replaced by the one of its name, and its counters set to `step` updates done.

    Raises:
      KeyError: a name that `tensors` lacks.
    """
    trees: dict[_Slot, dict] = {}

    def replaced(path, leaf: jax.Array) -> jax.Array:
        slot, keys = _place(path, recipe)
        value: Any = step - (slot.kind == "soap")  # SOAP doesn't count its first call, which makes no update
        if keys:
            if slot not in trees:
                start, end = f"opt.{slot.kind}.", f".{slot.name}"
                names = [n for n in tensors if n.startswith(start) and n.endswith(end)]
                found = {n[len(start) : -len(end)]: tensors[n] for n in names}
                trees[slot] = from_torch(found, recipe.model, transpose=not slot.is_side)
            value = functools.reduce(lambda node, key: node[key], keys, trees[slot])
        return jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(replaced, opt_state)


def _place(path, recipe: Recipe) -> tuple[_Slot, tuple[str, ...]]:
    """Of a leaf of the state: its slot, and the keys of its weight in the tree of parameters; a counter has none."""
    group = next(key.key for key in path if isinstance(key, DictKey))
    kind = recipe.optimizer.kind if group == "hidden" else "adamw"
    last = max(i for i, key in enumerate(path) if isinstance(key, GetAttrKey))
    name, keys = _SLOTS.get(path[last].name, path[last].name), path[last + 1 :]
    is_side = bool(keys) and isinstance(keys[0], SequenceKey)
    if is_side:  # a kernel's rows are its fan-in
        name, keys = f"{name}.{1 - keys[0].idx}", keys[1:]
    return _Slot(kind, name, is_side), tuple(key.key for key in keys)
