"""Initial weights: a weight's name -> its distribution, per recipe."""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, ones, zeros

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


def normal_fan_in(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, out_sharding=None) -> jax.Array:
    """N(0, 0.33/fan_in) for a kernel (fan_in, fan_out)."""
    return jax.random.normal(key, shape, dtype) * jnp.asarray(math.sqrt(0.33 / shape[0]), dtype)


def rows_below(end: int, draw: Initializer) -> Initializer:
    """`draw`, with zeros from row `end` on."""
    return lambda key, shape, dtype=jnp.float32: draw(key, shape, dtype).at[end:].set(0)


def rules(config: ModelConfig) -> list[tuple[str, Initializer]]:
    """(pattern of names, distribution), of which the first that fits counts."""
    vectors = [("*.bias", zeros), ("ln_*.weight", ones)]
    if config.initial == "gpt2":
        residual = normal(0.02 / math.sqrt(2 * config.layers))
        return [*vectors, ("*.c_proj.weight", residual), ("*", normal(0.02))]
    if config.initial == "normal_zero_projections":
        zeroed = [("lm_head.weight", zeros), ("*.c_proj.weight", zeros)]
        return [*vectors, *zeroed, ("wte.weight", normal(1.0)), ("*", normal_fan_in)]
    tables = [(name, uniform_width) for name in ("wte.weight", "wpe.weight", "lm_head.weight")]
    zeroed = [("*.c_proj.weight", zeros)] if config.initial == "uniform_zero_projections" else []
    return [*vectors, *tables, *zeroed, ("*", uniform_fan_in)]


def initializer(config: ModelConfig, name: str) -> Initializer:
    """How the weight of that name (torch's names, without the layer's number) starts."""
    draw = next(draw for pattern, draw in rules(config) if fnmatchcase(name, pattern))
    has_padding = config.pad_rows == "masked" and name in ("wte.weight", "lm_head.weight", "lm_head.bias")
    return rows_below(config.token_ids, draw) if has_padding else draw
