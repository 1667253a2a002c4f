"""Which tensor isn't finite: found on the devices, named as files and torch name it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from jaxgpt.bridge import to_torch
from jaxgpt.config import ModelConfig


def norms(tensors: Any) -> Any:
    """The Frobenius norm of each tensor of a tree like the parameters, in at least float32; (L,) of stacked layers."""

    def norm(path, leaf: jax.Array) -> jax.Array:
        layers = int(jax.tree_util.keystr(path[:1], simple=True) == "h")
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return jnp.sqrt(jnp.square(wide).sum(axis=tuple(range(layers, leaf.ndim))))

    return jax.tree_util.tree_map_with_path(norm, tensors)


def if_finite(is_finite: Bool[Array, ""], updated: Any, state: Any) -> Any:
    """`updated`, or `state` with the counters of its schedules moved on, which count steps, not updates."""

    def is_counter(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def choose(new: Any, old: Any) -> Any:
        return new if is_counter(new) else jnp.where(is_finite, new, old)

    return jax.tree.map(choose, updated, state, is_leaf=is_counter)


def first_not_finite(norms: Any, config: ModelConfig) -> str | None:
    """The name in torch of the first tensor, in the model's order, whose norm is NaN or infinite, and that norm."""
    named = to_torch(jax.device_get(norms), config, transpose=False)
    for name in config.shapes:
        worst = np.asarray(named[name]).reshape(-1)
        if not np.isfinite(worst).all():
            return f"{name} (norm {worst[~np.isfinite(worst)][0]})"
    return None
