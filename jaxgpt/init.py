"""Initial weights: a weight's name -> its distribution, per recipe."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn.initializers import zeros

from jaxgpt.recipes import ModelConfig

Initializer = Callable[..., jax.Array]
"""(key, shape, dtype) -> weight."""


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, out_sharding=None) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for a kernel (fan_in, fan_out): torch's default for `nn.Linear`."""
    bound = 1 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def uniform_width(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """U(-1/sqrt(D), 1/sqrt(D)) for the tied matrix (V, D): drawn as the head `nn.Linear(D, V)`, not as an embedding."""
    bound = 1 / math.sqrt(shape[1])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def initializer(config: ModelConfig, name: str) -> Initializer:
    """How the weight of that name (torch's names, without the layer's number) starts."""
    if name == "wte.weight":
        return uniform_width
    if name.endswith("c_proj.weight") and config.zero_init_projections:
        return zeros
    return uniform_fan_in
