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


def named_norms(norms: Any, config: ModelConfig) -> dict[str, float]:
    """What `norms` gave, on the host, by torch's names in the model's order; the least finite of a fused weight's."""
    named = to_torch(jax.device_get(norms), config, transpose=False)
    values = {name: np.asarray(named[name], np.float64).reshape(-1) for name in config.shapes}
    return {name: float(each[np.argmin(np.isfinite(each))]) for name, each in values.items()}
